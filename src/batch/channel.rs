//! The channel between collectors and intake: bounded by samples and by bytes. A full one makes a collector skip its
//! look; what was looked at is never dropped.

use std::{sync::Arc, time::Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::event::{Payload, Server};

/// Bytes that wait in the channel at the most; one larger sample travels alone.
const BYTES: u32 = 8 << 20;

/// What a collector hands over: one sample.
#[derive(Debug)]
pub struct Item {
    /// The collector and its schema version.
    pub collector: (&'static str, u32),
    /// The server it was taken on.
    pub server: Option<Arc<Server>>,
    /// What the look brought.
    pub payload: Payload,
    /// When the collector's next sample is due; `None` if there will be none.
    pub next_due: Option<Instant>,
}

/// The collectors' end.
#[derive(Debug, Clone)]
pub struct Sender {
    items: mpsc::Sender<(Item, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
}

/// The intake's end.
#[derive(Debug)]
pub struct Receiver(mpsc::Receiver<(Item, OwnedSemaphorePermit)>);

/// A place in the channel for one sample that is yet to be taken.
#[derive(Debug)]
pub struct Slot {
    place: mpsc::OwnedPermit<(Item, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
}

/// A channel for so many samples.
pub fn channel(capacity: usize) -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(capacity);
    (Sender { items: sender, bytes: Arc::new(Semaphore::new(BYTES as usize)) }, Receiver(receiver))
}

impl Sender {
    /// A place for a sample; `None` where the channel is full.
    pub fn slot(&self) -> Option<Slot> {
        let place = self.items.clone().try_reserve_owned().ok()?;
        Some(Slot { place, bytes: Arc::clone(&self.bytes) })
    }
}

impl Slot {
    /// Hands the sample over, as soon as its bytes have room.
    pub async fn send(self, item: Item) {
        let bytes = match &item.payload {
            Payload::Events(events) => events.iter().map(Vec::len).sum(),
            Payload::Status(_) => 0,
        };
        let bytes = u32::try_from(bytes).unwrap_or(BYTES).min(BYTES);
        // The semaphore is never closed.
        if let Ok(room) = self.bytes.acquire_many_owned(bytes).await {
            self.place.send((item, room));
        }
    }
}

impl Receiver {
    /// The next sample; `None` when every sender is gone.
    pub async fn next(&mut self) -> Option<Item> {
        self.0.recv().await.map(|(item, _room)| item)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn item(bytes: usize) -> Item {
        Item { collector: ("log", 1), server: None, payload: Payload::Events(vec![vec![0; bytes]]), next_due: None }
    }

    #[tokio::test]
    async fn a_full_channel_has_no_slot_and_bytes_are_waited_for() {
        let (sender, mut receiver) = channel(3);
        sender.slot().expect("empty").send(item(5 << 20)).await;
        let mut second = Box::pin(sender.slot().expect("two left").send(item(5 << 20)));
        assert!((&mut second).now_or_never().is_none(), "10 MiB do not fit into 8");
        let third = sender.slot();
        assert!(third.is_some() && sender.slot().is_none(), "three are the most");
        assert!(receiver.next().await.is_some());
        second.await;
        assert!(receiver.next().await.is_some());
        third.expect("held").send(item(100 << 20)).await;
        drop(sender);
        assert!(receiver.next().await.is_some() && receiver.next().await.is_none());
    }
}
