//! `run`: the sidecar.

use clap::Args;
use rustix::process::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{error, info, warn};

use super::{Failure, Outcome};
use crate::{
    agent::{self, Reload},
    config::{Loaded, Mistakes},
    secret::Secret,
    settings::Mistake,
    spool,
};

/// Collect, spool and publish until SIGTERM or SIGINT
///
/// A second signal stops at once; what was not yet delivered is in the spool. A database or broker that is away at the
/// start is an outage like any other: it is waited for without end. SIGHUP reads the configuration again, and the files
/// that it names: postgres, amqp, retry, collectors, privacy and log.level are in force at once, what else has changed is
/// named and waits for the next start. A configuration with a mistake changes nothing.
///
/// Exit status: 0 after a clean stop, 75 if another agent holds the spool, 78 on a bad configuration, 1 otherwise.
#[derive(Debug, Args)]
pub struct Arguments {}

impl Arguments {
    /// Runs the agent. `load` reads the configuration again.
    ///
    /// # Errors
    /// Why it could not run, or ended by itself.
    pub fn run(self, loaded: Loaded, load: impl Fn() -> Result<Loaded, Mistakes>) -> Outcome {
        let Self {} = self;
        secrets(&loaded)?;
        let runtime = super::runtime()?;
        let (stop, stopped) = watch::channel(false);
        let (reload, reloads) = mpsc::channel(1);
        let config = loaded.config.clone();
        let result = runtime.block_on(async {
            // Heard, it does not end the process: a file that may not grow (RLIMIT_FSIZE) is a full disk like any other.
            let _heard = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()));
            tell_exposed(&loaded);
            let agent = agent::run(config, stopped, reloads);
            tokio::select! {
                result = agent => result,
                never = signals(stop, reload, loaded, load) => match never {},
                () = super::logging::tell_left_out() => std::future::pending().await,
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

/// A secret that cannot be read is a bad configuration at the start. Later it is an outage: it may be just being rotated.
fn secrets(loaded: &Loaded) -> Result<(), Mistakes> {
    let (amqp, postgres) = (&loaded.config.amqp.password_file, &loaded.config.postgres.password_file);
    let files = [("amqp.password_file", amqp), ("postgres.password_file", postgres)];
    let unreadable = files.into_iter().filter_map(|(key, path)| {
        let path = path.as_ref()?;
        let error = Secret::from_file(path).err()?;
        let origin = loaded.known.iter().find(|known| known.path == key).map(|known| format!(" ({})", known.origin));
        let origin = origin.unwrap_or_default();
        Some(Mistake(format!("{key}{origin} names {}, which cannot be read: {error}", path.display())))
    });
    let mistakes: Vec<_> = unreadable.collect();
    if mistakes.is_empty() { Ok(()) } else { Err(Mistakes(mistakes)) }
}

/// The agent runs all the same: it is for the operator to say who may read what.
fn tell_exposed(loaded: &Loaded) {
    for (key, exposed) in loaded.exposed() {
        warn!(key, mend = exposed.mend(), "{exposed}");
    }
}

enum Never {}

/// Hears the signals: the first SIGTERM or SIGINT asks the agent to stop, the second one ends the process; SIGHUP reads
/// the configuration again.
async fn signals(
    stop: watch::Sender<bool>,
    reload: mpsc::Sender<Reload>,
    mut loaded: Loaded,
    load: impl Fn() -> Result<Loaded, Mistakes>,
) -> Never {
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
                match load() {
                    Err(mistakes) => error!(%mistakes, "the configuration was read again and is refused; the old one stays in force"),
                    Ok(new) => {
                        let changed = loaded.changed(&new);
                        info!(?changed, "the configuration was read again");
                        super::logging::set_level(new.config.log.level);
                        tell_exposed(&new);
                        // The agent may be stopping: then nothing needs to be in force any more.
                        let _stopping = reload.send(Reload { config: new.config.clone(), changed }).await;
                        loaded = new;
                    }
                }
                continue;
            }
        }
        ask_to_stop(&stop);
    }
}

/// Asks for an orderly stop; asked twice, ends the process at once.
pub(super) fn ask_to_stop(stop: &watch::Sender<bool>) {
    if stop.send_replace(true) {
        warn!("stopped at once by a second signal; what was not delivered is in the spool");
        std::process::exit(1);
    }
}
