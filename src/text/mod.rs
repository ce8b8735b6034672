//! Texts: what of a query may leave the host, and the ids of requests in application names and comments.
//!
//! [`Policy`] is the one gate for every text of a query that gets into a message. Whatever is configured, passwords
//! never pass it, not even from a text that was cut in the middle of one.
//!
//! [`Trace`] reads ids from the text as it was sent, before the gate drops comments, and whatever the gate lets pass: an
//! id is not text.
//!
//! Pure; time is linear in a text's length.

mod correlation;
mod inside;
mod lexer;
mod mask;
mod passwords;
mod spans;
mod spelling;
mod trace;

use crate::settings::{Choice, Reader, Section};

pub use correlation::Correlation;
pub use trace::Trace;

/// What follows a text that was cut by a configured limit.
pub const TRUNCATED: &str = "...[truncated]";

/// How much of a query's text may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryText {
    /// All but passwords.
    Raw,
    /// `$n` for each literal, and no comments.
    Normalized,
    /// Nothing.
    Off,
}

impl Choice for QueryText {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("raw", Self::Raw), ("normalized", Self::Normalized), ("off", Self::Off)];
}

/// What may leave the host of texts: the `[privacy]` table.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How much of a query's text may leave.
    pub query_text: QueryText,
}

impl Section for Policy {
    fn read(reader: &mut Reader) -> Self {
        let query_text = reader.key(
            "query_text",
            QueryText::Raw,
            "What of queries leaves the host: \"raw\" their text, \"normalized\" $n for each literal and no comments, \
             \"off\" nothing. Passwords never leave: a literal after PASSWORD, and what follows password= inside any \
             literal.",
        );
        Self { query_text }
    }
}

impl Policy {
    /// What may leave of a query's text: at most `max_chars` characters of it, then `...[truncated]`.
    /// `None` if nothing may.
    ///
    /// The text may have been cut anywhere by the server. Where it is not clear whether something is a literal or a
    /// password, it is taken for one.
    pub fn clean(&self, text: &str, max_chars: usize) -> Option<String> {
        // Cut behind masking: what is masked must not become visible because its end was cut away.
        let (mut clean, cut) = match self.query_text {
            QueryText::Off => return None,
            QueryText::Raw => mask::without_passwords(text, max_chars),
            QueryText::Normalized => mask::normalized(text, max_chars),
        };
        if cut {
            clean.push_str(TRUNCATED);
        }
        Some(clean)
    }
}

#[cfg(test)]
mod tests;
