//! The journal: where stderr leads to it, each line bears its priority, as sd-daemon(3) has it.

use std::io::{self, Write};

use rustix::fs::fstat;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Whether stderr leads to the journal, as `$JOURNAL_STREAM` tells (systemd.exec(5)).
pub(super) fn hears() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Some((device, inode)) = stream.split_once(':') else { return false };
    fstat(io::stderr()).is_ok_and(|stat| (device.parse(), inode.parse()) == (Ok(stat.st_dev), Ok(stat.st_ino)))
}

/// stderr, each line behind its priority.
#[derive(Debug)]
pub(super) struct Journal;

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line("<6>")
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line(priority(*metadata.level()))
    }
}

fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// One line with its priority.
#[derive(Debug)]
pub(super) struct Line(&'static str);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // In one piece: others write to stderr too.
        io::stderr().lock().write_all(&[self.0.as_bytes(), line].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_to_see_to_has_a_higher_priority() {
        let all = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE].map(priority);
        assert_eq!(all, ["<3>", "<4>", "<6>", "<7>", "<7>"]);
    }
}
