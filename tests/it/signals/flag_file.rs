use std::fs;

use backfilld::throttle::reading::Figure;
use backfilld::throttle::signals::FlagFile;

use super::{INTERVAL, Watching};

#[tokio::test]
async fn the_file_is_there_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stop");
    let told = path.display().to_string();
    let flag = Watching::start(FlagFile::new(&path, INTERVAL));
    assert_eq!(flag.figure().await, (told.clone(), Figure::Stop(false)));
    fs::write(&path, "a deployment is under way").unwrap();
    assert_eq!(flag.figure().await, (told.clone(), Figure::Stop(true)));
    fs::remove_file(&path).unwrap();
    assert_eq!(flag.figure().await, (told, Figure::Stop(false)));
}

#[tokio::test]
async fn what_cannot_be_looked_for_is_an_error_and_not_absent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Watching::start(FlagFile::new(file.join("stop"), INTERVAL)).error().await;
    assert!(error.starts_with("cannot look for ") && error.contains("file/stop: Not a directory"), "{error}");
}
