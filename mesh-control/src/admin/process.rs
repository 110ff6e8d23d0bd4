//! What Prometheus' libraries tell of every process, read from `/proc`.

use std::{fs, path::Path};

use crate::metrics::Page;

/// Writes `process_*` and the few Go runtime metrics that Istio's dashboards read.
pub fn render(page: &mut Page) {
    let tasks = tokio::runtime::Handle::try_current().map_or(0, |h| h.metrics().num_alive_tasks());
    page.gauge("go_goroutines", "Tasks alive (the name is what dashboards read)", tasks);
    let Some(process) = Process::read(Path::new("/proc/self")) else { return };
    page.head("process_cpu_seconds_total", "CPU time spent in user and system mode", "counter");
    page.line("process_cpu_seconds_total", "", process.cpu_seconds);
    page.gauge("process_resident_memory_bytes", "Resident memory", process.resident);
    page.gauge("process_virtual_memory_bytes", "Virtual memory", process.virtual_size);
    page.gauge(
        "go_memstats_heap_inuse_bytes",
        "Resident memory without files (what dashboards read)",
        process.anonymous,
    );
    page.gauge("go_memstats_alloc_bytes", "Resident memory without files (what dashboards read)", process.anonymous);
    page.gauge("process_open_fds", "Open descriptors", process.descriptors);
    page.gauge("process_threads", "Threads", process.threads);
    if let Some(start) = process.start {
        page.gauge("process_start_time_seconds", "Start, seconds since 1970", start);
    }
}

/// The kernel tells times to user space in hundredths of a second, whatever its own clock.
const TICKS: f64 = 100.0;

#[derive(Debug, Default)]
struct Process {
    cpu_seconds: f64,
    start: Option<f64>,
    resident: u64,
    anonymous: u64,
    virtual_size: u64,
    threads: u64,
    descriptors: usize,
}

impl Process {
    #[allow(clippy::cast_precision_loss)]
    fn read(dir: &Path) -> Option<Self> {
        let stat = fs::read_to_string(dir.join("stat")).ok()?;
        // The name in parentheses may hold spaces.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
        let booted = fs::read_to_string("/proc/stat")
            .ok()
            .and_then(|s| s.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<u64>().ok()));
        let status = fs::read_to_string(dir.join("status")).ok()?;
        let of = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Self {
            cpu_seconds: (number(11)? + number(12)?) as f64 / TICKS,
            start: booted.zip(number(19)).map(|(boot, start)| boot as f64 + start as f64 / TICKS),
            resident: of("VmRSS")? * 1024,
            anonymous: of("RssAnon").unwrap_or(0) * 1024,
            virtual_size: of("VmSize")? * 1024,
            threads: of("Threads").unwrap_or(1),
            descriptors: fs::read_dir(dir.join("fd")).map_or(0, Iterator::count),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own() {
        let p = Process::read(Path::new("/proc/self")).unwrap();
        assert!(p.resident > 1 << 20 && p.virtual_size >= p.resident, "{p:?}");
        assert!(p.threads >= 1 && p.descriptors >= 3 && p.start.unwrap() > 1e9, "{p:?}");
    }
}
