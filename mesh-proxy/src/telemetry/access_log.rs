//! Access logs: compiled formats and filters, and files that are written by a thread of their own so that a slow disk
//! never holds up a request.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use mesh_api::model::{self, Comparison, LogFilter, LogFormat, LogSink};
use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use crate::config::ConfigError;
use crate::http::format::{Format, View};
use crate::http::local_reply::ResponseFlags;
use crate::http::matchers::HeaderMatch;
use crate::http::stats::{ExchangeStats, Needs};

/// Lines wait this long at most before they are written.
const FLUSH: Duration = Duration::from_millis(250);
/// This much waiting is written at once.
const FLUSH_BYTES: usize = 64 << 10;
/// More than this is dropped, and counted: the reader of the log has stopped reading.
const MAX_WAITING: usize = 4 << 20;

/// The logs of one listener or HTTP manager.
#[derive(Debug, Default)]
pub struct AccessLogs(Vec<Log>);

#[derive(Debug)]
struct Log {
    file: Arc<LogFile>,
    line: Line,
    filter: Option<Filter>,
}

impl AccessLogs {
    /// Parses formats, opens files.
    ///
    /// # Errors
    /// A format, filter or kind of log that cannot be used.
    pub fn compile(logs: &[model::AccessLog], files: &Arc<LogFiles>) -> Result<Self, ConfigError> {
        let compile = |log: &model::AccessLog| {
            let LogSink::File { path, format } = &log.sink else {
                return Err(ConfigError::new("access logs over gRPC and OpenTelemetry are not supported yet"));
            };
            let filter = log.filter.as_ref().map(Filter::compile).transpose()?;
            Ok(Log { file: files.open(path), line: Line::compile(format)?, filter })
        };
        logs.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    /// Headers that lines and filters show.
    pub fn needs(&self, needs: &mut Needs) {
        for log in &self.0 {
            log.line.needs(needs);
            if let Some(filter) = &log.filter {
                filter.needs(needs);
            }
        }
    }

    /// A line for each log that wants one.
    pub fn write_http(&self, stats: &ExchangeStats, worker: usize) {
        for log in &self.0 {
            if log.filter.as_ref().is_none_or(|f| f.passes(stats)) {
                log.file.append(worker, |out| log.line.write(&View::finished(stats), out));
            }
        }
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How a line is made.
#[derive(Debug)]
enum Line {
    Text(Format),
    Json { fields: Json, omit_empty: bool },
}

/// A JSON value whose texts are formats.
#[derive(Debug)]
enum Json {
    Object(Vec<(String, Json)>),
    Array(Vec<Json>),
    Format(Format),
    Literal(Value),
}

impl Line {
    fn compile(format: &LogFormat) -> Result<Self, ConfigError> {
        Ok(match format {
            LogFormat::Text(text) => Line::Text(Format::parse(text)?),
            LogFormat::Json { fields, omit_empty } => {
                Line::Json { fields: Json::compile(fields)?, omit_empty: *omit_empty }
            }
        })
    }

    fn needs(&self, needs: &mut Needs) {
        match self {
            Line::Text(format) => format.needs(needs),
            Line::Json { fields, .. } => fields.needs(needs),
        }
    }

    fn write(&self, view: &View<'_>, out: &mut Vec<u8>) {
        match self {
            Line::Text(format) => format.write(view, "-", out),
            Line::Json { fields, omit_empty } => {
                // Writing into a Vec cannot fail.
                let _ = serde_json::to_writer(&mut *out, &fields.render(view, *omit_empty));
                out.push(b'\n');
            }
        }
    }
}

impl Json {
    fn compile(value: &Value) -> Result<Self, ConfigError> {
        Ok(match value {
            Value::String(text) => Json::Format(Format::parse(text)?),
            Value::Object(map) => {
                let fields = map.iter().map(|(k, v)| Ok((k.clone(), Json::compile(v)?)));
                Json::Object(fields.collect::<Result<_, ConfigError>>()?)
            }
            Value::Array(items) => Json::Array(items.iter().map(Json::compile).collect::<Result<_, _>>()?),
            other => Json::Literal(other.clone()),
        })
    }

    fn needs(&self, needs: &mut Needs) {
        match self {
            Json::Object(fields) => fields.iter().for_each(|(_, f)| f.needs(needs)),
            Json::Array(items) => items.iter().for_each(|f| f.needs(needs)),
            Json::Format(format) => format.needs(needs),
            Json::Literal(_) => {}
        }
    }

    fn render(&self, view: &View<'_>, omit_empty: bool) -> Value {
        match self {
            Json::Object(fields) => {
                let rendered = fields.iter().map(|(k, f)| (k.clone(), f.render(view, omit_empty)));
                Value::Object(rendered.filter(|(_, v)| !(omit_empty && v.is_null())).collect())
            }
            Json::Array(items) => Value::Array(items.iter().map(|f| f.render(view, omit_empty)).collect()),
            Json::Format(format) => format.json(view),
            Json::Literal(value) => value.clone(),
        }
    }
}

/// Which exchanges are logged.
#[derive(Debug)]
enum Filter {
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Status(Comparison, u32),
    Duration(Comparison, u32),
    /// Empty: any flag.
    Flags(Vec<ResponseFlags>),
    NotHealthCheck,
    /// Every so many of a million; counts to spread them evenly.
    Share(u32, AtomicU64),
    Header(HeaderName, HeaderMatch),
    GrpcStatus {
        statuses: Vec<u32>,
        exclude: bool,
    },
}

impl Filter {
    fn compile(filter: &LogFilter) -> Result<Self, ConfigError> {
        let all = |filters: &[LogFilter]| filters.iter().map(Filter::compile).collect::<Result<Vec<_>, _>>();
        Ok(match filter {
            LogFilter::And(filters) => Filter::And(all(filters)?),
            LogFilter::Or(filters) => Filter::Or(all(filters)?),
            LogFilter::Status(comparison, value) => Filter::Status(*comparison, *value),
            LogFilter::Duration(comparison, value) => Filter::Duration(*comparison, *value),
            LogFilter::ResponseFlag(names) => {
                let flag = |name: &model::Name| {
                    ResponseFlags::parse(name).ok_or_else(|| ConfigError::new(format!("no response flag {name:?}")))
                };
                Filter::Flags(names.iter().map(flag).collect::<Result<_, _>>()?)
            }
            LogFilter::NotHealthCheck => Filter::NotHealthCheck,
            LogFilter::Fraction(share) => Filter::Share(share.0, AtomicU64::new(0)),
            LogFilter::Header(matcher) => {
                let name = HeaderName::try_from(&*matcher.name).map_err(|_| {
                    ConfigError::new(format!("an access log filter looks at {:?}, which is no header", matcher.name))
                })?;
                Filter::Header(name, HeaderMatch::compile(matcher)?)
            }
            LogFilter::GrpcStatus { statuses, exclude } => {
                Filter::GrpcStatus { statuses: statuses.clone(), exclude: *exclude }
            }
            LogFilter::Cel(_) => return Err(ConfigError::new("access log filters in CEL are not supported yet")),
        })
    }

    fn needs(&self, needs: &mut Needs) {
        match self {
            Filter::And(filters) | Filter::Or(filters) => filters.iter().for_each(|f| f.needs(needs)),
            Filter::Header(name, _) if !needs.request.contains(name) => needs.request.push(name.clone()),
            _ => {}
        }
    }

    fn passes(&self, stats: &ExchangeStats) -> bool {
        let compare = |comparison: Comparison, left: u128, right: u32| match comparison {
            Comparison::Eq => left == u128::from(right),
            Comparison::Ge => left >= u128::from(right),
            Comparison::Le => left <= u128::from(right),
        };
        match self {
            Filter::And(filters) => filters.iter().all(|f| f.passes(stats)),
            Filter::Or(filters) => filters.iter().any(|f| f.passes(stats)),
            Filter::Status(comparison, value) => compare(*comparison, u128::from(stats.status), *value),
            Filter::Duration(comparison, value) => {
                let took = stats.times.end.map(|end| end.saturating_duration_since(stats.start)).unwrap_or_default();
                compare(*comparison, took.as_millis(), *value)
            }
            Filter::Flags(flags) if flags.is_empty() => !stats.flags.is_empty(),
            Filter::Flags(flags) => flags.iter().any(|f| stats.flags.contains(*f)),
            Filter::NotHealthCheck => true,
            Filter::Share(share, seen) => {
                // 1 of a million steps that crosses a whole number: exactly the share, evenly spread.
                let before = seen.fetch_add(1, Relaxed).wrapping_mul(u64::from(*share)) % 1_000_000;
                before + u64::from(*share) >= 1_000_000
            }
            Filter::Header(_, matcher) => {
                let headers: HeaderMap = stats.captured.request.iter().cloned().collect();
                matcher.matches_headers(&headers)
            }
            Filter::GrpcStatus { statuses, exclude } => {
                stats.grpc_status.is_some_and(|s| statuses.contains(&s)) != *exclude
            }
        }
    }
}

/// Open log files by path, and the thread that writes them.
#[derive(Debug)]
pub struct LogFiles {
    open: Mutex<HashMap<PathBuf, Arc<LogFile>>>,
    shards: usize,
    wake: Arc<(Mutex<bool>, Condvar)>,
}

/// One file: lines wait in a buffer a worker until the writing thread takes them.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    waiting: Box<[Mutex<Vec<u8>>]>,
    dropped: AtomicU64,
    wake: Arc<(Mutex<bool>, Condvar)>,
}

impl LogFiles {
    /// Starts the writing thread, which ends with this.
    pub fn start(workers: usize) -> Arc<Self> {
        let files = Arc::new(Self { open: Mutex::default(), shards: workers.max(1), wake: Arc::default() });
        let (weak, wake) = (Arc::downgrade(&files), files.wake.clone());
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        let started = thread.spawn(move || {
            let mut sinks = HashMap::new();
            loop {
                {
                    let mut woken = wake.0.lock();
                    if !*woken {
                        let _ = wake.1.wait_for(&mut woken, FLUSH);
                    }
                    *woken = false;
                }
                let Some(files) = weak.upgrade() else { return };
                files.flush(&mut sinks);
            }
        });
        if let Err(error) = started {
            tracing::error!(target: "access_log", "no thread for access logs: {error}");
        }
        files
    }

    fn open(&self, path: &Path) -> Arc<LogFile> {
        let mut open = self.open.lock();
        let file = open.entry(path.to_owned()).or_insert_with(|| {
            Arc::new(LogFile {
                path: path.to_owned(),
                waiting: (0..self.shards).map(|_| Mutex::default()).collect(),
                dropped: AtomicU64::new(0),
                wake: self.wake.clone(),
            })
        });
        file.clone()
    }

    /// Writes what waits; called by the thread, and once more when the process ends.
    fn flush(&self, sinks: &mut HashMap<PathBuf, Sink>) {
        let files: Vec<_> = self.open.lock().values().cloned().collect();
        for file in files {
            for shard in &file.waiting {
                let lines = std::mem::take(&mut *shard.lock());
                if !lines.is_empty() {
                    sinks.entry(file.path.clone()).or_insert_with(|| Sink::open(&file.path)).write(&lines);
                }
            }
        }
    }

    /// Writes what waits, now.
    pub fn flush_now(&self) {
        self.flush(&mut HashMap::new());
    }

    /// Lines that were dropped because nobody took them.
    pub fn dropped(&self) -> u64 {
        self.open.lock().values().map(|f| f.dropped.load(Relaxed)).sum()
    }
}

impl LogFile {
    fn append(&self, worker: usize, line: impl FnOnce(&mut Vec<u8>)) {
        let Some(shard) = self.waiting.get(worker % self.waiting.len()) else { return };
        let mut waiting = shard.lock();
        if waiting.len() > MAX_WAITING {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        let before = waiting.len();
        line(&mut waiting);
        if before < FLUSH_BYTES && waiting.len() >= FLUSH_BYTES {
            drop(waiting);
            *self.wake.0.lock() = true;
            self.wake.1.notify_one();
        }
    }
}

/// Where bytes go. The standard descriptors are not opened by path: that fails when they are sockets or other users'.
enum Sink {
    Stdout,
    Stderr,
    File(std::fs::File),
    Broken,
}

impl Sink {
    fn open(path: &Path) -> Self {
        match path.to_str() {
            Some("/dev/stdout") => return Sink::Stdout,
            Some("/dev/stderr") => return Sink::Stderr,
            _ => {}
        }
        match std::fs::File::options().create(true).append(true).open(path) {
            Ok(file) => Sink::File(file),
            Err(error) => {
                tracing::error!(target: "access_log", "{} cannot be opened: {error}", path.display());
                Sink::Broken
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let result = match self {
            Sink::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Sink::Stderr => std::io::stderr().write_all(bytes),
            Sink::File(file) => file.write_all(bytes),
            Sink::Broken => Ok(()),
        };
        if let Err(error) = result {
            // The disk is full or the reader is gone; lines are lost, requests are not.
            tracing::warn!(target: "access_log", "{} bytes of access log are lost: {error}", bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use ::http::{Method, uri::PathAndQuery};
    use mesh_api::model::{AccessLog, Fraction};

    use super::*;
    use crate::http::message::{Authority, RequestHead};
    use crate::http::testing;

    fn exchange(status: u16) -> ExchangeStats {
        let head = RequestHead::new(Method::GET, Authority::parse("a").unwrap(), PathAndQuery::from_static("/x"));
        let mut stats = ExchangeStats::new(Rc::new(testing::conn()), &head);
        stats.status = status;
        stats
    }

    fn logs(path: &Path, format: LogFormat, filter: Option<LogFilter>) -> (AccessLogs, Arc<LogFiles>) {
        let files = LogFiles::start(1);
        let log = AccessLog { sink: LogSink::File { path: path.to_owned(), format }, filter };
        (AccessLogs::compile(&[log], &files).unwrap(), files)
    }

    #[test]
    fn json_lines_pass_a_filter_into_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let fields = serde_json::json!({"code": "%RESPONSE_CODE%", "at": {"path": "%REQ(:PATH)%"}, "none": "%REQ(x)%"});
        let format = LogFormat::Json { fields, omit_empty: true };
        let (logs, files) = logs(&path, format, Some(LogFilter::Status(Comparison::Ge, 500)));
        for status in [200, 503] {
            logs.write_http(&exchange(status), 0);
        }
        files.flush_now();
        let text = std::fs::read_to_string(&path).unwrap();
        let line: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line, serde_json::json!({"code": 503, "at": {"path": "/x"}}));
    }

    #[test]
    fn lines_are_written_without_anybody_asking() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (logs, _files) = logs(&path, LogFormat::Text("%RESPONSE_CODE%\n".into()), None);
        logs.write_http(&exchange(404), 0);
        let written = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            std::fs::read_to_string(&path).is_ok_and(|t| t == "404\n")
        });
        assert!(written);
    }

    #[test]
    fn shares_are_exact() {
        let filter = Filter::compile(&LogFilter::Fraction(Fraction::from_percent(30.0))).unwrap();
        let stats = exchange(200);
        assert_eq!((0..1000).filter(|_| filter.passes(&stats)).count(), 300);
    }

    #[test]
    fn a_reader_that_stopped_costs_lines_and_not_memory() {
        let files = LogFiles { open: Mutex::default(), shards: 1, wake: Arc::default() };
        let file = files.open(Path::new("/nowhere"));
        for _ in 0..200 {
            file.append(0, |out| out.extend_from_slice(&[b'x'; 64 << 10]));
        }
        assert!(file.waiting[0].lock().len() <= MAX_WAITING + (64 << 10));
        assert!(files.dropped() > 100);
    }
}
