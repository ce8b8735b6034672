//! The graph of who waits for whom: which edges are told, who is at the end of each chain, and how far away.
//!
//! Pure: lock rows and the server's own word on blockers in, edges out. The server's word (`pg_blocking_pids`) is
//! the truth; the lock rows only tell what kind of edge it is, and stand in where the server knows nothing, as for
//! the process that replays WAL on a standby.
//!
//! The surprising thing: a queue of n waiters has about n²/2 edges, of which n say something. So of the edges to
//! those who merely stand before one in the queue only the nearest is told; all of them count for reachability.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::units::Time;

/// Who holds a lock or waits for one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A process; a parallel worker is its leader.
    Pid(i32),
    /// A prepared transaction, by its gid.
    Prepared(String),
}

impl Node {
    /// 0 for a prepared transaction, as `pg_blocking_pids` has it.
    pub fn pid(&self) -> i32 {
        match self {
            Self::Pid(pid) => *pid,
            Self::Prepared(_) => 0,
        }
    }
}

/// One lock, held or waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// What is locked: the same text for the same thing.
    pub object: String,
    /// Who; workers are not folded yet.
    pub node: Node,
    /// Such as `ShareLock`.
    pub mode: String,
    /// Whether it is held.
    pub granted: bool,
    /// Since when it is waited for, if the server tells.
    pub wait_start: Option<Time>,
    /// Of one who waits: who is in its way, as the server says; 0 stands for a prepared transaction.
    pub blockers: Vec<i32>,
    /// What kind of thing is locked.
    pub locktype: String,
    /// The relation that it is or belongs to.
    pub relation: Option<u32>,
    /// Whether the relation can be looked up in the database of the connection.
    pub named_here: bool,
}

/// That somebody waits for somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// Who waits.
    pub blocked: Node,
    /// For whom.
    pub blocking: Node,
    /// The lock that is waited for, by its position in what the graph was made of.
    pub lock: usize,
    /// The mode that is in the way, held or asked for; `None` if it was gone when it was looked at.
    pub mode: Option<&'static str>,
    /// Whether the blocker holds it; `false` if it only stands before; `None` as above.
    pub granted: Option<bool>,
    /// The shortest way to somebody who waits for nobody: 1 if the blocker does. `None` where there is no such one.
    pub depth: Option<u32>,
}

/// Somebody who blocks and waits for nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Who.
    pub node: Node,
    /// All that it blocks, directly or not.
    pub blocked: BTreeSet<Node>,
}

/// Who waits for whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    /// Edges worth a row.
    pub edges: Vec<Edge>,
    /// Edges there are, those in a queue included.
    pub told: usize,
    /// All who wait.
    pub waiters: BTreeSet<Node>,
    /// Those who block most come first.
    pub roots: Vec<Root>,
}

impl Graph {
    /// Makes the graph. `leaders` tells the leader of each parallel worker.
    pub fn new(locks: &[Lock], leaders: &BTreeMap<i32, i32>) -> Self {
        let mut table = Table::new(locks, leaders);
        let mut waiters = BTreeSet::new();
        let mut told = Told::new();
        for (at, lock) in locks.iter().enumerate().filter(|(_, lock)| !lock.granted) {
            waiters.insert(table.fold(&lock.node));
            let blocked = table.number(&lock.node);
            for (blocking, way) in table.ways(at, lock) {
                let old = told.entry((blocked, blocking)).or_insert(way);
                // Of two workers of one leader the one that is held up counts, not the one that queues.
                if old.granted != Some(true) && way.granted == Some(true) {
                    *old = way;
                }
            }
        }
        let blocked_by_it = reversed(&told, table.nodes.len());
        let waits: BTreeSet<u32> = told.keys().map(|(blocked, _)| *blocked).collect();
        let blocking: BTreeSet<u32> = told.keys().map(|(_, blocking)| *blocking).collect();
        let ends: Vec<u32> = blocking.difference(&waits).copied().collect();
        let distance = distances(&blocked_by_it, &ends);
        let edges = nearest_ones(&told, &table).into_iter().filter_map(|(blocked, blocking)| {
            let way = told.get(&(blocked, blocking))?;
            Some(Edge {
                blocked: table.node(blocked)?,
                blocking: table.node(blocking)?,
                lock: way.lock,
                mode: way.mode,
                granted: way.granted,
                depth: distance.get(&blocking).map(|distance| distance + 1),
            })
        });
        let edges = edges.collect();
        let root = |end: &u32| {
            let mut below = distances(&blocked_by_it, &[*end]);
            below.remove(end);
            let blocked = below.keys().filter_map(|number| table.node(*number)).collect();
            Some(Root { node: table.node(*end)?, blocked })
        };
        let mut roots: Vec<Root> = ends.iter().filter_map(root).collect();
        roots.sort_by_key(|root| std::cmp::Reverse(root.blocked.len()));
        Self { edges, told: told.len(), waiters, roots }
    }

    /// Who is at the end of an edge's chain and waits for nobody; none in a cycle that nobody outside holds up.
    pub fn roots_of(&self, edge: &Edge) -> BTreeSet<Node> {
        let reached = |root: &&Root| root.node == edge.blocking || root.blocked.contains(&edge.blocking);
        self.roots.iter().filter(reached).map(|root| root.node.clone()).collect()
    }
}

/// For each who waits, for whom, by pid: all that the server tells, those in a queue included.
pub fn blockers(locks: &[Lock], leaders: &BTreeMap<i32, i32>) -> BTreeMap<i32, BTreeSet<i32>> {
    let mut table = Table::new(locks, leaders);
    let mut blockers: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    for (at, lock) in locks.iter().enumerate().filter(|(_, lock)| !lock.granted) {
        let blocked = blockers.entry(table.fold(&lock.node).pid());
        let ways = table.ways(at, lock);
        blocked.or_default().extend(ways.iter().filter_map(|(number, _)| table.node(*number)).map(|node| node.pid()));
    }
    blockers
}

/// In which way somebody is in somebody's way.
#[derive(Debug, Clone, Copy)]
struct Way {
    lock: usize,
    mode: Option<&'static str>,
    granted: Option<bool>,
}

/// Who waits for whom and in which way, by number: a long queue has a million of these.
type Told = BTreeMap<(u32, u32), Way>;

/// All locks, found by what is locked, and the number of each node.
struct Table<'a> {
    locks: &'a [Lock],
    by_object: BTreeMap<&'a str, Vec<&'a Lock>>,
    leaders: &'a BTreeMap<i32, i32>,
    nodes: Vec<Node>,
    numbers: BTreeMap<Node, u32>,
}

impl<'a> Table<'a> {
    fn new(locks: &'a [Lock], leaders: &'a BTreeMap<i32, i32>) -> Self {
        let mut by_object: BTreeMap<&str, Vec<&Lock>> = BTreeMap::new();
        for lock in locks {
            by_object.entry(&lock.object).or_default().push(lock);
        }
        Self { locks, by_object, leaders, nodes: Vec::new(), numbers: BTreeMap::new() }
    }

    fn fold(&self, node: &Node) -> Node {
        match node {
            Node::Pid(pid) => Node::Pid(self.leaders.get(pid).copied().unwrap_or(*pid)),
            Node::Prepared(_) => node.clone(),
        }
    }

    fn number(&mut self, node: &Node) -> u32 {
        let node = self.fold(node);
        let next = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(node.clone()).or_insert(next);
        if number == next {
            self.nodes.push(node);
        }
        number
    }

    fn node(&self, number: u32) -> Option<Node> {
        self.nodes.get(usize::try_from(number).ok()?).cloned()
    }

    /// Who is in the way of one lock that is waited for, and how.
    fn ways(&mut self, at: usize, lock: &Lock) -> Vec<(u32, Way)> {
        let blocked = self.fold(&lock.node);
        // Of each other one the strongest lock in the way, one that is held before one that is asked for.
        let mut others: BTreeMap<Node, (bool, usize)> = BTreeMap::new();
        for other in self.by_object.get(lock.object.as_str()).into_iter().flatten() {
            let node = self.fold(&other.node);
            if let Some(strength) = conflict(&lock.mode, &other.mode).filter(|_| node != blocked) {
                let best = others.entry(node).or_insert((other.granted, strength));
                *best = (*best).max((other.granted, strength));
            }
        }
        let holders = || others.iter().filter(|(_, (granted, _))| *granted).map(|(node, _)| node);
        let prepared: BTreeSet<&Node> = holders().filter(|node| matches!(node, Node::Prepared(_))).collect();
        let mut blockers: BTreeSet<Node> = BTreeSet::new();
        if lock.blockers.is_empty() {
            blockers.extend(holders().cloned());
        }
        for pid in &lock.blockers {
            match pid {
                0 if prepared.is_empty() => {
                    // Committed between two looks: there was one, and nobody knows which.
                    blockers.insert(Node::Prepared(String::new()));
                }
                0 => blockers.extend(prepared.iter().map(|node| (*node).clone())),
                pid => {
                    blockers.insert(self.fold(&Node::Pid(*pid)));
                }
            }
        }
        blockers.remove(&blocked);
        let way = |node: Node| {
            let found = others.get(&node);
            let mode = found.and_then(|(_, strength)| MODES.get(*strength)).map(|(name, _)| *name);
            (self.number(&node), Way { lock: at, mode, granted: found.map(|(granted, _)| *granted) })
        };
        blockers.into_iter().map(way).collect()
    }

    /// Since when somebody waits for what a lock is about. Not yet known means: only just now.
    fn waits_since(&self, number: u32, lock: usize) -> Time {
        let object = self.locks.get(lock).map_or("", |lock| lock.object.as_str());
        let waiting = self.by_object.get(object).into_iter().flatten().filter(|lock| !lock.granted);
        let theirs = waiting.filter(|lock| self.numbers.get(&self.fold(&lock.node)) == Some(&number));
        theirs.map(|lock| lock.wait_start.unwrap_or(Time(i64::MAX))).min().unwrap_or(Time(i64::MIN))
    }
}

/// All edges to those who hold something, and of those to others who only stand before the nearest one each.
fn nearest_ones(told: &Told, table: &Table<'_>) -> Vec<(u32, u32)> {
    let mut near = Vec::new();
    let mut before: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut degree: BTreeMap<u32, usize> = BTreeMap::new();
    let mut since: BTreeMap<(u32, usize), Time> = BTreeMap::new();
    for ((blocked, blocking), way) in told {
        if way.granted == Some(false) {
            before.entry(*blocked).or_default().push(*blocking);
            *degree.entry(*blocked).or_default() += 1;
            since.entry((*blocking, way.lock)).or_insert_with(|| table.waits_since(*blocking, way.lock));
        } else {
            near.push((*blocked, *blocking));
        }
    }
    for (blocked, mut others) in before {
        let lock_of = |other: &u32| told.get(&(blocked, *other)).map_or(0, |way| way.lock);
        // The last one that came, or (13 does not tell when) the one that waits for most others.
        others.sort_by_key(|other| (since.get(&(*other, lock_of(other))), degree.get(other)));
        let mut nearest = others.pop();
        // Who waits for another one stands behind it, whenever it came: the server sometimes lets one go first.
        while let Some(behind) = nearest
            .and_then(|nearest| others.iter().rposition(|other| is_soft(told, *other, nearest)))
            .map(|at| others.remove(at))
        {
            nearest = Some(behind);
        }
        near.extend(nearest.map(|nearest| (blocked, nearest)));
    }
    near.sort_unstable();
    near
}

fn is_soft(told: &Told, blocked: u32, blocking: u32) -> bool {
    told.get(&(blocked, blocking)).is_some_and(|way| way.granted == Some(false))
}

/// For each node, those that it blocks.
fn reversed(told: &Told, nodes: usize) -> Vec<Vec<u32>> {
    let mut reversed = vec![Vec::new(); nodes];
    for (blocked, blocking) in told.keys() {
        if let Some(list) = usize::try_from(*blocking).ok().and_then(|at| reversed.get_mut(at)) {
            list.push(*blocked);
        }
    }
    reversed
}

/// How far away each one stands that some nodes block, breadth first; these themselves have 0.
fn distances(blocked_by_it: &[Vec<u32>], from: &[u32]) -> BTreeMap<u32, u32> {
    let mut distance: BTreeMap<u32, u32> = from.iter().map(|node| (*node, 0)).collect();
    let mut queue: VecDeque<(u32, u32)> = from.iter().map(|node| (*node, 0)).collect();
    while let Some((node, far)) = queue.pop_front() {
        let list = usize::try_from(node).ok().and_then(|at| blocked_by_it.get(at));
        for next in list.into_iter().flatten() {
            if !distance.contains_key(next) {
                distance.insert(*next, far + 1);
                queue.push_back((*next, far + 1));
            }
        }
    }
    distance
}

/// PostgreSQL's lock modes from the weakest, and for each the positions of those that it conflicts with.
const MODES: [(&str, &[usize]); 8] = [
    ("AccessShareLock", &[7]),
    ("RowShareLock", &[6, 7]),
    ("RowExclusiveLock", &[4, 5, 6, 7]),
    ("ShareUpdateExclusiveLock", &[3, 4, 5, 6, 7]),
    ("ShareLock", &[2, 3, 5, 6, 7]),
    ("ShareRowExclusiveLock", &[2, 3, 4, 5, 6, 7]),
    ("ExclusiveLock", &[1, 2, 3, 4, 5, 6, 7]),
    ("AccessExclusiveLock", &[0, 1, 2, 3, 4, 5, 6, 7]),
];

/// Whether one mode is in the way of another, and how strong it is, from 0. What is no lock that anybody waits for,
/// such as `SIReadLock`, is in nobody's way.
fn conflict(wanted: &str, other: &str) -> Option<usize> {
    let strength = MODES.iter().position(|(name, _)| *name == other)?;
    let (_, with) = MODES.iter().find(|(name, _)| *name == wanted)?;
    with.contains(&strength).then_some(strength)
}

#[cfg(test)]
mod tests;
