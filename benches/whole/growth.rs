//! Growth: how what the agent costs grows with what it looks at, and with what waits in its spool.

use std::{fmt::Write, fs, time::Duration};

use serde::Serialize;

use crate::{
    agent::{Scene, observe},
    parts::{Queue, backlog},
    publish,
    reference::{Load, SETTINGS},
    rig::Folder,
};

/// One thing that grows, and what it costs at each size.
#[derive(Debug, Serialize)]
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    /// What grows.
    pub(crate) of: &'static str,
    pub(crate) points: Vec<Point>,
}

/// A size, and what was measured there.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Point {
    pub(crate) size: f64,
    /// Processor time of the agent for one cycle, one second, or for opening the spool, in ms.
    pub(crate) ms: f64,
    /// The most memory that was resident, in MiB.
    pub(crate) mib: f64,
    /// Messages that came and could not be delivered in time.
    pub(crate) waiting: u64,
}

impl Curve {
    /// By how much time grew from one size to the next for each time that the size did: 1 is linear, less is better.
    pub(crate) fn steepness(&self) -> Vec<f64> {
        let step = |pair: &[Point]| (pair[1].ms / pair[0].ms) / (pair[1].size / pair[0].size);
        self.points.windows(2).map(step).collect()
    }
}

const SETTLES: Duration = Duration::from_secs(4);
const CYCLES: u32 = 10;

fn point(size: usize, settings: &str, load: &Load, sessions: usize) -> Point {
    let mut scene = Scene::new(settings, load);
    scene.crowd(sessions);
    let agent = scene.start(Some("1s"));
    std::thread::sleep(SETTLES);
    let (ms, memory) = observe(agent.pid(), Duration::from_secs(CYCLES.into()));
    Point { size: size as f64, ms: ms / f64::from(CYCLES), mib: memory.peak, waiting: 0 }
}

const SMALL: Load = Load { name: "growth", statements: 100, text: 200, waiters: 0, idle: 0 };

pub(crate) fn curves() -> Vec<Curve> {
    let many = "max_connections = 6000\nshared_buffers = 256MB\n";
    let sessions = [10, 100, 1000, 5000].map(|size| point(size, many, &SMALL, size));
    let statements = [100, 1000, 5000, 20_000, 50_000].map(|size| {
        let settings = "shared_buffers = 256MB\npg_stat_statements.max = 60000\n";
        point(size, settings, &Load { statements: size, ..SMALL }, 10)
    });
    let waiters = [1, 10, 40, 80].map(|size| point(size * 5, SETTINGS, &Load { waiters: size, ..SMALL }, 10));
    vec![
        Curve { name: "a cycle", of: "sessions", points: sessions.into() },
        Curve { name: "a cycle", of: "statements", points: statements.into() },
        Curve { name: "a cycle", of: "waiters", points: waiters.into() },
        Curve {
            name: "a second of publishing",
            of: "messages a second",
            points: [100, 1000, 5000, 10_000, 20_000, 40_000].map(offered).into(),
        },
        Curve { name: "opening the spool", of: "MiB of backlog", points: [1, 100, 1024, 10_240].map(opened).into() },
    ]
}

/// A spool with so many MiB of 16 KiB messages, opened again in a process of its own.
fn opened(mib: u64) -> Point {
    let folder = Folder::new("growth");
    let dir = backlog(&folder, 16 << 10, mib * 64);
    let measured = crate::cell::Cell::Open { dir: dir.clone() }.measure();
    fs::remove_dir_all(dir).unwrap();
    Point { size: mib as f64, ms: measured.cpu * 1e3, mib: measured.memory.peak, waiting: 0 }
}

/// So many messages of 1 KiB a second, to one classic queue behind a spool.
fn offered(rate: u64) -> Point {
    let folder = Folder::new("offered");
    let queue = Queue::new("classic");
    queue.empty();
    let flow = queue.flow(&folder, 1 << 10, 0);
    let measured = crate::cell::Cell::Offer { rate, flow }.measure();
    queue.empty();
    let ms = measured.cpu * 1e3 / publish::OFFERED.as_secs_f64();
    // At any moment up to a window is on its way.
    let waiting = if measured.waiting > 512 { measured.waiting } else { 0 };
    Point { size: rate as f64, ms, mib: measured.memory.peak, waiting }
}

pub(crate) fn open(dir: &std::path::Path) -> crate::cell::Measured {
    let watch = crate::cell::Watch::start();
    let spool = publish::spool(dir, Duration::from_secs(1));
    let measured = watch.stop();
    assert!(spool.messages(publish::LOG) > 0);
    measured
}

/// As text, in Markdown's form.
pub(crate) fn table(curves: &[Curve]) -> String {
    let mut out = String::from("| cost of | by | size: CPU ms, peak MiB | steepness |\n|---|---|---|---|\n");
    for curve in curves {
        let behind =
            |point: &Point| if point.waiting > 0 { format!(", {} behind", point.waiting) } else { String::new() };
        let point = |point: &Point| format!("{}: {:.2}, {:.1}{}", point.size, point.ms, point.mib, behind(point));
        let points = curve.points.iter().map(point);
        let steepness = curve.steepness().iter().map(|step| format!("{step:.2}")).collect::<Vec<_>>().join(", ");
        let points = points.collect::<Vec<_>>().join("; ");
        writeln!(out, "| {} | {} | {points} | {steepness} |", curve.name, curve.of).unwrap();
    }
    out
}
