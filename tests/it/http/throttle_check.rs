//! Whether other batch work may go, and the examples of the documentation that ask for it.

use std::process::{Command, Output};

use super::{Answer, PATIENCE, Scene, ask};
use crate::metrics::address;
use crate::support::daemon::Daemon;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::until;

async fn until_it_goes(scene: &Scene, go: bool) -> Answer {
    until(if go { "go" } else { "not now" }, PATIENCE, async || {
        let answer = scene.ask("GET", "/api/v1/throttle/check", &[], "");
        (answer.status == if go { 200 } else { 429 }).then_some(answer)
    })
    .await
}

#[tokio::test]
async fn others_are_told_whether_they_may_go() {
    let folder = tempfile::tempdir().unwrap();
    let flag = folder.path().join("hands-off");
    let scene = Scene::new(&format!("[throttle.flag_file]\npath = '{}'\n", flag.display())).await;
    // Without a job that is walked the signals are read all the same.
    let answer = until_it_goes(&scene, true).await;
    assert_eq!(answer.json()["go"], true);
    std::fs::write(&flag, "a migration by hand\n").unwrap();
    let answer = until_it_goes(&scene, false).await;
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    let told = answer.json();
    assert_eq!((&told["go"], &told["signal"]), (&false.into(), &"flag_file".into()));
    assert!(told["reason"].as_str().unwrap().contains("hands-off"), "{told}");
}

#[tokio::test]
async fn nobody_goes_while_the_database_is_away() {
    let server = Server::start();
    let database = Database::create_on(&server).await;
    let daemon = Daemon::start(database.url(), &[]);
    let address = address(&daemon);
    let answers = async |status: u16| {
        until(&format!("the answer {status}"), PATIENCE, async || {
            let answer = ask(&address, "GET", "/api/v1/throttle/check", &[&format!("Host: {address}")], "");
            (answer.status == status).then_some(answer)
        })
        .await
    };
    answers(200).await;
    server.stop();
    let told = answers(429).await;
    assert_eq!(told.json()["go"], false, "{told:?}");
    assert!(told.header("retry-after").is_some(), "{told:?}");
    server.start_again();
    answers(200).await;
}

/// The code blocks of the documentation, in a language.
fn examples(language: &str) -> Vec<String> {
    let text = include_str!("../../../docs/http.md");
    let (fence, mut found) = (format!("```{language}\n"), Vec::new());
    for (at, _) in text.match_indices(&fence) {
        let code = &text[at + fence.len()..];
        found.push(code[..code.find("```").unwrap()].to_owned());
    }
    found
}

#[tokio::test]
async fn the_examples_of_the_documentation_go_and_wait() {
    let folder = tempfile::tempdir().unwrap();
    let flag = folder.path().join("hands-off");
    let mut scene = Scene::new(&format!("[throttle.flag_file]\npath = '{}'\n", flag.display())).await;
    let run = |program: &str, language: &str, address: &str| -> Output {
        let code = examples(language).into_iter().find(|code| code.contains("throttle/check")).unwrap();
        // In the documentation it asks at the address that is the default.
        let code = code.replace("127.0.0.1:9797", address);
        Command::new(program).arg("-c").arg(code).output().unwrap()
    };
    until_it_goes(&scene, true).await;
    for (program, language) in [("sh", "sh"), ("python3", "python")] {
        let output = run(program, language, &scene.address);
        assert!(output.status.success(), "{program}: {output:?}");
    }
    std::fs::write(&flag, "").unwrap();
    until_it_goes(&scene, false).await;
    for (program, language) in [("sh", "sh"), ("python3", "python")] {
        let output = run(program, language, &scene.address);
        assert!(!output.status.success(), "{program} went: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("hands-off"), "{program}: {output:?}");
    }
    // Who does not know does not go.
    scene.daemon.kill();
    for (program, language) in [("sh", "sh"), ("python3", "python")] {
        assert!(!run(program, language, &scene.address).status.success(), "{program} went");
    }
}
