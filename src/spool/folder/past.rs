//! The past: what is known of earlier runs, from the mark and from the records that are there. Pure.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::{
    event::status::Reason,
    spool::{
        log::RunLog,
        mark::{Body, Loss, Marked, Place, Run},
        ranges::Ranges,
        segment::{Found, Tail},
    },
};

/// What is known of earlier runs.
#[derive(Debug)]
pub struct Past {
    /// What the mark said, with all runs and numbers that the records tell beyond it.
    pub body: Body,
    /// The highest counter of a run.
    pub run: u64,
    /// By collector and run.
    pub logs: BTreeMap<String, BTreeMap<u64, RunLog>>,
    /// What is neither settled nor in a record.
    pub losses: Vec<Loss>,
}

impl Past {
    /// Puts together what the mark and the records tell. `unreadable` are collector, run and first `seq` of segments of
    /// which nothing is left; `boot` is the machine's now; `known` are collectors that there may be.
    pub fn learn(
        marked: Marked,
        found: &BTreeMap<String, Vec<Found>>,
        unreadable: &[(String, u64, u64)],
        boot: &str,
        known: &[&str],
    ) -> Self {
        let mut body = marked.body.unwrap_or_default();
        let marked_runs: BTreeSet<u64> = body.runs.iter().map(|run| run.counter).collect();
        let power = !body.boot.is_empty() && body.boot != boot && !body.stopped;
        learn_runs(&mut body, &marked.places, found);
        if let Some(newest) = body.runs.last_mut().filter(|_| power) {
            // A log may have begun in its last second, and nothing of it have reached the disk.
            for name in known {
                newest.logs.entry((*name).to_owned()).or_default();
            }
        }
        let run = body.runs.iter().map(|run| run.counter).chain(marked.places.iter().map(|place| place.run)).max();
        let names = body.runs.iter().flat_map(|run| run.logs.keys()).chain(found.keys());
        let names: BTreeSet<String> = names.cloned().collect();
        let mut losses = Vec::new();
        let logs = names.into_iter().map(|name| {
            let found = found.get(&name).map(Vec::as_slice).unwrap_or_default();
            let unreadable = unreadable.iter().filter(|(log, ..)| *log == name).map(|(_, run, first)| (*run, *first));
            let on_disk = OnDisk { found, unreadable: unreadable.collect() };
            let runs = missing(&name, &body, &marked_runs, &on_disk, power, &mut losses);
            (name, runs)
        });
        let logs = logs.collect();
        Self { body, run: run.unwrap_or(0), logs, losses }
    }
}

/// Adds to the marked runs what the records and the places of `given` know beyond them.
fn learn_runs(body: &mut Body, places: &[Place], found: &BTreeMap<String, Vec<Found>>) {
    for (name, found) in found.iter().flat_map(|(name, found)| found.iter().map(move |found| (name, found))) {
        let owner = &found.segment.owner;
        if !body.runs.iter().any(|run| run.counter == owner.run) {
            body.runs.push(Run { counter: owner.run, id: owner.run_id, told: false, logs: BTreeMap::new() });
        }
        let run = body.runs.iter_mut().filter(|run| run.counter == owner.run);
        run.for_each(|run| {
            let log = run.logs.entry(name.clone()).or_default();
            log.given = log.given.max(found.segment.last);
        });
    }
    for place in places {
        for run in body.runs.iter_mut().filter(|run| run.counter == place.run) {
            let log = run.logs.entry(place.name.clone()).or_default();
            log.given = log.given.max(place.given);
            log.settled.extend((place.settled > 0).then_some((1, place.settled)));
        }
    }
    body.runs.sort_by_key(|run| run.counter);
}

/// What there is of one log.
struct OnDisk<'a> {
    found: &'a [Found],
    /// Run and first `seq` of segments of which nothing is left.
    unreadable: Vec<(u64, u64)>,
}

impl OnDisk<'_> {
    /// Whether a number that has no record was in a segment of which nothing is left: the last one that begins before it.
    fn was_unreadable(&self, run: u64, seq: u64) -> bool {
        let found = self.found.iter().filter(|found| found.segment.owner.run == run).map(|found| found.segment.first);
        let begun = found.filter(|first| *first <= seq).max();
        self.unreadable.iter().any(|&(of, first)| of == run && first <= seq && Some(first) > begun)
    }
}

/// Each run of one log, with what is neither settled nor in a record declared.
fn missing(
    name: &str,
    body: &Body,
    marked: &BTreeSet<u64>,
    on_disk: &OnDisk<'_>,
    power: bool,
    losses: &mut Vec<Loss>,
) -> BTreeMap<u64, RunLog> {
    let mut runs = BTreeMap::new();
    let newest = body.runs.last().map(|run| run.counter);
    for run in &body.runs {
        let Some(mark) = run.logs.get(name) else { continue };
        let settled: Ranges = mark.settled.iter().copied().collect();
        let mut log = RunLog { id: run.id, given: mark.given, settled };
        let mut known = log.settled.clone();
        let of_run = || on_disk.found.iter().filter(|found| found.segment.owner.run == run.counter);
        of_run().flat_map(|found| found.held.iter()).for_each(|(first, last)| known.insert(first, last));
        let in_memory: Ranges = mark.memory.iter().copied().collect();
        // Where the mark is gone nobody knows what was acked: what has no record counts as that, unless damage took it.
        if !marked.contains(&run.counter) {
            let damaged: Ranges = of_run().flat_map(|found| found.damaged.iter()).collect();
            let gone = known.missing(1, log.given).into_iter().flat_map(|(first, last)| damaged.missing(first, last));
            for (first, last) in gone.collect::<Vec<_>>() {
                log.settled.insert(first, last);
                known.insert(first, last);
            }
        }
        for (first, last) in known.missing(1, log.given) {
            for (first, last) in in_memory.within(first, last) {
                log.settled.insert(first, last);
                known.insert(first, last);
                losses.push(loss(run.id, name, first, Some(last), Reason::DiskFull));
            }
        }
        for (first, last) in known.missing(1, log.given) {
            // The record was written before the number was: its segment is gone, or the record is no longer what was written.
            let tail = of_run()
                .next_back()
                .is_some_and(|newest| newest.segment.tail == Tail::Open && newest.segment.last < first);
            let unreadable = on_disk.was_unreadable(run.counter, first);
            let there = tail || unreadable || of_run().any(|found| found.damaged.covers(first, last));
            // A segment with a footer was synced: what is missing inside of it no power cut took.
            let synced = of_run()
                .map(|found| &found.segment)
                .any(|segment| segment.tail == Tail::Footed && (segment.lowest..=segment.last).contains(&first));
            let reason = match (power && !synced, there) {
                (true, _) => Reason::Power,
                (false, true) => Reason::Damaged,
                (false, false) => Reason::Missing,
            };
            log.settled.insert(first, last);
            losses.push(loss(run.id, name, first, Some(last), reason));
        }
        if power && Some(run.counter) == newest {
            // Numbers that were given out after the last sync are not known any more.
            losses.push(loss(run.id, name, log.given + 1, None, Reason::Power));
        }
        runs.insert(run.counter, log);
    }
    runs
}

fn loss(run_id: Uuid, collector: &str, first: u64, last: Option<u64>, reason: Reason) -> Loss {
    Loss { run_id, collector: collector.to_owned(), first, last, events: None, reason }
}
