//! What the graph tells, on scenes by hand and against a naive reference.

use proptest::prelude::*;

use super::*;

fn lock(object: &str, pid: i32, mode: &str, granted: bool, blockers: &[i32]) -> Lock {
    let node = if pid == 0 { Node::Prepared("gid".into()) } else { Node::Pid(pid) };
    Lock {
        object: Object { locktype: object.into(), ..Object::default() },
        node,
        transaction: "3/1".into(),
        mode: mode.into(),
        granted,
        wait_start: (!granted).then_some(Time(i64::from(pid))),
        blockers: Blockers::Told(blockers.to_vec()),
    }
}

/// Of one about whom the server says nothing.
fn untold(object: &str, pid: i32, mode: &str, blockers: Blockers) -> Lock {
    Lock { blockers, ..lock(object, pid, mode, false, &[]) }
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
    assert_eq!(graph.roots[0].blocked, 2);
    assert!(graph.blocked_by(&graph.roots[0]).eq(&[Node::Pid(2), Node::Pid(3)]));
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
    locks[29].blockers = Blockers::Told(vec![1]);
    for lock in &mut locks[1..29] {
        let Blockers::Told(told) = &mut lock.blockers else { panic!("told") };
        told.push(30);
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
fn what_is_in_the_way_of_one_worker_is_told_of_its_own_wait_and_not_of_the_others() {
    // The server tells both workers of both.
    let mut locks = vec![lock("t", 0, X, true, &[]), lock("u", 2, X, true, &[]), lock("v", 3, X, false, &[2])];
    locks.extend([lock("t", 11, S, false, &[0, 2, 3]), lock("u", 12, S, false, &[0, 2, 3])]);
    locks.extend([lock("v", 2, X, true, &[]), lock("u", 3, X, false, &[2])]);
    let want: [Want<'_>; 4] = [
        (1, 0, Some(true), Some(1), &[0]),
        (1, 2, Some(true), Some(1), &[2]),
        (1, 3, Some(false), Some(2), &[2]),
        (3, 2, Some(true), Some(1), &[2]),
    ];
    let graph = check(&locks, &[(11, 1), (12, 1)], &want);
    assert!(graph.edges.iter().all(|edge| edge.blocking != Node::Prepared(SmolStr::default())));
    let ones = graph.edges.iter().filter(|edge| edge.blocked == Node::Pid(1));
    let objects = ones.map(|edge| &*locks[edge.lock].object.locktype);
    assert!(objects.eq(["t", "u", "u"]), "each with the lock that it is about");
}

#[test]
fn a_leader_that_only_its_own_worker_is_in_the_way_of_waits_for_nobody() {
    let locks = [lock("t", 11, S, true, &[]), lock("t", 1, X, false, &[1]), lock("t", 2, S, false, &[1])];
    check(&locks, &[(11, 1)], &[(2, 1, Some(false), Some(1), &[1])]);
}

#[test]
fn where_the_server_knows_nothing_its_conflict_table_does() {
    let replay = untold("t", 9, X, Blockers::Unknown);
    let locks = [lock("t", 5, S, true, &[]), lock("t", 6, "RowShareLock", true, &[]), replay];
    check(&locks, &[], &[(9, 5, Some(true), Some(1), &[5]), (9, 6, Some(true), Some(1), &[6])]);
    let replay = untold("t", 9, S, Blockers::Unknown);
    check(&[lock("t", 5, S, true, &[]), lock("t", 6, "SIReadLock", true, &[]), replay], &[], &[]);
}

#[test]
fn whose_wait_was_over_when_the_server_was_asked_waits_for_nobody() {
    let locks = [lock("t", 1, X, true, &[]), lock("t", 2, X, false, &[]), lock("t", 3, S, false, &[2])];
    let graph = check(&locks, &[], &[(3, 2, Some(false), Some(1), &[2])]);
    assert_eq!(graph.waiters.len(), 2, "it waited when the locks were read");
}

#[test]
fn who_was_not_asked_about_waits_for_holders_and_is_no_root() {
    let locks = [
        lock("t", 1, X, true, &[]),
        untold("t", 2, X, Blockers::NotAsked),
        lock("u", 3, S, true, &[]),
        lock("u", 4, X, false, &[3]),
        // Behind a writer that waits; it holds what the last one waits for.
        untold("u", 5, S, Blockers::NotAsked),
        lock("v", 5, X, true, &[]),
        lock("v", 6, X, false, &[5]),
    ];
    let want: [Want<'_>; 3] =
        [(2, 1, Some(true), Some(1), &[1]), (4, 3, Some(true), Some(1), &[3]), (6, 5, Some(true), None, &[])];
    let graph = check(&locks, &[], &want);
    assert_eq!((graph.left_out, graph.waiters.len(), graph.roots.len()), (2, 4, 2));
}

#[test]
fn what_nobody_knows_yet_is_told_by_the_server_alone() {
    let locks = [lock("t", 1, "TomorrowsLock", true, &[]), lock("t", 2, "TomorrowsLock", false, &[1])];
    check(&locks, &[], &[(2, 1, None, Some(1), &[1])]);
}

#[test]
fn the_root_that_blocks_most_comes_first() {
    let mut locks = vec![lock("a", 1, X, true, &[]), lock("b", 2, X, true, &[])];
    locks.push(lock("a", 3, X, false, &[1]));
    for pid in 4..8 {
        locks.push(lock("b", pid, S, false, &[2]));
    }
    let roots = Graph::new(&locks, &BTreeMap::new()).roots;
    let told: Vec<_> = roots.iter().map(|root| (root.node.pid(), root.blocked)).collect();
    assert_eq!(told, [(2, 4), (1, 1)]);
}

/// The server has told for all of a queue of `asked`, then time was over.
fn queue(all: i32, asked: i32) -> Vec<Lock> {
    let mut locks = vec![lock("t", 1, X, true, &[])];
    for pid in 2..=all {
        let told = || Blockers::Told((1..pid).collect());
        locks.push(untold("t", pid, X, if pid <= asked { told() } else { Blockers::NotAsked }));
    }
    locks
}

#[test]
fn a_queue_of_ten_thousand_is_bounded_in_time() {
    let start = std::time::Instant::now();
    let graph = Graph::new(&queue(10_000, 400), &BTreeMap::new());
    println!("10,000 in a queue, {} edges: {:?}", graph.told, start.elapsed());
    assert_eq!((graph.waiters.len(), graph.left_out), (9999, 9600));
    assert_eq!((graph.told, graph.edges.len()), (399 * 400 / 2 + 9600, 9999 + 398));
    assert_eq!((graph.roots.len(), graph.roots[0].blocked), (1, 9999));
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn a_thousand_in_the_way_of_a_thousand_are_bounded_in_memory() {
    let start = std::time::Instant::now();
    let readers: Vec<i32> = (20_000..21_000).collect();
    let mut locks: Vec<Lock> = readers.iter().map(|pid| lock("t", *pid, S, true, &[])).collect();
    locks.extend((1..=1000).map(|pid| untold("t", pid, X, Blockers::Told(readers.clone()))));
    let graph = Graph::bounded(&locks, &BTreeMap::new(), 100_000);
    println!("1,000 before 1,000, {} edges: {:?}", graph.told, start.elapsed());
    assert_eq!((graph.told, graph.left_out, graph.waiters.len(), graph.roots.len()), (100_000, 900, 1000, 1000));
    assert!(graph.roots.iter().all(|root| root.blocked == 100));
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
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

fn conflict(wanted: &str, held: &str) -> bool {
    conflicts(wanted) >> mode(held).expect("a mode") & 1 == 1
}

#[test]
fn the_conflict_table_is_symmetric() {
    for (a, _) in MODES {
        for (b, _) in MODES {
            assert_eq!(conflict(a, b), conflict(b, a), "{a} {b}");
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
            prop_assert_eq!(graph.blocked_by(root).count(), root.blocked);
            for pid in 1..12 {
                let mut seen = BTreeSet::new();
                walk(&edges, pid, &mut seen);
                let told = graph.blocked_by(root).any(|node| *node == Node::Pid(pid));
                prop_assert_eq!(told, seen.contains(&root.node.pid()));
            }
        }
    }

    #[test]
    fn a_queue_of_any_modes_tells_the_nearest_that_conflicts(modes in proptest::collection::vec(0usize..8, 1..20)) {
        let mut locks = vec![lock("t", 100, X, true, &[])];
        for (at, mode) in modes.iter().enumerate() {
            let ahead = modes.iter().enumerate().take(at).filter(|(_, other)| conflict(MODES[*mode].0, MODES[**other].0));
            let blockers: Vec<i32> = ahead.map(|(pid, _)| i32::try_from(pid + 1).expect("small")).chain([100]).collect();
            locks.push(lock("t", i32::try_from(at + 1).expect("small"), MODES[*mode].0, false, &blockers));
        }
        let graph = Graph::new(&locks, &BTreeMap::new());
        for lock in locks.iter().skip(1) {
            let Blockers::Told(told) = &lock.blockers else { panic!("told") };
            let want = told.iter().filter(|pid| **pid != 100).max();
            let soft = |edge: &&Edge| edge.blocked == lock.node && edge.granted == Some(false);
            let got: Vec<i32> = graph.edges.iter().filter(soft).map(|edge| edge.blocking.pid()).collect();
            prop_assert_eq!(got, want.copied().into_iter().collect::<Vec<_>>());
        }
    }
}
