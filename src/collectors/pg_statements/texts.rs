//! Texts of statements: fetched seldom, all that are missing at once, and kept cleaned.
//!
//! The server reads its whole file of texts for any of them, and that can be hundreds of megabytes. So the next fetch
//! waits for a hundred times as long as the last one took, and until then a new statement has no text.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use smol_str::SmolStr;

use super::{entries::Key, find::Extension};
use crate::{
    postgres::{Error, Longs, Param, Row, Session},
    text::{self, Policy},
};

const TEXTS: &str = include_str!("texts.sql");

/// For this one statement: longer than others may take, and memory so that the texts are not written to disk.
const SETTINGS: [(&str, &str); 2] = [("statement_timeout", "10s"), ("work_mem", "64MB")];
const DEADLINE: Duration = Duration::from_secs(11);

/// The longest wait until texts are fetched again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Texts that are kept for each row that may be sent: statements come and go between looks.
const KEPT_PER_ROW: usize = 10;

/// The texts that are known.
#[derive(Debug)]
pub(super) struct Texts {
    max_chars: usize,
    max_kept: usize,
    /// Of which server.
    server: String,
    kept: HashMap<Key, Kept>,
    looks: u64,
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Kept {
    text: SmolStr,
    /// The look that last asked for it.
    asked: u64,
}

impl Texts {
    pub(super) fn new(max_chars: u64, limit: u64) -> Self {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            max_chars: size(max_chars),
            max_kept: size(limit).saturating_mul(KEPT_PER_ROW),
            server: String::new(),
            kept: HashMap::new(),
            looks: 0,
            not_before: None,
        }
    }

    /// Gets to know the texts of these statements, if it is time to ask for those that are missing.
    ///
    /// # Errors
    /// Why they could not be fetched; what was known is known.
    pub(super) async fn learn(
        &mut self,
        keys: &[Key],
        session: &mut Session,
        extension: &Extension,
        policy: &Policy,
    ) -> Result<(), Error> {
        if policy.query_text == text::QueryText::Off {
            return Ok(());
        }
        self.begin(&session.identity().system_identifier);
        let mut ids = Vec::new();
        for key in keys {
            match self.kept.get_mut(key) {
                Some(kept) => kept.asked = self.looks,
                None => ids.push(key.queryid),
            }
        }
        let start = Instant::now();
        if ids.is_empty() || self.not_before.is_some_and(|time| start < time) {
            return Ok(());
        }
        // Masking makes texts shorter: twice as much is enough to fill them up again.
        let chars = i64::try_from(self.max_chars.saturating_mul(2)).unwrap_or(i64::from(i32::MAX) / 2);
        let params = [Param::Longs(Longs(&ids)), Param::Int(chars)];
        let sql = extension.fill(TEXTS);
        let answer = session.query_under(&SETTINGS, DEADLINE, "pg_statements.texts", &sql, &params).await;
        let pause = if answer.is_ok() { (start.elapsed() * 100).min(LONGEST_PAUSE) } else { LONGEST_PAUSE };
        self.not_before = Some(Instant::now() + pause);
        // One that cannot be read keeps no other from being kept.
        let kept: Vec<Result<(), Error>> = answer?.iter().map(|row| self.keep(row, policy)).collect();
        self.forget();
        kept.into_iter().collect()
    }

    /// The text of a statement, if it is known and may leave.
    pub(super) fn get(&self, key: &Key) -> Option<SmolStr> {
        self.kept.get(key).map(|kept| kept.text.clone())
    }

    fn begin(&mut self, server: &str) {
        if self.server != server {
            self.kept.clear();
            self.not_before = None;
            server.clone_into(&mut self.server);
        }
        self.looks += 1;
    }

    fn keep(&mut self, row: &Row, policy: &Policy) -> Result<(), Error> {
        let key = Key {
            userid: row.get("userid")?,
            dbid: row.get("dbid")?,
            queryid: row.get("queryid")?,
            toplevel: row.get("toplevel")?,
        };
        let whole = row.text("query")?;
        if let Some(mut text) = whole.and_then(|whole| policy.clean(&whole, self.max_chars)) {
            if row.get("cut")? && !text.ends_with(text::TRUNCATED) {
                text.push_str(text::TRUNCATED);
            }
            self.kept.insert(key, Kept { text: text.into(), asked: self.looks });
        }
        Ok(())
    }

    /// Keeps those that were asked for last.
    fn forget(&mut self) {
        if self.kept.len() > self.max_kept {
            let mut asked: Vec<u64> = self.kept.values().map(|kept| kept.asked).collect();
            asked.sort_unstable_by(|a, b| b.cmp(a));
            let oldest = asked.get(self.max_kept).copied().unwrap_or(0);
            self.kept.retain(|_, kept| kept.asked > oldest || kept.asked == self.looks);
        }
    }
}
