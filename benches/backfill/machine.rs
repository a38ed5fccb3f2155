//! What a report says of the machine: enough to compare figures, nothing that names the machine.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio_postgres::Client;

/// A Markdown list of the machine, the server's version and settings, and the day.
pub(crate) async fn description(client: &Client, settings: &[(&str, &str)]) -> String {
    let row = client
        .query_one(
            "SELECT current_setting('server_version'), to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
            &[],
        )
        .await
        .expect("a superuser can read settings");
    let (version, day): (String, String) = (row.get(0), row.get(1));
    let settings: Vec<String> =
        settings.iter().map(|(name, value)| format!("`{name} = {value}`, ")).collect();
    let settings = settings.concat();
    format!(
        "- {cores} cores, {cpu}; {memory:.0} GiB of memory\n\
         - Linux {kernel}; the server's data on {disk}\n\
         - PostgreSQL {version}, {settings}locale C.UTF-8; \
         what else bears on speed is at its default, so fsync and autovacuum on\n\
         - backfilld {program}, {day}\n",
        cores = std::thread::available_parallelism().expect("Linux tells how many"),
        cpu = cpu_model(),
        memory = memory_gibibytes(),
        kernel = first_line("/proc/sys/kernel/osrelease"),
        disk = disk(&std::env::temp_dir()),
        program = env!("CARGO_PKG_VERSION"),
    )
}

fn cpu_model() -> String {
    // Some architectures have no such line.
    value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn memory_gibibytes() -> f64 {
    let kibibytes: f64 = value("/proc/meminfo", "MemTotal")
        .and_then(|text| text.strip_suffix(" kB")?.parse().ok())
        .expect("Linux tells its memory");
    kibibytes / 1024.0 / 1024.0
}

/// File system and kind of the disk below `folder`, as far as the kernel knows.
fn disk(folder: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let file_system = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(mounted, _)| folder.starts_with(mounted))
        // The innermost counts, and of two at one place the later.
        .max_by_key(|(mounted, _)| mounted.len())
        .map_or("an unknown file system", |(_, kind)| kind);
    let device = fs::metadata(folder).map_or(0, |folder| folder.dev());
    // The kernel's encoding of a device number below 2^32; others have no rotational flag to find.
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    let kind = match first_line(&format!("/sys/dev/block/{major}:{minor}/queue/rotational")).as_str() {
        "0" => "a disk that does not rotate",
        "1" => "a disk that says it rotates",
        _ => "an unknown disk",
    };
    format!("{file_system}, {kind}")
}

/// What stands behind `name` and a colon in a file of `/proc`.
fn value(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}
