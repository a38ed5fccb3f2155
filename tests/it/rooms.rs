//! The source is laid out as `src/lib.rs` says: rooms one above the other, files that fit a head,
//! no `unwrap` outside tests.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place and the error")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the lowest to the highest: each may use those before it.
const ROOMS: [&str; 11] =
    ["database", "web", "state", "throttle", "walk", "finish", "job", "settings", "http", "daemon", "cli"];

const LINES_AT_MOST: usize = 520;

#[test]
fn no_room_imports_a_higher_one() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let Some(room) = room_of(&path) else { continue };
        let height = ROOMS.iter().position(|known| *known == room).unwrap_or_else(|| {
            panic!(
                "{}: the room {room} has no place in the order: add it to ROOMS and src/lib.rs",
                path.display()
            )
        });
        for (used, line) in uses(&text) {
            if ROOMS.iter().position(|known| *known == used).is_none_or(|used| used > height) {
                broken.push(format!("{}:{line}: {room} may not use crate::{used}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_room_is_listed_in_the_order_in_lib_rs() {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    let listed: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`")?.split_once('`'))
        .map(|(room, _)| room)
        .collect();
    assert_eq!(listed, ROOMS, "the table in src/lib.rs, from the lowest room to the highest");
    let mut declared: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut rooms = ROOMS.to_vec();
    declared.sort_unstable();
    rooms.sort_unstable();
    assert_eq!(declared, rooms, "the modules of src/lib.rs");
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<String> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_AT_MOST)
        .map(|(path, lines)| format!("{} has {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "more than {LINES_AT_MOST} lines: {}", long.join(", "));
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (number, line) in lines_of_code(&text) {
            if line.contains(".unwrap()") {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "use expect, which states the invariant, or handle it:\n{}", found.join("\n"));
}

/// The checks above are only as good as their reading of a source text.
#[test]
fn the_reader_of_sources_sees_what_it_should() {
    let text = "\
use crate::walk::{Plan, keyset};
use crate::{daemon, job::Spec as _};
// See crate::cli for the rest.
fn f() { crate::http::serve(); g(\"// not a comment\").unwrap(); }
#[cfg(test)]
mod tests {
    use crate::cli;
    fn g() { h().unwrap(); }
}
";
    let used: Vec<String> = uses(text).into_iter().map(|(room, line)| format!("{line} {room}")).collect();
    assert_eq!(used, ["1 walk", "2 daemon", "2 job", "4 http"]);
    let unwrapped: Vec<usize> = lines_of_code(text)
        .filter(|(_, line)| line.contains(".unwrap()"))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(unwrapped, [4]);
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every Rust file below `src`, by its path from there.
fn sources() -> Vec<(PathBuf, String)> {
    let (mut folders, mut files) = (vec![src()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(src()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > ROOMS.len(), "src was found: {files:?}");
    files.sort();
    files
}

/// The room that a file belongs to; none for `main.rs` and `lib.rs`, which stand above all rooms.
fn room_of(path: &Path) -> Option<String> {
    let room = path.with_extension("").iter().next()?.to_str()?.to_owned();
    (room != "main" && room != "lib").then_some(room)
}

/// The numbered lines up to the unit tests, which stand last in a file, without comments.
fn lines_of_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The rooms that a text names as `crate::room` or `crate::{room, ...}`, with the line of each.
fn uses(text: &str) -> Vec<(String, usize)> {
    let word = |text: &str| -> String {
        text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
    };
    let mut found = Vec::new();
    for (number, line) in lines_of_code(text) {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            let names: Vec<String> = match rest.strip_prefix('{') {
                None => vec![word(rest)],
                Some(group) => {
                    assert!(
                        group.contains('}'),
                        "line {number}: a group over several lines is not read: {line}"
                    );
                    top_level(group).map(|name| word(name.trim())).collect()
                }
            };
            // An item of the crate itself, such as a macro, belongs to no room.
            let names = names.into_iter().filter(|name| name.starts_with(char::is_lowercase));
            found.extend(names.map(|name| (name, number)));
        }
    }
    found
}

/// The parts of a `use` group up to its closing brace, cut at the commas that no inner brace holds.
fn top_level(group: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let mut closed = false;
    group
        .split(move |letter| {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => closed = true,
                '}' => depth -= 1,
                _ => {}
            }
            closed || (letter == ',' && depth == 0)
        })
        .filter(|part| !part.trim().trim_end_matches(';').is_empty())
}
