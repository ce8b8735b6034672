//! What can go wrong with the broker, in words of ours: the library's own hold URIs and message bodies.

use std::time::Duration;

use lapin::{ErrorKind, protocol::AMQPErrorKind};

use crate::units;

/// What went wrong with the broker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something took too long.
    #[error("the broker at {node} did not finish {what} within {}", units::duration(*limit))]
    Timeout {
        /// Host and port.
        node: String,
        /// What it was to do.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// No TCP connection.
    #[error("cannot connect to the broker at {node}")]
    Connect {
        /// Host and port.
        node: String,
        /// Why not.
        source: std::io::Error,
    },
    /// No TLS with it: nothing was sent.
    #[error("the broker at {node} {reason}")]
    Tls {
        /// Host and port.
        node: String,
        /// What is wrong with it, or with our certificate.
        reason: String,
    },
    /// The broker refused the login or the vhost.
    #[error("the broker at {node} refused {} on vhost {vhost:?}: {reason}", who(user.as_deref()))]
    Refused {
        /// Host and port.
        node: String,
        /// The user; `None` where a certificate logged in.
        user: Option<String>,
        /// The virtual host.
        vhost: String,
        /// The broker's words.
        reason: String,
    },
    /// The broker closed a channel: that channel's collector alone is concerned.
    #[error("the broker closed the channel: {code} {reason}")]
    Channel {
        /// AMQP's reply code, such as 404.
        code: u16,
        /// The broker's words.
        reason: String,
    },
    /// The broker allows no further channel on this connection.
    #[error("the broker allows no further channel on this connection (its channel_max)")]
    NoChannel,
    /// The connection is over.
    #[error("the connection to the broker ended: {reason}")]
    Connection {
        /// The broker's words, or the socket's.
        reason: String,
    },
    /// The configuration cannot be used as it is now.
    #[error("{0}")]
    Config(String),
}

fn who(user: Option<&str>) -> String {
    user.map_or("the client certificate".into(), |user| format!("user {user:?}"))
}

impl Error {
    /// Whether the whole connection is concerned, not one channel.
    pub fn ends_connection(&self) -> bool {
        !matches!(self, Self::Channel { .. } | Self::NoChannel)
    }

    /// The reply code with which the broker closed a channel.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Channel { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(super) fn from_lapin(error: &lapin::Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)) => {
                Self::Channel { code: error.get_id(), reason: error.get_message().to_string() }
            }
            ErrorKind::ProtocolError(error) => {
                Self::Connection { reason: format!("{} {}", error.get_id(), error.get_message()) }
            }
            ErrorKind::ChannelsLimitReached => Self::NoChannel,
            ErrorKind::MissingHeartbeatError => Self::Connection { reason: "no heartbeat from the broker".into() },
            ErrorKind::IOError(error) => Self::Connection { reason: error.to_string() },
            ErrorKind::InvalidChannelState(..) => Self::Channel { code: 0, reason: "the channel is closed".into() },
            ErrorKind::InvalidConnectionState(_) => Self::Connection { reason: "it is closed".into() },
            // Never lapin's own words for the rest: some of them hold URIs and message bodies.
            _ => Self::Connection { reason: "the client library gave up".into() },
        }
    }
}
