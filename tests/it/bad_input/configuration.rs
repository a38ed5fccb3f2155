//! The daemon's configuration: the file, the environment, and what contradicts itself.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use super::message;
use crate::support::daemon::{Run, backfilld, backfilld_with};
use crate::support::database::Database;

/// Nothing listens there: whatever is told was found before anybody connected.
pub(super) const NOWHERE: &str = "postgres://postgres@127.0.0.1:1/nowhere";

/// Runs a command with this configuration file and an empty environment: the test support's own
/// variables would hide what the file says.
fn with_file(url: &str, text: &str, arguments: &[&str]) -> (Run, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backfilld.toml");
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_backfilld"));
    command.env_clear().args(arguments).args(["--config", &file]);
    if !url.is_empty() {
        command.args(["--database-url", url]);
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("it ended by itself");
    (Run { code, stdout: text(output.stdout), stderr: text(output.stderr) }, file)
}

/// Every command refuses the file with one line that begins with its name.
pub(super) fn tells(text: &str, parts: &[&str]) {
    for arguments in [&["status"] as &[_], &["run"], &["init"]] {
        let (run, file) = with_file(NOWHERE, text, arguments);
        let told = message(&run, 2);
        for part in [&[file.as_str()], parts].concat() {
            assert!(told.contains(part), "{arguments:?}: {part:?}\n{text}\n{told}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_or_not_toml() {
    let run = backfilld(NOWHERE, &["status", "--config", "nothing.toml"]);
    assert!(message(&run, 2).starts_with("nothing.toml: cannot read the configuration: "), "{run:?}");
    tells("[daemon\n", &["line 1", "]"]);
    tells("[daemon]\nname = x\n", &["line 2"]);
    tells("[daemon]\nname = 'x'\nname = 'y'\n", &["line 3", "duplicate key"]);
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    tells("[deamon]\nname = 'x'\n", &["unknown key deamon", "did you mean daemon?"]);
    tells("[daemon]\nmax_jobs = 1\n", &["unknown key daemon.max_jobs", "max_running_jobs"]);
    tells("[daemon]\nlaese = '1s'\n", &["unknown key daemon.laese", "did you mean lease?"]);
    tells("[log]\nlevle = 'x'\n", &["unknown key log.levle", "did you mean level?"]);
    tells("pool_size = 3\n", &["unknown key pool_size", "[database]"]);
    tells("[limits]\nrows_per_second = 3\n", &["unknown key limits"]);
}

#[test]
fn an_unknown_variable_is_named_with_the_nearest_known_key() {
    for (name, key, advice) in [
        ("BACKFILLD__LOG__LEVLE", "log.levle", "level"),
        ("BACKFILLD__DEAMON__NAME", "deamon", "daemon"),
        ("BACKFILLD__DATABASE__URI", "database.uri", "url"),
        ("BACKFILLD__SCHEMA", "schema", "[state]"),
    ] {
        let run = backfilld_with(NOWHERE, &["status"], &[(name, "x")]);
        let told = message(&run, 2);
        for part in [name, &format!("unknown key {key}"), advice] {
            assert!(told.contains(part), "{name}: {part:?}: {told}");
        }
    }
}

#[test]
fn a_variable_that_is_wrong_is_named_and_not_the_file() {
    let mut found = Vec::new();
    for (name, value, key) in [
        ("BACKFILLD__DAEMON__LEASE", "soon", "daemon.lease"),
        ("BACKFILLD__LOG__LEVEL", "loud", "log.level"),
        ("BACKFILLD__DAEMON__MAX_RUNNING_JOBS", "many", "daemon.max_running_jobs"),
        ("BACKFILLD__DAEMON__MAX_RUNNING_JOBS", "90", "daemon.max_running_jobs"),
        ("BACKFILLD__HTTP__LISTEN", "here", "http.listen"),
        ("BACKFILLD__STATE__SCHEMA", "pg_mine", "state.schema"),
    ] {
        let run = backfilld_with(NOWHERE, &["status"], &[(name, value)]);
        let told = message(&run, 2);
        if !told.contains(key) || !(told.contains(name) || told.contains("environment")) {
            found.push(format!("{name}={value}: {told}"));
        }
    }
    assert!(found.is_empty(), "the key, and where it comes from:\n{}", found.join("\n"));
}

/// A section in the environment is no value: `BACKFILLD__DATABASE=...` would otherwise do nothing.
#[test]
fn a_variable_that_names_a_section_only() {
    let run = backfilld_with(NOWHERE, &["status"], &[("BACKFILLD__DATABASE", "postgres://db/shop")]);
    assert!(message(&run, 2).contains("BACKFILLD__DATABASE"), "{run:?}");
}

#[test]
fn a_value_of_the_wrong_type_is_told_with_its_key() {
    for (text, parts) in [
        ("[daemon]\nlease = 'soon'\n", &["daemon.lease", "duration"] as &[_]),
        ("[daemon]\nlease = 30\n", &["daemon.lease", "duration"]),
        ("[daemon]\nmax_running_jobs = 'many'\n", &["daemon.max_running_jobs", "whole number"]),
        ("[daemon]\nmax_running_jobs = -1\n", &["daemon.max_running_jobs", "0 or more"]),
        ("[database]\npool_size = 'x'\n", &["database.pool_size", "whole number"]),
        ("[http]\nlisten = 'here'\n", &["http.listen"]),
        ("[http]\nlisten = 9797\n", &["http.listen"]),
        ("[log]\nformat = 'xml'\n", &["log.format", "json"]),
        ("[log]\nlevel = 'loud'\n", &["log.level", "debug"]),
        ("daemon = 'x'\n", &["daemon"]),
    ] {
        tells(text, parts);
    }
}

/// What may stand there must be said, in the words of whoever writes the file.
#[test]
fn a_wrong_value_is_answered_with_the_right_ones() {
    let mut found = Vec::new();
    for (text, parts) in [
        ("[log]\nformat = 'xml'\n", &["text", "json"] as &[_]),
        ("[log]\nlevel = 'loud'\n", &["error", "warn", "info", "debug", "trace"]),
        ("[http]\nlisten = 'here'\n", &["127.0.0.1:9797"]),
        ("[daemon]\nlease = 'soon'\n", &["30s"]),
        ("[daemon]\nmax_running_jobs = -1\n", &["max_running_jobs"]),
        ("daemon = 'x'\n", &["[daemon]"]),
    ] {
        let (run, _) = with_file(NOWHERE, text, &["status"]);
        let told = message(&run, 2);
        let rust = ["enum", "variant", "struct", "unsigned 64 bit"];
        if parts.iter().any(|part| !told.contains(part)) || rust.iter().any(|word| told.contains(word)) {
            found.push(format!("{parts:?}: {told}"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_contradicts_itself_or_makes_no_sense() {
    tells("[daemon]\nmax_running_jobs = 13\n", &["database.pool_size", "daemon.max_running_jobs + 4"]);
    tells("[database]\npool_size = 2\n", &["database.pool_size", "daemon.max_running_jobs + 4"]);
    tells("[daemon]\nmax_running_jobs = 0\n", &["daemon.max_running_jobs must be 1 or more"]);
    tells("[daemon]\nlease = '0s'\n", &["daemon.lease must be from 1s to 1h"]);
    tells("[daemon]\nname = ' '\n", &["daemon.name must have 1 to 200 characters"]);
    tells("[state]\nschema = ''\n", &["state.schema must have 1 to 63 characters"]);
    tells("[state]\nschema = 'pg_mine'\n", &["state.schema", "not begin with pg_"]);
    tells(&format!("[state]\nschema = '{}'\n", "x".repeat(64)), &["state.schema"]);
}

/// A webhook's path is its password.
#[test]
fn a_receiver_of_notifications_that_cannot_be() {
    for (text, said) in [
        ("url = 'hooks.example.com/hunter2'", "notify.url must begin with http:// or https://"),
        ("url = 'https://h/'\ntoken_file = ['a']", "notify.token_file"),
        ("url = 5", "notify.url must be a text"),
        ("after = 'soon'", "notify.after must be a duration"),
        ("after = '0s'", "notify.after must be from 1s to 7d"),
        ("token_file = '/x'", "notify.token_file is of no use without notify.url"),
        ("uri = 'https://h/hunter2'", "unknown key notify.uri: did you mean url?"),
    ] {
        tells(&format!("[notify]\n{text}\n"), &[said]);
    }
    let (run, _) = with_file(NOWHERE, "[notify]\nurl = 'hooks.example.com/hunter2'\n", &["status"]);
    assert!(!format!("{run:?}").contains("hunter2"), "{run:?}");
}

/// It must not send the reader to a key that is refused in turn.
#[test]
fn a_password_in_a_key_of_its_own() {
    let (run, _) = with_file(NOWHERE, "[database]\npassword = 'hunter2'\n", &["status"]);
    let told = message(&run, 2);
    assert!(told.contains("database.password is not supported") && told.contains("PGPASSWORD"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn no_message_repeats_a_secret() {
    let mut runs = Vec::new();
    for text in [
        "[database]\nurl = 'postgres://app:hunter2@db/shop\n",
        "[database]\nurl = 'mysql://app:hunter2@db/shop'\n",
        "[database]\nurl = ['postgres://app:hunter2@db/shop']\n",
        "[database]\nurl = { app = 'hunter2' }\n",
        "[database]\nurl = 'postgres://app:hunter2@db/shop' nonsense\n",
        "[database]\nurls = 'postgres://app:hunter2@db/shop'\n",
        "[database\nurl = 'postgres://app:hunter2@db/shop'\n",
        "database = 'postgres://app:hunter2@db/shop'\n",
        "[throttle.replication_lag]\nreplicas = ['postgres://app:hunter2/x@db/shop']\n",
        "[throttle.replication_lag]\nreplicas = 'postgres://app:hunter2@db/shop'\n",
        "[throttle.replication_lag]\nreplicas = ['postgres://app:hunter2@/shop']\n",
        "[throttle.prometheus.a]\nurl = 'https://app:hunter2@h'\nquery = 'x'\nmax = 1\n",
        "[throttle.prometheus.a]\nurl = ['http://app:hunter2@h']\n",
        "url = 'postgres://app:hunter2@db/shop'\n",
    ] {
        let (run, _) = with_file("", text, &["status"]);
        runs.push((text, run));
    }
    let variable = ("BACKFILLD__DATABASE", "postgres://app:hunter2@db/shop");
    runs.push((variable.0, backfilld_with("", &["status"], &[variable])));
    let list = "BACKFILLD__THROTTLE__REPLICATION_LAG__REPLICAS";
    for wrong in
        ["postgres://app:hunter2@db/shop", "['postgres://app:hunter2@db/shop'", "['mysql://app:hunter2@db']"]
    {
        runs.push((list, backfilld_with(NOWHERE, &["status"], &[(list, wrong)])));
    }
    let (shown, quiet): (Vec<_>, Vec<_>) = runs.iter().partition(|(_, run)| run.stderr.contains("hunter2"));
    assert!(shown.is_empty(), "{shown:#?}");
    assert!(quiet.iter().all(|(_, run)| run.code == 2), "{quiet:#?}");
}

#[tokio::test]
async fn an_http_port_that_is_in_use() {
    let database = Database::create().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let environment = [("BACKFILLD__HTTP__LISTEN", address.as_str())];
    let run = backfilld_with(database.url(), &["run", "--until-idle"], &environment);
    assert_eq!(run.code, 1, "{run:?}");
    let told = run.stderr.lines().last().unwrap();
    for part in ["http.listen", &address, "in use", "set another one"] {
        assert!(told.contains(part), "{part:?}: {told}");
    }
    // The other commands open no port.
    assert_eq!(backfilld_with(database.url(), &["init"], &environment).code, 0);
}

#[tokio::test]
async fn a_daemon_that_cannot_start_submits_no_job() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute("CREATE TABLE users (id int PRIMARY KEY, x int)").await.unwrap();
    assert_eq!(backfilld(database.url(), &["init"]).code, 0);
    let before = super::fingerprint(&client).await;
    let folder = tempfile::tempdir().unwrap();
    let file =
        crate::support::job_file(folder.path(), "job.toml", &super::Case::table("users", "", "", &[]).text);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let arguments = ["run", "--until-idle", "--job", file.to_str().unwrap()];
    let run = backfilld_with(database.url(), &arguments, &[("BACKFILLD__HTTP__LISTEN", &address)]);
    assert_eq!(run.code, 1, "{run:?}");
    assert_eq!(super::fingerprint(&client).await, before, "{run:?}");
}

/// Read at the start, a folder that is not there is a wrong configuration; on SIGHUP it is reported.
#[tokio::test]
async fn a_jobs_directory_that_is_not_there() {
    let database = Database::create().await;
    let environment = [("BACKFILLD__JOBS__DIRECTORY", "/nowhere/jobs.d")];
    let run = backfilld_with(database.url(), &["run", "--until-idle"], &environment);
    assert_eq!(run.code, 2, "{run:?}");
    let told = run.stderr.lines().last().unwrap();
    assert!(told.contains("jobs.directory") && told.contains("/nowhere/jobs.d"), "{told}");
}

/// A deploy that runs until idle must not take a job file that was left out for success.
#[tokio::test]
async fn a_job_file_in_the_directory_that_is_wrong() {
    let database = Database::create().await;
    database.connect().await.batch_execute("CREATE TABLE users (id int PRIMARY KEY, x int)").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let good = super::Case::table("users", "", "", &[]).text;
    crate::support::job_file(folder.path(), "good.toml", &good.replace("wrong", "good"));
    crate::support::job_file(folder.path(), "bad.toml", &good.replace("users", "usres"));
    let environment = [("BACKFILLD__JOBS__DIRECTORY", folder.path().to_str().unwrap())];
    let run = backfilld_with(database.url(), &["run", "--until-idle"], &environment);
    assert!(run.stderr.contains("bad.toml") && run.stderr.contains("did you mean public.users?"), "{run:?}");
    assert_eq!(run.code, 2, "{run:?}");
}
