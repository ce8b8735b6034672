//! Why the server could not answer: one line each for the operator at night, with the cause said once.
//!
//! Nothing here holds a password or a statement's text. Texts of the server are kept to one line.

use std::{error::Error as _, time::Duration};

use tokio_postgres::error::{DbError, Severity};

/// Why the server could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No connection could be made.
    #[error("cannot connect to {at}: {why}")]
    Unreachable {
        /// Host and port, or socket; several of them where several were tried.
        at: String,
        /// The cause, one line.
        why: String,
    },
    /// The server is there and did not let the agent in.
    #[error("{at} refused the login: {message} (SQLSTATE {sqlstate})")]
    Refused {
        /// Host and port, or socket.
        at: String,
        /// What the server said.
        message: String,
        /// Such as 28P01 (wrong password), 53300 (too many connections), 57P03 (starting up).
        sqlstate: String,
    },
    /// All connections of the pool are in use or wait for an answer that is overdue.
    #[error("no connection was free within {0:?}: all of them are in use or wait for an answer")]
    Busy(Duration),
    /// The server did not answer a statement in time, not even with an error.
    #[error("{query}: no answer within {after:?}; cancelled, and the connection is left")]
    Deadline {
        /// The statement's name.
        query: &'static str,
        /// How long the agent waited.
        after: Duration,
    },
    /// The connection broke while a statement ran.
    #[error("{query}: the connection was lost: {why}")]
    Lost {
        /// The statement's name.
        query: &'static str,
        /// The cause, one line.
        why: String,
    },
    /// The server answered a statement with an error.
    #[error("{query}: {message} (SQLSTATE {sqlstate})")]
    Query {
        /// The statement's name.
        query: &'static str,
        /// What the server said.
        message: String,
        /// Its code.
        sqlstate: String,
    },
    /// A value came back that is not of the kind that was asked for.
    #[error("column {column} does not hold {wanted}")]
    Decode {
        /// The column's name or position.
        column: String,
        /// What was expected.
        wanted: &'static str,
    },
}

impl Error {
    /// The server's own code, if it answered.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Refused { sqlstate, .. } | Self::Query { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }

    /// Whether the server is away or lets nobody in, which concerns every look and is logged once for all of them.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { .. })
    }

    /// A relation, function, column or schema that the statement names is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Query { .. }) && matches!(self.sqlstate(), Some("42P01" | "42883" | "42703" | "3F000"))
    }

    /// The role may not do this.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Query { .. }) && self.sqlstate() == Some("42501")
    }

    /// A text has no form in the encoding that it was to be sent in.
    pub fn is_encoding(&self) -> bool {
        matches!(self, Self::Query { .. }) && matches!(self.sqlstate(), Some("22021" | "22P05"))
    }

    /// It took too long: by the agent's clock, by the server's, or because of a lock.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Busy(_)) || matches!(self.sqlstate(), Some("57014" | "55P03"))
    }

    /// From a failed statement.
    pub(super) fn of_query(query: &'static str, error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(answer) if !ends_session(answer) => {
                Self::Query { query, message: said(answer), sqlstate: answer.code().code().to_owned() }
            }
            Some(answer) => Self::Lost { query, why: said(answer) },
            None => Self::Lost { query, why: why(error) },
        }
    }

    /// From a failed login.
    pub(super) fn of_login(at: &str, error: &tokio_postgres::Error) -> Self {
        let at = at.to_owned();
        match error.as_db_error() {
            Some(answer) => Self::Refused { at, message: said(answer), sqlstate: answer.code().code().to_owned() },
            None => Self::Unreachable { at, why: why(error) },
        }
    }
}

/// Whether the session is over after this error.
fn ends_session(answer: &DbError) -> bool {
    matches!(answer.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

/// What the server said, in one line.
fn said(answer: &DbError) -> String {
    let mut text = answer.message().to_owned();
    // A hint often is the whole answer to "what now?".
    if let Some(more) = answer.hint().or(answer.detail()) {
        text = format!("{text} ({more})");
    }
    one_line(&text)
}

/// The cause of an error that the server did not send, in one line.
fn why(error: &tokio_postgres::Error) -> String {
    let text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    match cause.map(ToString::to_string) {
        Some(cause) if text.starts_with("error connecting") || text.starts_with("error communicating") => {
            one_line(&cause)
        }
        Some(cause) => one_line(&format!("{text}: {cause}")),
        None => text,
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
