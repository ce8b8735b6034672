//! The service manager, where there is one: it is told that the agent runs, reads its configuration again, stops, and that
//! its loops still turn (sd_notify(3)). Without `NOTIFY_SOCKET` nobody is told anything.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

/// The agent runs.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("collecting")]);
}

/// The configuration is being read again. [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The agent stops.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: what is fresh is being delivered")]);
}

/// All loops turn, and this is how the agent is.
pub(super) fn alive(status: &str) {
    tell(&[NotifyState::Watchdog, NotifyState::Status(status)]);
}

/// A loop is stuck: the manager hears no [`alive`] any more, and after its `WatchdogSec` begins the agent anew.
pub(super) fn stuck(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// How often [`alive`] is waited for at the least; `None` where nobody waits for it.
pub(super) fn alive_every() -> Option<Duration> {
    // Half of what the manager allows, as sd_watchdog_enabled(3) advises.
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(reason = %error, "the service manager cannot be told how the agent is");
    }
}
