//! A machine made up for tests: its disk keeps what was synced, tears the rest at a power cut, fills up, and fails when told.
//!
//! Between two syncs every sector of every write, every change of a length and every new name may have reached the disk or
//! not, whatever their order (names of one folder in order, as journals keep them). A failed sync loses what it was for,
//! though it can still be read: what Linux does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::spool::host::{File, Host, Kind, Open};

/// Kinds of calls, to make one of them fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Open,
    Read,
    Write,
    Sync,
    Name,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Nothing,
    /// The call of this number fails once.
    Nth(u64),
    /// Calls of this kind fail.
    Every(Call),
    /// From the call of this number on nothing happens any more: the agent was killed there.
    Dead(u64),
}

#[derive(Debug, Clone)]
enum Change {
    Bytes(usize, Vec<u8>),
    Len(usize),
}

#[derive(Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    kept: Vec<u8>,
    pending: Vec<Change>,
    locked: bool,
}

#[derive(Debug, Clone)]
enum Naming {
    Link(PathBuf, usize),
    Folder(PathBuf),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

#[derive(Debug, Clone, Default)]
struct Names {
    files: BTreeMap<PathBuf, usize>,
    folders: BTreeSet<PathBuf>,
}

impl Names {
    fn apply(&mut self, naming: &Naming) {
        match naming {
            Naming::Link(path, inode) => _ = self.files.insert(path.clone(), *inode),
            Naming::Folder(path) => _ = self.folders.insert(path.clone()),
            Naming::Unlink(path) => _ = self.files.remove(path),
            Naming::Rename(from, to) => {
                if let Some(inode) = self.files.remove(from) {
                    self.files.insert(to.clone(), inode);
                }
            }
        }
    }
}

#[derive(Debug)]
struct World {
    inodes: Vec<Inode>,
    seen: Names,
    kept: Names,
    pending: Vec<(PathBuf, Naming)>,
    now: Instant,
    boots: u64,
    calls: u64,
    syncs: u64,
    fault: Fault,
    /// Bytes of the disk.
    size: u64,
}

/// The machine; clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Sim(Arc<Mutex<World>>);

/// A source of decisions.
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// Below `sides`.
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides.max(1)
    }
}

impl Sim {
    pub(super) fn new() -> Self {
        let folders: BTreeSet<PathBuf> = [PathBuf::from("/")].into();
        let names = Names { folders, ..Names::default() };
        Self(Arc::new(Mutex::new(World {
            inodes: Vec::new(),
            seen: names.clone(),
            kept: names,
            pending: Vec::new(),
            now: Instant::now(),
            boots: 1,
            calls: 0,
            syncs: 0,
            fault: Fault::Nothing,
            size: u64::MAX,
        })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no test panics in here")
    }

    pub(super) fn pass(&self, time: Duration) {
        self.world().now += time;
    }

    pub(super) fn calls(&self) -> u64 {
        self.world().calls
    }

    /// Of the calls, those that synced a file or a folder.
    pub(super) fn syncs(&self) -> u64 {
        self.world().syncs
    }

    pub(super) fn set(&self, fault: Fault) {
        self.world().fault = fault;
    }

    /// Whether the agent was killed where [`Fault::Dead`] says.
    pub(super) fn is_dead(&self) -> bool {
        let world = self.world();
        matches!(world.fault, Fault::Dead(at) if world.calls > at)
    }

    /// Only so many bytes fit on the disk beside what is there.
    pub(super) fn leave(&self, bytes: u64) {
        let mut world = self.world();
        world.size = world.used().saturating_add(bytes);
    }

    /// The agent is gone, and what it had open is closed.
    pub(super) fn kill(&self) {
        let mut world = self.world();
        world.fault = Fault::Nothing;
        world.inodes.iter_mut().for_each(|inode| inode.locked = false);
    }

    /// The power goes: of what was not synced, the dice say what is there.
    pub(super) fn cut(&self, dice: &mut Dice) {
        self.kill();
        let mut world = self.world();
        world.boots += 1;
        world.inodes.iter_mut().for_each(|inode| inode.tear(dice));
        let pending = std::mem::take(&mut world.pending);
        let folders: BTreeSet<PathBuf> = pending.iter().map(|(folder, _)| folder.clone()).collect();
        for folder in folders {
            let namings: Vec<&Naming> =
                pending.iter().filter(|(of, _)| *of == folder).map(|(_, naming)| naming).collect();
            let there = usize::try_from(dice.roll(namings.len() as u64 + 1)).expect("small");
            namings.into_iter().take(there).for_each(|naming| world.kept.apply(naming));
        }
        // A folder whose own name is gone takes everything in it along.
        let all = world.kept.folders.clone();
        let reached = |path: &Path| path.ancestors().skip(1).all(|above| all.contains(above));
        world.kept.folders.retain(|path| reached(path));
        world.kept.files.retain(|path, _| reached(path));
        world.seen = world.kept.clone();
    }

    /// What a file holds.
    pub(super) fn bytes(&self, path: &Path) -> Vec<u8> {
        let world = self.world();
        world.inodes[world.seen.files[path]].seen.clone()
    }

    /// Somebody puts another content into a file.
    pub(super) fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut world = self.world();
        let inode = world.seen.files[path];
        (world.inodes[inode].kept, world.inodes[inode].pending) = (bytes.clone(), Vec::new());
        world.inodes[inode].seen = bytes;
    }

    /// Somebody takes all files and folders away.
    pub(super) fn wipe(&self) {
        let mut world = self.world();
        world.seen.files.clear();
        world.seen.folders.retain(|path| path == Path::new("/"));
        (world.kept, world.pending) = (world.seen.clone(), Vec::new());
    }
}

impl World {
    fn used(&self) -> u64 {
        let linked: BTreeSet<usize> = self.seen.files.values().copied().collect();
        linked.iter().map(|inode| self.inodes[*inode].seen.len() as u64).sum()
    }

    fn call(&mut self, call: Call) -> io::Result<()> {
        let number = self.calls;
        self.calls += 1;
        self.syncs += u64::from(call == Call::Sync);
        let fails = match self.fault {
            Fault::Nothing => false,
            Fault::Nth(nth) => nth == number,
            Fault::Every(kind) => kind == call,
            Fault::Dead(from) => number >= from,
        };
        // EIO
        if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn name(&mut self, path: &Path, naming: Naming) {
        self.seen.apply(&naming);
        self.pending.push((path.parent().expect("not the root").to_owned(), naming));
    }

    fn make_folder(&mut self, path: &Path) {
        if !self.seen.folders.contains(path) {
            self.make_folder(path.parent().expect("the root is there"));
            self.name(path, Naming::Folder(path.to_owned()));
        }
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        apply(&mut self.seen, &change);
        self.pending.push(change);
    }

    fn tear(&mut self, dice: &mut Dice) {
        const SECTOR: usize = 512;
        let pending = std::mem::take(&mut self.pending);
        let mut whole = self.kept.clone();
        let mut len = whole.len();
        for change in &pending {
            apply(&mut whole, change);
            if dice.roll(2) == 0 {
                len = whole.len();
            }
        }
        for change in pending {
            let Change::Bytes(mut at, bytes) = change else { continue };
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (sector, behind) = rest.split_at((SECTOR - at % SECTOR).min(rest.len()));
                if dice.roll(3) > 0 {
                    apply(&mut self.kept, &Change::Bytes(at, sector.to_owned()));
                }
                (at, rest) = (at + sector.len(), behind);
            }
        }
        apply(&mut self.kept, &Change::Len(len));
        self.seen = self.kept.clone();
    }
}

fn apply(data: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Len(len) => data.resize(*len, 0),
        Change::Bytes(at, bytes) => {
            if data.len() < at + bytes.len() {
                data.resize(at + bytes.len(), 0);
            }
            data[*at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl Host for Sim {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut world = self.world();
        world.call(Call::Open)?;
        let inode = match (world.seen.files.get(path).copied(), how) {
            (Some(_), Open::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, Open::Existing) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) if !world.seen.folders.contains(path.parent().expect("not the root")) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            (None, _) => {
                world.inodes.push(Inode::default());
                let inode = world.inodes.len() - 1;
                world.name(path, Naming::Link(path.to_owned(), inode));
                inode
            }
        };
        Ok(Arc::new(Handle { world: self.clone(), inode }))
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.call(Call::Name)?;
        world.make_folder(path);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, Kind)>> {
        let mut world = self.world();
        world.call(Call::Read)?;
        let name = |path: &PathBuf| path.file_name().expect("it has one").to_string_lossy().into_owned();
        let here = |other: &&PathBuf| other.parent() == Some(path);
        let folders = world.seen.folders.iter().filter(here).map(|path| (name(path), Kind::Folder));
        Ok(folders.chain(world.seen.files.keys().filter(here).map(|path| (name(path), Kind::File))).collect())
    }

    fn exists(&self, path: &Path) -> bool {
        self.world().seen.files.contains_key(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.call(Call::Name)?;
        if !world.seen.files.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.name(to, Naming::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.call(Call::Name)?;
        if !world.seen.files.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.name(path, Naming::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.call(Call::Sync)?;
        let pending = std::mem::take(&mut world.pending);
        let (here, elsewhere) = pending.into_iter().partition(|(folder, _)| folder == path);
        world.pending = elsewhere;
        let here: Vec<(PathBuf, Naming)> = here;
        for (_, naming) in &here {
            world.kept.apply(naming);
        }
        Ok(())
    }

    fn free(&self, _path: &Path) -> io::Result<u64> {
        let world = self.world();
        Ok(world.size.saturating_sub(world.used()))
    }

    fn now(&self) -> Instant {
        self.world().now
    }

    fn boot(&self) -> String {
        format!("boot {}", self.world().boots)
    }
}

#[derive(Debug)]
struct Handle {
    world: Sim,
    inode: usize,
}

impl File for Handle {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let mut world = self.world.world();
        world.call(Call::Read)?;
        let at = usize::try_from(at).expect("small");
        let there = world.inodes[self.inode].seen.get(at..at + bytes.len());
        bytes.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut world = self.world.world();
        world.call(Call::Write)?;
        let at = usize::try_from(at).expect("small");
        let grows = (at + bytes.len()).saturating_sub(world.inodes[self.inode].seen.len()) as u64;
        if grows > world.size.saturating_sub(world.used()) {
            // ENOSPC
            return Err(io::Error::from_raw_os_error(28));
        }
        world.inodes[self.inode].change(Change::Bytes(at, bytes.to_owned()));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = self.world.world();
        world.call(Call::Write)?;
        world.inodes[self.inode].change(Change::Len(usize::try_from(len).expect("small")));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.world.world().inodes[self.inode].seen.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world.world();
        let asked = world.call(Call::Sync);
        let Inode { kept, pending, .. } = &mut world.inodes[self.inode];
        let pending = std::mem::take(pending);
        if asked.is_ok() {
            for change in &pending {
                apply(kept, change);
            }
        }
        asked
    }

    fn lock(&self) -> io::Result<bool> {
        let mut world = self.world.world();
        Ok(!std::mem::replace(&mut world.inodes[self.inode].locked, true))
    }

    fn is_named(&self, path: &Path) -> bool {
        self.world.world().seen.files.get(path) == Some(&self.inode)
    }
}
