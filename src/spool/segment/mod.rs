//! Segments: files of records of one collector and one run, `<run counter>-<first seq>.seg`.
//!
//! A file begins with its header ([`super::header`]); records follow ([`super::record`]), `seq` strictly rising. A full
//! segment ends with a footer: a record whose `seq` is the last one, and whose payload is the first `seq` and the number
//! of records, 8 bytes each. It is written when everything before it was synced, so that it can be believed after a power
//! cut; a segment without one is read whole at a start.
//!
//! What surprises: after the last record may lie bytes of the file's past (a cut-back that a power cut undid). A record
//! that does not rise belongs to that past, and so do invalid bytes with nothing but past behind them; invalid bytes
//! before a record that rises are damage.

mod copy;
mod find;

use std::{
    cell::RefCell,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use copy::{Copy, DRAFT};
pub use find::{Expected, Found, OpenError};

use super::{
    header::{self, HEADER, HEADER_LEN, Owner},
    host::{File, Host, Open, read_around},
    record::{self, HEAD, Head, field},
};
use crate::units::Time;

/// Bytes of a footer.
const FOOTER: u64 = HEAD as u64 + 16;

/// Records of up to so many bytes are copied into one piece, which costs less than telling the system of two.
const TOGETHER: usize = 4096;

/// A segment file that is open.
#[derive(Debug)]
pub struct Segment {
    /// Whose records it holds.
    pub owner: Owner,
    /// No record in it has a lower `seq`: part of the file's name.
    pub first: u64,
    /// The lowest `seq` in it since it was last cut back; meaningless while it is empty.
    pub lowest: u64,
    /// The highest `seq` that was ever in it; below `first` as long as there was none.
    pub last: u64,
    /// Records since it was last cut back.
    pub count: u64,
    /// Up to where the file holds records, the header included.
    pub end: u64,
    /// Whether it takes more records.
    pub tail: Tail,
    /// When its newest record was numbered, in milliseconds that this agent saw pass.
    pub newest_ms: u64,
    /// When its oldest record was numbered, in milliseconds that this agent saw pass.
    pub oldest_ms: u64,
    /// Events in its records.
    pub events: u64,
    /// What of it is not known to be on disk.
    pub unsynced: Unsynced,
    /// Whether what was written may never reach the disk: its records are to be copied into another file.
    pub suspect: bool,
    /// Whether damage was found in it: then it is set aside in the end, not removed.
    pub damaged: bool,
    path: PathBuf,
    host: Arc<dyn Host>,
    /// Open as long as something is written or read: a spool may have more segments than a process may have files.
    file: RefCell<Option<Arc<dyn File>>>,
    salt: u32,
    /// Where a short record is put together: fresh memory for each would cost more than the copy.
    together: Vec<u8>,
}

/// How a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// It takes more records.
    Open,
    /// It takes no more records.
    Sealed,
    /// And has its footer.
    Footed,
}

/// What of a segment is not known to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// All is.
    Nothing,
    /// Records.
    Records,
    /// Records, and the file's name.
    Name,
}

/// What stands at a place in a segment.
#[derive(Debug)]
pub enum Step {
    /// A record, whose payload the view holds, and where the next one begins.
    Record(Head, u64),
    /// Bytes that are no record; a record that rises begins at the place given.
    Damaged(u64),
    /// Nothing more: the footer, the end of the file, or its past.
    End,
}

/// A piece of a segment in memory, and the record in it that was looked at last. One that reads ahead sees many records for
/// one call to the system.
#[derive(Debug, Default)]
pub struct View {
    ahead: usize,
    bytes: Vec<u8>,
    /// Where the piece begins in the file.
    from: u64,
    /// How many of `bytes` are the file's.
    held: usize,
    /// The record that was looked at last, within `bytes`.
    seen: Range<usize>,
}

impl View {
    /// A view for whoever reads on and on. As much as the second level of a processor's cache holds, so that checksums
    /// find there what was just read.
    pub fn reading_on() -> Self {
        Self { ahead: 256 << 10, ..Self::default() }
    }

    /// Forgets what it holds: another segment comes.
    fn turn(&mut self) {
        self.held = 0;
    }

    /// What lies at a place, which must end within the segment.
    fn see(&mut self, segment: &Segment, at: u64, len: usize) -> io::Result<&[u8]> {
        let begin = at.checked_sub(self.from).and_then(|begin| usize::try_from(begin).ok());
        let begin = begin.filter(|begin| begin.saturating_add(len) <= self.held);
        if begin.is_none() {
            let rest = usize::try_from(segment.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let wanted = len.max(self.ahead.min(rest));
            if self.bytes.len() < wanted {
                self.bytes.resize(wanted, 0);
            }
            self.held = 0;
            segment.bytes(self.bytes.get_mut(..wanted).unwrap_or_default(), at)?;
            (self.from, self.held) = (at, wanted);
        }
        let begin = begin.unwrap_or(0);
        self.seen = begin..begin + len;
        Ok(self.bytes.get(self.seen.clone()).unwrap_or_default())
    }

    /// The payload of the record that was seen last.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(self.seen.clone()).and_then(|record| record.get(HEAD..)).unwrap_or_default()
    }

    /// The same, taken out of the view.
    pub fn into_payload(mut self) -> Vec<u8> {
        if self.seen != (0..self.held) {
            return self.payload().to_owned();
        }
        self.bytes.truncate(self.held);
        self.bytes.drain(..HEAD.min(self.held));
        self.bytes
    }
}

/// Where a damaged segment is kept.
pub fn aside(path: &Path) -> PathBuf {
    path.with_extension("seg.damaged")
}

/// A file with nothing but its header.
fn begin(host: &dyn Host, path: &Path, owner: &Owner, first: u64) -> io::Result<Arc<dyn File>> {
    let file = host.open(path, Open::New)?;
    if let Err(error) = file.write_all_at(&header::encode(owner, first), 0) {
        // A full disk must not leave a file without a header behind.
        let _best_effort = host.remove(path);
        return Err(error);
    }
    Ok(file)
}

impl Segment {
    /// The name of a segment's file.
    pub fn name(run: u64, first: u64) -> String {
        format!("{run:08}-{first:016}.seg")
    }

    /// Run counter and first `seq` out of a file's name.
    pub fn parse_name(name: &str) -> Option<(u64, u64)> {
        let (run, first) = name.strip_suffix(".seg")?.split_once('-')?;
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        Some((digits(run)?, digits(first)?))
    }

    /// Makes a new, empty segment. Its name is on disk only after the folder was synced.
    pub fn create(host: &Arc<dyn Host>, folder: &Path, owner: Owner, first: u64) -> io::Result<Self> {
        let path = folder.join(Self::name(owner.run, first));
        let file = begin(&**host, &path, &owner, first)?;
        Ok(Self::over(Arc::clone(host), path, file, owner, first))
    }

    fn over(host: Arc<dyn Host>, path: PathBuf, file: Arc<dyn File>, owner: Owner, first: u64) -> Self {
        Self {
            salt: owner.salt(),
            owner,
            first,
            lowest: first,
            last: first.saturating_sub(1),
            count: 0,
            end: HEADER,
            tail: Tail::Open,
            newest_ms: 0,
            oldest_ms: 0,
            events: 0,
            // Of what is found at a start nobody knows whether it was synced, its name neither.
            unsynced: Unsynced::Name,
            suspect: false,
            damaged: false,
            path,
            host,
            file: RefCell::new(Some(file)),
            together: Vec::new(),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, to sync it without holding up anything else. Opened again where it was closed.
    ///
    /// # Errors
    /// Why it could not be opened.
    pub fn file(&self) -> io::Result<Arc<dyn File>> {
        if let Some(file) = self.file.borrow().as_ref() {
            return Ok(Arc::clone(file));
        }
        let file = self.host.open(&self.path, Open::Existing)?;
        self.file.replace(Some(Arc::clone(&file)));
        Ok(file)
    }

    /// Closes the file, whatever state it is in: nothing is written any more.
    pub fn release(&self) {
        self.file.replace(None);
    }

    /// Closes the file of a full segment that is on disk, until somebody asks for it again.
    pub fn close(&self) {
        if self.tail == Tail::Footed && self.unsynced == Unsynced::Nothing {
            self.file.replace(None);
        }
    }

    /// Writes a record behind the last one and tells where it begins. Not synced.
    ///
    /// # Errors
    /// The file then ends where it ended before.
    pub fn append(&mut self, head: &Head, payload: &[u8]) -> io::Result<u64> {
        let at = self.end;
        let bytes = record::encode(head, payload, self.salt);
        let file = self.file()?;
        let written = if bytes.len() + payload.len() <= TOGETHER {
            self.together.clear();
            self.together.extend_from_slice(&bytes);
            self.together.extend_from_slice(payload);
            file.write_all_at(&self.together, at)
        } else {
            file.write_both_at(&bytes, payload, at)
        };
        if let Err(error) = written {
            // What stays behind if this fails too is invalid bytes, which every reader passes over.
            let _best_effort = file.set_len(at);
            return Err(error);
        }
        if self.unsynced == Unsynced::Nothing {
            self.unsynced = Unsynced::Records;
        }
        if self.end == HEADER {
            self.oldest_ms = head.seen_ms;
            self.lowest = head.seq;
        }
        self.count += 1;
        self.end = at + (bytes.len() + payload.len()) as u64;
        self.last = head.seq;
        self.newest_ms = head.seen_ms;
        self.events += u64::from(head.events);
        Ok(at)
    }

    /// Takes no more records.
    pub fn seal(&mut self) {
        if self.tail == Tail::Open {
            self.tail = Tail::Sealed;
        }
    }

    /// Writes the footer of a segment that takes no more records and whose records are on disk, or will be no later than it.
    pub fn foot(&mut self) -> io::Result<()> {
        self.together = Vec::new();
        if std::mem::replace(&mut self.tail, Tail::Footed) == Tail::Footed || self.damaged {
            return Ok(());
        }
        let footer = Head {
            len: 0,
            seq: self.last,
            time: Time(0),
            seen_ms: self.newest_ms,
            events: u32::try_from(self.events).unwrap_or(u32::MAX),
            version: 0,
            zstd: false,
            footer: true,
        };
        let payload = [self.lowest.to_le_bytes(), self.count.to_le_bytes()].concat();
        let bytes = record::encode(&footer, &payload, self.salt);
        let file = self.file()?;
        file.set_len(self.end)?;
        file.write_both_at(&bytes, &payload, self.end)
    }

    /// Cuts the file back to its header: all its records are settled.
    pub fn cut_back(&mut self) -> io::Result<()> {
        self.file()?.set_len(HEADER)?;
        self.end = HEADER;
        self.events = 0;
        self.count = 0;
        Ok(())
    }

    /// Whether there is no record in it.
    pub fn is_empty(&self) -> bool {
        self.end == HEADER
    }

    /// Takes the file away; one in which damage was found is set aside, and its new name told.
    pub fn dispose(&self) -> io::Result<Option<PathBuf>> {
        if !self.damaged {
            return self.host.remove(&self.path).map(|()| None);
        }
        let aside = aside(&self.path);
        self.host.rename(&self.path, &aside).map(|()| Some(aside))
    }

    /// Whether the file still has its name.
    pub fn is_there(&self) -> bool {
        match &*self.file.borrow() {
            Some(file) => file.is_named(&self.path),
            None => self.host.exists(&self.path),
        }
    }

    /// Whether the file is open: then it can be read though somebody took it away.
    pub fn is_open(&self) -> bool {
        self.file.borrow().is_some()
    }

    /// The head at a place, unverified; `None` at the end.
    pub fn peek(&self, at: u64) -> io::Result<Option<Head>> {
        if at + HEAD as u64 > self.end {
            return Ok(None);
        }
        let mut bytes = [0; HEAD];
        self.bytes(&mut bytes, at)?;
        Ok(Some(Head::decode(&bytes)).filter(|head| !head.footer))
    }

    /// What stands at a place, seen through `view`. `after` is the last `seq` before it: a record must be above.
    pub fn step(&self, view: &mut View, at: u64, after: u64) -> io::Result<Step> {
        match self.read(view, at)? {
            Some(head) if !head.footer && head.seq > after => Ok(Step::Record(head, at + head.record_len())),
            // The footer, or a valid record that does not rise: the past.
            Some(_) => Ok(Step::End),
            None => Ok(self.resync(at + 1, after)?.map_or(Step::End, Step::Damaged)),
        }
    }

    /// Reads bytes, twice where the disk fails. Blocks that it still does not give are zeros: checksums tell them from what
    /// was written, so that an unreadable block costs the records that lie in it, and nothing behind them.
    ///
    /// # Errors
    /// Nothing of the file can be read, its header neither: that is no bad block, and may pass.
    fn bytes(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let file = self.file()?;
        let read = |bytes: &mut [u8], at| file.read_exact_at(bytes, at);
        if read(bytes, at).or_else(|_| read(bytes, at)).is_ok() {
            return Ok(());
        }
        read(&mut [0; HEADER_LEN], 0)?;
        read_around(&*file, bytes, at);
        Ok(())
    }

    /// A whole, valid record or footer at a place; `view` then holds its payload.
    fn read(&self, view: &mut View, at: u64) -> io::Result<Option<Head>> {
        if at + HEAD as u64 > self.end {
            return Ok(None);
        }
        let head = Head::decode(&field(view.see(self, at, HEAD)?, 0));
        if head.len > record::MAX_PAYLOAD || at + head.record_len() > self.end {
            return Ok(None);
        }
        let record = view.see(self, at, HEAD + head.len as usize)?;
        Ok(record::check(record, self.salt).then_some(head))
    }

    /// The next place from `from` on where a valid record above `after`, or the footer, begins.
    fn resync(&self, from: u64, after: u64) -> io::Result<Option<u64>> {
        const WINDOW: usize = 1 << 20;
        let mut buffer = vec![0; WINDOW];
        let mut base = from;
        while base + HEAD as u64 <= self.end {
            let wanted = usize::try_from(self.end - base).unwrap_or(WINDOW).min(WINDOW);
            let window = buffer.get_mut(..wanted).unwrap_or_default();
            self.bytes(window, base)?;
            for (offset, bytes) in window.windows(HEAD).enumerate() {
                let at = base + offset as u64;
                let head = <&[u8; HEAD]>::try_from(bytes).map(Head::decode);
                // Cheap tests first: of random bytes hardly any pass, so that few payloads are read in vain.
                let plausible = head.is_ok_and(|head| {
                    at + head.record_len() <= self.end && (head.footer || head.seq > after) && head.version < 1024
                });
                let read = || self.read(&mut View::default(), at);
                if plausible && read()?.is_some_and(|head| head.footer || head.seq > after) {
                    return Ok(Some(at));
                }
            }
            base += (wanted - HEAD + 1) as u64;
        }
        Ok(None)
    }
}
