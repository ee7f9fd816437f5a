//! Work beside the event loop that takes more than a millisecond: a few threads, a short queue, and
//! an end for what nobody waits for any more.

use super::error::ApiError;
use crate::engine::Cancel;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Work that runs or waits for a thread; each holds a grant.
const PLACES: usize = 64;

/// The helper threads, as the handlers use them.
#[derive(Debug)]
pub struct Helpers(Arc<Semaphore>);

impl Default for Helpers {
    fn default() -> Helpers {
        Helpers(Arc::new(Semaphore::new(PLACES)))
    }
}

impl Helpers {
    /// Runs `work` on a helper thread. When the future is dropped, as when the client leaves, work
    /// that has not begun is dropped at once with all that it holds, and work that has is told by
    /// the [`Cancel`] that it is given.
    ///
    /// # Errors
    ///
    /// Those of `work`; 503 where too much waits already.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            ApiError::unavailable(format!("{PLACES} requests wait for a thread already: try again"))
        })?;
        let waiting = Waiting { work: Arc::new(Mutex::new(Some(work))), cancel: Cancel::new() };
        let (work, cancel) = (Arc::clone(&waiting.work), waiting.cancel.clone());
        let done = tokio::task::spawn_blocking(move || {
            // Held by what is queued: whoever comes and leaves makes the queue no longer.
            let _place = place;
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            work.map_or_else(|| Err(left()), |work| work(&cancel))
        });
        let done = done.await;
        drop(waiting);
        done.map_err(|_| ApiError::internal("a helper thread failed: see the daemon's log"))?
    }
}

/// The answer that nobody reads.
pub fn left() -> ApiError {
    ApiError::unavailable("the client left")
}

/// Work that has not begun, and what tells it to end once it has.
struct Waiting<W> {
    work: Arc<Mutex<Option<W>>>,
    cancel: Cancel,
}

impl<W> Drop for Waiting<W> {
    fn drop(&mut self) {
        self.cancel.cancel();
        drop(self.work.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{channel, sync_channel};
    use tokio::task::JoinSet;

    /// The grants of clients that had left stayed with what waited for a thread, and the queue had
    /// no end: 40 clients with long texts took 152 MiB of a budget of 64.
    #[test]
    fn what_nobody_waits_for_gives_back_what_it_holds() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let helpers = Arc::new(Helpers::default());
            let (began, beginning) = channel();
            let (go_on, going_on) = sync_channel::<()>(0);
            let mut running = JoinSet::new();
            let first = Arc::clone(&helpers);
            running.spawn(async move {
                let work = move |cancel: &Cancel| {
                    began.send(cancel.clone()).unwrap();
                    let _ = going_on.recv();
                    Ok(())
                };
                first.run(work).await
            });
            tokio::task::yield_now().await;
            let cancel = beginning.recv().unwrap();

            let held = Arc::new(());
            for _ in 1..PLACES {
                let (helpers, held) = (Arc::clone(&helpers), Arc::clone(&held));
                let work = move |_: &Cancel| {
                    drop(held);
                    Ok(())
                };
                running.spawn(async move { helpers.run(work).await });
            }
            while helpers.0.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(Arc::strong_count(&held), PLACES);
            let refused = helpers.run(|_| Ok(())).await.unwrap_err();
            assert_eq!(refused.status.as_u16(), 503);

            running.shutdown().await;
            assert_eq!(Arc::strong_count(&held), 1, "what had not begun is gone");
            assert!(cancel.is_cancelled(), "what had begun is told");
            drop(go_on);
            while helpers.0.available_permits() < PLACES {
                tokio::task::yield_now().await;
            }
            helpers.run(|_| Ok(())).await.unwrap();
        });
    }
}
