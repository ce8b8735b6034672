//! The spool's folder as it is found at a start: the lock, the agent's id, and every log's segments.
//!
//! A start never fails for what lies in the folder. What is not ours is left alone and told; a segment whose header is
//! damaged is set aside as `*.damaged`. What is missing in the records is found here and declared.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::{info, warn};
use uuid::Uuid;

pub mod contents;
pub mod past;

use contents::{Contents, Remark};
use past::Past;

use super::{
    Error,
    header::Owner,
    host::{File, Host, Open},
    log::Log,
    mark::{Body, Loss, Mark, Marked},
};

/// A folder that is ours.
#[derive(Debug)]
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
    /// The mark file in it.
    pub mark: Mark,
    /// Held as long as the agent runs.
    lock: Arc<dyn File>,
}

/// What a start found.
#[derive(Debug)]
pub struct Opened {
    /// The folder.
    pub folder: Folder,
    /// The agent's id, made once.
    pub agent: Uuid,
    /// What the mark file said.
    pub body: Body,
    /// The place of the new run.
    pub run: u64,
    /// The logs by collector.
    pub logs: BTreeMap<Arc<str>, Log>,
    /// Losses that were found.
    pub losses: Vec<Loss>,
    /// Damaged segments that were set aside, the oldest first, and their bytes.
    pub aside: Vec<(PathBuf, u64)>,
}

/// Opens the folder for a new run. `known` are collectors that there may be.
pub fn open(host: &Arc<dyn Host>, path: &Path, run_id: Uuid, known: &[&str]) -> Result<Opened, Error> {
    let failed = |what: &Path, source| Error::Folder { path: what.to_owned(), source };
    host.make_folder(path).map_err(|source| failed(path, source))?;
    let lock = lock(&**host, path)?;
    let agent = agent_id(&**host, path).map_err(|source| failed(&path.join(AGENT), source))?;
    let (mark, marked) = own_mark(&**host, path, agent).map_err(|source| failed(&path.join(MARK), source))?;
    let contents = contents::find(host, path, agent, &marked.runs(), &contents::by_footers);
    let mut contents = contents.map_err(|source| failed(path, source))?;
    let unreadable = contents.unreadable();
    contents.tidy_up(&**host);
    for Remark { path, why, grave } in &contents.remarks {
        if *grave { warn!(path = %path.display(), "{why}") } else { info!(path = %path.display(), "{why}") }
    }
    let Contents { segments: mut found, aside, .. } = contents;
    let Past { body, run, logs: pasts, losses } = Past::learn(marked, &found, &unreadable, &host.boot(), known);
    let run = run + 1;
    let logs = pasts.into_iter().map(|(name, runs)| {
        let collector: Arc<str> = name.as_str().into();
        let segments = found.remove(&name).unwrap_or_default();
        let owner = Owner { agent, run_id, run, collector: Arc::clone(&collector) };
        let segments = segments.into_iter().map(|found| found.segment).collect();
        (collector, Log::new(Arc::clone(host), owner, path.join(&name), segments, runs))
    });
    let logs = logs.collect();
    Ok(Opened { folder: Folder { path: path.to_owned(), mark, lock }, agent, body, run, logs, losses, aside })
}

/// The mark, and what it says if it is this agent's.
fn own_mark(host: &dyn Host, folder: &Path, agent: Uuid) -> io::Result<(Mark, Marked)> {
    let path = folder.join(MARK);
    let (mut mark, marked) = Mark::open(host, &path)?;
    let of = marked.body.as_ref().map_or(agent, |body| body.agent);
    if of == agent {
        return Ok((mark, marked));
    }
    warn!(path = %path.display(), agent = %of, "is another agent's mark and is not believed: what waits here comes again");
    mark.clear_places()?;
    Ok((mark, Marked::default()))
}

pub(super) const AGENT: &str = "agent";
pub(super) const MARK: &str = "mark";
pub(super) const LOCK: &str = "lock";

impl Folder {
    /// Whether it is still the folder that was opened.
    pub fn is_there(&self) -> bool {
        self.mark.is_there(&self.path.join(MARK)) && self.lock.is_named(&self.path.join(LOCK))
    }

    /// Makes anew what somebody took away of the folder, or what can no longer be synced.
    pub fn renew(&mut self, host: &dyn Host, agent: Uuid, body: &Body) -> Result<(), Error> {
        let failed = |what: &str, source| Error::Folder { path: self.path.join(what), source };
        host.make_folder(&self.path).map_err(|source| failed("", source))?;
        if !self.lock.is_named(&self.path.join(LOCK)) {
            self.lock = lock(host, &self.path)?;
        }
        let failed = |what: &str, source| Error::Folder { path: self.path.join(what), source };
        if read_text(host, &self.path.join(AGENT)).ok().and_then(|id| id.trim().parse().ok()) != Some(agent) {
            write_agent_id(host, &self.path, agent).map_err(|source| failed(AGENT, source))?;
        }
        let path = self.path.join(MARK);
        let renewed = self.mark.renew(host, &path, body).and_then(|()| host.sync_folder(&self.path));
        renewed.map_err(|source| Error::Folder { path, source })
    }
}

fn lock(host: &dyn Host, folder: &Path) -> Result<Arc<dyn File>, Error> {
    let path = folder.join(LOCK);
    let failed = |source| Error::Folder { path: path.clone(), source };
    let file = host.open(&path, Open::Any).map_err(failed)?;
    if !file.lock().map_err(failed)? {
        // Who holds it is a comfort, not a need.
        let holder = read_text(host, &path).unwrap_or_default();
        return Err(Error::Held { path: folder.to_owned(), holder: holder.trim().to_owned() });
    }
    let id = format!("{}\n", std::process::id());
    let write = file.set_len(0).and_then(|()| file.write_all_at(id.as_bytes(), 0));
    // A full disk does not keep the agent from starting.
    if let Err(error) = write {
        warn!(path = %path.display(), %error, "cannot write the process id into the lock file");
    }
    Ok(file)
}

/// The text of a small file.
fn read_text(host: &dyn Host, path: &Path) -> io::Result<String> {
    text(&*host.open(path, Open::Existing)?)
}

fn text(file: &dyn File) -> io::Result<String> {
    const MOST: u64 = 4096;
    let mut bytes = vec![0; usize::try_from(file.len()?.min(MOST)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whose spool it is: what the file `agent` says. The mark knows it too, with a checksum, and is believed where that file is
/// gone or damaged: unless the segments tell that it is the mark that is a stranger's.
pub fn whose(host: &dyn Host, folder: &Path) -> io::Result<Option<Uuid>> {
    let there = |file: io::Result<Arc<dyn File>>| match file {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // A new id now would make a stranger of the agent for good.
        Err(error) => Err(error),
    };
    let told = there(host.open(&folder.join(AGENT), Open::Existing))?.map(|file| text(&*file)).transpose()?;
    let told = told.and_then(|text| text.trim().parse().ok());
    let marked = there(host.open(&folder.join(MARK), Open::Existing))?.and_then(|file| Marked::read(&*file).body);
    let marked = marked.map(|body| body.agent).filter(|agent| !agent.is_nil());
    Ok(match (told, marked) {
        (Some(told), Some(marked)) if told != marked => {
            let owners = contents::owners(host, folder)?;
            let damaged = owners.contains(&marked) && !owners.contains(&told);
            Some(if damaged { marked } else { told })
        }
        (told, marked) => told.or(marked),
    })
}

/// Reads the agent's id from a spool folder without changing anything; `None` where there is none.
pub fn read_agent_id(folder: &Path) -> Option<Uuid> {
    fs::read_to_string(folder.join("agent")).ok()?.trim().parse().ok()
}

/// The agent's id; made, and synced, where there is none.
fn agent_id(host: &dyn Host, folder: &Path) -> io::Result<Uuid> {
    let (path, known) = (folder.join(AGENT), whose(host, folder)?);
    let file = read_text(host, &path).ok();
    let told: Option<Uuid> = file.as_ref().and_then(|text| text.trim().parse().ok());
    let agent = match known {
        Some(agent) if told == known => return Ok(agent),
        Some(agent) => {
            warn!(path = %path.display(), %agent, "is damaged or gone, and is written anew: everything else tells whose spool it is");
            agent
        }
        None if file.is_some() => {
            warn!(path = %path.display(), "holds no agent id; a new one is made, consumers will see a new agent");
            Uuid::new_v4()
        }
        None => Uuid::new_v4(),
    };
    write_agent_id(host, folder, agent)?;
    host.sync_folder(folder)?;
    Ok(agent)
}

fn write_agent_id(host: &dyn Host, folder: &Path, agent: Uuid) -> io::Result<()> {
    let draft = folder.join("agent.new");
    let file = host.open(&draft, Open::Any)?;
    file.set_len(0)?;
    file.write_all_at(format!("{agent}\n").as_bytes(), 0)?;
    file.sync()?;
    host.rename(&draft, &folder.join(AGENT))
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
