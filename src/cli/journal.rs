//! Standard error that goes to systemd's journal: it keeps the time itself, and reads a line's priority from
//! its beginning.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What a line of an error begins with there.
pub(super) const ERROR: &str = "<3>";

/// Whether standard error goes to the journal. `JOURNAL_STREAM` names the socket, since a process may have
/// inherited the variable and have its standard error elsewhere.
pub(super) fn is_told() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let metadata =
        std::io::stderr().as_fd().try_clone_to_owned().and_then(|errors| File::from(errors).metadata());
    metadata.is_ok_and(|metadata| stream == format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// The form of the log's lines there.
pub(super) struct Lines(Format<Full, ()>);

pub(super) fn lines() -> Lines {
    Lines(Format::default().without_time().with_target(false))
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => ERROR,
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            _ => "<7>",
        };
        writer.write_str(priority)?;
        self.0.format_event(context, writer, event)
    }
}
