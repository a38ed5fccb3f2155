//! The tutorial, its half in SQL: every block runs as it stands on the page, in its order, and says what the page says.
//! The half with Django is tested by `tests/django/test_tutorial.py`, in the same way.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::support::daemon::backfilld;
use super::support::database::Database;
use super::support::guard::Guard;
use super::support::server;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tutorial.md");
/// What the page has in place of the reader's own database.
const ADDRESS: &str = "postgres://postgres@localhost/shop";
/// How long a block may take, and how long it is looked for what is to come.
const PATIENCE: Duration = Duration::from_secs(300);

/// A block of the page.
struct Block {
    /// Where it begins on the page.
    line: usize,
    /// The heading of the first two levels that it stands under.
    part: String,
    /// The paragraph before it, empty behind another block.
    intro: String,
    language: String,
    text: String,
}

impl Block {
    /// The file that it is, named in the line before it with the ending of its language.
    fn file(&self) -> Option<&str> {
        let last = self.intro.lines().last()?;
        let ending = match self.language.as_str() {
            "python" => ".py",
            "toml" => ".toml",
            "sql" => ".sql",
            _ => return None,
        };
        last.split('`').skip(1).step_by(2).find(|name| name.ends_with(ending))
    }

    /// It is to be run again until it says what is shown.
    fn repeated(&self) -> bool {
        self.intro.contains("Look until")
    }

    /// The codes other than 0 that its commands leave with.
    fn codes(&self) -> Vec<String> {
        let codes = self.text.split("# leaves with ").skip(1);
        codes.map(|rest| rest.lines().next().unwrap_or_default().to_owned()).collect()
    }
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut part, mut intro) = (String::new(), String::new());
    let mut open: Option<Block> = None;
    for (line, text) in (1..).zip(page.lines()) {
        match (&mut open, text.strip_prefix("```")) {
            (None, Some(language)) => {
                let (part, intro) = (part.clone(), std::mem::take(&mut intro));
                open = Some(Block { line, part, intro, language: language.to_owned(), text: String::new() });
            }
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some(block), _) => block.text.extend([text, "\n"]),
            (None, None) => {
                assert!(!text.contains("```"), "{PAGE}:{line}: a block that is not at the line's beginning");
                if let Some(heading) = text.strip_prefix("## ") {
                    heading.clone_into(&mut part);
                }
                // A blank line ends a paragraph, but for the one between it and its block.
                if intro.ends_with("\n\n") && !text.is_empty() {
                    intro.clear();
                }
                if !(intro.is_empty() && text.is_empty()) {
                    intro.extend([text, "\n"]);
                }
            }
        }
    }
    assert!(open.is_none(), "{PAGE}: the last block has no end");
    for block in &mut blocks {
        block.intro.truncate(block.intro.trim_end().len());
    }
    blocks
}

/// A line without what differs from one run to the next: numbers, with what they count, and widths.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    for word in line.split_whitespace() {
        let number = word.trim_start_matches(['(', '~']).starts_with(|c: char| c.is_ascii_digit());
        let unit = ["B", "kB", "MB", "GB", "ms", "s"].contains(&word);
        let dashes = word.chars().all(|c| c == '-' || c == '+');
        let word = if number || unit || dashes { "#" } else { word };
        // A duration of one word or of two, a reading or none.
        if !(word == "#" && plain.ends_with(" #")) {
            let _ = write!(plain, " {word}");
        }
    }
    plain
}

/// Whether `said` is what is `shown`, where a line of three dots stands for any lines. Where it is `repeated` its lines
/// may go on: what is on its way may have a note.
fn is_as_shown(said: &str, shown: &str, repeated: bool) -> bool {
    let said: Vec<String> = said.lines().map(plain).filter(|line| !line.is_empty()).collect();
    let shown: Vec<String> = shown.lines().map(plain).filter(|line| !line.is_empty()).collect();
    let same = |said: &[String], piece: &[String]| {
        said.len() >= piece.len()
            && said.iter().zip(piece).all(|(said, line)| said == line || repeated && said.starts_with(line))
    };
    let pieces: Vec<&[String]> = shown.split(|line| line == " ...").collect();
    let mut from = 0;
    for (number, piece) in pieces.iter().enumerate() {
        let (first, last) = (number == 0, number + 1 == pieces.len());
        let mut places = match (first, last) {
            _ if piece.is_empty() => continue,
            (true, true) => 0..usize::from(said.len() == piece.len()),
            (true, false) => 0..1,
            (false, true) => said.len().saturating_sub(piece.len()).max(from)..said.len(),
            (false, false) => from..said.len(),
        };
        let Some(place) = places.find(|place| same(&said[*place..], piece)) else { return false };
        from = place + piece.len();
    }
    true
}

/// The reader's shell, one for the whole page: it has the variables and the jobs of the blocks before.
struct Shell<'a> {
    folder: &'a Path,
    bash: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    guard: Guard,
}

impl<'a> Shell<'a> {
    fn start(folder: &'a Path) -> Self {
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            if ["BACKFILLD", "PG", "PSQL", "DATABASE_URL"]
                .iter()
                .any(|own| name.to_string_lossy().starts_with(own))
            {
                command.env_remove(&name);
            }
        }
        let program = Path::new(env!("CARGO_BIN_EXE_backfilld"));
        let path = std::env::join_paths(
            [program.parent().unwrap().to_owned(), server::program("psql").parent().unwrap().to_owned()]
                .into_iter()
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        let mut bash = command
            .args(["--noprofile", "--norc"])
            .current_dir(folder)
            .env("PATH", path.unwrap())
            .env("LC_ALL", "C.UTF-8")
            // Other tests have daemons of their own.
            .env("BACKFILLD__HTTP__LISTEN", "127.0.0.1:0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let guard = Guard::start(r#"kill -KILL -- "-$1""#, &[bash.id().to_string()]);
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(bash.stdout.take().unwrap());
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut input = bash.stdin.take().unwrap();
        // A command that fails is told, also in the middle of a block.
        writeln!(input, "exec 3>&1\ntrap 'echo $? >&3' ERR").unwrap();
        Self { folder, bash, input, lines, guard }
    }

    /// Runs `script`; returns what it says, and the codes other than 0 that its commands left with.
    fn run(&mut self, script: &str) -> (String, Vec<String>) {
        writeln!(self.input, "{{\n{script}\n}} >said 2>&1 </dev/null\necho done >&3").unwrap();
        let mut codes = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let said = fs::read_to_string(self.folder.join("said")).unwrap_or_default();
            match line.unwrap_or_else(|_| panic!("no end in {PATIENCE:?}:\n{script}\n{said}")).as_str() {
                "done" => return (said, codes),
                code => codes.push(code.to_owned()),
            }
        }
    }
}

impl Drop for Shell<'_> {
    fn drop(&mut self) {
        // The whole group is the reader's: the shell and what it has left in the background.
        let group = format!("-{}", self.bash.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.bash.wait();
        self.guard.dismiss();
    }
}

/// What the reader of this block gives to the shell.
fn script(block: &Block, url: &str, folder: &Path) -> String {
    if block.language == "sh" {
        return block.text.replace(ADDRESS, url);
    }
    // What undoes a stage is tried, and the page goes on from where it was.
    let (begin, end) = if block.intro.starts_with("Undo") { ("BEGIN;\n", "ROLLBACK;\n") } else { ("", "") };
    fs::write(folder.join("typed"), format!("{begin}{}{end}", block.text)).unwrap();
    "psql -X -v ON_ERROR_STOP=1 \"$DATABASE_URL\" <typed".to_owned()
}

fn run(block: &Block, shown: Option<&Block>, url: &str, shell: &mut Shell<'_>) {
    let script = script(block, url, shell.folder);
    let begun = Instant::now();
    loop {
        let (said, codes) = shell.run(&script);
        let log = fs::read_to_string(shell.folder.join("backfilld.log")).unwrap_or_default();
        assert_eq!(codes, block.codes(), "{PAGE}:{}: exit codes\n{said}\n{log}", block.line);
        let Some(shown) = shown else { return };
        if is_as_shown(&said, &shown.text, block.repeated()) {
            return;
        }
        assert!(
            block.repeated() && begun.elapsed() < PATIENCE,
            "{PAGE}:{}: shown is\n{}\nbut said was\n{said}\n{log}",
            shown.line,
            shown.text
        );
    }
}

#[tokio::test]
async fn every_block_in_sql_runs_as_it_stands() {
    let database = Database::create().await;
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path());
    let all = blocks(&fs::read_to_string(PAGE).unwrap());
    let mut ran = 0;
    let mut rest = all.iter().filter(|block| block.part != "With Django").peekable();
    while let Some(block) = rest.next() {
        assert!(["Before", "With SQL"].contains(&block.part.as_str()), "{PAGE}:{}: in no part", block.line);
        ran += 1;
        match (block.language.as_str(), block.file()) {
            (_, Some(file)) => fs::write(folder.path().join(file), &block.text).unwrap(),
            ("sh" | "sql", None) => {
                let shown = rest.next_if(|next| next.language == "text" && next.intro.is_empty());
                ran += usize::from(shown.is_some());
                run(block, shown, database.url(), &mut shell);
            }
            (other, None) => panic!("{PAGE}:{}: nobody runs this block: {other}", block.line),
        }
    }
    assert!(ran > 30, "{ran} blocks were run");
}

/// What the text mentions is not run: it must be there at least.
#[test]
fn commands_in_the_text_are_known() {
    let page = fs::read_to_string(PAGE).unwrap();
    let text: String = page.split("```").step_by(2).collect();
    let spans: Vec<&str> = text.split('`').filter(|span| span.starts_with("backfilld ")).collect();
    assert!(spans.len() > 5, "{spans:?}");
    for span in spans {
        let words: Vec<&str> = span.split_whitespace().collect();
        let help = backfilld("", &[words[1], "--help"]);
        assert_eq!(help.code, 0, "{span}: {}", help.stderr);
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.stdout.contains(flag), "{span}: {}", help.stdout);
        }
    }
}

#[test]
fn what_is_shown_is_told_from_what_is_not() {
    let same = |said, shown| is_as_shown(said, shown, false);
    assert!(same("a  12,3 kB\nb\n", "a 4 ms\nb\n"));
    assert!(!same("a 1\nb\n", "a 1\n"));
    assert!(!same("a 1\n", "b 1\n"));
    assert!(!same("", "a\n"));
    assert!(same("x\na 1\nb\nc\n", "...\na 2\nb\n...\n"));
    assert!(!same("x\na\ny\nb\n", "...\na\nb\n...\n"));
    assert!(same("x\na\n", "...\na\n") && !same("a\nx\n", "...\na\n"));
    assert!(same("a\nx\n", "a\n...\n") && !same("x\na\n", "a\n...\n"));
    assert!(!same("a\nx\n", "a\n...\na\nx\n"));
    assert!(is_as_shown("a running 3 % note\n", "a running 1 %\n", true));
}
