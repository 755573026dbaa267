//! Log lines as go-hclog writes them, for an agent that reads them from the plugin's stderr.
//!
//! The agent's parser is touchy: `@message`, `@level` and `@timestamp` that are not strings make it **panic**, a timestamp
//! without exactly six fractional digits or a line over 64 KiB loses its level. So no other writer may use the plugin's
//! stderr, and a child must never inherit it (the agent also waits for its end before it sees that the plugin died).

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use super::log_queue::LogQueue;

/// `@module` of every line.
const MODULE: &str = "exec2";

/// The agent filters by its own `log_level`, so it gets all that may be of use to it.
const DEFAULT_LEVEL: Level = Level::DEBUG;

/// Overrides [`DEFAULT_LEVEL`]: trace, debug, info, warn or error.
const LEVEL_KEY: &str = "NOMAD_DRIVER_EXEC2_LOG_LEVEL";

/// The libraries below us: their debug lines show every frame of every call.
const FOREIGN_LEVEL: Level = Level::WARN;

/// Targets of this crate's own events.
const OWN_TARGET: &str = env!("CARGO_CRATE_NAME");

/// Longest line in bytes, with its newline. The agent's buffer has 64 KiB.
const MAX_LINE: usize = 60 * 1024;

/// Longest value in bytes, as written: one of them never pushes the others out.
const MAX_VALUE: usize = 8 * 1024;

/// Longest field name in bytes, as written.
const MAX_KEY: usize = 256;

/// Ends a value that was cut.
const CUT: &str = "… (cut)";

/// Last field of a line that had no room for the rest.
const FIELDS_DROPPED: &str = ",\"fields_dropped\":true";

/// Stack of the thread that writes, bytes: it formats nothing but one short line.
const WRITER_STACK: usize = 128 * 1024;

/// How long the end of the process, or a panic, waits for an agent that does not read.
const FLUSH_LIMIT: Duration = Duration::from_millis(300);

/// What waits for the thread that writes.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Whether that thread runs. If none could be made, each line is written where it is logged.
static WRITER_RUNS: AtomicBool = AtomicBool::new(false);

/// Sends this crate's `tracing` events, and every panic, to the agent. To be called once, before other threads start; a
/// second call changes nothing but the panic hook.
pub fn init() {
    start_writer();
    let wanted = std::env::var(LEVEL_KEY).ok().filter(|value| !value.is_empty());
    let level = wanted.as_deref().map(parse_level);
    let layer = HclogLayer::new(level.flatten().unwrap_or(DEFAULT_LEVEL), write_stderr);
    // It fails only if there is a subscriber already, which then has the logs.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
    std::panic::set_hook(Box::new(|info| {
        write_stderr(panic_line(info).as_bytes());
        // The panic may be the process's end.
        flush();
    }));
    if let Some((value, None)) = wanted.as_deref().zip(level) {
        tracing::warn!(value, "{LEVEL_KEY} must be trace, debug, info, warn or error; using debug");
    }
}

fn parse_level(text: &str) -> Option<Level> {
    [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR]
        .into_iter()
        .find(|level| level_name(*level).eq_ignore_ascii_case(text.trim()))
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::TRACE => "trace",
        Level::DEBUG => "debug",
        Level::INFO => "info",
        Level::WARN => "warn",
        Level::ERROR => "error",
    }
}

/// Waits until all lines are written, for [`FLUSH_LIMIT`] at most. To be called before the process ends.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_LIMIT);
    }
}

/// An agent that is stopped does not read its pipe. Only this thread then waits, and no RPC.
fn start_writer() {
    let run = || {
        // Set before the thread starts.
        while let Some(queue) = QUEUE.get() {
            queue.write_next(write_now, dropped_line);
        }
    };
    if QUEUE.set(LogQueue::default()).is_err() {
        return;
    }
    let thread = std::thread::Builder::new().name("log".into()).stack_size(WRITER_STACK).spawn(run);
    WRITER_RUNS.store(thread.is_ok(), Ordering::Relaxed);
}

/// One write(2) for a line, under the lock of stderr. An error can be reported nowhere: after an agent's crash the pipe is
/// broken for good, and the plugin keeps running.
fn write_now(line: &[u8]) {
    let _ = io::stderr().lock().write_all(line);
}

fn write_stderr(line: &[u8]) {
    match QUEUE.get().filter(|_| WRITER_RUNS.load(Ordering::Relaxed)) {
        Some(queue) => queue.push(line),
        None => write_now(line),
    }
}

fn dropped_line(count: u64) -> String {
    let mut line = Line::new(Level::WARN, SystemTime::now());
    line.message("log lines were dropped because the agent did not read them");
    line.field("dropped", &count.to_string());
    line.finish(MODULE)
}

fn panic_line(info: &std::panic::PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)");
    let mut line = Line::new(Level::ERROR, SystemTime::now());
    line.message(&format!("panic: {text}"));
    if let Some(location) = info.location() {
        line.field("location", &location.to_string());
    }
    line.field("thread", std::thread::current().name().unwrap_or("(unnamed)"));
    line.finish(MODULE)
}

/// A layer that gives each event as one line to `write`. Spans are not shown: what a line has to say is in its fields.
#[derive(Debug)]
pub struct HclogLayer<W> {
    level: Level,
    write: W,
}

impl<W: Fn(&[u8]) + 'static> HclogLayer<W> {
    /// `level` is for this crate's events.
    pub const fn new(level: Level, write: W) -> Self {
        Self { level, write }
    }

    fn level_of(&self, target: &str) -> Level {
        let own =
            target.strip_prefix(OWN_TARGET).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
        if own { self.level } else { FOREIGN_LEVEL.min(self.level) }
    }
}

impl<S: Subscriber, W: Fn(&[u8]) + 'static> Layer<S> for HclogLayer<W> {
    fn enabled(&self, metadata: &Metadata<'_>, _ctx: Context<'_, S>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level_of(metadata.target())
    }

    fn on_event(&self, event: &Event<'_>, _ctx: Context<'_, S>) {
        let mut line = Line::new(*event.metadata().level(), SystemTime::now());
        event.record(&mut line);
        (self.write)(line.finish(MODULE).as_bytes());
    }
}

/// A line in the making. The order of a JSON object means nothing to the agent; it is the one of go-hclog.
struct Line {
    level: Level,
    time: SystemTime,
    message: String,
    /// `,"key":value` for each field.
    fields: String,
    dropped: bool,
}

impl Line {
    fn new(level: Level, time: SystemTime) -> Self {
        Self { level, time, message: String::new(), fields: String::new(), dropped: false }
    }

    fn message(&mut self, text: &str) {
        self.message.clear();
        push_string(&mut self.message, text, MAX_VALUE);
    }

    fn field(&mut self, key: &str, value: &str) {
        self.raw_field(key, |fields| push_string(fields, value, MAX_VALUE));
    }

    fn raw_field(&mut self, key: &str, push_value: impl FnOnce(&mut String)) {
        let before = self.fields.len();
        self.fields.push(',');
        // Keys with @ are the agent's: a second `@level` would win over the first, and crash the agent if it is no string.
        let (prefix, key) = key.strip_prefix('@').map_or(("", key), |rest| ("_", rest));
        push_string(&mut self.fields, &format!("{prefix}{key}"), MAX_KEY);
        self.fields.push(':');
        push_value(&mut self.fields);
        if self.fields.len() > MAX_FIELDS {
            self.fields.truncate(before);
            self.dropped = true;
        }
    }

    fn finish(&self, module: &str) -> String {
        let message = if self.message.is_empty() { "\"\"" } else { &self.message };
        let level = level_name(self.level);
        let time = humantime::format_rfc3339_micros(self.time);
        let dropped = if self.dropped { FIELDS_DROPPED } else { "" };
        format!(
            "{{\"@level\":\"{level}\",\"@message\":{message},\"@module\":\"{module}\",\"@timestamp\":\"{time}\"{}{dropped}}}\n",
            self.fields
        )
    }
}

/// What remains of [`MAX_LINE`] for fields beside the message and the frame (about 100 bytes).
const MAX_FIELDS: usize = MAX_LINE - MAX_VALUE - 256;

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { self.message(value) } else { self.field(field.name(), value) }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Capped::new(MAX_VALUE);
        // A full buffer ends the formatting with an error; what is in it then gets its mark by its length.
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text.0);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "message" {
            self.message(&value.to_string());
        } else {
            self.raw_field(field.name(), |fields| fields.push_str(if value { "true" } else { "false" }));
        }
    }

    // Numbers go as strings: the agent takes a JSON number for a float and shows the pid 4194304 as 4.194304e+06.

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.record_str(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.record_str(field, &value.to_string());
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.record_str(field, &value.to_string());
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.record_str(field, &value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.record_str(field, &value.to_string());
    }
}

/// A string that takes a little more than `max` bytes and then refuses, so that a huge value is not formatted whole.
struct Capped(String, usize);

impl Capped {
    const fn new(max: usize) -> Self {
        Self(String::new(), max)
    }
}

impl fmt::Write for Capped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.len() > self.1 {
                return Err(fmt::Error);
            }
            self.0.push(c);
        }
        Ok(())
    }
}

/// Appends `text` as a JSON string (RFC 8259) of at most `max` bytes between the quotes, cut with a mark if need be.
fn push_string(out: &mut String, text: &str, max: usize) {
    out.push('"');
    let start = out.len();
    // Where a cut still leaves room for the mark.
    let mut cut_at = start;
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
        let len = out.len() - start;
        if len > max {
            out.truncate(cut_at);
            out.push_str(CUT);
            break;
        }
        if len + CUT.len() <= max {
            cut_at = out.len();
        }
    }
    out.push('"');
}

#[cfg(test)]
#[path = "hclog_tests.rs"]
mod tests;
