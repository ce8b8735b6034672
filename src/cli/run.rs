//! `run`: the sidecar.

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{error, info, warn};

use super::{Failure, Outcome};
use crate::{agent, config::Loaded, spool};

/// Collect, spool and publish until SIGTERM or SIGINT
///
/// A second signal stops at once; what was not yet delivered is in the spool. A database or broker that is away at the
/// start is an outage like any other: it is waited for without end.
///
/// Exit status: 0 after a clean stop, 75 if another agent holds the spool, 78 on a bad configuration, 1 otherwise.
#[derive(Debug, Args)]
pub struct Arguments {}

impl Arguments {
    /// Runs the agent.
    ///
    /// # Errors
    /// Why it could not run, or ended by itself.
    pub fn run(self, loaded: &Loaded) -> Outcome {
        let Self {} = self;
        let runtime = super::runtime()?;
        let (stop, stopped) = watch::channel(false);
        let config = loaded.config.clone();
        let result = runtime.block_on(async {
            let agent = agent::run(config, stopped);
            tokio::select! {
                result = agent => result,
                never = signals(stop) => match never {},
            }
        });
        // Nothing that still waits for a network may keep the process: what matters is in the spool.
        runtime.shutdown_background();
        result.map_err(|failed| match failed {
            agent::Error::Spool(held @ spool::Error::Held { .. }) => Failure::Held(held.to_string()),
            other => Failure::Failed(spool::chain(&other)),
        })
    }
}

enum Never {}

/// Hears the signals: the first SIGTERM or SIGINT asks the agent to stop, the second one ends the process.
async fn signals(stop: watch::Sender<bool>) -> Never {
    let heard = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = heard else {
        error!("cannot listen to signals; the agent can only be killed, which loses nothing");
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {
                info!("password files are read anew at each connect; everything else is read at a start");
                continue;
            }
        }
        if stop.send_replace(true) {
            warn!("stopped at once by a second signal; what was not delivered is in the spool");
            std::process::exit(1);
        }
    }
}
