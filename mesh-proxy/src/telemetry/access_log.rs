//! Access logs: compiled formats, filters and outputs, and files that are written by a thread of their own so that a slow
//! disk never holds up a request.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderName;
use mesh_api::model::{self, LogFormat, LogSink, LoggedHeaders, Name};
use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use super::log_export::{Codec, Exports, Kind, Queue, Target};
use super::log_filter::Filter;
use crate::config::ConfigError;
use crate::http::attributes::{Exchange, Place};
use crate::http::format::{Format, View};
use crate::http::stats::{ExchangeStats, Needs, want};

/// Lines wait this long at most before they are written.
const FLUSH: Duration = Duration::from_millis(250);
/// This much waiting is written at once.
const FLUSH_BYTES: usize = 64 << 10;
/// More than this is dropped, and counted: the reader of the log has stopped reading.
const MAX_WAITING: usize = 4 << 20;

/// The logs of one listener or HTTP manager.
#[derive(Debug, Default)]
pub struct AccessLogs {
    logs: Vec<Log>,
    place: Place,
}

/// Where logs go that the process has in common.
#[derive(Debug, Clone)]
pub struct LogSinks {
    /// Files.
    pub files: Arc<LogFiles>,
    /// Collectors.
    pub exports: Arc<Exports>,
}

impl LogSinks {
    /// Starts the thread that writes files.
    pub fn start(workers: usize, codec: Arc<dyn Codec>) -> Self {
        Self { files: LogFiles::start(workers), exports: Exports::new(codec) }
    }
}

#[derive(Debug)]
struct Log {
    output: Output,
    filter: Option<Filter>,
}

/// Where records of one log go, and what they hold.
#[derive(Debug)]
enum Output {
    File { file: Arc<LogFile>, line: Line },
    Service { queue: Arc<Queue>, codec: Arc<dyn Codec>, headers: LoggedHeaders, tcp: bool },
    Otlp { queue: Arc<Queue>, codec: Arc<dyn Codec>, body: Option<Format>, attributes: Json },
}

/// Headers that the access log service has fields for.
const ENTRY_HEADERS: [&str; 4] = ["user-agent", "referer", "x-forwarded-for", "x-envoy-original-path"];

impl Output {
    fn compile(sink: &LogSink, sinks: &LogSinks) -> Result<Self, ConfigError> {
        let queue = |kind, cluster: &Name, log_name: &Name| {
            sinks.exports.queue(Target { kind, cluster: cluster.clone(), log_name: log_name.clone() })
        };
        let codec = sinks.exports.codec.clone();
        Ok(match sink {
            LogSink::File { path, format } => {
                Output::File { file: sinks.files.open(path), line: Line::compile(format)? }
            }
            LogSink::Grpc { cluster, log_name, tcp, headers, .. } => {
                let mut all = headers.request.iter().chain(&headers.response).chain(&headers.trailers);
                if let Some(bad) = all.find(|n| HeaderName::from_bytes(n.as_bytes()).is_err()) {
                    return Err(ConfigError::new(format!("an access log shows {bad:?}, which is no header")));
                }
                let kind = if *tcp { Kind::Tcp } else { Kind::Http };
                let queue = queue(kind, cluster, log_name);
                Output::Service { queue, codec, headers: headers.clone(), tcp: *tcp }
            }
            LogSink::Otlp { cluster, log_name, body, attributes, .. } => Output::Otlp {
                queue: queue(Kind::Otlp, cluster, log_name),
                codec,
                body: if body.is_empty() { None } else { Some(Format::parse(body)?) },
                attributes: Json::compile(&Value::Object(attributes.clone()))?,
            },
        })
    }

    fn needs(&self, needs: &mut Needs) {
        match self {
            Output::File { line, .. } => line.needs(needs),
            Output::Service { headers, tcp, .. } => {
                if !tcp {
                    ENTRY_HEADERS.iter().for_each(|name| want(&mut needs.request, name));
                }
                headers.request.iter().for_each(|name| want(&mut needs.request, name));
                headers.response.iter().for_each(|name| want(&mut needs.response, name));
                headers.trailers.iter().for_each(|name| want(&mut needs.trailers, name));
            }
            Output::Otlp { body, attributes, .. } => {
                body.iter().for_each(|b| b.needs(needs));
                attributes.needs(needs);
            }
        }
    }

    fn write(&self, stats: &ExchangeStats, worker: usize) {
        match self {
            Output::File { file, line } => file.append(worker, |out| line.write(&View::finished(stats), out)),
            Output::Service { queue, codec, headers, tcp } => queue.push(codec.entry(stats, headers, *tcp)),
            Output::Otlp { queue, codec, body, attributes } => {
                let view = View::finished(stats);
                let body = body.as_ref().map(|format| {
                    let mut line = Vec::new();
                    format.write(&view, "-", &mut line);
                    String::from_utf8_lossy(&line).into_owned()
                });
                queue.push(codec.record(stats, body, attributes.render(&view, false)));
            }
        }
    }
}

impl AccessLogs {
    /// Parses formats, opens files and queues.
    ///
    /// # Errors
    /// A format, filter or kind of log that cannot be used.
    pub fn compile(logs: &[model::AccessLog], sinks: &LogSinks, place: &Place) -> Result<Self, ConfigError> {
        let compile = |log: &model::AccessLog| {
            let filter = log.filter.as_ref().map(Filter::compile).transpose()?;
            Ok(Log { output: Output::compile(&log.sink, sinks)?, filter })
        };
        let logs = logs.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { logs, place: place.clone() })
    }

    /// Headers that lines and filters show.
    pub fn needs(&self, needs: &mut Needs) {
        for log in &self.logs {
            log.output.needs(needs);
            if let Some(filter) = &log.filter {
                filter.needs(needs);
            }
        }
    }

    /// A record for each log that wants one.
    pub fn write_http(&self, stats: &ExchangeStats, worker: usize) {
        let exchange = Exchange { stats, place: &self.place };
        for log in &self.logs {
            if log.filter.as_ref().is_none_or(|f| f.passes(&exchange)) {
                log.output.write(stats, worker);
            }
        }
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
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
    use mesh_api::model::{AccessLog, Comparison, Fraction, LogFilter};

    use super::super::log_export::tests::Collector;
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
        let sinks = LogSinks::start(1, Arc::<Collector>::default());
        let log = AccessLog { sink: LogSink::File { path: path.to_owned(), format }, filter };
        (AccessLogs::compile(&[log], &sinks, &Place::default()).unwrap(), sinks.files)
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
    fn collectors_get_what_their_logs_ask_for() {
        let sinks = LogSinks::start(1, Arc::<Collector>::default());
        let headers = LoggedHeaders { request: vec!["x-a".into()], ..LoggedHeaders::default() };
        let (cluster, log_name): (Name, Name) = ("c".into(), "log".into());
        let service = LogSink::Grpc {
            cluster: cluster.clone(),
            log_name: log_name.clone(),
            tcp: false,
            headers,
            filter_state: vec![],
        };
        let attributes = serde_json::json!({"code": "%RESPONSE_CODE%", "in": {"b": "%REQ(x-b)%"}});
        let otlp = LogSink::Otlp {
            cluster: cluster.clone(),
            log_name: log_name.clone(),
            body: "%REQ(:PATH)% %REQ(x-c)%".into(),
            attributes: attributes.as_object().unwrap().clone(),
            filter_state: vec![],
        };
        let filter = Some(LogFilter::Status(Comparison::Ge, 500));
        let logs = [AccessLog { sink: service, filter: filter.clone() }, AccessLog { sink: otlp, filter }];
        let logs = AccessLogs::compile(&logs, &sinks, &Place::default()).unwrap();
        let mut needs = Needs::default();
        logs.needs(&mut needs);
        for wanted in ["x-a", "x-b", "x-c", "user-agent"] {
            assert!(needs.request.iter().any(|n| n.as_str() == wanted), "{wanted}");
        }
        logs.write_http(&exchange(200), 0);
        logs.write_http(&exchange(503), 0);
        let queue = |kind| {
            let target = Target { kind, cluster: cluster.clone(), log_name: log_name.clone() };
            sinks.exports.queue(target).take()
        };
        assert_eq!(queue(Kind::Http), [b"503 false"]);
        let record = String::from_utf8(queue(Kind::Otlp).concat()).unwrap();
        assert_eq!(record, r#"Some("/x -") {"code":503,"in":{"b":null}}"#);
        let bad = LoggedHeaders { request: vec!["a b".into()], ..LoggedHeaders::default() };
        let bad = LogSink::Grpc { cluster, log_name, tcp: false, headers: bad, filter_state: vec![] };
        assert!(AccessLogs::compile(&[AccessLog { sink: bad, filter: None }], &sinks, &Place::default()).is_err());
    }

    #[test]
    fn shares_are_exact() {
        let filter = Filter::compile(&LogFilter::Fraction(Fraction::from_percent(30.0))).unwrap();
        let (stats, place) = (exchange(200), Place::default());
        assert_eq!((0..1000).filter(|_| filter.passes(&Exchange { stats: &stats, place: &place })).count(), 300);
    }

    #[test]
    fn expressions_decide_and_have_their_headers_kept() {
        let passes = |text: &str, stats: &ExchangeStats| {
            let filter = Filter::compile(&LogFilter::Cel(text.into())).unwrap();
            filter.passes(&Exchange { stats, place: &Place::default() })
        };
        let mut stats = exchange(503);
        stats.grpc_status = Some(14);
        stats.captured.request.push((http::HeaderName::from_static("x-user"), http::HeaderValue::from_static("ann")));
        for yes in [
            "response.code >= 500 && request.url_path == '/x' && request.headers['X-User'] == 'ann'",
            "!has(response.backend_latency) && connection.mtls == false && source.port == 40000",
            "response.grpc_status == 14 && response.flags == 0 && xds.listener_direction == 0",
            "'x-user' in request.headers && response.headers[':status'] == '503'",
        ] {
            assert!(passes(yes, &stats), "{yes}");
        }
        for no in
            ["response.code < 500", "upstream.address != ''", "request.duration > duration('0s')", "response.code"]
        {
            assert!(!passes(no, &stats), "{no}");
        }
        let mut needs = Needs::default();
        let text = "request.referer == request.headers['a'] || response.trailers['b'] == '' || has(response.headers.c)";
        Filter::compile(&LogFilter::Cel(text.into())).unwrap().needs(&mut needs);
        assert_eq!((needs.request.len(), needs.response.len(), needs.trailers.len()), (2, 1, 1));
        assert!(Filter::compile(&LogFilter::Cel("response.code ==".into())).is_err());
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
