//! What lies in the folder: segments of this agent, and what is left alone, each with its reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use super::{AGENT, LOCK, MARK, chain};
use crate::spool::{
    host::{Host, Kind, Open},
    segment::{DRAFT, Expected, Found, OpenError, Segment, aside},
};

/// What lies in a folder.
#[derive(Debug, Default)]
pub struct Contents {
    /// All segments of this agent by collector, sorted by run and first `seq`.
    pub segments: BTreeMap<String, Vec<Found>>,
    /// Damaged segments that were set aside, the oldest first, and their bytes.
    pub aside: Vec<(PathBuf, u64)>,
    /// Segments whose headers are damaged and whose records do not tell either whose they are. To be set aside.
    pub headless: Vec<PathBuf>,
    /// Copies that were not finished: their originals are still there. To be thrown away.
    pub drafts: Vec<PathBuf>,
    /// What is left alone, and why.
    pub remarks: Vec<Remark>,
}

/// Something in the folder that is damaged or not used.
#[derive(Debug)]
pub struct Remark {
    /// What.
    pub path: PathBuf,
    /// Why not.
    pub why: String,
    /// Whether messages may be in it.
    pub grave: bool,
}

fn size(host: &dyn Host, path: &Path) -> u64 {
    host.open(path, Open::Existing).and_then(|file| file.len()).unwrap_or(0)
}

impl Contents {
    /// Collector, run counter and first `seq` of the segments of which nothing can be read, by their names.
    pub fn unreadable(&self) -> Vec<(String, u64, u64)> {
        let text = |name: Option<&OsStr>| name.and_then(OsStr::to_str).map(str::to_owned);
        let named = |path: &PathBuf| {
            let (run, first) = Segment::parse_name(&text(path.file_name())?)?;
            Some((text(path.parent()?.file_name())?, run, first))
        };
        self.headless.iter().filter_map(named).collect()
    }

    /// Sets aside what nobody can read, and throws away what was not finished.
    pub fn tidy_up(&mut self, host: &dyn Host) {
        for path in self.headless.drain(..) {
            let aside = aside(&path);
            let (path, why) = match host.rename(&path, &aside) {
                Ok(()) => {
                    self.aside.push((aside.clone(), size(host, &aside)));
                    (aside, "is a segment with a damaged header, set aside under this name".to_owned())
                }
                Err(error) => (path, format!("has a damaged header, and cannot be set aside: {error}")),
            };
            self.remarks.push(Remark { path, why, grave: true });
        }
        for draft in self.drafts.drain(..) {
            let _left_over = host.remove(&draft);
        }
        self.aside.sort();
    }

    fn remark(&mut self, path: PathBuf, why: impl Into<String>) {
        self.remarks.push(Remark { path, why: why.into(), grave: true });
    }

    fn foreign(&mut self, path: PathBuf) {
        self.remarks.push(Remark { path, why: "is not the spool's and is left alone".into(), grave: false });
    }
}

/// A symbolic link is no folder here: what it leads to is not ours.
fn is_log(name: &str, kind: Kind) -> bool {
    let named = !name.is_empty() && name.len() <= 60 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    named && kind == Kind::Folder
}

/// Whose segments lie in the folder, as their headers say.
pub fn owners(host: &dyn Host, folder: &Path) -> io::Result<BTreeSet<Uuid>> {
    let mut owners = BTreeSet::new();
    for (log, _) in host.list(folder)?.iter().filter(|(name, kind)| is_log(name, *kind)) {
        let files = host.list(&folder.join(log)).unwrap_or_default();
        let segments = files.iter().filter(|(name, kind)| *kind == Kind::File && Segment::parse_name(name).is_some());
        owners.extend(segments.filter_map(|(name, _)| Segment::agent(host, &folder.join(log).join(name))));
    }
    Ok(owners)
}

/// Looks at everything in the folder, and changes nothing. `runs` are those that the mark knows; `open` reads segments.
pub fn find(
    host: &Arc<dyn Host>,
    folder: &Path,
    agent: Uuid,
    runs: &BTreeMap<u64, Uuid>,
    open: Opener<'_>,
) -> io::Result<Contents> {
    let mut contents = Contents::default();
    for (name, kind) in host.list(folder)? {
        let path = folder.join(&name);
        if is_log(&name, kind) {
            let expected = Expected { agent, collector: &name, runs };
            // One log's folder does not cost the others theirs.
            if let Err(error) = segments(host, &path, &expected, open, &mut contents) {
                contents.remark(path, format!("cannot be looked into and is left alone: {error}"));
            }
        } else if ![AGENT, "agent.new", LOCK, MARK, "mark.new"].contains(&name.as_str()) {
            contents.foreign(path);
        }
    }
    Ok(contents)
}

/// How the segments of a log are read, in the order of their paths.
pub type Opener<'a> = &'a dyn Fn(&Arc<dyn Host>, &[PathBuf], &Expected<'_>) -> Vec<Result<Found, OpenError>>;

/// Reads them as a start does: believing the footers, one after the other.
pub fn by_footers(host: &Arc<dyn Host>, paths: &[PathBuf], expected: &Expected<'_>) -> Vec<Result<Found, OpenError>> {
    paths.iter().map(|path| Segment::open(host, path, expected)).collect()
}

fn segments(
    host: &Arc<dyn Host>,
    folder: &Path,
    expected: &Expected<'_>,
    open: Opener<'_>,
    contents: &mut Contents,
) -> io::Result<()> {
    let (mut paths, mut named) = (Vec::new(), Vec::new());
    for (name, kind) in host.list(folder)? {
        let path = folder.join(&name);
        if let Some(numbers) = Segment::parse_name(&name).filter(|_| kind == Kind::File) {
            paths.push(path);
            named.push(numbers);
        } else if name.ends_with(".seg.damaged") && kind == Kind::File {
            contents.aside.push((path.clone(), size(&**host, &path)));
        } else if name.ends_with(DRAFT) && kind == Kind::File {
            contents.drafts.push(path);
        } else {
            contents.foreign(path);
        }
    }
    let opened = open(host, &paths, expected);
    let (mut found, &Expected { agent, collector, .. }) = (Vec::new(), expected);
    for ((path, (run, first)), segment) in paths.into_iter().zip(named).zip(opened) {
        match segment {
            Ok(segment) if segment.segment.owner.agent != agent => {
                let of = segment.segment.owner.agent;
                contents.remark(path, format!("is another agent's segment ({of}) and is left alone"));
            }
            Ok(segment) => {
                let owner = &segment.segment.owner;
                if (owner.run, segment.segment.first, &*owner.collector) == (run, first, collector) {
                    if segment.lacks_header() {
                        contents.remark(path, "has a damaged header; its records tell whose it is, and are used");
                    }
                    found.push(segment);
                } else {
                    let why = "has been renamed: its header tells another run, number or collector; it is left alone";
                    contents.remark(path, why);
                }
            }
            Err(OpenError::Header { .. }) => contents.headless.push(path),
            Err(error) => contents.remark(path, format!("is left alone: {}", chain(&error))),
        }
    }
    found.sort_by_key(|found| (found.segment.owner.run, found.segment.first));
    contents.segments.insert(collector.to_owned(), found);
    Ok(())
}
