//! A daemon is killed between any two steps of a finish, and another one comes to the same end.

use super::{FINISH, PATIENCE, Scene, TABLE};
use crate::support::daemon::Daemon;
use crate::support::server::shared;
use crate::support::wire::{Fate, Moment, Statement, Wire};

const fn with(parts: &'static [&'static str]) -> Statement {
    Statement { parts, after: &[] }
}

const STEPS: [(&str, Statement); 9] = [
    ("walked", with(&["WITH walked AS"])),
    ("claimed", with(&["WITH candidate AS", ".finish"])),
    ("looked", with(&["'NULL at '"])),
    ("added", with(&["ADD CONSTRAINT \"backfilld_normalized_not_null\""])),
    ("validated", with(&["VALIDATE CONSTRAINT \"backfilld_normalized_not_null\""])),
    ("set", with(&["SET NOT NULL"])),
    ("validated org", with(&["VALIDATE CONSTRAINT \"users_org\""])),
    ("analyzed", with(&["ANALYZE \"public\".\"users\""])),
    ("completed", with(&["WITH finished AS"])),
];

fn daemon(url: &str, name: &str) -> Daemon {
    let environment = [("BACKFILLD__DAEMON__NAME", name), ("BACKFILLD__DAEMON__LEASE", "1s")];
    Daemon::start_with(url, &["--until-idle"], &environment)
}

#[tokio::test]
async fn a_finish_comes_to_the_same_end_wherever_it_is_killed() {
    let scene = Scene::new().await;
    let wire = Wire::start(shared().port());
    for (step, statement) in STEPS {
        for (moment, fate) in [(Moment::Before, Fate::Lost), (Moment::Answered, Fate::Passed)] {
            let case = format!("{step}, {moment:?}");
            scene
                .client
                .batch_execute(&format!(
                    "TRUNCATE backfilld.job, backfilld.slice, backfilld.quarantine, backfilld.event,
                              backfilld.finish, backfilld.daemon;
                     DROP TABLE users, org; {TABLE}"
                ))
                .await
                .unwrap();
            scene.submit(FINISH);
            let mut first = daemon(&wire.url(scene.database.name()), "one");
            // Every turn looks for jobs that are walked; the one that finds one is the last.
            let held = if step == "walked" {
                scene.until_there_is("backfilld.slice WHERE rows_changed > 0").await;
                wire.hold(moment, 1, statement)
            } else {
                wire.hold(moment, 1, statement)
            };
            let held = held.reached(|| format!("{case}\n{}", first.log())).await;
            first.kill();
            held.let_go(fate);
            let mut second = daemon(scene.url(), "two");
            assert_eq!(second.wait_exit(PATIENCE).code(), Some(0), "{case}\n{}", second.log());
            scene.assert_enforced(&case).await;
            assert_eq!(scene.told("complete").await.len(), 1, "{case}");
            let told = scene.told("finish").await;
            let set: Vec<&String> = told.iter().filter(|told| told.contains("NOT NULL set")).collect();
            assert_eq!(set.len(), 1, "{case}: {told:?}");
            assert_eq!(scene.count("backfilld.finish WHERE owner IS NOT NULL").await, 0, "{case}");
        }
    }
}
