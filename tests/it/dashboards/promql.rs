//! As much of `PromQL`'s grammar as it takes to ask for the parts of an expression.

/// The operands of an expression's outermost `or` and `unless`, which would hide each other's being empty. Comparisons
/// in them have the modifier `bool`, with which they keep every series that both sides have; and `absent` is
/// taken off, which is to find nothing.
pub(super) fn parts(query: &str) -> Vec<String> {
    let tokens = tokens(query);
    let mut parts = vec![String::new()];
    let mut depth = 0_i32;
    let mut after_unless = false;
    let mut index = 0;
    while index < tokens.len() {
        let token = tokens[index];
        match token {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 && ["or", "unless"].contains(&token) {
            parts.push(String::new());
            after_unless = token == "unless";
        } else if after_unless && ["on", "ignoring"].contains(&token) {
            // What follows says by which labels to leave out.
            index += tokens[index..].iter().position(|token| *token == ")").unwrap();
            after_unless = false;
        } else {
            let is_comparison = ["==", "!=", ">=", "<=", ">", "<"].contains(&token);
            let part = parts.last_mut().unwrap();
            part.push_str(token);
            part.push_str(if is_comparison { " bool " } else { " " });
            after_unless &= token.trim().is_empty();
        }
        index += 1;
    }
    parts.iter().map(|part| part.trim().trim_start_matches("absent ").to_owned()).collect()
}

/// The selectors of an expression, each as a query of its own.
pub(super) fn selectors(query: &str) -> Vec<String> {
    let tokens = tokens(query);
    let mut selectors = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let is_metric = ["backfilld_", "database:", "job:", "job_signal:", "replica:"]
            .iter()
            .any(|start| token.starts_with(start));
        if is_metric || *token == "up" {
            let matchers = tokens.get(index + 1).filter(|next| next.starts_with('{')).unwrap_or(&"");
            selectors.push(format!("{token}{matchers}"));
        }
    }
    selectors
}

/// A dashboard's query with the values of variables.
pub(super) fn filled_in(query: &str, variables: &[(&str, &str)]) -> String {
    let filled = variables.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    assert!(!filled.contains('$'), "a variable that is not known: {filled}");
    filled
}

/// Words, braces with all that is in them, and other characters. Space is left out.
fn tokens(query: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = query.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |letter: char| letter.is_ascii_alphanumeric() || "_:.".contains(letter);
        // As Prometheus writes them: 1.9e+09.
        let is_number = |letter: char| letter.is_ascii_alphanumeric() || ".+".contains(letter);
        let length = match first {
            '{' => rest.find('}').unwrap() + 1,
            '0'..='9' => rest.find(|letter| !is_number(letter)).unwrap_or(rest.len()),
            letter if is_word(letter) => rest.find(|letter| !is_word(letter)).unwrap_or(rest.len()),
            '=' | '!' | '<' | '>' if rest[1..].starts_with('=') => 2,
            letter => letter.len_utf8(),
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

#[test]
fn an_expression_is_taken_apart_where_one_part_would_hide_another() {
    assert_eq!(parts("a{x=\"or\"} > 600"), ["a {x=\"or\"} > bool 600"]);
    assert_eq!(
        parts("max by (j) (a == 0) == 0 or absent(up{job=\"b\"})"),
        ["max by ( j ) ( a == bool 0 ) == bool 0", "( up {job=\"b\"} )"]
    );
    assert_eq!(
        parts("a <= on (d) group_left () 2 * b and on (d, j) c > 0.9 unless on (d) e > 0"),
        ["a <= bool on ( d ) group_left ( ) 2 * b and on ( d , j ) c > bool 0.9", "e > bool 0"]
    );
    assert_eq!(parts("vector(1.9e+09)"), ["vector ( 1.9e+09 )"]);
    assert_eq!(selectors("rate(backfilld_a{x=~\"$y\"}[5m]) or 0 * up"), ["backfilld_a{x=~\"$y\"}", "up"]);
}
