//! Disk space: asked in a thread, because a server of files that is away hangs.
//!
//! One thread asks one file system after the other; where one hangs, those behind it get threads of their own. A path that
//! hangs is nil until it answers; it is not asked twice at once, so a dead mount costs one thread.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use rustix::{fs::statvfs, io::Errno};
use tokio::{
    sync::oneshot,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{Failed, body::DiskUsage, host::percent};

/// How long a file system may take to answer.
const LONGEST: Duration = Duration::from_secs(1);

/// How long those behind it wait for it, and then no longer. A local one answers within microseconds.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a path's file system answered; `None` for a path that does not exist.
type Answer = io::Result<Option<DiskUsage>>;

/// How a path is asked.
type Ask = fn(&str) -> Answer;

/// Paths that nobody has asked yet, and who waits for their answers.
type Questions = Arc<Mutex<VecDeque<(String, oneshot::Sender<Answer>)>>>;

/// The configured paths, each with the answer that it still owes.
#[derive(Debug)]
pub(super) struct Disks {
    paths: BTreeMap<String, Option<oneshot::Receiver<Answer>>>,
    questions: Questions,
    ask: Ask,
}

impl Disks {
    pub(super) fn new(paths: BTreeSet<String>) -> Self {
        Self { paths: paths.into_iter().map(|path| (path, None)).collect(), questions: Questions::default(), ask }
    }

    pub(super) async fn usage(&mut self, failed: &mut Failed) -> BTreeMap<String, Option<DiskUsage>> {
        let (questions, ask) = (&self.questions, self.ask);
        let asked = self.paths.iter_mut().map(async |(path, pending)| {
            let answer = pending.get_or_insert_with(|| {
                let (answer, answered) = oneshot::channel();
                locked(questions).push_back((path.clone(), answer));
                answered
            });
            let answer = timeout(LONGEST, answer).await;
            // At once, and not when all have answered: this look may be dropped while it waits for the others.
            if answer.is_ok() {
                *pending = None;
            }
            (path.clone(), answer)
        });
        let answers = tokio::select! {
            // In this order: what is asked first puts its question.
            biased;
            answers = join_all(asked) => answers,
            never = threads(questions, ask) => match never {},
        };
        let mut usage = BTreeMap::new();
        for (path, answer) in answers {
            let answer = match answer {
                Err(_) => Err(format!("no answer within {LONGEST:?}")),
                Ok(answer) => answer.map_err(io::Error::other).flatten().map_err(|error| error.to_string()),
            };
            match failed.none(&format!("disk_usage of {path}"), answer) {
                Some(None) => {}
                Some(found) => drop(usage.insert(path, found)),
                None => drop(usage.insert(path, None)),
            }
        }
        usage
    }
}

fn locked(questions: &Questions) -> std::sync::MutexGuard<'_, VecDeque<(String, oneshot::Sender<Answer>)>> {
    questions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sees to it that no question waits for long behind others: one thread for all at first, then one for each that still waits.
async fn threads(questions: &Questions, ask: Ask) -> Infallible {
    let mut most = 1;
    loop {
        let waiting = locked(questions).len();
        for _ in 0..waiting.min(most) {
            let questions = Arc::clone(questions);
            spawn_blocking(move || answer_all(&questions, ask));
        }
        most = usize::MAX;
        sleep(PATIENCE).await;
    }
}

/// Asks one path after the other until none is left; where one hangs, the thread does.
fn answer_all(questions: &Questions, ask: Ask) {
    loop {
        let next = locked(questions).pop_front();
        let Some((path, answer)) = next else { return };
        let _nobody_waits_any_more = answer.send(ask(&path));
    }
}

fn ask(path: &str) -> Answer {
    let found = match statvfs(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        found => found?,
    };
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    let (total, free) = (bytes(found.f_blocks), bytes(found.f_bavail));
    let used = total.saturating_sub(bytes(found.f_bfree));
    Ok(Some(DiskUsage { total, used, free, percent: percent(used, used.saturating_add(free)) }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[tokio::test]
    async fn a_path_that_does_not_exist_is_left_out() {
        let mut disks = Disks::new(["/", "/no/such/path"].map(str::to_owned).into());
        let mut failed = Failed::default();
        let usage = disks.usage(&mut failed).await;
        assert_eq!(usage.keys().collect::<Vec<_>>(), ["/"]);
        assert!(usage["/"].as_ref().is_some_and(|disk| disk.total >= disk.used + disk.free));
        assert_eq!(failed.told(), None);
    }

    #[tokio::test]
    async fn a_path_that_hangs_is_nil_until_it_answers_and_holds_nobody() {
        static HANGS: AtomicBool = AtomicBool::new(true);
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let ask_slow: Ask = |path| {
            if path != "/usr" {
                ASKED.fetch_add(1, Relaxed);
                // Not for ever: the test's end waits for its threads.
                (0..5000)
                    .take_while(|_| HANGS.load(Relaxed))
                    .for_each(|_| std::thread::sleep(Duration::from_millis(1)));
            }
            ask("/")
        };
        let mut disks = Disks { ask: ask_slow, ..Disks::new(["/dev", "/etc", "/usr"].map(str::to_owned).into()) };
        for _ in 0..2 {
            let mut failed = Failed::default();
            let usage = disks.usage(&mut failed).await;
            assert!(usage["/dev"].is_none() && usage["/etc"].is_none() && usage["/usr"].is_some(), "{usage:?}");
            let told = ["/dev", "/etc"].map(|path| format!("disk_usage of {path}: no answer within 1s"));
            assert_eq!(failed.told(), Some(told.join("; ")));
            assert_eq!(ASKED.load(Relaxed), 2, "none is asked twice at once");
        }
        HANGS.store(false, Relaxed);
        assert!(disks.usage(&mut Failed::default()).await.values().all(Option::is_some));
    }
}
