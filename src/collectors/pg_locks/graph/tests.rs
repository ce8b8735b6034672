//! What the graph tells, on scenes by hand and against a naive reference.

use proptest::prelude::*;

use super::*;

fn lock(object: &str, pid: i32, mode: &str, granted: bool, blockers: &[i32]) -> Lock {
    let node = if pid == 0 { Node::Prepared("gid".into()) } else { Node::Pid(pid) };
    Lock {
        object: object.into(),
        node,
        mode: mode.into(),
        granted,
        wait_start: (!granted).then_some(Time(i64::from(pid))),
        blockers: blockers.to_vec(),
        locktype: "relation".into(),
        relation: None,
        named_here: false,
    }
}

/// Who waits, for whom, whether that one holds it, depth, roots.
type Want<'a> = (i32, i32, Option<bool>, Option<u32>, &'a [i32]);

/// Each edge as blocked, blocking, whether it is held, depth and roots.
#[track_caller]
fn check(locks: &[Lock], leaders: &[(i32, i32)], want: &[Want<'_>]) -> Graph {
    let graph = Graph::new(locks, &leaders.iter().copied().collect());
    let told = graph.edges.iter().map(|edge| {
        let roots: Vec<i32> = graph.roots_of(edge).iter().map(Node::pid).collect();
        (edge.blocked.pid(), edge.blocking.pid(), edge.granted, edge.depth, roots)
    });
    let mut told: Vec<_> = told.collect();
    told.sort();
    let want: Vec<_> = want.iter().map(|(a, b, c, d, roots)| (*a, *b, *c, *d, roots.to_vec())).collect();
    assert_eq!(told, want);
    graph
}

const X: &str = "AccessExclusiveLock";
const S: &str = "AccessShareLock";

#[test]
fn nobody_waits_for_nobody() {
    assert_eq!(check(&[], &[], &[]), Graph::default());
    check(&[lock("t", 1, S, true, &[])], &[], &[]);
}

#[test]
fn a_reader_behind_a_waiting_writer_waits_for_the_writer_and_not_for_the_other_reader() {
    let locks = [lock("t", 1, S, true, &[]), lock("t", 2, X, false, &[1]), lock("t", 3, S, false, &[2])];
    let graph = check(&locks, &[], &[(2, 1, Some(true), Some(1), &[1]), (3, 2, Some(false), Some(2), &[1])]);
    assert_eq!(graph.roots.len(), 1);
    assert_eq!(graph.roots[0].blocked, BTreeSet::from([Node::Pid(2), Node::Pid(3)]));
    assert_eq!(graph.edges[1].mode, Some(X));
}

#[test]
fn of_a_queue_only_the_nearest_one_ahead_is_told() {
    let mut locks = vec![lock("t", 1, X, true, &[])];
    for pid in 2..=30 {
        locks.push(lock("t", pid, X, false, &(1..pid).collect::<Vec<_>>()));
    }
    let graph = Graph::new(&locks, &BTreeMap::new());
    assert_eq!((graph.edges.len(), graph.told), (29 + 28, 29 * 30 / 2));
    let soft = |edge: &&Edge| edge.granted == Some(false);
    assert!(graph.edges.iter().filter(soft).all(|edge| edge.blocked.pid() == edge.blocking.pid() + 1));
    // 13 does not tell since when anybody waits: the order follows from who waits for whom.
    for lock in &mut locks {
        lock.wait_start = None;
    }
    assert_eq!(Graph::new(&locks, &BTreeMap::new()), graph);
    // The server let the last one go first: it stands before all others, whenever it came.
    locks[29].blockers = vec![1];
    for lock in &mut locks[1..29] {
        lock.blockers.push(30);
    }
    for (at, lock) in locks.iter_mut().enumerate() {
        lock.wait_start = Some(Time(i64::try_from(at).expect("small")));
    }
    let graph = Graph::new(&locks, &BTreeMap::new());
    let of =
        |pid| graph.edges.iter().filter(soft).find(|edge| edge.blocked == Node::Pid(pid)).map(|e| e.blocking.pid());
    assert_eq!((of(2), of(3), of(29), of(30)), (Some(30), Some(2), Some(28), None));
}

#[test]
fn prepared_transactions_are_told_by_their_gid() {
    let graph = check(
        &[lock("t", 0, X, true, &[]), lock("t", 2, S, false, &[0, 0])],
        &[],
        &[(2, 0, Some(true), Some(1), &[0])],
    );
    assert_eq!(graph.edges[0].blocking, Node::Prepared("gid".into()));
    // Gone between two looks.
    check(&[lock("t", 2, S, false, &[0])], &[], &[(2, 0, None, Some(1), &[0])]);
}

#[test]
fn parallel_workers_are_their_leader() {
    let locks = [
        lock("t", 11, S, true, &[]),
        lock("t", 2, X, false, &[1, 1]),
        lock("u", 2, X, true, &[]),
        lock("u", 12, S, false, &[2]),
        lock("u", 13, S, false, &[2]),
    ];
    let leaders = [(11, 1), (12, 1), (13, 1)];
    let graph = check(&locks, &leaders, &[(1, 2, Some(true), None, &[]), (2, 1, Some(true), None, &[])]);
    assert_eq!(graph.waiters, BTreeSet::from([Node::Pid(1), Node::Pid(2)]));
    assert!(graph.roots.is_empty(), "a cycle has no root");
}

#[test]
fn where_the_server_knows_nothing_its_conflict_table_does() {
    let locks = [lock("t", 5, S, true, &[]), lock("t", 6, "RowShareLock", true, &[]), lock("t", 9, X, false, &[])];
    check(&locks, &[], &[(9, 5, Some(true), Some(1), &[5]), (9, 6, Some(true), Some(1), &[6])]);
    let locks = [lock("t", 5, S, true, &[]), lock("t", 6, "SIReadLock", true, &[]), lock("t", 9, S, false, &[])];
    check(&locks, &[], &[]);
}

#[test]
fn a_cycle_that_somebody_outside_holds_up_has_a_root() {
    let locks = [
        lock("a", 1, X, true, &[]),
        lock("a", 2, X, false, &[1]),
        lock("b", 2, X, true, &[]),
        lock("b", 1, X, false, &[2, 3]),
        lock("b", 3, S, true, &[]),
    ];
    check(
        &locks,
        &[],
        &[(1, 2, Some(true), Some(3), &[3]), (1, 3, Some(true), Some(1), &[3]), (2, 1, Some(true), Some(2), &[3])],
    );
}

#[test]
fn the_conflict_table_is_symmetric() {
    for (a, _) in MODES {
        for (b, _) in MODES {
            assert_eq!(conflict(a, b).is_some(), conflict(b, a).is_some(), "{a} {b}");
        }
    }
}

/// All that can be reached from a node, by walking.
fn walk(edges: &BTreeSet<(i32, i32)>, from: i32, seen: &mut BTreeSet<i32>) {
    for (_, to) in edges.iter().filter(|(blocked, _)| *blocked == from) {
        if seen.insert(*to) {
            walk(edges, *to, seen);
        }
    }
}

/// The shortest way by trying all lengths.
fn way(edges: &BTreeSet<(i32, i32)>, from: i32, ends: &BTreeSet<i32>) -> Option<u32> {
    let mut at = BTreeSet::from([from]);
    for length in 0..20 {
        if at.iter().any(|node| ends.contains(node)) {
            return Some(length);
        }
        at = edges.iter().filter(|(blocked, _)| at.contains(blocked)).map(|(_, blocking)| *blocking).collect();
    }
    None
}

proptest! {
    #[test]
    fn roots_and_depths_are_those_of_a_naive_walk(pairs in proptest::collection::btree_set((1i32..12, 1i32..12), 0..30)) {
        let edges: BTreeSet<(i32, i32)> = pairs.into_iter().filter(|(a, b)| a != b).collect();
        let mut locks = Vec::new();
        for blocked in 1..12 {
            let blockers: Vec<i32> = edges.iter().filter(|(a, _)| *a == blocked).map(|(_, b)| *b).collect();
            // Each waits for an object of its own, which all its blockers hold: every edge is a hard one.
            locks.extend(blockers.iter().map(|pid| lock(&blocked.to_string(), *pid, X, true, &[])));
            if !blockers.is_empty() {
                locks.push(lock(&blocked.to_string(), blocked, X, false, &blockers));
            }
        }
        let graph = Graph::new(&locks, &BTreeMap::new());
        let told: BTreeSet<_> = graph.edges.iter().map(|edge| (edge.blocked.pid(), edge.blocking.pid())).collect();
        prop_assert_eq!(&told, &edges);
        let waits: BTreeSet<i32> = edges.iter().map(|(a, _)| *a).collect();
        let ends: BTreeSet<i32> = edges.iter().map(|(_, b)| *b).filter(|b| !waits.contains(b)).collect();
        for edge in &graph.edges {
            let mut seen = BTreeSet::from([edge.blocking.pid()]);
            walk(&edges, edge.blocking.pid(), &mut seen);
            let roots: BTreeSet<i32> = graph.roots_of(edge).iter().map(Node::pid).collect();
            prop_assert_eq!(roots, seen.intersection(&ends).copied().collect());
            prop_assert_eq!(edge.depth, way(&edges, edge.blocking.pid(), &ends).map(|way| way + 1));
        }
        for root in &graph.roots {
            for pid in 1..12 {
                let mut seen = BTreeSet::new();
                walk(&edges, pid, &mut seen);
                prop_assert_eq!(root.blocked.contains(&Node::Pid(pid)), seen.contains(&root.node.pid()));
            }
        }
    }

    #[test]
    fn a_queue_of_any_modes_tells_the_nearest_that_conflicts(modes in proptest::collection::vec(0usize..8, 1..20)) {
        let mut locks = vec![lock("t", 100, X, true, &[])];
        for (at, mode) in modes.iter().enumerate() {
            let ahead = modes.iter().enumerate().take(at).filter(|(_, other)| conflict(MODES[*mode].0, MODES[**other].0).is_some());
            let blockers: Vec<i32> = ahead.map(|(pid, _)| i32::try_from(pid + 1).expect("small")).chain([100]).collect();
            locks.push(lock("t", i32::try_from(at + 1).expect("small"), MODES[*mode].0, false, &blockers));
        }
        let graph = Graph::new(&locks, &BTreeMap::new());
        for lock in locks.iter().skip(1) {
            let want = lock.blockers.iter().filter(|pid| **pid != 100).max();
            let soft = |edge: &&Edge| edge.blocked == lock.node && edge.granted == Some(false);
            let got: Vec<i32> = graph.edges.iter().filter(soft).map(|edge| edge.blocking.pid()).collect();
            prop_assert_eq!(got, want.copied().into_iter().collect::<Vec<_>>());
        }
    }
}
