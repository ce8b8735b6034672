//! The parts of the run: what is compared with what.

use std::time::Duration;

use crate::{
    agent::{self, Scene},
    cell::{Cell, Measured, files},
    disk, publish,
    reference::{LOAD, Load, SETTINGS},
    rig::{Folder, rabbit},
    size,
    table::{Bound, Figure},
    words,
};

/// A part, and what it finds.
type Part = (&'static str, fn(usize) -> Vec<Figure>);

pub(crate) const ALL: [Part; 12] = [
    ("encode", encode),
    ("append", append),
    ("read", read),
    ("publish", publishing),
    ("replay", replay),
    ("rest", rest),
    ("load", load),
    ("start", start),
    ("crowd", crowd),
    ("server", usual),
    ("default", default),
    ("size", size::size),
];

/// Measures all cells in each round, in another order each time, after one that warms; `before` is called before each one.
fn side_by_side(rounds: usize, cells: &[Cell], mut before: impl FnMut()) -> Vec<Vec<Measured>> {
    let mut found = vec![Vec::new(); cells.len()];
    for round in 0..=rounds {
        for step in 0..cells.len() {
            let at = (round + step) % cells.len();
            before();
            let measured = cells[at].measure();
            if round > 0 {
                found[at].push(measured);
            }
        }
    }
    found
}

/// A figure without a limit that could be measured.
pub(crate) fn lone(part: &'static str, name: &str, unit: &'static str, ours: Vec<f64>, bound: Bound) -> Figure {
    Figure { part, name: name.into(), unit, ours, against: String::new(), limit: Vec::new(), bound }
}

fn per_second(found: &[Measured], many: f64) -> Vec<f64> {
    found.iter().map(|measured| many / measured.seconds).collect()
}

fn encode(rounds: usize) -> Vec<Figure> {
    const TIMES: u32 = 20_000;
    let cells = [words::By::Agent, words::By::RmpSerde].map(|by| Cell::Encode { by, times: TIMES });
    let found = side_by_side(rounds, &cells, || {});
    vec![Figure {
        part: "encode",
        name: "100 rows with texts of 1 KiB".into(),
        unit: "messages/s",
        ours: per_second(&found[0], TIMES.into()),
        against: "rmp-serde, buffer kept".into(),
        limit: per_second(&found[1], TIMES.into()),
        bound: Bound::Told,
    }]
}

fn append(rounds: usize) -> Vec<Figure> {
    // They are short, and what a disk's syncs take scatters.
    let rounds = 3 * rounds;
    let folder = Folder::new("append");
    let mut figures = Vec::new();
    for (kib, group, synced, count, least) in [
        (1, 64, false, 192_000, Some(0.7)),
        (16, 64, false, 32_000, Some(0.7)),
        (1, 64, true, 128_000, Some(0.8)),
        (16, 64, true, 32_000, Some(0.8)),
        (1, 1, true, 8_000, None),
    ] {
        let dir = folder.path().join("spool");
        let append = disk::Append { bytes: kib << 10, count, group, synced, dir };
        let cells = [disk::By::Spool, disk::By::Plain].map(|by| Cell::Append { by, append: append.clone() });
        let found = side_by_side(rounds, &cells, || {});
        let (how, against) = match (synced, group) {
            (false, _) => (format!("groups of {group}, deferred"), "write"),
            (true, 1) => ("each synced".to_owned(), "write and fdatasync"),
            (true, _) => (format!("groups of {group}, synced"), "write and fdatasync"),
        };
        figures.push(Figure {
            part: "append",
            name: format!("{kib} KiB, {how}"),
            unit: "records/s",
            ours: per_second(&found[0], count.into()),
            against: against.into(),
            limit: per_second(&found[1], count.into()),
            bound: least.map_or(Bound::Told, Bound::Share),
        });
    }
    figures
}

/// Puts messages into a new spool and leaves them there as an outage does: synced meanwhile.
pub(crate) fn backlog(folder: &Folder, bytes: usize, count: u64) -> std::path::PathBuf {
    let dir = folder.path().join("backlog");
    let spool = publish::spool(&dir, Duration::from_nanos(1));
    let body = publish::body(bytes);
    for number in 1..=count {
        spool.number(publish::DRAFT, |_| Ok(body.clone())).unwrap();
        if number % 4096 == 0 || number == count {
            spool.keep();
        }
    }
    spool.close();
    assert_eq!((spool.messages(publish::LOG), spool.trouble()), (count, None));
    dir
}

fn read(rounds: usize) -> Vec<Figure> {
    let folder = Folder::new("read");
    let mut figures = Vec::new();
    for kib in [1, 16] {
        let dir = backlog(&folder, kib << 10, (1 << 20) / kib as u64);
        let bytes: u64 = files(&dir).iter().map(|path| path.metadata().unwrap().len()).sum();
        let cells = [disk::By::Spool, disk::By::Plain].map(|by| Cell::Read { by, dir: dir.clone() });
        let found = side_by_side(rounds, &cells, || {});
        std::fs::remove_dir_all(&dir).unwrap();
        figures.push(Figure {
            part: "read",
            name: format!("spool verify, 1 GiB of {kib} KiB"),
            unit: "MB/s",
            ours: per_second(&found[0], bytes as f64 / 1e6),
            against: "read in order".into(),
            limit: per_second(&found[1], bytes as f64 / 1e6),
            bound: Bound::Share(0.5),
        });
    }
    figures
}

/// KiB of a body, and how many messages. Of the largest so many that the log of a quorum queue is turned to another file as
/// often in each cell (each holds 512 MiB, RabbitMQ's `raft.wal_max_size_bytes`): with fewer one cell meets a turn, the next
/// none.
const SIZES: [(usize, u64); 3] = [(1, 30_000), (16, 15_000), (256, 4_096)];

/// An exchange with one queue behind it, on the broker that all parts share.
pub(crate) struct Queue {
    runtime: tokio::runtime::Runtime,
    name: &'static str,
}

impl Queue {
    pub(crate) fn new(kind: &'static str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            match kind {
                "quorum" => rabbit::shared().quorum_queue(kind, kind).await,
                _ => rabbit::shared().durable_queue(kind, kind).await,
            }
        });
        Self { runtime, name: kind }
    }

    pub(crate) fn empty(&self) {
        self.runtime.block_on(async {
            let (connection, channel) = rabbit::shared().channel().await;
            channel.queue_purge(self.name.into(), lapin::options::QueuePurgeOptions::default()).await.unwrap();
            connection.close(200, "done".into()).await.unwrap();
        });
    }

    pub(crate) fn flow(&self, folder: &Folder, bytes: usize, count: u64) -> publish::Flow {
        let (url, exchange) = (rabbit::shared().url(), self.name.to_owned());
        publish::Flow { url, exchange, bytes, count, window: 256, dir: folder.path().join("spool") }
    }
}

fn publishing(rounds: usize) -> Vec<Figure> {
    let folder = Folder::new("publish");
    let mut figures = Vec::new();
    for kind in ["classic", "quorum"] {
        let queue = Queue::new(kind);
        for (kib, count) in SIZES {
            let flow = queue.flow(&folder, kib << 10, count);
            let by = [publish::By::Memory, publish::By::Spool, publish::By::Lapin];
            let found = side_by_side(rounds, &by.map(|by| Cell::Publish { by, flow: flow.clone() }), || {
                queue.empty();
                _ = std::fs::remove_dir_all(&flow.dir);
            });
            for (at, name, least) in [(0, "", 0.9), (1, ", behind the spool", 0.85)] {
                figures.push(Figure {
                    part: "publish",
                    name: format!("{kind}, {kib} KiB{name}"),
                    unit: "messages/s",
                    ours: per_second(&found[at], count as f64),
                    against: "lapin".into(),
                    limit: per_second(&found[2], count as f64),
                    bound: Bound::Share(least),
                });
            }
            queue.empty();
        }
    }
    figures
}

fn replay(rounds: usize) -> Vec<Figure> {
    let folder = Folder::new("replay");
    let queue = Queue::new("classic");
    let (bytes, count) = (16 << 10, 1 << 16);
    let flow = queue.flow(&folder, bytes, count);
    let dir = folder.path().join("backlog");
    let cells =
        [Cell::Replay { dir: dir.clone(), flow: flow.clone() }, Cell::Publish { by: publish::By::Memory, flow }];
    let found = side_by_side(rounds, &cells, || {
        queue.empty();
        _ = std::fs::remove_dir_all(&dir);
        backlog(&folder, bytes, count);
    });
    queue.empty();
    vec![Figure {
        part: "replay",
        name: "1 GiB of 16 KiB".into(),
        unit: "messages/s",
        ours: per_second(&found[0], count as f64),
        against: "from memory".into(),
        limit: per_second(&found[1], count as f64),
        bound: Bound::Share(0.8),
    }]
}

pub(crate) const REST: Load = Load { name: "at rest", statements: 1000, text: 200, waiters: 0, idle: 0 };

/// Five collectors beside 100 sessions and 1,000 statements, with nobody at work.
fn rest(rounds: usize) -> Vec<Figure> {
    let mut scene = Scene::new(SETTINGS, &REST);
    scene.crowd(100);
    let seconds = 30;
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    let mut usual = Vec::new();
    for round in 0..=rounds {
        let bare = Cell::Bare.measure().memory;
        let agent = scene.start(Some("1s"));
        std::thread::sleep(Duration::from_secs(5));
        let (cpu, memory) = agent::observe(agent.pid(), Duration::from_secs(seconds));
        if round > 0 {
            for (figures, figure) in found.iter_mut().zip([memory.rss, memory.anonymous, cpu / 10.0 / seconds as f64]) {
                figures.push(figure);
            }
            usual.push((bare.rss, bare.anonymous));
        }
    }
    let [rss, anonymous, cpu] = found;
    let figure = |name: &str, unit, ours, limit, bound| Figure {
        part: "rest",
        name: name.into(),
        unit,
        ours,
        against: "bare runtime".into(),
        limit,
        bound,
    };
    let bare = |of: fn(&(f64, f64)) -> f64| usual.iter().map(of).collect::<Vec<_>>();
    vec![
        figure("RSS, five collectors each second", "MiB", rss, bare(|bare| bare.0), Bound::Most(10.0)),
        figure("RssAnon", "MiB", anonymous, bare(|bare| bare.1), Bound::Told),
        figure("CPU, each second", "% of a core", cpu, Vec::new(), Bound::Most(1.0)),
    ]
}

/// The reference load: 2 KiB texts, 50 waiters.
fn load(rounds: usize) -> Vec<Figure> {
    let scene = Scene::new(SETTINGS, &LOAD);
    let seconds = 20;
    let (mut cpu, mut peak, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let observe = |pid| {
        std::thread::sleep(Duration::from_secs(5));
        let (ms, memory) = agent::observe(pid, Duration::from_secs(seconds));
        (ms / seconds as f64, memory)
    };
    for round in 0..rounds {
        let mut collectd = || others.push(observe(scene.collectd().pid()).0);
        if round % 2 == 1 {
            collectd();
        }
        let (ms, memory) = observe(scene.start(Some("1s")).pid());
        cpu.push(ms);
        peak.push(memory.peak);
        if round % 2 == 0 {
            collectd();
        }
    }
    vec![
        Figure {
            part: "load",
            name: "CPU of the agent, a cycle".into(),
            unit: "ms",
            ours: cpu,
            against: "collectd, numbers only".into(),
            limit: others,
            bound: Bound::Most(4.0),
        },
        lone("load", "RSS, peak", "MiB", peak, Bound::Told),
    ]
}

/// From nothing to the first message, and back to nothing.
fn start(rounds: usize) -> Vec<Figure> {
    let mut scene = Scene::new(SETTINGS, &REST);
    scene.crowd(100);
    let (mut first, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (start, stop) = scene.start_and_stop();
        first.push(start);
        gone.push(stop);
    }
    vec![
        lone("start", "to the first message", "ms", first, Bound::Most(300.0)),
        lone("start", "clean stop, nothing waiting", "ms", gone, Bound::Most(100.0)),
    ]
}

/// 5,000 statements that all ran since the cycle before, 1,000 sessions, 400 that wait.
fn crowd(rounds: usize) -> Vec<Figure> {
    let load = Load { name: "crowd", waiters: 80, ..LOAD };
    let settings = format!("{SETTINGS}max_connections = 1200\n");
    let mut scene = Scene::new(&settings, &load);
    scene.crowd(450);
    // Once all statements ran, an interval holds one cycle, which sees all of them.
    let agent = scene.start(Some("10s"));
    std::thread::sleep(Duration::from_secs(11));
    let (mut cpu, mut peak) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        scene.run_statements(&load);
        let (ms, memory) = agent::observe(agent.pid(), Duration::from_secs(10));
        cpu.push(ms);
        peak.push(memory.peak);
    }
    vec![
        lone("crowd", "CPU of the agent, a cycle", "ms", cpu, Bound::Most(50.0)),
        lone("crowd", "RSS, peak", "MiB", peak, Bound::Most(40.0)),
    ]
}

/// What a look costs the server, beside the usual design's queries.
fn usual(rounds: usize) -> Vec<Figure> {
    let scene = Scene::new(SETTINGS, &LOAD);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let agent = scene.start(Some("1s"));
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..rounds {
        let before = scene.backends_ms();
        std::thread::sleep(Duration::from_secs(10));
        ours.push((scene.backends_ms() - before) / 10.0);
        theirs.push(scene.usual_ms());
    }
    drop(agent);
    vec![Figure {
        part: "server",
        name: "CPU of the agent's backends, a cycle".into(),
        unit: "ms",
        ours,
        against: "the usual design's queries".into(),
        limit: theirs,
        bound: Bound::Told,
    }]
}

/// The same at rest with each collector as often as it is by default.
fn default(rounds: usize) -> Vec<Figure> {
    let mut scene = Scene::new(SETTINGS, &REST);
    scene.crowd(100);
    let agent = scene.start(None);
    std::thread::sleep(Duration::from_secs(5));
    // An interval of the slowest collectors each.
    let cpu = (0..rounds).map(|_| agent::observe(agent.pid(), Duration::from_secs(60)).0 / 600.0).collect();
    vec![lone("rest", "CPU, default intervals", "% of a core", cpu, Bound::Most(0.1))]
}

/// Memory over an hour, five collectors each second: the last ten minutes beside the first.
pub(crate) fn hour() -> Vec<Figure> {
    let mut scene = Scene::new(SETTINGS, &REST);
    scene.crowd(100);
    let agent = scene.start(Some("1s"));
    std::thread::sleep(Duration::from_secs(60));
    let minutes: Vec<f64> = (0..60).map(|_| agent::observe(agent.pid(), Duration::from_secs(60)).1.rss).collect();
    vec![Figure {
        part: "rest",
        name: "RSS in the last ten minutes of an hour".into(),
        unit: "MiB",
        ours: minutes[50..].to_vec(),
        against: "the first ten".into(),
        limit: minutes[..10].to_vec(),
        bound: Bound::Told,
    }]
}
