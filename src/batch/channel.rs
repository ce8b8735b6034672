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

/// How full the channel is. Keeps no end of it.
#[derive(Debug, Clone)]
pub struct Gauge {
    items: mpsc::WeakSender<(Item, OwnedSemaphorePermit)>,
    capacity: usize,
}

impl Gauge {
    /// Samples in it; none once its senders are gone.
    pub fn samples(&self) -> usize {
        self.items.upgrade().map_or(0, |items| items.max_capacity() - items.capacity())
    }

    /// How many there may be.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// The intake's end.
#[derive(Debug)]
pub struct Receiver(mpsc::Receiver<(Item, OwnedSemaphorePermit)>);

/// The word that the channel had room when a look began. It holds no place: a look that hangs fills the channel for nobody.
#[derive(Debug)]
pub struct Slot(Sender);

/// A channel for so many samples.
pub fn channel(capacity: usize) -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(capacity);
    (Sender { items: sender, bytes: Arc::new(Semaphore::new(BYTES as usize)) }, Receiver(receiver))
}

impl Sender {
    /// Leave to take a sample; `None` where the channel is full.
    pub fn slot(&self) -> Option<Slot> {
        (self.items.capacity() > 0).then(|| Slot(self.clone()))
    }

    /// How full the channel is.
    pub fn gauge(&self) -> Gauge {
        Gauge { items: self.items.downgrade(), capacity: self.items.max_capacity() }
    }

    /// Hands a sample over, as soon as it and its bytes have room.
    pub async fn send(&self, item: Item) {
        let bytes = match &item.payload {
            Payload::Events(events) => events.iter().map(Vec::len).sum(),
            Payload::Status(_) => 0,
        };
        let bytes = u32::try_from(bytes).unwrap_or(BYTES).min(BYTES);
        // The semaphore is never closed; where the intake is gone, the agent is ending.
        if let Ok(room) = Arc::clone(&self.bytes).acquire_many_owned(bytes).await {
            let _ending = self.items.send((item, room)).await;
        }
    }
}

impl Slot {
    /// Hands the sample over, as soon as it and its bytes have room.
    pub async fn send(self, item: Item) {
        self.0.send(item).await;
    }
}

impl Receiver {
    /// Whether nothing is there at the moment.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

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
        let (sender, mut receiver) = channel(2);
        let gauge = sender.gauge();
        sender.slot().expect("empty").send(item(5 << 20)).await;
        let mut second = Box::pin(sender.slot().expect("one left").send(item(5 << 20)));
        assert!((&mut second).now_or_never().is_none(), "10 MiB do not fit into 8");
        assert_eq!((gauge.samples(), gauge.capacity()), (1, 2));
        assert!(receiver.next().await.is_some());
        second.await;
        assert!(receiver.next().await.is_some());
        sender.slot().expect("empty").send(item(100 << 20)).await;
        drop(sender);
        assert!(receiver.next().await.is_some() && receiver.next().await.is_none());
        assert_eq!(gauge.samples(), 0, "it holds no end open");
    }

    #[tokio::test]
    async fn looks_under_way_fill_the_channel_for_nobody_and_what_they_bring_waits_for_room() {
        let (sender, mut receiver) = channel(1);
        let hangs = sender.slot().expect("empty");
        sender.slot().expect("one that hangs takes no place").send(item(1)).await;
        assert!(sender.slot().is_none(), "now it is full");
        let mut late = Box::pin(hangs.send(item(2)));
        assert!((&mut late).now_or_never().is_none(), "it waits, and is not dropped");
        assert!(receiver.next().await.is_some());
        late.await;
        assert!(receiver.next().await.is_some() && sender.slot().is_some());
    }
}
