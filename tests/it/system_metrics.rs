//! `system_metrics` against psutil, which defines what each of its fields means: all of them, at the same moment.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::looking::Looker;

const PSUTIL: &str = include_str!("system_metrics.py");

/// A Python that has psutil, and answers for as long as it is asked.
struct Psutil {
    python: Child,
    ask: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Psutil {
    /// With the first reading, since which its `cpu.percent` counts.
    fn start() -> (Self, Value) {
        // Debian's python3-psutil is seen by Debian's own Python only.
        let python = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
            let import = Command::new(python).args(["-c", "import psutil"]).stderr(Stdio::null()).status();
            import.is_ok_and(|status| status.success())
        });
        let mut python = Command::new(python.expect("a python3 with psutil: apt-get install python3-psutil"))
            .args(["-c", PSUTIL])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(python.stdout.take().unwrap()).lines();
        let mut psutil = Self { ask: python.stdin.take().unwrap(), python, answers };
        let first = psutil.answer();
        (psutil, first)
    }

    fn read(&mut self) -> Value {
        self.ask.write_all(b"\n").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> Value {
        serde_json::from_str(&self.answers.next().expect("an answer of psutil").unwrap()).unwrap()
    }
}

impl Drop for Psutil {
    fn drop(&mut self) {
        let _gone = self.python.kill();
        let _reaped = self.python.wait();
    }
}

fn looker(settings: &[(&str, &str)]) -> Looker {
    let paths = ("collectors.system_metrics.disk_paths", r#"["/", "/proc", "/dev/shm", "/no/such/path"]"#);
    Looker::new("system_metrics", &[&[paths], settings].concat())
}

/// How far a figure may be from psutil's.
enum Near {
    /// It grows only: between a reading before and one after.
    Between,
    /// At most this far outside of a reading before and one after.
    Within(f64),
}

/// How near a field must be: all that are not named are counters.
fn near(part: &str, field: &str, before: &Value) -> Near {
    let total = before["total"].as_f64().unwrap_or(0.0);
    match (part, field) {
        (_, "count_physical" | "count_logical" | "total") => Near::Within(0.0),
        // Both cover the same second, but for the time between the two readings.
        ("cpu", "percent") => Near::Within(15.0),
        (_, "percent") => Near::Within(2.0),
        // The kernel makes them every five seconds.
        ("cpu", "load_avg_1m" | "load_avg_5m" | "load_avg_15m") => Near::Within(0.5),
        ("memory" | "swap" | "disk_usage", _) => Near::Within(total * 0.02),
        ("disk_io" | "network_io", _) => Near::Between,
        other => panic!("{other:?} is not told apart"),
    }
}

/// Every field of the part is psutil's, and psutil has no other.
#[track_caller]
fn check(part: &str, ours: &Value, before: &Value, after: &Value) {
    if before.is_null() {
        assert!(ours.is_null(), "{part}: psutil has none");
        return;
    }
    let (ours, want) = (ours.as_object().expect(part), before.as_object().unwrap());
    assert_eq!(ours.keys().collect::<std::collections::BTreeSet<_>>(), want.keys().collect(), "{part}");
    for (field, value) in ours {
        let number = |reading: &Value| reading[field].as_f64().unwrap_or_else(|| panic!("{part}.{field}: {reading}"));
        let (low, high) = (number(before).min(number(after)), number(before).max(number(after)));
        let allowed = match near(part, field, before) {
            Near::Between => 0.0,
            // psutil's first reading of the processors covers nothing: only the one after counts.
            Near::Within(_) if (part, field.as_str()) == ("cpu", "percent") => {
                let (got, want) = (value.as_f64().unwrap(), number(after));
                assert!((got - want).abs() <= 15.0, "cpu.percent is {got}, psutil says {want}");
                continue;
            }
            Near::Within(allowed) => allowed,
        };
        let got = value.as_f64().unwrap_or_else(|| panic!("{part}.{field} is {value}"));
        assert!(got >= low - allowed && got <= high + allowed, "{part}.{field} is {got}, psutil says {low} to {high}");
    }
}

/// One busy thread, so that there is something to measure.
fn work(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::black_box(start);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_is_what_psutil_says_at_the_same_moment() {
    for settings in [&[][..], &[("collectors.system_metrics.proc", "/proc/../proc")][..]] {
        let mut looker = looker(settings);
        let _first = looker.look_at_host().await;
        let (mut psutil, before) = Psutil::start();
        // The sample before this one and psutil's reading before are the same moment, but for some milliseconds.
        let _second = looker.look_at_host().await;
        work(Duration::from_secs(1));
        let (event, degraded) = looker.look_at_host().await;
        let after = psutil.read();
        assert_eq!(degraded, None);
        let ours = &event["data"];
        for part in ["cpu", "memory", "swap", "disk_io", "network_io"] {
            check(part, &ours[part], &before[part], &after[part]);
        }
        let paths: Vec<_> = ours["disk_usage"].as_object().unwrap().keys().collect();
        assert_eq!(paths, ["/", "/dev/shm", "/proc"], "a path that does not exist is left out");
        for path in paths {
            let of = |reading: &Value| reading["disk_usage"][path].clone();
            check("disk_usage", &of(ours), &of(&before), &of(&after));
        }
        assert!(ours["cpu"]["percent"].as_f64().unwrap() > 10.0, "one thread was busy: {}", ours["cpu"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_look_waits_a_tenth_of_a_second_and_the_others_do_not() {
    let mut looker = looker(&[]);
    let mut took = Vec::new();
    for _ in 0..6 {
        let start = Instant::now();
        let (event, _) = looker.look_at_host().await;
        took.push(start.elapsed());
        let percent = event["data"]["cpu"]["percent"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&percent), "{percent}");
    }
    assert!(took[0] >= Duration::from_millis(100) && took[0] < Duration::from_millis(900), "{took:?}");
    // The best of five: other tests run at the same time.
    assert!(took[1..].iter().min().unwrap() < &Duration::from_millis(80), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_cannot_be_read_is_nil_and_named() {
    let empty = tempfile::tempdir().unwrap();
    let proc = empty.path().to_str().unwrap();
    let (event, degraded) = looker(&[("collectors.system_metrics.proc", proc)]).look_at_host().await;
    let degraded = degraded.unwrap();
    for part in ["cpu", "memory", "swap", "disk_io", "network_io"] {
        assert!(event["data"][part].is_null(), "{part}");
        assert!(degraded.contains(part), "{degraded}");
    }
    assert!(degraded.contains(&format!("{proc}/diskstats")), "{degraded}");
    assert!(event["data"]["disk_usage"]["/"]["total"].as_u64().unwrap() > 0);
}
