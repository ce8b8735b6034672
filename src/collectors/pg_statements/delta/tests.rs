//! Deltas against a made-up server that resets, evicts and hides, and knows what really ran.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key(queryid: i64) -> Key {
    Key { userid: 10, dbid: 5, queryid, toplevel: Some(true) }
}

/// `calls` runs of two milliseconds, each reading one block.
fn ran(calls: u64) -> Counters {
    let time = calls as f64 * 2.0;
    Counters { calls, total_exec_time: time, shared_blks_read: Some(calls), plans: Some(0), ..Counters::default() }
}

fn counted(calls: u64, since: Option<i64>) -> Counted {
    Counted { counters: ran(calls), since: since.map(Time), ..Counted::default() }
}

fn entries(all: impl IntoIterator<Item = (Key, Counted)>) -> Entries {
    let mut entries = Entries::default();
    all.into_iter().for_each(|(key, counted)| entries.insert(key, 0, counted));
    entries
}

fn seen(complete: bool, entries: &[(i64, u64, Option<i64>)]) -> Seen {
    let entries = self::entries(entries.iter().map(|(id, calls, since)| (key(*id), counted(*calls, *since))));
    Seen { epoch: "one".into(), clock: Time(1_000_000), complete, dealloc: Some(3), entries, changed: 0 }
}

#[track_caller]
fn check(before: &Seen, now: &Counted, want: Option<u64>) {
    let delta = Before::of(Some(before), "one").delta(&key(1), now);
    assert_eq!(delta, want.map(ran), "{before:?} {now:?}");
}

#[test]
fn a_delta_is_what_ran_since() {
    check(&seen(true, &[(1, 5, None)]), &counted(7, None), Some(2));
    check(&seen(true, &[(1, 5, Some(1))]), &counted(5, Some(1)), Some(0));
}

#[test]
fn an_entry_that_began_anew_counts_whole() {
    check(&seen(true, &[(1, 5, None)]), &counted(3, None), Some(3));
    // Only 17 and later can tell.
    check(&seen(true, &[(1, 5, Some(1))]), &counted(8, Some(2)), Some(8));
    check(&seen(true, &[(1, 5, None)]), &counted(8, None), Some(3));
    // The extension was updated between the looks, and the entry is the same.
    check(&seen(true, &[(1, 5, None)]), &counted(8, Some(2)), Some(3));
}

#[test]
fn a_new_entry_counts_whole_only_if_nothing_was_hidden_before() {
    check(&seen(true, &[]), &counted(4, None), Some(4));
    check(&seen(false, &[]), &counted(4, None), None);
    check(&seen(false, &[(1, 1, None)]), &counted(4, None), Some(3));
}

#[test]
fn another_epoch_is_a_baseline() {
    let before = seen(true, &[(1, 5, None)]);
    let other = Before::of(Some(&before), "two");
    assert!(other.is_baseline());
    assert_eq!(other.delta(&key(1), &counted(7, None)), None);
    assert_eq!((other.interval_ms(Time(0)), other.dealloc(Some(9))), (None, None));
    let same = Before::of(Some(&before), "one");
    assert_eq!((same.interval_ms(Time(2_500_000)), same.dealloc(Some(9))), (Some(1500.0), Some(6)));
    assert_eq!(same.dealloc(None), None, "13 does not tell");
}

proptest! {
    #[test]
    fn those_kept_are_the_ones_that_sorting_all_finds(
        runs in prop::collection::vec((0u64..20, 0u64..4), 0..40),
        limit in 1usize..45,
    ) {
        let entries = |more: bool| -> Vec<_> {
            let ran = |(id, (calls, since)): (i64, &(u64, u64))| (id, calls + if more { *since } else { 0 }, None);
            (0..).zip(&runs).map(ran).collect()
        };
        let (before, now) = (seen(true, &entries(false)), seen(true, &entries(true)));
        let since = |key: &Key| runs[usize::try_from(key.queryid).unwrap()].1;
        // Every other one that did not run is known not to have.
        let same = |key: &Key| since(key) == 0 && key.queryid % 2 == 0;
        // What was read is told twice: as it was, too.
        let read = self::entries(now.entries.iter().filter(|(key, _)| !same(key)).map(|(key, it)| (*key, it.clone())));
        let (kept, other) = top(&read, Some(&before.entries), Before::of(Some(&before), "one"), limit);

        let mut all: Vec<(&Key, &Counted)> = now.entries.iter().collect();
        all.sort_by(|(a, x), (b, y)| since(b).cmp(&since(a)).then(y.counters.total_exec_time.total_cmp(&x.counters.total_exec_time)).then(a.cmp(b)));
        let (first, rest) = all.split_at(limit.min(all.len()));
        let want: Vec<_> = first.iter().map(|(key, entry)| (*key, *entry, Some(ran(since(key))))).collect();
        prop_assert_eq!(kept, want);
        prop_assert_eq!(other.map(|other| other.calls), Some(rest.iter().map(|(key, _)| since(key)).sum()));
    }
}

#[test]
fn what_ran_longest_since_is_kept_and_the_rest_is_summed() {
    let before = seen(true, &[(1, 449, None), (3, 0, None)]);
    let now = seen(true, &[(1, 450, None), (2, 5, None), (3, 2, None)]);
    let kept = |before: Option<&Seen>, now: &Seen, limit| {
        let (kept, other) = top(&now.entries, None, Before::of(before, "one"), limit);
        (kept.iter().map(|(key, ..)| key.queryid).collect::<Vec<_>>(), other)
    };
    assert_eq!(kept(Some(&before), &now, 2), (vec![2, 3], Some(ran(1))));
    assert_eq!(kept(Some(&before), &now, 9), (vec![2, 3, 1], Some(ran(0))));
    assert_eq!(kept(None, &now, 1), (vec![1], None));
    let read = seen(true, &[(2, 5, None)]);
    let (both, other) = top(&read.entries, Some(&before.entries), Before::of(Some(&before), "one"), 2);
    assert_eq!(both.iter().map(|(key, ..)| key.queryid).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((both[1].2.clone(), other), (Some(ran(0)), Some(ran(0))), "what is the same ran not once");
    let (before, now) = (seen(false, &[(3, 2, None)]), seen(true, &[(1, 450, None), (2, 451, None), (3, 2, None)]));
    assert_eq!(kept(Some(&before), &now, 2), (vec![3, 2], Some(ran(0))), "what is not known is in no sum");
}

/// What may happen on a server.
#[derive(Debug, Clone)]
enum Happens {
    Runs(i64, u64),
    /// Reset, or evicted to make room.
    Forgets(i64),
    ForgetsAll,
    /// Rights are taken and given.
    Hides(bool),
    Look(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0i64..6, 1u64..9).prop_map(|(id, calls)| Happens::Runs(id, calls)),
        2 => (0i64..6).prop_map(Happens::Forgets),
        1 => Just(Happens::ForgetsAll),
        1 => any::<bool>().prop_map(Happens::Hides),
        4 => (0usize..8).prop_map(Happens::Look),
    ]
}

#[derive(Debug, Default)]
struct Server {
    /// Calls and since when, by statement.
    entries: BTreeMap<i64, (u64, i64)>,
    epoch: u32,
    time: i64,
    hides: bool,
    /// What really ran since the last look, and which statements were forgotten since.
    truth: BTreeMap<i64, u64>,
    forgotten: Vec<i64>,
}

proptest! {
    #[test]
    fn a_delta_is_never_more_than_what_ran(story in prop::collection::vec(happens(), 0..60), knows_since: bool) {
        let (mut server, mut before) = (Server::default(), None::<Seen>);
        for step in story {
            server.time += 1;
            match step {
                Happens::Runs(id, calls) => {
                    server.entries.entry(id).or_insert((0, server.time)).0 += calls;
                    *server.truth.entry(id).or_default() += calls;
                }
                Happens::Forgets(id) => {
                    server.entries.remove(&id);
                    server.forgotten.push(id);
                }
                Happens::ForgetsAll => {
                    server.entries.clear();
                    server.epoch += 1;
                }
                Happens::Hides(hides) => server.hides = hides,
                Happens::Look(limit) => {
                    let now = look(&server, knows_since);
                    compare(&server, before.as_ref(), &now, limit)?;
                    before = Some(now);
                    server.truth.clear();
                    server.forgotten.clear();
                }
            }
        }
    }
}

/// Of a role without rights, the statements 0 to 2 are its own.
fn look(server: &Server, knows_since: bool) -> Seen {
    let visible = |id: i64| !server.hides || id < 3;
    let visible_ones = server.entries.iter().filter(|(id, _)| visible(**id));
    let told = visible_ones.map(|(id, (calls, since))| (key(*id), counted(*calls, knows_since.then_some(*since))));
    Seen {
        epoch: server.epoch.to_string(),
        clock: Time(server.time),
        complete: server.entries.keys().all(|id| visible(*id)),
        dealloc: None,
        entries: entries(told),
        changed: 0,
    }
}

fn compare(server: &Server, before: Option<&Seen>, now: &Seen, limit: usize) -> Result<(), TestCaseError> {
    let compared = Before::of(before, &now.epoch);
    let mut deltas = Vec::new();
    for (key, entry) in now.entries.iter() {
        let delta = compared.delta(key, entry);
        let truth = server.truth.get(&key.queryid).copied().unwrap_or(0);
        if let Some(delta) = &delta {
            prop_assert!(delta.calls <= truth, "{key:?}: {delta:?}, and {truth} ran");
            prop_assert!(delta.total_exec_time <= truth as f64 * 2.0);
            if !server.forgotten.contains(&key.queryid) {
                prop_assert_eq!(delta.calls, truth, "nothing was forgotten of {:?}", key);
            }
        }
        deltas.push(delta);
    }
    let calls = |deltas: &mut dyn Iterator<Item = Option<&Counters>>| deltas.flatten().map(|d| d.calls).sum::<u64>();
    let all = calls(&mut deltas.iter().map(Option::as_ref));
    let (kept, other) = top(&now.entries, None, compared, limit);
    prop_assert!(kept.len() <= limit);
    prop_assert_eq!(other.is_none(), compared.is_baseline());
    prop_assert_eq!(calls(&mut kept.iter().map(|(.., delta)| delta.as_ref()).chain([other.as_ref()])), all);
    Ok(())
}
