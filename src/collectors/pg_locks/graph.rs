//! The graph of who waits for whom: which edges are told, who is at the end of each chain, and how far away.
//!
//! Pure: lock rows and the server's own word on blockers in, edges out. The server's word (`pg_blocking_pids`) is
//! the truth; the lock rows only tell what kind of edge it is, and stand in where the server was not asked or knows
//! nothing, as for the process that replays WAL on a standby.
//!
//! The surprising thing: a queue of n waiters has about n²/2 edges, of which n say something. So of the edges to
//! those who merely stand before one in the queue only the nearest is told; all of them count for reachability.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use smol_str::SmolStr;

use super::object::Object;
use crate::units::Time;

/// Who holds a lock or waits for one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A process; a parallel worker is its leader.
    Pid(i32),
    /// A prepared transaction, by its gid; empty where nobody knows which one it was.
    Prepared(SmolStr),
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

/// What the server says of who is in somebody's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blockers {
    /// These, by pid; 0 stands for a prepared transaction. None if the wait was over when it was asked.
    Told(Vec<i32>),
    /// It was not asked, since so many wait.
    NotAsked,
    /// It does not know, as for the process that replays WAL.
    Unknown,
}

/// One lock, held or waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// What is locked.
    pub object: Object,
    /// Who; workers are not folded yet.
    pub node: Node,
    /// Its virtual transaction, which tells one wait of a session from the next.
    pub transaction: SmolStr,
    /// Such as `ShareLock`.
    pub mode: SmolStr,
    /// Whether it is held.
    pub granted: bool,
    /// Since when it is waited for, if the server tells.
    pub wait_start: Option<Time>,
    /// Of one who waits: who is in its way.
    pub blockers: Blockers,
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
    /// How many it blocks, directly or not.
    pub blocked: usize,
    /// Its place among the bits of [`Reach`].
    bit: usize,
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
    /// Waiters of whom the server was not asked, or of whom there was no room for what it said: of these only those are
    /// told who hold what they wait for, or nobody.
    pub left_out: usize,
    /// Those who block most come first.
    pub roots: Vec<Root>,
    reach: Reach,
}

/// Edges at the most; who waits beyond them is only counted. With 1,000 waiters in one queue there are as many.
const MOST: usize = 500_000;

impl Graph {
    /// Makes the graph. `leaders` tells the leader of each parallel worker.
    pub fn new(locks: &[Lock], leaders: &BTreeMap<i32, i32>) -> Self {
        Self::bounded(locks, leaders, MOST)
    }

    fn bounded(locks: &[Lock], leaders: &BTreeMap<i32, i32>, most: usize) -> Self {
        let mut table = Table::new(locks, leaders);
        let mut waiters = BTreeSet::new();
        let mut ways = Ways::new();
        let (mut told, mut left_out) = (0, 0);
        for (at, lock) in locks.iter().enumerate().filter(|(_, lock)| !lock.granted) {
            waiters.insert(table.fold(&lock.node));
            let full = told >= most;
            let found = if full { Vec::new() } else { table.ways(at, lock) };
            left_out += usize::from(full || lock.blockers == Blockers::NotAsked);
            told += found.len();
            // Whose wait was over when the server was asked waits for nobody.
            if full || !found.is_empty() || !matches!(lock.blockers, Blockers::Told(_)) {
                ways.entry(table.number(&lock.node)).or_default().extend(found);
            }
        }
        for list in ways.values_mut() {
            settle(list, &table);
        }
        let blocked_by_it = reversed(&ways, table.nodes.len());
        let numbers = 0..u32::try_from(table.nodes.len()).unwrap_or(u32::MAX);
        let blocks = |number: &u32| list(&blocked_by_it, *number).is_some_and(|list| !list.is_empty());
        let ends: Vec<u32> = numbers.filter(|number| blocks(number) && !ways.contains_key(number)).collect();
        let reach = Reach::new(&blocked_by_it, &ends);
        let roots = reach.roots(&ends, &table);
        let edges = edges(&ways, &table, &distances(&blocked_by_it, &ends));
        Self {
            edges,
            told: ways.values().map(Vec::len).sum(),
            waiters,
            left_out,
            roots,
            reach: Reach { numbers: table.numbers, ..reach },
        }
    }

    /// Who is at the end of an edge's chain and waits for nobody; none in a cycle that nobody outside holds up.
    pub fn roots_of(&self, edge: &Edge) -> BTreeSet<Node> {
        let ends = self.roots.iter().filter(|root| self.reach.has(root.bit, &edge.blocking));
        ends.map(|root| root.node.clone()).collect()
    }

    /// All that a root blocks, directly or not.
    pub fn blocked_by<'a>(&'a self, root: &'a Root) -> impl Iterator<Item = &'a Node> {
        self.reach.numbers.keys().filter(|node| **node != root.node && self.reach.has(root.bit, node))
    }
}

/// For each who waits, for whom, by pid: of those who only stand before it the nearest.
pub fn blockers(locks: &[Lock], leaders: &BTreeMap<i32, i32>) -> BTreeMap<i32, BTreeSet<i32>> {
    let graph = Graph::new(locks, leaders);
    let mut blockers: BTreeMap<i32, BTreeSet<i32>> =
        graph.waiters.iter().map(|waiter| (waiter.pid(), BTreeSet::new())).collect();
    for edge in &graph.edges {
        blockers.entry(edge.blocked.pid()).or_default().insert(edge.blocking.pid());
    }
    blockers
}

/// In which way somebody is in somebody's way.
#[derive(Debug, Clone, Copy)]
struct Way {
    blocking: u32,
    lock: u32,
    mode: Option<Mode>,
    granted: Option<bool>,
}

/// For each who waits, by number, those in its way, by number.
type Ways = BTreeMap<u32, Vec<Way>>;

/// Sorts, and keeps one way to each. The server tells a worker of what is in the way of all workers of its leader: it
/// counts where the lock rows say the same, and where one is held up rather than where one queues.
fn settle(list: &mut Vec<Way>, table: &Table<'_>) {
    let rank = |way: &Way| match way.granted {
        Some(true) => 0,
        Some(false) => 1,
        None => 2,
    };
    list.sort_by_key(|way| (way.blocking, rank(way), way.lock));
    list.dedup_by_key(|way| way.blocking);
    let nobody = Node::Prepared(SmolStr::default());
    let is_prepared = |way: &Way| matches!(table.node(way.blocking), Some(Node::Prepared(gid)) if !gid.is_empty());
    if list.iter().any(is_prepared) {
        list.retain(|way| table.node(way.blocking) != Some(&nobody));
    }
    list.shrink_to_fit();
}

/// Who holds one object and who waits for it, by number.
#[derive(Default)]
struct Crowd {
    holds: BTreeMap<u32, Modes>,
    waits: BTreeMap<u32, (Modes, Time)>,
}

/// What is locked and by whom, and the number of each node.
struct Table<'a> {
    crowds: Vec<Crowd>,
    /// Of each lock, the position of its object's crowd.
    crowd_of: Vec<usize>,
    leaders: &'a BTreeMap<i32, i32>,
    nodes: Vec<Node>,
    numbers: BTreeMap<Node, u32>,
}

impl<'a> Table<'a> {
    fn new(locks: &'a [Lock], leaders: &'a BTreeMap<i32, i32>) -> Self {
        let mut table = Self {
            crowds: Vec::new(),
            crowd_of: Vec::with_capacity(locks.len()),
            leaders,
            nodes: Vec::new(),
            numbers: BTreeMap::new(),
        };
        let mut places: BTreeMap<&Object, usize> = BTreeMap::new();
        for lock in locks {
            let number = table.number(&lock.node);
            let modes = mode(&lock.mode).map_or(0, |mode| 1 << mode);
            let place = *places.entry(&lock.object).or_insert(table.crowds.len());
            if place == table.crowds.len() {
                table.crowds.push(Crowd::default());
            }
            table.crowd_of.push(place);
            let Some(crowd) = table.crowds.get_mut(place) else { continue };
            if lock.granted {
                *crowd.holds.entry(number).or_default() |= modes;
            } else {
                // Not yet known since when means: only just now.
                let since = lock.wait_start.unwrap_or(Time(i64::MAX));
                let waits = crowd.waits.entry(number).or_insert((0, since));
                *waits = (waits.0 | modes, waits.1.min(since));
            }
        }
        table
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

    fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(usize::try_from(number).ok()?)
    }

    /// Who holds and who waits for what a lock is about.
    fn crowd(&self, lock: usize) -> Option<&Crowd> {
        self.crowds.get(*self.crowd_of.get(lock)?)
    }

    /// Who is in the way of one lock that is waited for, and how.
    fn ways(&mut self, at: usize, lock: &Lock) -> Vec<Way> {
        let blocked = self.number(&lock.node);
        let mut blockers = self.in_the_way(at, lock);
        blockers.sort_unstable();
        blockers.dedup();
        let in_its_way = conflicts(&lock.mode);
        let (crowd, at) = (self.crowd(at), u32::try_from(at).unwrap_or(u32::MAX));
        let way = |blocking: u32| {
            let held = crowd.and_then(|crowd| strongest(crowd.holds.get(&blocking)? & in_its_way));
            let wanted = || crowd.and_then(|crowd| strongest(crowd.waits.get(&blocking)?.0 & in_its_way));
            let mode = held.or_else(wanted);
            Way { blocking, lock: at, mode, granted: mode.map(|_| held.is_some()) }
        };
        blockers.into_iter().filter(|blocking| *blocking != blocked).map(way).collect()
    }

    fn in_the_way(&mut self, at: usize, lock: &Lock) -> Vec<u32> {
        let Blockers::Told(pids) = &lock.blockers else { return self.holders(at, lock, |_| true) };
        let mut blockers = Vec::with_capacity(pids.len());
        for pid in pids {
            if *pid != 0 {
                blockers.push(self.number(&Node::Pid(*pid)));
            }
        }
        if pids.contains(&0) {
            let prepared = self.holders(at, lock, |node| matches!(node, Node::Prepared(_)));
            if prepared.is_empty() {
                // Committed between two looks: there was one, and nobody knows which.
                blockers.push(self.number(&Node::Prepared(SmolStr::default())));
            }
            blockers.extend(prepared);
        }
        blockers
    }

    /// Those who hold what a waiter must wait for, by the table of conflicts.
    fn holders(&self, at: usize, lock: &Lock, of_kind: impl Fn(&Node) -> bool) -> Vec<u32> {
        let in_its_way = conflicts(&lock.mode);
        let holds = self.crowd(at).into_iter().flat_map(|crowd| &crowd.holds);
        let holds =
            holds.filter(|(number, modes)| *modes & in_its_way != 0 && self.node(**number).is_some_and(&of_kind));
        holds.map(|(number, _)| *number).collect()
    }
}

/// The edges that have a row: to those who hold something, and of those to others only the nearest one each.
fn edges(ways: &Ways, table: &Table<'_>, distance: &BTreeMap<u32, u32>) -> Vec<Edge> {
    let degrees =
        ways.iter().map(|(blocked, list)| (*blocked, list.iter().filter(|way| is_soft(way)).count())).collect();
    let mut edges = Vec::new();
    for (blocked, list) in ways {
        let nearest = nearest(list, ways, table, &degrees);
        let near = list.iter().filter(|way| !is_soft(way) || Some(way.blocking) == nearest);
        edges.extend(near.filter_map(|way| {
            Some(Edge {
                blocked: table.node(*blocked)?.clone(),
                blocking: table.node(way.blocking)?.clone(),
                lock: usize::try_from(way.lock).ok()?,
                mode: way.mode.and_then(|mode| MODES.get(usize::from(mode))).map(|(name, _)| *name),
                granted: way.granted,
                depth: distance.get(&way.blocking).map(|distance| distance + 1),
            })
        }));
    }
    edges
}

/// Of those who only stand before somebody in a queue, the nearest one.
fn nearest(list: &[Way], ways: &Ways, table: &Table<'_>, degrees: &BTreeMap<u32, usize>) -> Option<u32> {
    // The last one that came, or (13 does not tell when) the one that waits for most others.
    let rank = |way: &Way| {
        let crowd = table.crowd(usize::try_from(way.lock).ok()?)?;
        Some((crowd.waits.get(&way.blocking)?.1, degrees.get(&way.blocking).copied()))
    };
    let mut others: Vec<_> = list.iter().filter(|way| is_soft(way)).map(|way| (rank(way), way.blocking)).collect();
    others.sort_unstable();
    let mut nearest = others.pop()?.1;
    // Who waits for another one stands behind it, whenever it came: the server sometimes lets one go first.
    let stands_behind = |other: u32, it: u32| {
        let list = ways.get(&other)?;
        list.get(list.binary_search_by_key(&it, |way| way.blocking).ok()?).filter(|way| is_soft(way))
    };
    while let Some(at) = others.iter().rposition(|(_, other)| stands_behind(*other, nearest).is_some()) {
        nearest = others.remove(at).1;
    }
    Some(nearest)
}

fn is_soft(way: &Way) -> bool {
    way.granted == Some(false)
}

/// For each node, those that it blocks.
fn reversed(ways: &Ways, nodes: usize) -> Vec<Vec<u32>> {
    let mut reversed = vec![Vec::new(); nodes];
    for (blocked, list) in ways {
        for way in list {
            if let Some(list) = usize::try_from(way.blocking).ok().and_then(|at| reversed.get_mut(at)) {
                list.push(*blocked);
            }
        }
    }
    reversed
}

fn list(lists: &[Vec<u32>], number: u32) -> Option<&Vec<u32>> {
    lists.get(usize::try_from(number).ok()?)
}

/// How far away each one stands that some nodes block, breadth first; these themselves have 0.
fn distances(blocked_by_it: &[Vec<u32>], from: &[u32]) -> BTreeMap<u32, u32> {
    let mut distance: BTreeMap<u32, u32> = from.iter().map(|node| (*node, 0)).collect();
    let mut queue: VecDeque<(u32, u32)> = from.iter().map(|node| (*node, 0)).collect();
    while let Some((node, far)) = queue.pop_front() {
        for next in list(blocked_by_it, node).into_iter().flatten() {
            if !distance.contains_key(next) {
                distance.insert(*next, far + 1);
                queue.push_back((*next, far + 1));
            }
        }
    }
    distance
}

/// Which roots hold up whom: for each node a bit for each root, since a thousand readers may stand in the way of a
/// thousand others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Reach {
    numbers: BTreeMap<Node, u32>,
    /// For each 64 roots, the bits of each node.
    planes: Vec<Vec<u64>>,
}

impl Reach {
    fn new(blocked_by_it: &[Vec<u32>], ends: &[u32]) -> Self {
        let plane = |ends: &[u32]| {
            let mut bits = vec![0u64; blocked_by_it.len()];
            let mut queue = VecDeque::new();
            for (bit, end) in ends.iter().enumerate() {
                if add(&mut bits, *end, 1 << bit) {
                    queue.push_back(*end);
                }
            }
            // Whoever got a bit hands it on to all that it blocks.
            let mut queued: BTreeSet<u32> = queue.iter().copied().collect();
            while let Some(node) = queue.pop_front() {
                queued.remove(&node);
                let handed = usize::try_from(node).ok().and_then(|at| bits.get(at)).copied().unwrap_or(0);
                for next in list(blocked_by_it, node).into_iter().flatten() {
                    if add(&mut bits, *next, handed) && queued.insert(*next) {
                        queue.push_back(*next);
                    }
                }
            }
            bits
        };
        Self { numbers: BTreeMap::new(), planes: ends.chunks(64).map(plane).collect() }
    }

    fn roots(&self, ends: &[u32], table: &Table<'_>) -> Vec<Root> {
        let root = |(bit, end): (usize, &u32)| {
            let plane = self.planes.get(bit / 64)?;
            let reached = plane.iter().filter(|bits| *bits >> (bit % 64) & 1 == 1).count();
            Some(Root { node: table.node(*end)?.clone(), blocked: reached.saturating_sub(1), bit })
        };
        let mut roots: Vec<Root> = ends.iter().enumerate().filter_map(root).collect();
        roots.sort_by_cached_key(|root| (std::cmp::Reverse(root.blocked), root.node.clone()));
        roots
    }

    /// Whether a root is at the end of somebody's chain; it is at that of its own.
    fn has(&self, bit: usize, node: &Node) -> bool {
        let bits = || self.planes.get(bit / 64)?.get(usize::try_from(*self.numbers.get(node)?).ok()?);
        bits().is_some_and(|bits| bits >> (bit % 64) & 1 == 1)
    }
}

/// Whether these bits were news to a node.
fn add(bits: &mut [u64], node: u32, more: u64) -> bool {
    let Some(old) = usize::try_from(node).ok().and_then(|at| bits.get_mut(at)) else { return false };
    let news = more & !*old != 0;
    *old |= more;
    news
}

/// A lock mode by its position in [`MODES`], and several of them as bits.
type Mode = u8;
type Modes = u8;

/// PostgreSQL's lock modes from the weakest, and for each those that it conflicts with, the weakest as the lowest bit.
const MODES: [(&str, Modes); 8] = [
    ("AccessShareLock", 0b1000_0000),
    ("RowShareLock", 0b1100_0000),
    ("RowExclusiveLock", 0b1111_0000),
    ("ShareUpdateExclusiveLock", 0b1111_1000),
    ("ShareLock", 0b1110_1100),
    ("ShareRowExclusiveLock", 0b1111_1100),
    ("ExclusiveLock", 0b1111_1110),
    ("AccessExclusiveLock", 0b1111_1111),
];

/// `None` for what is no lock that anybody waits for, such as `SIReadLock`: it is in nobody's way.
fn mode(name: &str) -> Option<Mode> {
    (0u8..).zip(MODES).find(|(_, (known, _))| *known == name).map(|(mode, _)| mode)
}

/// The modes in the way of one.
fn conflicts(name: &str) -> Modes {
    MODES.iter().find(|(known, _)| *known == name).map_or(0, |(_, with)| *with)
}

fn strongest(modes: Modes) -> Option<Mode> {
    modes.checked_ilog2().and_then(|mode| mode.try_into().ok())
}

#[cfg(test)]
mod tests;
