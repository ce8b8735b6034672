//! Deltas of a workload whose every call is counted, through resets of each kind, crashes, restarts and evictions.
//!
//! The test counts for itself what the server remembers of each statement. What a look tells has to be just that: never
//! more than what ran, and less only where the server forgot, which the look has to say.
//!
//! `COUNTED_CALLS=100000` runs that many on each version, 6,000 if not said; `FAULT_SEED` repeats an earlier story.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    looking::{Looked, Looker},
    rig::{
        chance::{Dice, now_ms, number_from},
        postgres::{Role, Server, Stop, VERSIONS},
        wait_for,
    },
};

const SHAPES: usize = 50;
const BOUND: Duration = Duration::from_secs(30);

/// Operators make a statement another one; constants would not.
fn shape(number: usize) -> String {
    let terms = (0..6).map(|bit| if number >> bit & 1 == 1 { " + 1" } else { " - 1" });
    format!("SELECT 7{}", terms.collect::<String>())
}

/// What happens between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Quiet,
    ResetOne,
    ResetAll,
    /// 17 and later; before, there is none, and it is a quiet interval.
    ResetTimes,
    Crash,
    Restart,
    Evictions,
}

/// What the test knows of one statement.
#[derive(Debug, Clone, Default)]
struct Known {
    /// As the server should have it now.
    calls: u64,
    /// As it was at the look before.
    before: u64,
    /// Since the look before: what ran and is remembered, and what ran and was forgotten again.
    ran: u64,
    forgotten: u64,
    /// Whether its entry is another one than at the look before.
    anew: bool,
}

impl Known {
    fn run(&mut self, times: u64) {
        self.calls += times;
        self.ran += times;
    }

    fn forget(&mut self) {
        self.forgotten += std::mem::take(&mut self.ran);
        self.calls = 0;
        self.anew = true;
    }

    fn look(&mut self) {
        *self = Self { calls: self.calls, before: self.calls, ..Self::default() };
    }
}

struct Story {
    server: Server,
    looker: Looker,
    ids: Vec<String>,
    known: Vec<Known>,
    dice: Dice,
    told: Told,
    /// Whether so many statements ran that the server evicts whenever there is another one. 13 does not tell.
    crowded: bool,
}

/// Sums over a whole story.
#[derive(Debug, Default)]
struct Told {
    ran: u64,
    /// Told in deltas, and in the first sample of an epoch.
    known: u64,
    /// Nobody can tell: the server forgot it before it was looked at, and a reset, a baseline or `dealloc` says so.
    forgotten: u64,
    /// On 13, where a sample after a restart begins anew, although the counters went on.
    began: u64,
    /// On 13 to 16, where an entry that was reset had more calls than before at the next look.
    unseen: u64,
    /// Where `dealloc` says that the server evicted: how much less than what ran.
    evicted: u64,
    events: BTreeMap<Event, u32>,
}

impl Story {
    async fn new(version: u32, seed: u64) -> Self {
        let server = Server::with_settings(version, "pg_stat_statements.max = 250\nrestart_after_crash = on");
        let all: Vec<String> = (0..SHAPES).map(shape).collect();
        server.session(Role::Plain, "load").await.simple_query(&all.join("; ")).await.unwrap();
        // Once, while nothing is evicted yet: ids stay the same.
        let mut ids = BTreeMap::new();
        let sql = "SELECT queryid, query FROM pg_stat_statements WHERE userid = 'plain'::regrole AND query LIKE 'SELECT $1 %'";
        for line in server.sql(sql).lines() {
            let (id, text) = line.split_once('|').unwrap();
            let signs: String = text.chars().filter(|c| matches!(c, '+' | '-')).collect();
            ids.insert(signs, id.to_owned());
        }
        let signs = |text: &String| text.chars().filter(|c| matches!(c, '+' | '-')).collect::<String>();
        let ids = all.iter().map(|text| ids[&signs(text)].clone()).collect();
        server.sql("CHECKPOINT");
        let settings = [("postgres.url", &*server.url(Role::Agent)), ("collectors.pg_statements.limit", "100000")];
        let looker = Looker::new("pg_statements", &settings);
        let known = vec![Known { calls: 1, ..Known::default() }; SHAPES];
        let (dice, told) = (Dice::new(seed), Told::default());
        let mut story = Self { server, looker, ids, known, dice, told, crowded: false };
        story.look(&[]).await;
        story
    }

    /// Runs some of the statements, some often.
    async fn run(&mut self, calls: u64) {
        let session = self.server.session(Role::Plain, "load").await;
        let mut left = calls;
        while left > 0 {
            let which = usize::try_from(self.dice.roll(SHAPES as u64)).unwrap();
            let times = (1 + self.dice.roll(60)).min(left);
            let batch = vec![shape(which); usize::try_from(times).unwrap()];
            session.simple_query(&batch.join("; ")).await.unwrap();
            self.known[which].run(times);
            self.told.ran += times;
            left -= times;
        }
    }

    async fn happen(&mut self, event: Event) {
        *self.told.events.entry(event).or_default() += 1;
        self.crowded = (self.crowded && !matches!(event, Event::ResetAll | Event::Crash)) || event == Event::Evictions;
        match event {
            Event::ResetOne => {
                for _ in 0..5 {
                    let which = usize::try_from(self.dice.roll(SHAPES as u64)).unwrap();
                    self.server.sql(&format!("SELECT pg_stat_statements_reset(0, 0, {})", self.ids[which]));
                    self.known[which].forget();
                }
            }
            Event::ResetAll => {
                self.server.sql("SELECT pg_stat_statements_reset()");
                self.known.iter_mut().for_each(Known::forget);
            }
            Event::ResetTimes if self.server.version() >= 17 => {
                self.server.sql("SELECT pg_stat_statements_reset(0, 0, 0, true)");
            }
            Event::Quiet | Event::ResetTimes => {}
            Event::Crash => {
                let victim = self.server.session(Role::Plain, "victim").await;
                let pid = victim.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
                Server::signal(pid, Signal::KILL);
                let server = &self.server;
                wait_for("the server has recovered", BOUND, || {
                    let ready = server.psql(Role::Postgres, "postgres").args(["-c", "SELECT 1"]).output();
                    ready.is_ok_and(|ready| ready.status.success())
                });
                self.known.iter_mut().for_each(Known::forget);
            }
            Event::Restart => {
                self.server.stop(Stop::Fast);
                self.server.start();
            }
            Event::Evictions => {
                // Statements that nobody counts: another number of terms each.
                let many: Vec<String> =
                    (20..300).map(|terms| format!("SELECT {}", vec!["1"; terms].join(" + "))).collect();
                self.server.session(Role::Plain, "load").await.simple_query(&many.join("; ")).await.unwrap();
            }
        }
    }

    /// Looks, and compares.
    async fn look(&mut self, events: &[Event]) {
        let looked = healed(&mut self.looker).await;
        let summary = &looked.event["summary"];
        let baseline = summary["baseline"].as_bool().unwrap();
        let exact = self.server.version() >= 14;
        // 13 does not tell of a reset of all, nor whether a restart kept the counters.
        let ends_epoch = |event: &Event| match event {
            Event::Crash => true,
            Event::ResetAll => exact,
            Event::Restart => !exact,
            _ => false,
        };
        let want = self.told.events.is_empty() || events.iter().any(ends_epoch);
        assert_eq!(baseline, want, "{events:?}: {summary}");
        let evicted = if exact { summary["dealloc"].as_u64().unwrap_or(0) > 0 } else { self.crowded };
        if events.contains(&Event::Evictions) && exact && !baseline {
            assert!(evicted, "the server evicted, and the look does not say so: {summary}");
        }
        for which in 0..SHAPES {
            let row = looked.rows().iter().find(|row| row["queryid"] == self.ids[which]);
            self.compare(which, row, baseline, evicted, events);
        }
        // Of all that is told no sum is less than its parts.
        let deltas = looked.rows().iter().filter_map(|row| row["delta"]["calls"].as_u64());
        assert!(
            baseline
                || deltas.sum::<u64>() >= self.known.iter().map(|known| known.ran).sum::<u64>()
                || evicted
                || self.server.version() < 17,
            "{summary}"
        );
        self.known.iter_mut().for_each(Known::look);
    }

    fn compare(&mut self, which: usize, row: Option<&Value>, baseline: bool, evicted: bool, events: &[Event]) {
        let known = &mut self.known[which];
        let what = format!("{}: {events:?}, statement {which}: {known:?}, {row:?}", self.server.version());
        let there = row.map_or(0, |row| row["calls"].as_u64().unwrap());
        if evicted {
            // Which ones went is not told, so the server is believed.
            assert!(there <= known.calls, "{what}");
            known.anew |= there < known.calls;
            known.calls = there;
        }
        assert_eq!(there, known.calls, "{what}");
        let delta = row.and_then(|row| row["delta"]["calls"].as_u64());
        self.told.forgotten += known.forgotten;
        if baseline {
            assert_eq!(delta, None, "a baseline has no deltas: {what}");
            // What the epoch counted so far is all that ran in it; the very first sample only begins.
            if known.anew {
                self.told.known += there;
            } else {
                self.told.began += known.ran;
            }
            return;
        }
        let told = delta.unwrap_or(0);
        assert!(told <= known.ran, "more than what ran: {what}");
        let missing = known.ran - told;
        self.told.known += told;
        if missing > 0 && evicted {
            self.told.evicted += missing;
        } else if missing > 0 {
            let excused = self.server.version() < 17 && known.anew && known.calls >= known.before && known.before > 0;
            assert!(excused && told == known.calls - known.before, "less than what ran: {what}");
            self.told.unseen += missing;
        }
    }
}

/// The first look that succeeds: connections end with a crash and a restart.
async fn healed(looker: &mut Looker) -> Looked {
    for _ in 0..300 {
        if let Ok(looked) = looker.try_look().await {
            return looked;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no look succeeded within 30 seconds")
}

#[tokio::test(flavor = "multi_thread")]
async fn deltas_of_counted_calls_add_up_through_resets_crashes_and_evictions_on_every_version() {
    let calls: u64 = number_from("COUNTED_CALLS").unwrap_or(6_000);
    let seed = number_from("FAULT_SEED").unwrap_or_else(now_ms);
    println!("FAULT_SEED={seed}");
    // Five of each reset, three crashes, and some of each other kind, in any order.
    let often = [
        (Event::Quiet, 6),
        (Event::ResetOne, 5),
        (Event::ResetAll, 5),
        (Event::ResetTimes, 5),
        (Event::Crash, 3),
        (Event::Restart, 2),
        (Event::Evictions, 4),
    ];
    for version in VERSIONS {
        let mut story = Story::new(version, seed).await;
        let mut events: Vec<Event> = often.iter().flat_map(|(event, times)| vec![*event; *times]).collect();
        for at in (1..events.len()).rev() {
            events.swap(at, usize::try_from(story.dice.roll(at as u64 + 1)).unwrap());
        }
        let each = calls.div_ceil(events.len() as u64);
        for event in events {
            let first = story.dice.roll(each + 1);
            story.run(first).await;
            story.happen(event).await;
            story.run(each - first).await;
            story.look(&[event]).await;
            // One that changes little: the agent then asks for changes only.
            story.run(1).await;
            story.look(&[Event::Quiet]).await;
        }
        println!("figure: {version}: {:?}", story.told);
        let told = &story.told;
        assert!(told.ran >= calls, "{told:?}");
        assert_eq!(
            told.known + told.forgotten + told.began + told.unseen + told.evicted,
            told.ran,
            "{version}: {told:?}"
        );
    }
}
