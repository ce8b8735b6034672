//! The machine under the spool: its files, its free space, its clock and its boot. Nothing above asks for them elsewhere,
//! so that tests can put a machine there whose disk tears, fills and lies.

use std::{
    fmt::Debug,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::Instant,
};

use rustix::{
    fs::{FlockOperation, OFlags},
    io::{pwritev, retry_on_intr},
};

/// Which file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// One that is there.
    Existing,
    /// One that is not there yet.
    New,
    /// Either.
    Any,
}

/// What a folder holds under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// Anything else, symbolic links among them.
    Other,
}

/// The machine. Errors are those of the system calls behind each method.
pub trait Host: Debug + Send + Sync {
    /// Opens a file to read and write, never through a symbolic link. A new one has mode 0600.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;
    /// Makes a folder, and those above it, with mode 0700. One that is there is well.
    fn make_folder(&self, path: &Path) -> io::Result<()>;
    /// Names and kinds of all that a folder holds.
    fn list(&self, path: &Path) -> io::Result<Vec<(String, Kind)>>;
    /// Whether there is something under a name.
    fn exists(&self, path: &Path) -> bool;
    /// Gives a file another name; a file that has it already is gone then.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Sees to it that the names in a folder survive a power cut.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Bytes that are free for the agent on the file system of a path.
    fn free(&self, path: &Path) -> io::Result<u64>;
    /// Time that passes whatever is done to the wall clock.
    fn now(&self) -> Instant;
    /// Another one after each start of the machine; empty where that is not known.
    fn boot(&self) -> String;
}

/// An open file.
#[expect(clippy::len_without_is_empty, reason = "a file's length costs a system call that can fail")]
pub trait File: Debug + Send + Sync {
    /// Fills `bytes` from a place.
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all of `bytes` at a place.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Writes all of `first` and `second` one behind the other, as [`File::write_all_at`] would write both in one.
    fn write_both_at(&self, first: &[u8], second: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(&[first, second].concat(), at)
    }
    /// Cuts the file, or fills it up with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Sees to it that what was written survives a power cut. After a failure nothing is known of what was written since
    /// the last success, and a second try proves nothing.
    fn sync(&self) -> io::Result<()>;
    /// Takes the file for oneself as long as it is open; false where somebody else has it.
    fn lock(&self) -> io::Result<bool>;
    /// Whether the file still has this name.
    fn is_named(&self, path: &Path) -> bool;
}

/// Reads what can be read; blocks that the disk does not give are zeros.
pub fn read_around(file: &dyn File, bytes: &mut [u8], at: u64) {
    // What disks and file systems give or do not give together.
    const BLOCK: u64 = 4096;
    let (mut at, mut rest) = (at, bytes);
    while !rest.is_empty() {
        // Blocks begin at multiples of their size: the first piece may be shorter.
        let piece = usize::try_from(BLOCK - at % BLOCK).unwrap_or(rest.len()).min(rest.len());
        let (block, behind) = std::mem::take(&mut rest).split_at_mut(piece);
        if file.read_exact_at(block, at).is_err() {
            block.fill(0);
        }
        (at, rest) = (at + piece as u64, behind);
    }
}

/// The machine that the agent runs on.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl Host for Machine {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(how == Open::Any).create_new(how == Open::New).truncate(false);
        let file = options.mode(0o600).custom_flags(flags).open(path)?;
        // A pipe or a device under one of our names is not ours.
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
        }
        Ok(Arc::new(file))
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).recursive(true).create(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, Kind)>> {
        let kind = |entry: &fs::DirEntry| match entry.file_type() {
            Ok(kind) if kind.is_file() => Kind::File,
            Ok(kind) if kind.is_dir() => Kind::Folder,
            _ => Kind::Other,
        };
        let named = |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), kind(&entry));
        fs::read_dir(path)?.map(|entry| entry.map(named)).collect()
    }

    fn exists(&self, path: &Path) -> bool {
        // Where it cannot be told, nothing speaks against it.
        path.try_exists().unwrap_or(true)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn free(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn boot(&self) -> String {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }
}

impl File for fs::File {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, at)
    }

    fn write_both_at(&self, first: &[u8], second: &[u8], at: u64) -> io::Result<()> {
        let pieces = [IoSlice::new(first), IoSlice::new(second)];
        let written = retry_on_intr(|| pwritev(self, &pieces, at))?;
        // All of it, but on a disk that is nearly full.
        let from = |bytes: &[u8], written: usize| bytes.get(written..).unwrap_or_default().to_owned();
        let (first, second) = (from(first, written), from(second, written.saturating_sub(first.len())));
        FileExt::write_all_at(self, &[first, second].concat(), at + written as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(self, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn is_named(&self, path: &Path) -> bool {
        let identity = |of: fs::Metadata| (of.dev(), of.ino());
        match (fs::symlink_metadata(path), self.metadata()) {
            (Ok(named), Ok(own)) => identity(named) == identity(own),
            (Err(error), _) => error.kind() != io::ErrorKind::NotFound,
            // Where it cannot be told, nothing speaks against it.
            (_, Err(_)) => true,
        }
    }
}
