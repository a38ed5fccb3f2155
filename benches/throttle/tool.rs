//! Programs that run beside: pgbench, Prometheus, `PgBouncer`, Django. And folders for what they write.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::guard::Guard;

/// A temporary folder that does not outlive this process, however that one ends.
pub(crate) struct Scratch {
    folder: TempDir,
    _guard: Guard,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("backfilld-bench-")
            .tempdir()
            .expect("the temporary folder can be written to");
        let guard = Guard::start(r#"rm -rf -- "$1""#, &[utf8(folder.path()).to_owned()]);
        Self { folder, _guard: guard }
    }

    /// The path of a file or folder in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("a temporary folder can be written to");
        path
    }
}

/// A running program. It is killed when this value is dropped, and when this process dies.
pub(crate) struct Tool {
    name: String,
    child: Child,
    output: PathBuf,
    guard: Guard,
}

impl Tool {
    /// Starts `program`; what it writes goes to `output`.
    pub(crate) fn start(program: &Path, arguments: &[&str], output: PathBuf) -> Self {
        let name = program.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let file = File::create(&output).expect("a temporary folder can be written to");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        // What the caller's shell has set for other servers must not reach this one.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(&variable);
            }
        }
        let child = command
            .stdout(file.try_clone().expect("a descriptor can be doubled"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", program.display()));
        let guard = Guard::start(r#"kill -KILL "$1""#, &[child.id().to_string()]);
        Self { name, child, output, guard }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program to end by itself, which it must do well.
    pub(crate) fn wait(mut self) {
        let status = self.child.wait().expect("the program is this process's child");
        self.guard.dismiss();
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.log());
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    pub(crate) fn stop(mut self) {
        let sent =
            Command::new("kill").arg(self.child.id().to_string()).status().expect("every Unix has kill");
        assert!(sent.success(), "{} cannot be signalled:\n{}", self.name, self.log());
        self.child.wait().expect("the program is this process's child");
        self.guard.dismiss();
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.guard.dismiss();
    }
}

/// A path as an argument.
pub(crate) fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of temporary folders are UTF-8")
}
