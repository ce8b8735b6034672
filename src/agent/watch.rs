//! The watch: the vigil and the status page, on a thread of their own. Whoever judges whether the others are stuck must not be
//! stuck with them.

use std::{
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{oneshot, watch},
};
use tracing::error;

use super::{line::Line, vigil::keep_vigil};
use crate::{
    config::{self, Config},
    http,
    recent::Recent,
};

/// Bytes of the thread's stack: nothing on it goes deep.
const STACK: usize = 512 << 10;

/// Kept, for as long as this is.
pub(super) struct Watch {
    _stop: oneshot::Sender<()>,
}

impl Watch {
    /// Begins. Where that cannot be it is told, and everything else runs.
    pub(super) fn begin(line: &Line, page: Option<http::Server>) -> Option<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let vigil = keep_vigil(Arc::clone(&line.spool), Arc::clone(&line.health));
        let serve = async {
            match page {
                Some(page) => page.serve().await,
                None => std::future::pending().await,
            }
        };
        let all = async {
            tokio::select! {
                _ = stopped => {}
                () = vigil => {}
                () = serve => {}
            }
        };
        let keep = move || match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => runtime.block_on(all),
            Err(error) => {
                error!(reason = %error, "no timers for the watch: no status page and no word on what is stuck; all else runs");
            }
        };
        let thread = thread::Builder::new().name("watch".into()).stack_size(STACK);
        let spawned = thread.spawn(move || {
            if catch_unwind(AssertUnwindSafe(keep)).is_err() {
                error!(
                    "the watch failed: no status page and no word on what is stuck until the next start; all else runs"
                );
            }
        });
        match spawned {
            Ok(_keeps_itself) => Some(Self { _stop: stop }),
            Err(error) => {
                error!(reason = %error, "no thread for the watch: no status page; all else runs");
                None
            }
        }
    }
}

/// The status page of this agent.
pub(super) fn page(
    (listen, recent): (SocketAddr, Arc<Recent>),
    config: &Config,
    line: &Line,
    current: watch::Receiver<http::Current>,
) -> http::Server {
    let host = config::host_name();
    let view = http::View {
        name: config.agent.name.clone(),
        labels: config.agent.labels.clone(),
        health: Arc::clone(&line.health),
        spool: Arc::clone(&line.spool),
        recent,
        channel: line.samples.gauge(),
        current,
        host: host.clone(),
    };
    let hosts = config.http.hosts.iter().cloned().chain([host]).collect();
    http::Server { listen, hosts, view }
}
