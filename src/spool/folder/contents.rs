//! What lies in the folder: segments of this agent, and what is left alone, each with its reason.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use super::{AGENT, LOCK, MARK, chain};
use crate::spool::{
    host::{Host, Kind, Open},
    segment::{DRAFT, Found, OpenError, Segment, aside},
};

/// What lies in a folder.
#[derive(Debug, Default)]
pub struct Contents {
    /// All segments of this agent by collector, sorted by run and first `seq`.
    pub segments: BTreeMap<String, Vec<Found>>,
    /// Damaged segments that were set aside, the oldest first, and their bytes.
    pub aside: Vec<(PathBuf, u64)>,
    /// What is left alone, and why.
    pub remarks: Vec<Remark>,
}

/// Something in the folder that is not used.
#[derive(Debug)]
pub struct Remark {
    /// What.
    pub path: PathBuf,
    /// Why not.
    pub why: String,
    /// Whether messages may be in it.
    pub grave: bool,
}

impl Contents {
    fn remark(&mut self, path: PathBuf, why: impl Into<String>) {
        self.remarks.push(Remark { path, why: why.into(), grave: true });
    }

    fn foreign(&mut self, path: PathBuf) {
        self.remarks.push(Remark { path, why: "is not the spool's and is left alone".into(), grave: false });
    }
}

/// Looks at everything in the folder. `open` reads a segment.
pub fn find(host: &Arc<dyn Host>, folder: &Path, agent: Uuid, open: Opener) -> io::Result<Contents> {
    let mut contents = Contents::default();
    for (name, kind) in host.list(folder)? {
        let path = folder.join(&name);
        let is_log =
            !name.is_empty() && name.len() <= 60 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        // A symbolic link is no folder here: what it leads to is not ours.
        if kind == Kind::Folder && is_log {
            // One log's folder does not cost the others theirs.
            if let Err(error) = segments(host, &path, &name, agent, open, &mut contents) {
                contents.remark(path, format!("cannot be looked into and is left alone: {error}"));
            }
        } else if ![AGENT, "agent.new", LOCK, MARK, "mark.new"].contains(&name.as_str()) {
            contents.foreign(path);
        }
    }
    contents.aside.sort();
    Ok(contents)
}

/// How a segment is read at a start: believing its footer, or all of it.
pub type Opener = fn(&Arc<dyn Host>, &Path) -> Result<Found, OpenError>;

fn segments(
    host: &Arc<dyn Host>,
    folder: &Path,
    collector: &str,
    agent: Uuid,
    open: Opener,
    contents: &mut Contents,
) -> io::Result<()> {
    let size = |path: &Path| host.open(path, Open::Existing).and_then(|file| file.len()).unwrap_or(0);
    let mut found = Vec::new();
    for (name, kind) in host.list(folder)? {
        let path = folder.join(&name);
        let Some((run, first)) = Segment::parse_name(&name).filter(|_| kind == Kind::File) else {
            if name.ends_with(".seg.damaged") && kind == Kind::File {
                contents.aside.push((path.clone(), size(&path)));
            } else if name.ends_with(DRAFT) && kind == Kind::File {
                // A copy that was not finished: its original is still there.
                let _left_over = host.remove(&path);
            } else {
                contents.foreign(path);
            }
            continue;
        };
        match open(host, &path) {
            Ok(segment) if segment.segment.owner.agent != agent => {
                let of = segment.segment.owner.agent;
                contents.remark(path, format!("is another agent's segment ({of}) and is left alone"));
            }
            Ok(segment) => {
                let owner = &segment.segment.owner;
                if (owner.run, segment.segment.first, &*owner.collector) == (run, first, collector) {
                    found.push(segment);
                } else {
                    let why = "has been renamed: its header tells another run, number or collector; it is left alone";
                    contents.remark(path, why);
                }
            }
            Err(OpenError::Header { .. }) => {
                let aside = aside(&path);
                match host.rename(&path, &aside) {
                    Ok(()) => {
                        contents.aside.push((aside.clone(), size(&aside)));
                        contents.remark(aside, "is a segment with a damaged header, set aside under this name");
                    }
                    Err(error) => {
                        contents.remark(path, format!("has a damaged header, and cannot be set aside: {error}"));
                    }
                }
            }
            Err(error) => contents.remark(path, format!("is left alone: {}", chain(&error))),
        }
    }
    found.sort_by_key(|found| (found.segment.owner.run, found.segment.first));
    contents.segments.insert(collector.to_owned(), found);
    Ok(())
}
