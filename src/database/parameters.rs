//! The parameters of an address that the driver does not know, or does not know well enough: they are
//! taken out before it reads the rest.

use percent_encoding::percent_decode_str;

/// Parameters that were taken out of an address, in the order in which they stood there.
pub(super) type Taken = Vec<(String, String)>;

/// Takes the parameters of these names out of a URL or a key=value string. What does not parse stays as
/// it is: the driver says what is wrong.
pub(super) fn take(address: &str, names: &[&str]) -> (String, Taken) {
    if address.starts_with("postgres://") || address.starts_with("postgresql://") {
        of_url(address, names)
    } else {
        of_pairs(address, names)
    }
}

fn of_url(url: &str, names: &[&str]) -> (String, Taken) {
    let Some((place, query)) = url.split_once('?') else { return (url.to_owned(), Taken::new()) };
    let mut taken = Taken::new();
    let mut kept = Vec::new();
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        if names.contains(&decoded(name).as_str()) {
            taken.push((decoded(name), decoded(value)));
        } else {
            kept.push(parameter);
        }
    }
    let rest = if kept.is_empty() { place.to_owned() } else { format!("{place}?{}", kept.join("&")) };
    (rest, taken)
}

fn of_pairs(text: &str, names: &[&str]) -> (String, Taken) {
    let mut taken = Taken::new();
    let mut kept = String::new();
    let mut rest = text;
    while let Some((name, value, length)) = pair(rest) {
        if names.contains(&name) {
            taken.push((name.to_owned(), value));
        } else {
            kept.push_str(&rest[..length]);
        }
        rest = &rest[length..];
    }
    (kept + rest, taken)
}

/// The first `name = value` of `text`, where the value may be quoted, and how long it is as written.
fn pair(text: &str) -> Option<(&str, String, usize)> {
    let (name, after) = text.split_once('=')?;
    let value_start = text.len() - after.trim_start().len();
    let quoted = text[value_start..].starts_with('\'');
    let mut value = String::new();
    let mut characters = text[value_start..].char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next()?.1),
            '\'' if quoted => return Some((name.trim(), value, value_start + at + 1)),
            _ if !quoted && character.is_whitespace() => return Some((name.trim(), value, value_start + at)),
            _ => value.push(character),
        }
    }
    // A quote that was never closed is not for us to judge.
    (!quoted).then_some((name.trim(), value, text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(address: &str) -> (String, Vec<String>) {
        let (rest, taken) = take(address, &["sslmode", "sslrootcert"]);
        (rest, taken.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn parameters_of_a_url() {
        for (url, rest, found) in [
            ("postgres://u:p@h/d", "postgres://u:p@h/d", &[] as &[&str]),
            ("postgres://h/d?sslmode=require", "postgres://h/d", &["sslmode=require"]),
            (
                "postgresql://h/d?a=b&sslmode=verify-full&c=d&sslrootcert=%2Fa%20b",
                "postgresql://h/d?a=b&c=d",
                &["sslmode=verify-full", "sslrootcert=/a b"],
            ),
        ] {
            assert_eq!(taken(url), (rest.to_owned(), found.iter().map(ToString::to_string).collect()));
        }
    }

    #[test]
    fn parameters_of_pairs() {
        for (text, rest, found) in [
            ("host=h dbname=d", "host=h dbname=d", &[] as &[&str]),
            ("host=h sslmode = require dbname=d", "host=h dbname=d", &["sslmode=require"]),
            (
                r"password='a sslmode=disable \'b' sslrootcert='/a \'b' port=1",
                r"password='a sslmode=disable \'b' port=1",
                &["sslrootcert=/a 'b"],
            ),
            ("sslmode=require", "", &["sslmode=require"]),
            ("host=h password='open", "host=h password='open", &[]),
        ] {
            assert_eq!(taken(text), (rest.to_owned(), found.iter().map(ToString::to_string).collect()));
        }
    }
}
