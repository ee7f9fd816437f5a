//! Work beside the event loop, which opens and reads no file and computes for no longer than a
//! millisecond: a few threads, a short queue, and an end for what nobody waits for any more.

use super::error::ApiError;
use crate::engine::Cancel;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Threads that all of it takes: as many as the runtime may start.
pub const HELPER_THREADS: usize = WORKERS + 1;

/// Pieces of work that run at once.
const WORKERS: usize = 2;

/// Work that runs or waits for a thread; each holds a grant.
const PLACES: usize = 64;

/// The helper threads, as the handlers use them.
#[derive(Debug)]
pub struct Helpers {
    places: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    looks: Arc<Semaphore>,
}

impl Default for Helpers {
    fn default() -> Helpers {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Helpers { places: semaphore(PLACES), workers: semaphore(WORKERS), looks: semaphore(1) }
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
        self.place()?.run(work).await
    }

    /// A place for work that is done piece by piece, so that others' is done in between.
    ///
    /// # Errors
    ///
    /// 503 where too much waits already.
    pub fn place(&self) -> Result<Place, ApiError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            ApiError::unavailable(format!("{PLACES} requests wait for a thread already: try again"))
        })?;
        Ok(Place { place: Arc::new(place), workers: Arc::clone(&self.workers) })
    }

    /// Looks something up in files, on a thread that work never takes. One at a time, since all ask
    /// the same disk; those that wait hold nothing, so there may be as many as are connected.
    ///
    /// # Errors
    ///
    /// Those of `look`.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = Arc::clone(&self.looks).acquire_owned().await;
        beside(turn, |_| look()).await
    }
}

/// A place among the work that runs or waits.
pub struct Place {
    place: Arc<OwnedSemaphorePermit>,
    workers: Arc<Semaphore>,
}

impl Place {
    /// As [`Helpers::run`].
    ///
    /// # Errors
    ///
    /// Those of `work`.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = Arc::clone(&self.workers).acquire_owned().await;
        beside((Arc::clone(&self.place), turn), work).await
    }
}

/// Runs `work` on a thread, which is there: `permits` are of as many as there are. They are held to
/// its end, whoever waits for it.
async fn beside<T: Send + 'static>(
    permits: impl Send + 'static,
    work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let awaited = Awaited(Cancel::new());
    let cancel = awaited.0.clone();
    let done = tokio::task::spawn_blocking(move || {
        let done = work(&cancel);
        drop(permits);
        done
    });
    let done = done.await;
    drop(awaited);
    done.map_err(|_| ApiError::internal("a helper thread failed: see the daemon's log"))?
}

/// Tells work, when it is dropped, that nobody waits any more.
struct Awaited(Cancel);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The answer that nobody reads.
pub fn left() -> ApiError {
    ApiError::unavailable("the client left")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use tokio::task::JoinSet;

    /// The grants of clients that had left stayed with what waited for a thread, and the queue had
    /// no end: 40 clients with long texts took 152 MiB of a budget of 64.
    #[test]
    fn what_nobody_waits_for_gives_back_what_it_holds() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(HELPER_THREADS).build().unwrap();
        runtime.block_on(async {
            let helpers = Arc::new(Helpers::default());
            let (began, beginning) = channel();
            let (go_on, going_on) = crossbeam_channel::bounded::<()>(0);
            let mut running = JoinSet::new();
            for _ in 0..WORKERS {
                let (helpers, began) = (Arc::clone(&helpers), began.clone());
                let going_on = going_on.clone();
                let work = move |cancel: &Cancel| {
                    began.send(cancel.clone()).unwrap();
                    let _ = going_on.recv();
                    Ok(())
                };
                running.spawn(async move { helpers.run(work).await });
            }
            let held = Arc::new(());
            for _ in WORKERS..PLACES {
                let (helpers, held) = (Arc::clone(&helpers), Arc::clone(&held));
                let work = move |_: &Cancel| {
                    drop(held);
                    Ok(())
                };
                running.spawn(async move { helpers.run(work).await });
            }
            while helpers.places.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            let begun: Vec<Cancel> = beginning.iter().take(WORKERS).collect();
            assert_eq!(Arc::strong_count(&held), PLACES - WORKERS + 1);
            let refused = helpers.run(|_| Ok(())).await.unwrap_err();
            assert_eq!(refused.status.as_u16(), 503);
            // What is only looked up has a thread of its own.
            helpers.look(|| Ok(())).await.unwrap();

            running.shutdown().await;
            assert_eq!(Arc::strong_count(&held), 1, "what had not begun is gone");
            assert!(begun.iter().all(Cancel::is_cancelled), "what had begun is told");
            drop(go_on);
            while helpers.places.available_permits() < PLACES {
                tokio::task::yield_now().await;
            }
            helpers.run(|_| Ok(())).await.unwrap();
        });
    }
}
