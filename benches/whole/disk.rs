//! Appending and reading: plain files, and the spool.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use postgres_agent::spool::{outside, record};
use serde::{Deserialize, Serialize};

use crate::{
    cell::{Measured, Watch, files},
    publish::{DRAFT, LOG, body, spool},
};

/// Who writes or reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum By {
    /// `write` and `fdatasync`, or `read`.
    Plain,
    Spool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Append {
    /// Bytes of a body; its record is longer, in the plain file too.
    pub(crate) bytes: usize,
    /// How many.
    pub(crate) count: u32,
    /// So many come together.
    pub(crate) group: u32,
    /// Whether a group is synced before the next one comes.
    pub(crate) synced: bool,
    /// Where to; made, and taken away.
    pub(crate) dir: PathBuf,
}

pub(crate) fn append(by: By, append: &Append) -> Measured {
    let measured = match by {
        By::Plain => plain(append),
        By::Spool => through_spool(append),
    };
    fs::remove_dir_all(&append.dir).unwrap();
    measured
}

fn plain(append: &Append) -> Measured {
    fs::create_dir(&append.dir).unwrap();
    let mut file = File::options().create_new(true).append(true).open(append.dir.join("log")).unwrap();
    let bytes = body(append.bytes + record::HEAD);
    let watch = Watch::start();
    for number in 1..=append.count {
        file.write_all(&bytes).unwrap();
        if append.synced && number % append.group == 0 {
            file.sync_data().unwrap();
        }
    }
    watch.stop()
}

fn through_spool(append: &Append) -> Measured {
    // Each one is synced where it is numbered, or whoever keeps the spool finds at once that it is time to.
    let sync_after = match (append.synced, append.group) {
        (false, _) => Duration::from_secs(3600),
        (true, 1) => Duration::ZERO,
        (true, _) => Duration::from_nanos(1),
    };
    let spool = spool(&append.dir, sync_after);
    let body = body(append.bytes);
    let watch = Watch::start();
    for number in 1..=append.count {
        spool.number(DRAFT, |_| Ok(body.clone())).unwrap();
        if number % append.group == 0 {
            spool.give();
            if append.synced {
                spool.keep();
            }
        }
    }
    let measured = watch.stop();
    assert_eq!(spool.messages(LOG), u64::from(append.count));
    assert_eq!(spool.trouble(), None);
    measured
}

pub(crate) fn read(by: By, dir: &Path) -> Measured {
    let watch = Watch::start();
    match by {
        By::Plain => {
            // Where it does not begin with a page, the kernel copies at a third of the speed.
            const PAGE: usize = 4096;
            let mut space = vec![0; (1 << 20) + PAGE];
            let begin = space.as_ptr().align_offset(PAGE);
            let buffer = &mut space[begin..begin + (1 << 20)];
            for path in files(dir) {
                let mut file = File::open(path).unwrap();
                while file.read(buffer).unwrap() > 0 {}
            }
        }
        By::Spool => assert!(outside::verify(dir, &|_| {}).unwrap().is_whole()),
    }
    watch.stop()
}
