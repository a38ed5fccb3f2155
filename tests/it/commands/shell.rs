//! The command as a citizen of a shell: help, completions, pipes.

use std::process::{Command, ExitStatus, Stdio};

use super::Scene;
use crate::support::daemon::{backfilld, backfilld_with};

const PROGRAM: &str = env!("CARGO_BIN_EXE_backfilld");

const COMMANDS: [&str; 12] = [
    "run",
    "init",
    "check",
    "submit",
    "status",
    "pause",
    "resume",
    "cancel",
    "retry",
    "wait",
    "events",
    "completions",
];

#[test]
fn help_is_no_error_and_names_every_command() {
    let help = backfilld("", &["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for command in COMMANDS {
        assert!(
            help.stdout.lines().any(|line| line.trim_start().starts_with(&format!("{command} "))),
            "{command}"
        );
        let own = backfilld("", &[command, "--help"]);
        assert_eq!((own.code, own.stderr.as_str()), (0, ""), "{command}");
        assert!(own.stdout.contains("--config") && own.stdout.contains("--database-url"), "{command}");
    }
    for part in ["Exit codes: 0 done", "/etc/backfilld/backfilld.toml"] {
        assert!(help.stdout.contains(part), "{}", help.stdout);
    }
    let version = backfilld("", &["--version"]);
    assert_eq!(
        (version.code, version.stdout.as_str()),
        (0, concat!("backfilld ", env!("CARGO_PKG_VERSION"), "\n"))
    );
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_is_wrong() {
    for (arguments, told) in [
        (&[] as &[_], "Usage: backfilld"),
        (&["frob"], "frob"),
        (&["statsu"], "status"),
        (&["check"], "<FILE>"),
        (&["submit"], "<FILE>"),
        (&["pause"], "<NAME>"),
        (&["wait", "fill", "--timeout", "soon"], "--timeout"),
        (&["status", "--json", "--watch"], "--watch"),
        (&["status", "--jsno"], "--json"),
        (&["events", "--limit=-1"], "--limit"),
        (&["completions", "powershel"], "powershell"),
    ] {
        let run = backfilld("", arguments);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(told), "{arguments:?}: {run:?}");
    }
}

#[test]
fn completions_need_no_configuration_and_are_right_for_each_shell() {
    // A configuration that is wrong does not stand in the way either.
    let wrong = [("BACKFILLD__LOG__LEVLE", "debug")];
    for shell in ["bash", "zsh", "fish"] {
        let run = backfilld_with("", &["completions", shell], &wrong);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{shell}");
        for command in COMMANDS {
            assert!(run.stdout.contains(command), "{shell}: {command}");
        }
        assert!(run.stdout.contains("until-idle") && run.stdout.contains("database-url"), "{shell}");
        assert!(!run.stdout.contains("manual pages"), "{shell} offers what is hidden");
        // Where the shell is installed, it says whether it can read the script.
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script.path(), &run.stdout).unwrap();
        if let Ok(read) = Command::new(shell).arg("-n").arg(script.path()).output() {
            assert!(read.status.success(), "{shell}: {}", String::from_utf8_lossy(&read.stderr));
        }
    }
}

/// The commands that the help names.
fn commands() -> Vec<String> {
    let help = backfilld("", &["--help"]).stdout;
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let listed = list.lines().map_while(|line| line.strip_prefix("  "));
    // A description that is too long for one line goes on further to the right.
    let mut names: Vec<String> = listed
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(names.pop().as_deref(), Some("help"));
    assert!(COMMANDS.iter().all(|command| names.iter().any(|name| name == command)), "{names:?}");
    names
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("share/man");
    let run = backfilld("", &["man", "--out", out.to_str().unwrap()]);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (0, "", ""));
    let mut expected: Vec<String> = commands()
        .iter()
        .map(|command| format!("backfilld-{command}.1"))
        .chain(["backfilld.1".into()])
        .collect();
    expected.sort();
    let mut pages: Vec<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    assert_eq!(pages, expected);
    let page = std::fs::read_to_string(out.join("backfilld-pause.1")).unwrap();
    let version = concat!("backfilld ", env!("CARGO_PKG_VERSION"));
    for part in [version, "\\-\\-no\\-wait", "\\-\\-database\\-url", "Resume by itself after this time"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // Where it is installed, groff says whether it can read them.
    for page in &pages {
        let read = Command::new("groff").args(["-man", "-ww", "-z", "-Tutf8"]).arg(out.join(page)).output();
        if let Ok(read) = read {
            assert_eq!(String::from_utf8_lossy(&read.stderr), "", "{page}");
        }
    }
    // Where they cannot be written, it says so.
    let file = tempfile::NamedTempFile::new().unwrap();
    let run = backfilld("", &["man", "--out", file.path().to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("cannot write the manual pages to"), "{run:?}");
}

/// Runs the program with nobody at the other end of standard output or standard error; returns how
/// it ended and what it wrote to the other one.
fn into_closed_pipe(stdout: bool, url: &str, arguments: &[&str]) -> (ExitStatus, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(PROGRAM);
    command.args(arguments).args(["--database-url", url]).stdin(Stdio::null());
    command.args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/empty.toml")]);
    command.env("BACKFILLD__HTTP__LISTEN", "127.0.0.1:0");
    if stdout {
        command.stdout(writer).stderr(Stdio::piped());
    } else {
        command.stderr(writer).stdout(Stdio::piped());
    }
    let output = command.output().unwrap();
    let other = if stdout { output.stderr } else { output.stdout };
    (output.status, String::from_utf8(other).unwrap())
}

#[tokio::test]
async fn a_reader_that_has_gone_away_is_no_failure() {
    let scene = Scene::with_users(10).await;
    let job = scene.job("fill", "");
    scene.done(&["submit", &job]);
    for arguments in [
        &["status"] as &[_],
        &["status", "--json"],
        &["status", "--watch"],
        &["events"],
        &["events", "--follow"],
        &["check", &job],
        &["init"],
        &["pause", "fill"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let (status, stderr) = into_closed_pipe(true, scene.url(), arguments);
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{arguments:?} ended with {status}");
    }
}

#[tokio::test]
async fn head_gets_its_line_of_a_long_output() {
    let scene = Scene::with_users(1).await;
    scene
        .client
        .batch_execute(
            "INSERT INTO backfilld.event (kind, actor, reason)
             SELECT 'tested', 'a test', repeat('x', 200) FROM generate_series(1, 5000)",
        )
        .await
        .unwrap();
    let script = r#"set -o pipefail; "$0" events --limit 5000 --database-url "$1" | head -1"#;
    let output = Command::new("bash").args(["-c", script, PROGRAM, scene.url()]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), stdout.lines().count()), (Some(0), 1), "{stdout}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[tokio::test]
async fn a_failure_keeps_its_exit_code_when_nobody_reads_its_message() {
    let scene = Scene::with_users(1).await;
    let (status, stdout) = into_closed_pipe(false, scene.url(), &["status", "nobody"]);
    assert_eq!((status.code(), stdout.as_str()), (Some(1), ""), "ended with {status}");
}

/// Such as `backfilld run 2>&1 | tee log` when somebody ends tee.
#[tokio::test]
async fn a_daemon_outlives_the_reader_of_its_log() {
    let scene = Scene::with_users(100).await;
    let job = scene.job("fill", "");
    let (status, _) = into_closed_pipe(false, scene.url(), &["run", "--until-idle", "--job", &job]);
    assert_eq!(status.code(), Some(0), "ended with {status}");
    assert_eq!(scene.status("fill")["rows_changed"], 100);
}
