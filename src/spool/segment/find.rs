//! What a segment's file holds, found out at a start: by its footer, or by reading it all.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use super::{FOOTER, Segment, Step, Tail, Unsynced, View};
use crate::spool::{
    header::{self, FORMAT, HEADER, HEADER_LEN, Owner},
    host::{Host, Open},
    ranges::Ranges,
    record::field,
};

/// Why a file is no segment that can be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Made by a newer version of the agent.
    #[error("{path} has format {found}, this version knows up to {FORMAT}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u16,
    },
    /// The header is not what was written.
    #[error("the header of {path} is damaged")]
    Header {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be read.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A segment as it was found, and which numbers it holds.
#[derive(Debug)]
pub struct Found {
    /// The segment, its end where the last record ends.
    pub segment: Segment,
    /// The `seq`s of its records. Of a full segment that its footer vouches for: first to last.
    pub held: Ranges,
    /// The `seq`s that damage took.
    pub damaged: Ranges,
    /// Bytes that are no record though records follow: from and up to.
    pub holes: Vec<(u64, u64)>,
}

impl Found {
    fn without_header(mut self) -> Self {
        self.holes.insert(0, (0, HEADER));
        self.segment.damaged = true;
        self
    }

    /// Whether its header is not what was written, and its records alone tell whose it is.
    pub fn lacks_header(&self) -> bool {
        self.holes.first().is_some_and(|(from, _)| *from == 0)
    }
}

/// Whose a segment must be, by where it lies: that tells it where its header is damaged.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The agent of the folder.
    pub agent: Uuid,
    /// The folder's collector.
    pub collector: &'a str,
    /// The runs that the mark knows, by counter.
    pub runs: &'a BTreeMap<u64, Uuid>,
}

impl Expected<'_> {
    fn owner(&self, path: &Path) -> Option<(Owner, u64)> {
        let (run, first) = Segment::parse_name(path.file_name()?.to_str()?)?;
        let run_id = *self.runs.get(&run)?;
        Some((Owner { agent: self.agent, run_id, run, collector: self.collector.into() }, first))
    }
}

/// What a footer says.
struct Footer {
    lowest: u64,
    last: u64,
    count: u64,
    events: u64,
    newest_ms: u64,
}

impl Segment {
    /// Opens a file and finds out what it holds: by its footer, or by reading it all.
    pub fn open(host: &Arc<dyn Host>, path: &Path, expected: &Expected<'_>) -> Result<Found, OpenError> {
        Self::find(host, path, expected, true, &mut View::reading_on())
    }

    /// Whose segment it is, as its header says; `None` where that cannot be told.
    pub fn agent(host: &dyn Host, path: &Path) -> Option<Uuid> {
        let mut bytes = [0; HEADER_LEN];
        host.open(path, Open::Existing).and_then(|file| file.read_exact_at(&mut bytes, 0)).ok()?;
        Some(header::decode(&bytes).ok()?.0.agent)
    }

    /// As [`Segment::open`], believing nothing but the records themselves, through a view that many segments may share.
    ///
    /// # Errors
    /// As [`Segment::open`].
    pub fn verify(
        host: &Arc<dyn Host>,
        path: &Path,
        expected: &Expected<'_>,
        view: &mut View,
    ) -> Result<Found, OpenError> {
        let found = Self::find(host, path, expected, false, view)?;
        found.segment.release();
        Ok(found)
    }

    fn find(
        host: &Arc<dyn Host>,
        path: &Path,
        expected: &Expected<'_>,
        believe: bool,
        view: &mut View,
    ) -> Result<Found, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let file = host.open(path, Open::Existing).map_err(io)?;
        let mut bytes = [0; HEADER_LEN];
        let size = file.len().map_err(io)?;
        if size >= HEADER {
            file.read_exact_at(&mut bytes, 0).map_err(io)?;
        }
        let headless = || OpenError::Header { path: path.to_owned() };
        let (owner, first, damaged) = match header::decode(&bytes) {
            Ok((owner, first)) => (owner, first, false),
            Err(Some(found)) => return Err(OpenError::Newer { path: path.to_owned(), found }),
            Err(None) => expected.owner(path).map(|(owner, first)| (owner, first, true)).ok_or_else(headless)?,
        };
        let mut segment = Self::over(Arc::clone(host), path.to_owned(), file, owner, first);
        segment.end = size;
        let footer = segment.footer(size).map_err(io)?;
        // With holes (what was published from memory only) the footer does not say which numbers there are.
        let whole = |footer: &&Footer| footer.count == (footer.last + 1).saturating_sub(footer.lowest);
        if let Some(footer) = footer.as_ref().filter(whole).filter(|_| believe) {
            segment.trust(footer);
            segment.oldest_ms = segment.peek(HEADER).map_err(io)?.map_or(0, |head| head.seen_ms);
            segment.unsynced = Unsynced::Nothing;
            segment.close();
            let held = Ranges::from_iter([(footer.lowest, footer.last)]);
            let found = Found { segment, held, damaged: Ranges::default(), holes: Vec::new() };
            return Ok(if damaged { found.without_header() } else { found });
        }
        let found = segment.scan(footer.as_ref(), view).map_err(io)?;
        match (damaged, found.held.count()) {
            (false, _) => Ok(found),
            // Checksums begin with the run: it is no other's.
            (true, 1..) => Ok(found.without_header()),
            (true, 0) => Err(headless()),
        }
    }

    /// The footer at the end of the file, if there is one.
    fn footer(&self, size: u64) -> io::Result<Option<Footer>> {
        let Some(at) = size.checked_sub(FOOTER).filter(|at| *at >= HEADER) else { return Ok(None) };
        let mut view = View::default();
        let footer = self.read(&mut view, at)?.filter(|head| head.footer && head.len == 16);
        let number = |at| u64::from_le_bytes(field(view.payload(), at));
        Ok(footer.map(|head| Footer {
            last: head.seq,
            newest_ms: head.seen_ms,
            events: u64::from(head.events),
            lowest: number(0),
            count: number(8),
        }))
    }

    fn trust(&mut self, footer: &Footer) {
        (self.lowest, self.last, self.count) = (footer.lowest, footer.last, footer.count);
        self.newest_ms = footer.newest_ms;
        self.events = footer.events;
        self.end = self.end.saturating_sub(FOOTER);
        self.tail = Tail::Footed;
    }

    /// Reads all records; the segment then ends behind the last one. What lies behind is cut off by the next append.
    fn scan(mut self, footer: Option<&Footer>, view: &mut View) -> io::Result<Found> {
        let (mut held, mut damaged, mut holes) = (Ranges::default(), Ranges::default(), Vec::new());
        let (mut at, mut after, mut end, mut hole) = (HEADER, self.first.saturating_sub(1), HEADER, false);
        view.turn();
        loop {
            match self.step(view, at, after)? {
                Step::Record(record, next) => {
                    // Without bytes that are no record between them, numbers are left out on purpose.
                    if std::mem::take(&mut hole) {
                        damaged.insert(after + 1, record.seq - 1);
                    }
                    if self.count == 0 {
                        (self.lowest, self.oldest_ms) = (record.seq, record.seen_ms);
                    }
                    held.insert(record.seq, record.seq);
                    self.count += 1;
                    self.newest_ms = record.seen_ms;
                    self.events += u64::from(record.events);
                    (at, after, end) = (next, record.seq, next);
                }
                Step::Damaged(next) => {
                    holes.push((at, next));
                    (at, hole) = (next, true);
                }
                Step::End => break,
            }
        }
        self.last = after;
        self.end = end;
        if let Some(&Footer { last, .. }) = footer {
            // Damage right before the footer has no record behind it.
            if hole {
                damaged.insert(after + 1, last);
                self.last = last;
            }
            self.tail = Tail::Footed;
        }
        self.damaged = !holes.is_empty();
        Ok(Found { segment: self, held, damaged, holes })
    }
}
