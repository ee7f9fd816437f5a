//! Places in the engine's queue for texts that are one of several, shared evenly by those who have them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The smallest number of clients that the places are divided among: one that is alone leaves some
/// for the next.
const LEAST_CLIENTS: usize = 2;

/// All of them.
#[derive(Debug)]
pub struct Places {
    limit: usize,
    free: Arc<Semaphore>,
    clients: Arc<AtomicUsize>,
}

impl Places {
    /// So many.
    pub fn new(limit: usize) -> Places {
        Places { limit, free: Arc::new(Semaphore::new(limit)), clients: Arc::default() }
    }

    /// A share of them, for one more client.
    pub fn share(&self) -> Share {
        self.clients.fetch_add(1, Ordering::Relaxed);
        let (free, clients) = (Arc::clone(&self.free), Arc::clone(&self.clients));
        Share { limit: self.limit, free, clients }
    }
}

/// A client's share.
pub struct Share {
    limit: usize,
    free: Arc<Semaphore>,
    clients: Arc<AtomicUsize>,
}

impl Share {
    /// Most places that it has, while there are as many clients as now.
    pub fn most(&self) -> usize {
        (self.limit / self.clients.load(Ordering::Relaxed).max(LEAST_CLIENTS)).max(1)
    }

    /// A place for one more text, beside so many that the client has: none where that is its share
    /// or no place is free. The first one is waited for.
    pub async fn place(&self, held: usize) -> Option<OwnedSemaphorePermit> {
        let free = Arc::clone(&self.free);
        match held {
            0 => free.acquire_owned().await.ok(),
            held if held >= self.most() => None,
            _ => free.try_acquire_owned().ok(),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 128;

    /// One request of many texts had the engine's whole queue, and the next was refused.
    #[test]
    fn places_are_shared_by_those_who_have_many_texts() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let places = Places::new(LIMIT);
            let first = places.share();
            let mut held = vec![];
            while let Some(place) = first.place(held.len()).await {
                held.push(place);
            }
            assert_eq!(held.len(), LIMIT / LEAST_CLIENTS);
            let others: Vec<Share> = (0..3).map(|_| places.share()).collect();
            let mut others_held = vec![];
            while let Some(place) = others[0].place(others_held.len()).await {
                others_held.push(place);
            }
            assert_eq!(others_held.len(), LIMIT / 4);
            assert!(first.place(held.len()).await.is_none(), "it has more than its share");
            drop(others);
            drop(others_held);
            assert!(first.place(held.len()).await.is_none());
            held.pop();
            assert!(first.place(held.len()).await.is_some());
            // Who has none waits until there is one.
            let all: Vec<_> =
                (0..).map_while(|_| Arc::clone(&places.free).try_acquire_owned().ok()).collect();
            let next = places.share();
            let waits = tokio::spawn(async move { next.place(0).await.is_some() });
            tokio::task::yield_now().await;
            assert!(!waits.is_finished());
            drop(all);
            assert!(waits.await.unwrap());
        });
    }
}
