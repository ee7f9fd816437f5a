//! The threads of passes: who computes, who loads, and on which cores.

use super::error::EngineError;
use crate::plan::Plan;
use crate::stream::{COMPUTE_THREADS, Flow, Loaders, OwnedFlow};
use crate::sys::{affinity, panics};
use std::sync::Arc;
use tract_linalg::multithread::{Executor, multithread_tract_scope};

/// Compute threads and loaders, set up as a plan wants them.
pub(super) struct Crew {
    shape: Shape,
    pool: Arc<rayon::ThreadPool>,
    loaders: Loaders,
}

/// What makes one crew differ from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    compute_cores: Vec<usize>,
    loader_cores: Vec<usize>,
    threads: usize,
}

/// What a compute thread holds beside what it computes: its stack, and what tract and the C library
/// keep for it; and a loader. From 1 to 16 compute threads with half as many loaders, the process
/// grew by 164 KiB a thread, where blocks are decoded into 96 KiB in each.
const COMPUTE_THREAD_BYTES: u64 = 144 << 10;
const LOADER_BYTES: u64 = 32 << 10;

/// Threads of each kind that the process's growth was measured with.
const USUAL_THREADS: usize = 2;

/// Bytes that threads beyond the usual ones hold.
pub(super) fn thread_bytes(threads: usize, loaders: usize) -> u64 {
    let more = |count: usize| count.saturating_sub(USUAL_THREADS) as u64;
    more(threads) * COMPUTE_THREAD_BYTES + more(loaders) * LOADER_BYTES
}

impl Shape {
    fn of(plan: &Plan, cores: &[usize]) -> Shape {
        let (compute, loading) = plan.placement.crew_cores(cores.len(), plan.loaders);
        let last = cores.iter().rev().take(loading).copied();
        Shape {
            compute_cores: cores[..compute].to_vec(),
            loader_cores: last.cycle().take(plan.loaders.max(1)).collect(),
            threads: plan.threads.max(1),
        }
    }
}

impl Crew {
    /// Starts the threads.
    pub fn start(plan: &Plan, cores: &[usize]) -> Result<Crew, EngineError> {
        let shape = Shape::of(plan, cores);
        let compute_cores = shape.compute_cores.clone();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(shape.threads)
            .thread_name(|index| format!("{COMPUTE_THREADS}{index}"))
            .start_handler(move |index| {
                panics::passed_on();
                affinity::pin_current_thread(compute_cores[index % compute_cores.len()]);
            })
            .build()
            .map_err(|error| EngineError::Thread(std::io::Error::other(error)))?;
        let loaders = Loaders::start(&shape.loader_cores).map_err(EngineError::Thread)?;
        Ok(Crew { shape, pool: Arc::new(pool), loaders })
    }

    /// Whether it is as `plan` wants it on `cores`.
    pub fn suits(&self, plan: &Plan, cores: &[usize]) -> bool {
        self.shape == Shape::of(plan, cores)
    }

    /// Sets the loaders to work on a flow, until that ends.
    pub fn load(&self, flow: Arc<Flow>) -> OwnedFlow {
        let traversal = OwnedFlow::of(flow);
        self.loaders.serve(&traversal);
        traversal
    }

    /// Ends the loaders, before others are started: the system may have no room for both. It
    /// suits no plan from now on.
    pub fn dismiss(&mut self) {
        self.loaders.dismiss();
        self.shape.loader_cores.clear();
    }

    /// Runs `work` on the compute threads, products in parallel. What a panic in it said is its
    /// error.
    pub fn compute<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        let executor = Executor::MultiThread(Arc::clone(&self.pool));
        // Past a panic tract would leave its executor, and with it the pool, to the thread.
        let work = || panics::caught(work);
        self.pool.install(|| multithread_tract_scope(executor, work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Dealing, Grouping, PinPlace, Placement, Release, Way};

    #[test]
    fn threads_beyond_two_of_each_kind_are_counted() {
        let check = |threads, loaders, kib: u64| {
            assert_eq!(thread_bytes(threads, loaders), kib << 10, "{threads} and {loaders}");
        };
        check(1, 1, 0);
        check(2, 2, 0);
        check(4, 2, 2 * 144);
        check(8, 4, 6 * 144 + 2 * 32);
    }

    #[test]
    fn loaders_share_computes_cores_or_have_their_own() {
        let check = |placement, loaders, cores: &[usize], compute: &[usize], loading: &[usize]| {
            let plan = Plan {
                source: Way::Mapped,
                loaders,
                threads: 2,
                placement,
                grouping: Grouping::Blocks,
                turns: Dealing::Next,
                release: Release::AfterUse,
                window_bytes: 0,
                pin_bytes: 0,
                pins: PinPlace::Head,
                variants: vec![],
            };
            let shape = Shape::of(&plan, cores);
            assert_eq!((&*shape.compute_cores, &*shape.loader_cores), (compute, loading));
        };
        check(Placement::Shared, 1, &[0, 1, 2, 3], &[0, 1, 2, 3], &[3]);
        check(Placement::Shared, 3, &[4, 6], &[4, 6], &[6, 4, 6]);
        check(Placement::Apart, 1, &[0, 1, 2, 3], &[0, 1, 2], &[3]);
        check(Placement::Apart, 5, &[0, 1, 2], &[0], &[2, 1, 2, 1, 2]);
        check(Placement::Apart, 1, &[7], &[7], &[7]);
        let eight = [0, 1, 2, 3, 4, 5, 6, 7];
        check(Placement::Shared, 4, &eight, &eight, &[7, 6, 5, 4]);
        check(Placement::Apart, 3, &eight, &[0, 1, 2, 3, 4], &[7, 6, 5]);
        check(Placement::Apart, 9, &eight, &[0], &[7, 6, 5, 4, 3, 2, 1, 7, 6]);
    }
}
