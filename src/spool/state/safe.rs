//! Safety: what is done when the disk does not take, keep or hold what was written, and when it is well again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use tracing::{error, info, warn};

use super::{State, duties::RESCUE_AFTER};
use crate::spool::{
    chain,
    host::Host,
    log::{Key, Log},
    segment::{Copy, Segment},
};

/// Syncs the names in a folder, and its own in the folder above.
pub(in crate::spool) fn sync_names(host: &dyn Host, folder: &Path) -> io::Result<()> {
    host.sync_folder(folder)?;
    folder.parent().map_or(Ok(()), |above| host.sync_folder(above))
}

impl State {
    /// `sync_after = "0s"`: a message is on disk before the publisher can have it.
    pub(super) fn sync_inline(&mut self, collector: &Arc<str>) {
        let host = Arc::clone(&self.host);
        for unsynced in self.log(collector).to_sync() {
            let folder = unsynced.folder.as_deref();
            let synced = unsynced.file.sync().and_then(|()| folder.map_or(Ok(()), |folder| sync_names(&*host, folder)));
            match synced {
                Ok(()) => self.synced(collector, unsynced.segment),
                Err(error) => self.sync_failed(collector, unsynced.segment, &error),
            }
        }
    }

    /// Tells that the disk cannot be written, or that it can be again; each once.
    pub(super) fn disk_trouble(&mut self, trouble: Option<io::Error>) {
        match trouble {
            Some(why) => {
                let text = format!("cannot write to {}: {why}", self.config.dir.display());
                if self.trouble.writing.is_none() {
                    error!(
                        trouble = text,
                        "the agent publishes from memory; lost is what is not confirmed when the connection ends"
                    );
                }
                self.trouble.writing = Some(text);
            }
            None if self.folder.is_some() && self.trouble.writing.take().is_some() => {
                info!(dir = %self.config.dir.display(), "the spool can be written again");
            }
            None => {}
        }
    }

    pub(in crate::spool) fn synced(&mut self, collector: &str, segment: Key) {
        self.logs.get_mut(collector).into_iter().for_each(|log| log.synced(segment));
    }

    /// A file could not be synced: it is not trusted any more, and what waits in it goes into another one.
    pub(in crate::spool) fn sync_failed(&mut self, collector: &str, segment: Key, error: &io::Error) {
        if let Some(log) = self.logs.get_mut(collector) {
            log.distrust(segment);
        }
        self.not_safe(format!("cannot sync {collector}'s messages: {error}"));
    }

    pub(in crate::spool) fn mark_sync_failed(&mut self, error: &io::Error) {
        self.duties.mark_suspect = true;
        self.not_safe(format!("cannot sync the mark: {error}"));
    }

    /// The mark was synced: tells which segments, of which it speaks as settled, may go.
    pub(in crate::spool) fn mark_synced(&mut self, generation: u64, dead: Vec<Segment>) -> Vec<Segment> {
        if self.folder.as_mut().is_some_and(|folder| folder.mark.synced(generation)) {
            return dead;
        }
        self.keep_dead(dead);
        Vec::new()
    }

    /// Settled segments are kept until the mark is synced.
    pub(in crate::spool) fn keep_dead(&mut self, dead: Vec<Segment>) {
        if !dead.is_empty() {
            self.duties.dead.get_or_insert_with(|| self.host.now());
        }
        for segment in dead {
            if let Some(log) = self.logs.get_mut(&segment.owner.collector) {
                log.dead.push(segment);
            }
        }
    }

    /// A settled segment's file was taken away, or set aside under the name told.
    pub(in crate::spool) fn disposed(&mut self, segment: &Segment, disposed: io::Result<Option<PathBuf>>) {
        match disposed {
            Ok(Some(aside)) => {
                warn!(path = %aside.display(), "a segment in which damage was found is set aside under this name");
                self.aside.push((aside, segment.end));
            }
            Ok(None) => {}
            // Somebody else did.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(path = %segment.path().display(), %error, "cannot remove a settled segment"),
        }
    }

    /// Told once, until everything is safe again.
    fn not_safe(&mut self, trouble: String) {
        if self.trouble.syncing.is_none() {
            error!(
                trouble,
                "what waits in the spool may not survive a power cut; it is written anew to other files until that holds"
            );
        }
        self.trouble.syncing = Some(trouble);
    }

    /// Sees whether somebody took files away while they are in use.
    pub(super) fn look_for_files(&mut self, now: Instant) {
        self.duties.looked = Some(now);
        if self.folder.as_ref().is_some_and(|folder| !folder.is_there()) {
            warn!(dir = %self.config.dir.display(), "somebody took the spool's folder or files in it away; they are made anew");
            self.duties.mark_suspect = true;
            self.renew_mark();
            if self.duties.mark_suspect {
                // At once, and not only when files are rescued: without the agent's id in it, what is written until then would
                // be a stranger's to the next run.
                self.renew_mark();
            }
        }
        for (name, log) in &mut self.logs {
            if log.miss() {
                warn!(collector = %name, "somebody took files of the spool away; what can be read of them is written anew");
            }
        }
        self.after_change();
    }

    fn renew_mark(&mut self) {
        let (body, host, agent) = (self.body(), Arc::clone(&self.host), self.agent);
        match self.folder.as_mut().map_or(Ok(()), |folder| folder.renew(&*host, agent, &body)) {
            Ok(()) => self.duties.mark_suspect = false,
            Err(error) => self.not_safe(chain(&error)),
        }
    }

    pub(super) fn needs_rescue(&self) -> bool {
        self.folder.is_some() && (self.duties.mark_suspect || self.logs.values().any(Log::has_suspects))
    }

    /// Makes the mark anew where it must be, and copies of the files that are not trusted, to be synced.
    pub(super) fn begin_rescue(&mut self, now: Instant) -> Vec<(Arc<str>, Key, io::Result<Copy>)> {
        if !self.needs_rescue() || self.duties.rescue.is_some_and(|at| now < at) {
            return Vec::new();
        }
        self.duties.rescue = Some(now + RESCUE_AFTER);
        if self.duties.mark_suspect {
            self.renew_mark();
        }
        let copies = self
            .logs
            .iter()
            .flat_map(|(name, log)| log.copies().into_iter().map(|(segment, copy)| (Arc::clone(name), segment, copy)));
        copies.collect()
    }

    /// A copy was synced, or could not be made: it takes its original's place, or is tried again later.
    pub(in crate::spool) fn rescued(&mut self, collector: &str, original: Key, copy: io::Result<Copy>) {
        let (host, Some(log)) = (Arc::clone(&self.host), self.logs.get_mut(collector)) else { return };
        let replaced = copy.and_then(|copy| log.replace(original, copy));
        if let Err(error) = replaced.and_then(|()| sync_names(&*host, log.folder())) {
            self.not_safe(format!("cannot write {collector}'s messages anew: {error}"));
        }
        self.after_change();
    }

    /// Tells that everything is safe again, once it is.
    pub(in crate::spool) fn see_safety(&mut self) {
        if !self.needs_rescue() && self.trouble.syncing.take().is_some() {
            info!(dir = %self.config.dir.display(), "what waits in the spool is safe again");
        }
    }

    /// Why messages are not as safe as they should be.
    pub(in crate::spool) fn trouble(&self) -> Option<String> {
        let unreadable = self.logs.iter().find_map(|(name, log)| {
            Some(format!("cannot read {name}'s messages, which are kept: {}", log.unreadable.as_ref()?))
        });
        self.trouble.writing.clone().or_else(|| self.trouble.syncing.clone()).or(unreadable)
    }
}
