//! The units, by systemd's own judgement.

use std::path::Path;
use std::process::Command;

pub(super) const UNITS: [&str; 2] = ["backfilld.service", "backfilld@.service"];

pub(super) fn unit(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name)).unwrap()
}

/// Runs `systemd-analyze` on a copy of a unit that names the program where it is here.
fn analyze(arguments: &[&str], name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let text = unit(name);
    assert!(text.contains("ExecStart=/usr/bin/backfilld run"), "{text}");
    std::fs::write(&path, text.replace("/usr/bin/backfilld", env!("CARGO_BIN_EXE_backfilld"))).unwrap();
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(&path)
        .env("SYSTEMD_PAGER", "")
        .output()
        .expect("systemd is installed; scripts/install-tools systemd does it");
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {told}");
    // What it ignores, a misspelt key for example, is no failure to it.
    assert!(!told.contains(name) || arguments[0] == "security", "{name}: {told}");
}

#[test]
fn systemd_understands_every_line() {
    for name in UNITS {
        // The page is there only once it is installed.
        analyze(&["verify", "--man=no"], name);
    }
}

/// In tenths: 15 is an exposure of 1.5, of 10.
#[test]
fn they_are_exposed_to_little() {
    for name in UNITS {
        analyze(&["security", "--offline=true", "--threshold=15"], name);
    }
}

/// systemd has no way to share lines.
#[test]
fn the_template_differs_in_its_files_only() {
    let lines = |name: &str| -> Vec<String> {
        let text = unit(name);
        let (_, service) = text.split_once("\n[Service]\n").unwrap();
        service.lines().map(ToOwned::to_owned).collect()
    };
    let template: Vec<String> = lines("backfilld@.service")
        .iter()
        .map(|line| line.replace(" --config /etc/backfilld/%i.toml", "").replace("/%i.", "/"))
        .collect();
    assert_eq!(template, lines("backfilld.service"));
}
