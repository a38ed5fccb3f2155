//! Changing how fast a job goes, and in what portions, without its file.

use serde_json::Value;

use super::known_keys::Source;
use super::spec::{KNOWN_KEYS, Spec};

/// Short names of keys that are tuned most.
const SHORT: [(&str, &str); 2] = [("workers", "walk.workers"), ("rows_per_second", "limits.rows_per_second")];
/// The sections that may be tuned as a whole.
const SECTIONS: [&str; 2] = ["batch", "limits"];

/// The spec with each of `changes`, written as `KEY=VALUE`; `KEY=` takes a key out, so that its default holds. One
/// message for every change that is wrong.
pub fn apply(spec: &Value, changes: &[String]) -> Result<Spec, Vec<String>> {
    let (mut tuned, mut problems) = (spec.clone(), Vec::new());
    for change in changes {
        match parse(change) {
            Ok((section, key, value)) => set(&mut tuned, &section, &key, value.as_ref()),
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() { Spec::from_json(&tuned) } else { Err(problems) }
}

/// Section and key of a change, and the value unless the key is to be taken out.
fn parse(change: &str) -> Result<(String, String, Option<toml::Value>), Vec<String>> {
    let Some((name, text)) = change.split_once('=') else {
        return Err(vec![format!("{change}: write KEY=VALUE, such as workers=4")]);
    };
    let (name, text) = (name.trim(), text.trim());
    let path = SHORT.iter().find(|(short, _)| *short == name).map_or(name, |(_, path)| path);
    let tunable = |section: &str| SECTIONS.contains(&section) || path == "walk.workers";
    let Some((section, key)) = path.split_once('.').filter(|(section, _)| tunable(section)) else {
        return Err(vec![format!(
            "{name} cannot be tuned: workers, rows_per_second, batch.* and limits.* can; for anything else change the job file and `backfilld submit --replace`"
        )]);
    };
    // As in a file; what is not written as in a file is a text: 50ms need not stand in quotes.
    let written = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    let value = written
        .and_then(|mut table| table.remove("value").filter(|_| table.is_empty()))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()));
    let keys = toml::Table::from_iter([(key.to_owned(), value.clone())]);
    let table = toml::Table::from_iter([(section.to_owned(), toml::Value::Table(keys))]);
    let is_out = text.is_empty();
    let mut problems = KNOWN_KEYS.check(&table, Source::File);
    if is_out {
        // Nothing is wrong with a value that there is not.
        problems.retain(|problem| problem.starts_with("unknown key"));
    }
    if problems.is_empty() {
        Ok((section.to_owned(), key.to_owned(), Some(value).filter(|_| !is_out)))
    } else {
        Err(problems)
    }
}

fn set(spec: &mut Value, section: &str, key: &str, value: Option<&toml::Value>) {
    let Some(value) = value else {
        if let Some(keys) = spec[section].as_object_mut() {
            keys.remove(key);
        }
        return;
    };
    let value = serde_json::to_value(value).expect("a value of a known kind is one of JSON too");
    if !spec[section].is_object() {
        spec[section] = Value::Object(serde_json::Map::new());
    }
    spec[section][key] = value;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> Value {
        json!({"name": "a", "table": "t", "update": {"set": {"x": "1"}}, "batch": {"min_rows": 5}})
    }

    fn apply(changes: &[&str]) -> Result<Value, String> {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        super::apply(&spec(), &changes).map(|spec| spec.to_json()).map_err(|problems| problems.join("\n"))
    }

    #[test]
    fn short_and_whole_names_set_their_keys_and_nothing_else() {
        let tuned = apply(&["workers=4", "rows_per_second = 500", "batch.target_duration=20ms"]).unwrap();
        let mut expected = spec();
        expected["walk"] = json!({"workers": 4});
        expected["limits"] = json!({"rows_per_second": 500.0});
        expected["batch"]["target_duration"] = json!("20ms");
        assert_eq!(tuned, expected);
        let back = apply(&["workers=4", "workers=", "batch.min_rows="]).unwrap();
        assert!(back.get("batch").is_none() && back.get("walk").is_none(), "{back}");
        assert_eq!(
            apply(&["batch.target_duration=\"20ms\"", "walk.workers=4", "limits.rows_per_second=500"])
                .unwrap(),
            expected
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key() {
        for (change, told) in [
            ("workers", "write KEY=VALUE"),
            ("worker=", "worker cannot be tuned"),
            ("batch.max_row=", "did you mean max_rows"),
            ("workers=many", "walk.workers must be a whole number"),
            ("workers=0", "walk.workers must be from 1"),
            ("batch.max_row=5", "did you mean max_rows"),
            ("batch.max_rows=2", "batch.max_rows"),
            ("update.where=x", "update.where cannot be tuned"),
            ("walk.order=descending", "walk.order cannot be tuned"),
            ("table=x", "table cannot be tuned"),
            ("batch.min_rows=1\nmax_rows = 2", "batch.min_rows"),
        ] {
            let problems = apply(&[change]).expect_err(change);
            assert!(problems.contains(told), "{change}: {problems}");
        }
        let problems = apply(&["workers=0.5", "table=x"]).expect_err("both are wrong");
        assert!(problems.contains("walk.workers") && problems.contains("table"), "{problems}");
    }
}
