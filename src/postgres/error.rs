//! Why the server could not answer: one line each for the operator at night, with the cause said once.
//!
//! Nothing here holds a password or a statement's text. Texts of the server are kept to one line.

use std::{error::Error as _, io, time::Duration};

use rustls::CertificateError;
use tokio_postgres::error::{DbError, Severity};

use crate::units::Time;

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

/// Why there is no protected connection, or no login: what is found below the driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    /// A certificate, a key or a list cannot be used: the file, and why.
    #[error("{0}")]
    File(String),
    /// The server has no TLS.
    #[error("the server has no TLS, and sslmode asks for it")]
    Refused,
    /// What the server's certificate is or has.
    #[error("TLS: the server's certificate {0}")]
    Certificate(String),
    /// No handshake, for another reason.
    #[error("TLS: {0}")]
    Handshake(String),
    /// It is no PostgreSQL server.
    #[error("what answers is no PostgreSQL server: it said {0}")]
    Stranger(String),
    /// The server asks for what may not be answered.
    #[error("the server asks for {0}")]
    Method(String),
    /// The connection ended early.
    #[error("{0}")]
    Closed(String),
}

impl Problem {
    /// From a handshake that failed.
    pub(super) fn of_handshake(error: &io::Error) -> Self {
        let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Self::Handshake("the server closed the connection".into()),
                _ => Self::Handshake(one_line(&error.to_string())),
            };
        };
        match inner {
            rustls::Error::InvalidCertificate(error) => Self::of_certificate_error(error),
            rustls::Error::AlertReceived(alert) => {
                Self::Handshake(format!("the server ended the handshake with the alert {alert:?}"))
            }
            other => Self::Handshake(one_line(&other.to_string())),
        }
    }

    fn of_certificate_error(error: &CertificateError) -> Self {
        match error {
            CertificateError::Other(other) => match other.0.downcast_ref::<Self>() {
                Some(problem) => problem.clone(),
                None => Self::Certificate(format!("cannot be used: {}", one_line(&other.0.to_string()))),
            },
            CertificateError::ExpiredContext { not_after, .. } => {
                Self::Certificate(format!("has expired at {}", time_of(not_after.as_secs())))
            }
            // What begins after its own end is told so too.
            CertificateError::Expired => Self::Certificate("has expired".into()),
            CertificateError::NotValidYetContext { not_before, .. } => {
                Self::Certificate(format!("is not valid before {}", time_of(not_before.as_secs())))
            }
            CertificateError::UnknownIssuer => {
                Self::Certificate("is of no authority among the root certificates".into())
            }
            CertificateError::Revoked => Self::Certificate("was revoked".into()),
            CertificateError::UnknownRevocationStatus => {
                Self::Certificate("may be revoked: sslcrl has no list of its authority".into())
            }
            CertificateError::ExpiredRevocationListContext { next_update, .. } => Self::Certificate(format!(
                "may be revoked: the list in sslcrl has expired at {}",
                time_of(next_update.as_secs())
            )),
            CertificateError::InvalidPurposeContext { .. } => Self::Certificate("is not for servers".into()),
            other => Self::Certificate(format!("cannot be used: {}", one_line(&other.to_string()))),
        }
    }

    /// What is said of a certificate, for another one than the server's.
    pub(super) fn of_certificate(&self) -> String {
        match self {
            Self::Certificate(what) => what.clone(),
            other => other.to_string(),
        }
    }

    /// Whether it was TLS that failed, so that a connection without may be tried where `sslmode` allows it.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::File(_) | Self::Certificate(_) | Self::Handshake(_))
    }

    /// The one behind an error of the driver's, if it is one.
    pub(super) fn behind(error: &tokio_postgres::Error) -> Option<&Self> {
        let source = error.source()?;
        let inner = || source.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<Self>();
        source.downcast_ref::<Self>().or_else(inner)
    }
}

/// Seconds since 1970 as people read them.
pub(super) fn time_of(seconds: u64) -> Time {
    Time(i64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000))
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
    if let Some(problem) = Problem::behind(error) {
        return problem.to_string();
    }
    // In TLS 1.3 it is after the handshake that a server complains about our certificate.
    let failure = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let of_tls = |failure: &&io::Error| {
        failure.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
    };
    if let Some(failure) = failure.filter(of_tls) {
        return Problem::of_handshake(failure).to_string();
    }
    if error.is_closed() {
        return "the server closed the connection".into();
    }
    let text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    match cause.map(ToString::to_string) {
        // The driver's words for what libpq says in the same way.
        Some(cause) if cause == "password missing" => "the server asks for a password, and there is none".into(),
        Some(cause) if cause == "server did not use channel binding" => {
            "channel_binding is require, and the server does not bind the password to the TLS session".into()
        }
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
