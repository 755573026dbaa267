//! `tracing` events as the lines that go-hclog writes, for a host that reads them from the plugin's stderr.
//!
//! Hosts parse these lines strictly: `@message`, `@level` or `@timestamp` that is not a string makes them **panic**; a timestamp without
//! exactly six fractional digits, or a line over 64 KiB, loses its level. So nothing else may write to the plugin's stderr, and no child
//! process may inherit it (the host also waits for its end before it notices the plugin's death).

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::log_queue::LogQueue;

/// What is logged, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `@module` of every line.
    pub module: &'static str,
    /// The plugin's own crates (`env!("CARGO_CRATE_NAME")`). Events of other crates are logged from warn on, except for this crate's:
    /// the debug lines of h2 show every frame of every call.
    pub crates: &'static [&'static str],
    /// An environment variable that overrides [`level`](Self::level): trace, debug, info, warn or error.
    pub level_key: Option<&'static str>,
    /// The least severe level of the plugin's own crates. The host filters by its own level, so it should get everything that may be
    /// of use.
    pub level: Level,
}

/// Debug and above, of this crate and without a variable.
impl Default for Options {
    fn default() -> Self {
        Self { module: "", crates: &[], level_key: None, level: Level::DEBUG }
    }
}

/// Level of crates that are not the plugin's.
const FOREIGN_LEVEL: Level = Level::WARN;

/// Longest line in bytes, with its newline. A host's buffer has 64 KiB.
const MAX_LINE: usize = 60 * 1024;

/// Longest value in bytes, as written, so that one value leaves room for others.
const MAX_VALUE: usize = 8 * 1024;

/// Longest field name in bytes, as written.
const MAX_KEY: usize = 256;

/// Ends a value that was cut.
const CUT: &str = "… (cut)";

/// Last field of a line that had no room for the rest.
const FIELDS_DROPPED: &str = ",\"fields_dropped\":true";

/// Stack of the thread that writes, bytes: it formats nothing but one short line.
const WRITER_STACK: usize = 128 * 1024;

/// How long the end of the process, or a panic, waits for a host that does not read.
const FLUSH_LIMIT: Duration = Duration::from_millis(300);

/// Lines for the writer thread.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Whether that thread runs. Otherwise each line is written where it is logged.
static WRITER_RUNS: AtomicBool = AtomicBool::new(false);

/// Sends `tracing` events, and every panic, to the host. Call it once, before other threads start; a second call changes only the
/// panic hook.
pub fn init(options: Options) {
    let module = options.module;
    start_writer(module);
    let wanted = options.level_key.and_then(|key| std::env::var(key).ok()).filter(|value| !value.is_empty());
    let level = wanted.as_deref().map(parse_level);
    let layer =
        HclogLayer::new(Options { level: level.flatten().unwrap_or(options.level), ..options }, write_stderr);
    // It fails only if there is a subscriber already, which then has the logs.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
    std::panic::set_hook(Box::new(|info| {
        write_stderr(panic_line(module, info).as_bytes());
        // The panic may end the process.
        flush();
    }));
    if let Some((value, None)) = wanted.as_deref().zip(level) {
        let (key, used) = (options.level_key.unwrap_or_default(), level_name(options.level));
        tracing::warn!(value, "{key} must be trace, debug, info, warn or error; using {used}");
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

/// Waits until all lines are written, 300 ms at most. Call it before the process ends.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_LIMIT);
    }
}

/// A stopped host (SIGSTOP) does not read its pipe. Only this thread then waits, and no call.
fn start_writer(module: &'static str) {
    let run = || {
        // Set before the thread starts.
        while let Some(queue) = QUEUE.get() {
            queue.write_next(write_now, |count| dropped_line(module, count));
        }
    };
    if QUEUE.set(LogQueue::default()).is_err() {
        return;
    }
    let thread = std::thread::Builder::new().name("log".into()).stack_size(WRITER_STACK).spawn(run);
    WRITER_RUNS.store(thread.is_ok(), Ordering::Relaxed);
}

/// One write(2) for a line, under the lock of stderr. An error cannot be reported anywhere: after a host's crash the pipe stays
/// broken, and the plugin keeps running.
fn write_now(line: &[u8]) {
    let _ = io::stderr().lock().write_all(line);
}

fn write_stderr(line: &[u8]) {
    match QUEUE.get().filter(|_| WRITER_RUNS.load(Ordering::Relaxed)) {
        Some(queue) => queue.push(line),
        None => write_now(line),
    }
}

fn dropped_line(module: &str, count: u64) -> String {
    let mut line = Line::new(Level::WARN, SystemTime::now());
    line.message("dropped log lines that the host did not read in time");
    line.field("dropped", &count.to_string());
    line.finish(module)
}

fn panic_line(module: &str, info: &std::panic::PanicHookInfo<'_>) -> String {
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
    line.finish(module)
}

/// A layer that passes each event as one line to `write`, for programs that do not want [`init`]. Spans are ignored: put values into
/// the event's own fields.
#[derive(Debug)]
pub struct HclogLayer<W> {
    options: Options,
    write: W,
}

impl<W: Fn(&[u8]) + 'static> HclogLayer<W> {
    /// [`Options::level_key`] is ignored.
    pub const fn new(options: Options, write: W) -> Self {
        Self { options, write }
    }

    fn level_of(&self, target: &str) -> Level {
        let crate_name = target.split(':').next().unwrap_or_default();
        let own = crate_name == env!("CARGO_CRATE_NAME") || self.options.crates.contains(&crate_name);
        if own { self.options.level } else { FOREIGN_LEVEL.min(self.options.level) }
    }
}

impl<S: Subscriber, W: Fn(&[u8]) + 'static> Layer<S> for HclogLayer<W> {
    fn enabled(&self, metadata: &Metadata<'_>, _ctx: Context<'_, S>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level_of(metadata.target())
    }

    fn on_event(&self, event: &Event<'_>, _ctx: Context<'_, S>) {
        let mut line = Line::new(*event.metadata().level(), SystemTime::now());
        event.record(&mut line);
        (self.write)(line.finish(self.options.module).as_bytes());
    }
}

/// A line under construction. The order of its members is go-hclog's.
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
        // Keys with @ are go-hclog's: a second `@level` would override the first, and crash the host if it is not a string.
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
        let mut quoted = String::new();
        push_string(&mut quoted, module, MAX_KEY);
        let level = level_name(self.level);
        let time = humantime::format_rfc3339_micros(self.time);
        let dropped = if self.dropped { FIELDS_DROPPED } else { "" };
        format!(
            "{{\"@level\":\"{level}\",\"@message\":{message},\"@module\":{quoted},\"@timestamp\":\"{time}\"{}{dropped}}}\n",
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
        // A full buffer ends the formatting with an error; its content is then long enough to be cut with a mark.
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

    // Numbers are written as strings: a host reads a JSON number as a float and shows the pid 4194304 as 4.194304e+06.

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

/// Appends `text` as a JSON string of at most `max` bytes between the quotes, cut with a mark if it is longer.
fn push_string(out: &mut String, text: &str, max: usize) {
    let kept = match fit(text, max) {
        kept if kept.len() == text.len() => Cow::Borrowed(text),
        _ => Cow::Owned(format!("{}{CUT}", fit(text, max.saturating_sub(CUT.len())))),
    };
    // Writing a string into memory does not fail.
    out.push_str(&serde_json::to_string(&kept).unwrap_or_default());
}

/// The longest start of `text` that takes no more than `max` bytes in JSON (RFC 8259, 7).
fn fit(text: &str, max: usize) -> &str {
    let mut written = 0;
    let end = text.char_indices().find(|(_, c)| {
        written += match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..' ' => 6,
            c => c.len_utf8(),
        };
        written > max
    });
    end.map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests;
