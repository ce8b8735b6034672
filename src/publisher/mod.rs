//! The publisher: takes messages out of the spool, brings them to the broker, and settles what the broker answered.
//!
//! One loop a connection: `select` waits and returns an `Action`, `apply` changes the state without waiting, and `fill`
//! sends what the window allows. A channel for each log, so that a queue that never confirms, a return or a refusal stops
//! that log alone. What is decided without a broker stands in [`delivery`].

pub mod delivery;
mod link;
pub mod pace;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    amqp::{self, Connection, RoutingKey},
    backoff::{self, Delays},
    health::{Delivery, Health},
    spool::{Spool, chain},
};
use delivery::Deliveries;
use link::{End, Link};

/// Reasons that are remembered in an outage, so that each is told once.
const MOST_REASONS: usize = 64;

/// What the publisher is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Publish.
    Running,
    /// Nothing new comes: publish what is fresh or in flight until then, and end.
    Draining(Instant),
}

/// The publisher of one agent.
#[derive(Debug)]
pub struct Publisher {
    /// The broker.
    pub config: amqp::Config,
    /// The routing key, its places filled in but for the collector.
    pub routing_key: RoutingKey,
    /// How long to wait between tries.
    pub retry: backoff::Config,
    /// Bytes a second at the most for what waited; `None` is unlimited.
    pub replay_rate: Option<u64>,
    /// Where the messages are.
    pub spool: Arc<Spool>,
    /// The state of all parts.
    pub health: Arc<Health>,
}

impl Publisher {
    /// The broker counts as there until the first try to reach it has failed: what is numbered meanwhile stays in
    /// memory, and is published as fresh. To be called before anything is numbered.
    pub fn expect_broker(&self) {
        self.spool.set_live(Some(self.fresh_bytes()));
    }

    /// Bytes of each log that may wait in memory: enough to keep the window full, and little where there are many logs.
    fn fresh_bytes(&self) -> usize {
        self.config.window_bytes / 4
    }

    /// Publishes until the phase is [`Phase::Draining`] and nothing fresh is left, or its time is over.
    pub async fn run(self, mut phase: watch::Receiver<Phase>) {
        self.publish(&mut phase).await;
        self.spool.set_live(None);
    }

    async fn publish(&self, phase: &mut watch::Receiver<Phase>) {
        let mut delays = Delays::new(&self.retry);
        let mut deliveries = Deliveries::new(self.config.window, self.config.window_bytes);
        let mut attempt = 0;
        let mut told = BTreeSet::new();
        loop {
            let opened = tokio::select! {
                biased;
                () = draining(phase) => return,
                opened = Connection::open(&self.config, attempt) => opened,
            };
            let reason = match opened {
                Ok(connection) => {
                    info!(node = connection.node(), "connected to the broker");
                    told.clear();
                    self.health.delivery(|delivery| delivery.connect(connection.node()));
                    let end = Link::new(self, connection, &mut deliveries).serve(phase, &mut delays).await;
                    self.health.delivery(Delivery::disconnect);
                    match end {
                        End::Drained => return,
                        End::Lost(error) => error,
                    }
                }
                Err(error) => {
                    self.spool.set_live(None);
                    error
                }
            };
            attempt += 1;
            let reason = chain(&reason);
            // Said once, not with every try: several nodes may have a reason each.
            if told.insert(reason.clone()) {
                warn!(reason, "no way to the broker; the spool keeps what comes, and it is tried again without end");
            }
            if told.len() > MOST_REASONS {
                told.clear();
            }
            self.health.delivery(|delivery| delivery.set_trouble(Some(reason)));
            tokio::select! {
                biased;
                () = draining(phase) => return,
                () = tokio::time::sleep(delays.next()) => {}
            }
        }
    }
}

/// Waits until the phase is [`Phase::Draining`], or nobody can say so any more.
async fn draining(phase: &mut watch::Receiver<Phase>) {
    let _gone = phase.wait_for(|phase| matches!(phase, Phase::Draining(_))).await;
}
