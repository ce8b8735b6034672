//! The spool on a machine that is killed, loses power, fills up and fails, at random moments and at every single call.
//!
//! What holds after each: what was numbered is delivered or declared, and declared is only what is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use proptest::prelude::*;

use super::{
    model::{Key, LOGS, Model, body, config, tell},
    sim::{Call, Dice, Fault, Sim},
};
use crate::{
    event::status::{self, Lost, Reason},
    spool::{Config, Draft, Spool},
};

/// What happens to the agent and its machine.
#[derive(Debug, Clone)]
enum Step {
    Number(usize),
    Fresh(usize),
    Waiting(usize),
    Ack(usize),
    PutBack(usize),
    Live(bool),
    Pass(u64),
    Stop,
    Kill,
    Cut(u64),
    Wipe,
}

/// One agent after the other on one machine.
struct Play {
    sim: Sim,
    spool: Option<Spool>,
    model: Model,
    max_bytes: u64,
    /// When each message was numbered, in milliseconds since the beginning.
    numbered_at: BTreeMap<Key, u64>,
    ms: u64,
    /// Messages that may be declared because the power went.
    powerless: BTreeSet<Key>,
}

const DIR: &str = "/var/spool";

impl Play {
    fn new(max_bytes: u64) -> Self {
        let mut play = Self {
            sim: Sim::new(),
            spool: None,
            model: Model::default(),
            max_bytes,
            numbered_at: BTreeMap::new(),
            ms: 0,
            powerless: BTreeSet::new(),
        };
        play.start();
        play
    }

    fn start(&mut self) {
        let config = Config { ..config(Path::new(DIR), self.max_bytes) };
        self.spool = Some(Spool::open_on(Arc::new(self.sim.clone()), config, LOGS.to_vec()).expect("nobody holds it"));
        self.model.out.clear();
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().expect("it runs")
    }

    /// Time passes, and the spool does what is due.
    fn pass(&mut self, ms: u64) {
        let until = self.ms + ms;
        loop {
            let now = crate::spool::host::Host::now(&self.sim);
            let due = self.spool().next_duty().map(|at| at.saturating_duration_since(now).as_millis());
            let wait = due.map_or(u64::MAX, |ms| u64::try_from(ms).expect("soon"));
            if self.ms.saturating_add(wait) > until {
                break;
            }
            // A duty that is due at once and stays so would never end.
            let wait = wait.max(1);
            self.sim.pass(Duration::from_millis(wait));
            self.ms += wait;
            self.spool().keep();
            if self.sim.is_dead() {
                return;
            }
        }
        self.sim.pass(Duration::from_millis(until.saturating_sub(self.ms)));
        self.ms = self.ms.max(until);
    }

    /// Numbers a message; it counts if the agent lived long enough to hand it to anybody.
    fn number(&mut self, log: &str) {
        let spool = self.spool();
        let draft = Draft { collector: log, events: 1, version: 1, zstd: false };
        let seq = spool.number(draft, |seq| Ok(body(spool.run_id, log, seq))).expect("bodies are made");
        let key = (spool.run_id.to_string(), log.to_owned(), seq);
        if self.sim.is_dead() {
            self.model.perhaps.insert(key);
        } else {
            self.numbered_at.insert(key.clone(), self.ms);
            assert!(self.model.numbered.insert(key), "no number is given twice");
        }
    }

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &Step) {
        let spool = self.spool.as_ref().expect("it runs");
        match step {
            Step::Number(log) => self.number(LOGS[*log]),
            Step::Fresh(log) => _ = !self.sim.is_dead() && self.model.take(spool, LOGS[*log], true),
            Step::Waiting(log) => _ = !self.sim.is_dead() && self.model.take(spool, LOGS[*log], false),
            // The broker confirmed it, whatever becomes of the agent while it takes note.
            Step::Ack(nth) if !self.sim.is_dead() => self.model.settle(spool, *nth, true),
            Step::PutBack(nth) if !self.sim.is_dead() => self.model.settle(spool, *nth, false),
            Step::Ack(_) | Step::PutBack(_) => {}
            Step::Live(live) => {
                spool.set_live(live.then_some(300));
                if !live {
                    self.model.out.clear();
                }
            }
            Step::Pass(ms) => self.pass(*ms),
            Step::Stop => {
                self.spool().close();
                self.kill();
            }
            Step::Kill => self.kill(),
            Step::Cut(seed) => self.cut(&mut Dice(seed | 1)),
            Step::Wipe => {
                // Nobody is asked to keep what is wiped before the agent could look.
                self.pass(10_000);
                self.sim.wipe();
                self.pass(130_000);
            }
        }
    }

    /// Whether it was said that the folder can be used.
    fn usable(&self) -> Option<()> {
        self.spool().usable.notified().now_or_never()
    }

    fn kill(&mut self) {
        self.spool = None;
        self.sim.kill();
        self.start();
    }

    fn cut(&mut self, dice: &mut Dice) {
        self.spool = None;
        self.sim.cut(dice);
        // What is younger than this was perhaps not synced; what was acked may be known as unsettled for a minute.
        let young = |at: &u64| at + 1_100 > self.ms;
        let young = self.numbered_at.iter().filter(|(_, at)| young(at)).map(|(key, _)| key.clone());
        self.powerless.extend(young);
        self.powerless.extend(self.model.acked.iter().cloned());
        self.start();
    }

    /// What is declared lost, and why. Up to a run's end: of what was numbered.
    fn declared(&self, lost: &[Lost]) -> Vec<(Key, Reason)> {
        for Lost { run_id, collector, last_seq, .. } in lost {
            let key = last_seq.map(|last| (run_id.clone(), collector.clone(), last));
            let numbered = |key| self.model.numbered.contains(key) || self.model.perhaps.contains(key);
            assert!(key.as_ref().is_none_or(numbered), "{key:?} is declared, and was never numbered");
        }
        let of = |lost: &Lost| {
            let keys = self.model.numbered.iter().filter(|(run, log, seq)| {
                (run, log) == (&lost.run_id, &lost.collector)
                    && *seq >= lost.first_seq
                    && lost.last_seq.is_none_or(|last| *seq <= last)
            });
            keys.map(|key| (key.clone(), lost.reason)).collect::<Vec<_>>()
        };
        lost.iter().flat_map(of).collect()
    }

    /// The machine is well again, everything is delivered, and nothing is missing. Gives what is declared.
    fn end(mut self) -> Vec<(Key, Reason)> {
        self.sim.set(Fault::Nothing);
        self.sim.leave(u64::MAX);
        self.pass(30_000);
        let (seq, told) = tell(self.spool());
        self.model.numbered.insert((self.spool().run_id.to_string(), status::COLLECTOR.to_owned(), seq));
        self.model.drain(self.spool.as_ref().expect("it runs"));
        let later = tell(self.spool()).1;
        let mut declared = self.declared(&told.lost);
        declared.extend(self.declared(&later.lost));
        let lost: BTreeSet<&Key> = declared.iter().map(|(key, _)| key).collect();
        for key in &self.model.numbered {
            assert!(
                self.model.acked.contains(key) || lost.contains(key),
                "{key:?} of {:?} ms is neither delivered nor declared; {:?}",
                self.numbered_at.get(key),
                self.model.numbered
            );
        }
        for (key, reason) in &declared {
            assert!(
                *reason != Reason::Power || self.powerless.contains(key),
                "{key:?} is declared, though it was synced long before the power went"
            );
        }
        assert_eq!(self.spool().trouble(), None, "nothing is wrong any more");
        declared
    }
}

fn reasons(declared: &[(Key, Reason)]) -> BTreeSet<Reason> {
    declared.iter().map(|(_, reason)| *reason).collect()
}

fn steps(rare: impl Strategy<Value = Step> + 'static) -> impl Strategy<Value = Vec<Step>> {
    let log = 0..LOGS.len();
    let step = prop_oneof![
        16 => log.clone().prop_map(Step::Number),
        8 => log.clone().prop_map(Step::Fresh),
        8 => log.prop_map(Step::Waiting),
        12 => any::<usize>().prop_map(Step::Ack),
        4 => any::<usize>().prop_map(Step::PutBack),
        2 => any::<bool>().prop_map(Step::Live),
        6 => (1u64..3000).prop_map(Step::Pass),
        1 => (3000u64..100_000).prop_map(Step::Pass),
        2 => rare,
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn power_cuts_cost_only_what_was_younger_than_sync_after(
        steps in steps(prop_oneof![3 => any::<u64>().prop_map(Step::Cut), 1 => Just(Step::Kill), 1 => Just(Step::Stop)]),
        small in any::<bool>()
    ) {
        let mut play = Play::new(if small { 5_000 } else { 1 << 30 });
        play.steps(&steps);
        let mut may: BTreeSet<Reason> = [Reason::Power].into();
        may.extend(small.then_some(Reason::Evicted));
        let declared = play.end();
        prop_assert!(reasons(&declared).is_subset(&may), "{:?}", reasons(&declared));
    }

    #[test]
    fn a_disk_that_fails_now_and_then_costs_nothing(
        steps in steps(prop_oneof![2 => Just(Step::Kill), 1 => Just(Step::Wipe)]), faults in prop::collection::vec(0u64..1500, 0..4)
    ) {
        let mut play = Play::new(1 << 30);
        let mut faults = faults.into_iter();
        for step in &steps {
            if !matches!(step, Step::Kill | Step::Wipe) && play.sim.calls().is_multiple_of(3) && let Some(in_calls) = faults.next() {
                play.sim.set(Fault::Nth(play.sim.calls() + in_calls % 40));
            }
            play.step(step);
        }
        // A message that the disk did not take is in memory only: lost with its connection or its agent.
        let mut may: BTreeSet<Reason> = [Reason::DiskFull].into();
        // Full segments are closed as soon as they are on disk: then they are gone with their names.
        may.extend(steps.iter().any(|step| matches!(step, Step::Wipe)).then_some(Reason::Missing));
        let declared = play.end();
        prop_assert!(reasons(&declared).is_subset(&may), "{declared:?}");
    }
}

/// A day in small: an outage, segments that fill up, a backlog that drains in part.
fn day() -> Vec<Step> {
    let mut steps = vec![Step::Live(true)];
    for _ in 0..2 {
        steps.extend([Step::Number(1), Step::Number(2), Step::Fresh(1), Step::Ack(0), Step::Pass(1500)]);
    }
    steps.push(Step::Live(false));
    steps.extend((0..24).map(|n| Step::Number(n % 2)));
    steps.push(Step::Pass(2500));
    steps.extend([Step::Live(true), Step::Number(2)]);
    for _ in 0..12 {
        steps.extend([Step::Waiting(1), Step::Waiting(0), Step::Ack(1), Step::Number(1), Step::Fresh(1)]);
    }
    steps.extend([Step::Ack(0), Step::Ack(0), Step::Pass(12_000), Step::Number(0)]);
    steps
}

#[test]
fn a_kill_at_any_call_costs_nothing() {
    let whole = {
        let mut play = Play::new(1 << 30);
        play.steps(&day());
        play.sim.calls()
    };
    assert!(whole > 150, "{whole} calls");
    for at in 0..whole {
        let mut play = Play::new(1 << 30);
        play.sim.set(Fault::Dead(at.max(play.sim.calls())));
        for step in day() {
            play.step(&step);
            if play.sim.is_dead() {
                break;
            }
        }
        play.kill();
        // Killed again while it finds out what is there.
        play.sim.set(Fault::Dead(play.sim.calls() + at % 60));
        play.kill();
        play.number(LOGS[1]);
        let declared = play.end();
        assert_eq!(declared, [], "killed at call {at}");
    }
}

#[test]
fn a_record_that_is_damaged_once_its_number_is_written_is_missed_and_before_that_was_none() {
    for given in [true, false] {
        let mut play = Play::new(1 << 30);
        (0..3).for_each(|_| play.number(LOGS[1]));
        if given {
            play.spool().give();
        }
        let segment = Path::new(DIR).join(LOGS[1]).join("00000001-0000000000000001.seg");
        let mut bytes = play.sim.bytes(&segment);
        bytes.pop();
        play.sim.put(&segment, bytes);
        let last = (play.spool().run_id.to_string(), LOGS[1].to_owned(), 3);
        play.kill();
        if !given {
            play.model.numbered.remove(&last);
        }
        assert_eq!(play.end(), given.then_some((last, Reason::Damaged)).into_iter().collect::<Vec<_>>());
    }
}

/// The power goes at each call of a day in small.
fn cut_everywhere(max_bytes: u64, may: &[Reason]) {
    let whole = {
        let mut play = Play::new(max_bytes);
        play.steps(&day());
        play.sim.calls()
    };
    for at in 0..whole {
        let mut play = Play::new(max_bytes);
        play.sim.set(Fault::Dead(at.max(play.sim.calls())));
        for step in day() {
            play.step(&step);
            if play.sim.is_dead() {
                break;
            }
        }
        play.cut(&mut Dice(at * 7 + 1));
        play.number(LOGS[1]);
        let declared = play.end();
        assert!(reasons(&declared).is_subset(&may.iter().copied().collect()), "cut at call {at}: {declared:?}");
    }
}

#[test]
fn a_power_cut_at_any_call_costs_only_what_was_young() {
    cut_everywhere(1 << 30, &[Reason::Power]);
}

#[test]
fn a_power_cut_at_any_call_forgets_no_eviction() {
    cut_everywhere(4_000, &[Reason::Power, Reason::Evicted]);
}

#[test]
fn any_one_call_that_fails_costs_nothing_and_is_got_over() {
    let whole = {
        let mut play = Play::new(1 << 30);
        play.steps(&day());
        play.sim.calls()
    };
    for at in 0..whole {
        let mut play = Play::new(1 << 30);
        play.sim.set(Fault::Nth(at));
        play.steps(&day());
        let declared = play.end();
        assert!(reasons(&declared).is_subset(&[Reason::DiskFull].into()), "call {at} failed: {declared:?}");
    }
}

#[test]
fn any_one_call_that_fails_while_a_folder_that_was_taken_away_is_made_anew_costs_nothing() {
    let begin = |fault: Option<u64>| {
        let mut play = Play::new(1 << 30);
        let before = play.sim.calls();
        play.sim.set(fault.map_or(Fault::Nothing, |at| Fault::Nth(before + at)));
        play.pass(50_000);
        play.step(&Step::Wipe);
        play.number(LOGS[0]);
        let calls = play.sim.calls() - before;
        (play, calls)
    };
    for at in 0..begin(None).1 {
        let (mut play, _) = begin(Some(at));
        play.kill();
        let declared = play.end();
        assert!(reasons(&declared).is_subset(&[Reason::DiskFull].into()), "call {at} failed: {declared:?}");
    }
}

#[test]
fn a_disk_that_syncs_nothing_is_told_and_once_it_does_everything_is_safe() {
    let mut play = Play::new(1 << 30);
    play.pass(1000);
    play.sim.set(Fault::Every(Call::Sync));
    (0..30).for_each(|_| play.number(LOGS[1]));
    play.pass(60_000);
    let trouble = play.spool().trouble().expect("it is told");
    assert!(trouble.contains("pg_locks"), "{trouble}");
    play.number(LOGS[1]);
    play.sim.set(Fault::Nothing);
    play.pass(25_000);
    assert_eq!(play.spool().trouble(), None);
    play.cut(&mut Dice(5));
    assert_eq!(play.end(), [], "everything was written anew and synced");
}

#[test]
fn what_is_in_memory_on_a_full_disk_is_declared_as_that_when_the_agent_is_killed() {
    let mut play = Play::new(1 << 30);
    play.step(&Step::Live(true));
    play.number(LOGS[1]);
    play.pass(2000);
    play.sim.leave(0);
    (0..3).for_each(|_| play.number(LOGS[1]));
    assert!(play.spool().trouble().is_some());
    play.kill();
    let declared = play.end();
    assert_eq!(declared.len(), 3, "{declared:?}");
    assert_eq!(reasons(&declared), [Reason::DiskFull].into());
}

#[test]
fn a_folder_that_cannot_be_used_is_tried_again_until_it_can() {
    let sim = Sim::new();
    sim.set(Fault::Every(Call::Open));
    let spool = Spool::open_on(Arc::new(sim.clone()), config(Path::new(DIR), 1 << 30), LOGS.to_vec()).expect("it runs");
    let mut play = Play { sim, spool: Some(spool), ..Play::new(1 << 30) };
    play.pass(25_000);
    assert!(play.spool().trouble().is_some_and(|trouble| trouble.contains("lock")));
    assert!(play.usable().is_none());
    play.sim.set(Fault::Nothing);
    play.pass(11_000);
    assert!(play.usable().is_some(), "a run that begins anew can use it");
    play.kill();
    assert_eq!(play.spool().trouble(), None);
}

#[test]
fn another_agents_mark_is_not_believed() {
    let (mut own, mut other) = (Play::new(1 << 30), Play::new(1 << 30));
    for play in [&mut own, &mut other] {
        (0..5).for_each(|_| play.number(LOGS[1]));
        play.pass(3000);
    }
    for _ in 0..9 {
        other.number(LOGS[1]);
    }
    other.step(&Step::Stop);
    let mark = Path::new(DIR).join("mark");
    own.sim.put(&mark, other.sim.bytes(&mark));
    own.kill();
    assert_eq!(own.end(), []);
}
