//! The log on standard error: text for people, JSON for machines. Every line names the daemon, so that the logs of
//! several can be read as one.

use std::fmt;
use std::io::IsTerminal as _;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{DefaultFields, Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt as lines, registry, reload};

use super::failure::Failure;
use super::journal;
use crate::settings::{LogFormat, LogLevel, Settings};

/// The field with the daemon's name.
const DAEMON: &str = "daemon";

/// What can be changed of a log that was started.
pub(super) struct Log {
    level: reload::Handle<Targets, Registry>,
    daemon: Name,
}

impl Log {
    /// Starts it, once in a process.
    pub(super) fn start(settings: &Settings) -> Result<Self, Failure> {
        let daemon = Name(Arc::new(RwLock::new(settings.daemon.name())));
        let (filter, level) = reload::Layer::new(targets(settings.log.level));
        let lines = lines::layer().with_writer(std::io::stderr);
        let text = TextFields(daemon.clone());
        let lines = match settings.log.format {
            LogFormat::Text if journal::is_told() => {
                lines.with_ansi(false).event_format(journal::lines()).fmt_fields(text).boxed()
            }
            LogFormat::Text => {
                lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).fmt_fields(text).boxed()
            }
            LogFormat::Json => {
                let format = Format::default().json().flatten_event(true).with_target(false);
                let objects = JsonLines { format, daemon: daemon.clone() };
                lines.event_format(objects).fmt_fields(JsonFields::new()).boxed()
            }
        };
        registry()
            .with(filter)
            .with(lines)
            .try_init()
            .map_err(|error| Failure::runtime(format!("cannot start the log: {error}")))?;
        Ok(Self { level, daemon })
    }

    /// Takes what was changed in the settings of a daemon that has not started yet.
    pub(super) fn follow(&self, settings: &Settings) {
        set_level(&self.level, settings.log.level);
        *self.daemon.0.write().unwrap_or_else(PoisonError::into_inner) = settings.daemon.name();
    }

    /// What changes its level from now on.
    pub(super) fn into_level(self) -> Box<dyn Fn(LogLevel) + Send> {
        Box::new(move |level| set_level(&self.level, level))
    }
}

fn set_level(handle: &reload::Handle<Targets, Registry>, level: LogLevel) {
    // The subscriber lives as long as the process.
    let _ = handle.reload(targets(level));
}

/// Our own lines from `level` on. Of libraries errors only: that a connection broke is told in our own
/// words, with what is done about it.
fn targets(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(LevelFilter::ERROR).with_target("backfilld", ours)
}

/// The daemon's name, which settings may change until it has started.
#[derive(Clone)]
struct Name(Arc<RwLock<String>>);

impl Name {
    fn get(&self) -> String {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The fields of a line of text, and the daemon's name behind them.
struct TextFields(Name);

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut named = IsNamed(false);
        fields.record(&mut named);
        DefaultFields::new().format_fields(writer.by_ref(), fields)?;
        if named.0 { Ok(()) } else { write!(writer, " {DAEMON}={}", self.0.get().escape_debug()) }
    }
}

/// Whether a line names the daemon itself.
struct IsNamed(bool);

impl Visit for IsNamed {
    fn record_debug(&mut self, field: &Field, _value: &dyn fmt::Debug) {
        self.0 |= field.name() == DAEMON;
    }
}

/// JSON objects with the daemon's name in them.
struct JsonLines {
    format: Format<Json>,
    daemon: Name,
}

impl<S, N> FormatEvent<S, N> for JsonLines
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
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        match line.trim_end().strip_suffix('}') {
            Some(object) if event.metadata().fields().field(DAEMON).is_none() => {
                writeln!(writer, "{object},\"{DAEMON}\":{}}}", Value::from(self.daemon.get()))
            }
            _ => writer.write_str(&line),
        }
    }
}
