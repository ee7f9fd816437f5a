//! Reckoning beside passes: one thing at a time, on a thread of its own, while the engine goes on.

use super::error::EngineError;
use super::stage::guarded;
use crossbeam_channel::{Receiver, bounded};
use std::thread::{Builder, JoinHandle};

/// What is reckoned, if anything is. Whoever drops it waits for its end.
pub(super) struct Beside<T>(Option<UnderWay<T>>);

struct UnderWay<T> {
    thread: JoinHandle<()>,
    done: Receiver<Result<T, EngineError>>,
}

impl<T> Default for Beside<T> {
    fn default() -> Beside<T> {
        Beside(None)
    }
}

impl<T: Send + 'static> Beside<T> {
    /// Begins; `wake` is called when it is done.
    ///
    /// # Errors
    /// [`EngineError::Thread`] where the system has no thread for it.
    ///
    /// # Panics
    /// While something is under way.
    pub fn begin(
        &mut self,
        reckon: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
        wake: impl FnOnce() + Send + 'static,
    ) -> Result<(), EngineError> {
        assert!(!self.is_under_way(), "one thing at a time");
        let (end, done) = bounded(1);
        let run = move || {
            // Nobody may be there any more to take it.
            let _ = end.send(guarded("planning", reckon));
            wake();
        };
        let thread = Builder::new().name("plan".to_owned()).spawn(run);
        let thread = thread.map_err(EngineError::Thread)?;
        self.0 = Some(UnderWay { thread, done });
        Ok(())
    }

    /// Whether something was begun that was not taken.
    pub fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// What came of it, once it is done.
    pub fn take(&mut self) -> Option<Result<T, EngineError>> {
        let result = self.0.as_ref()?.done.try_recv().ok()?;
        self.join();
        Some(result)
    }
}

impl<T> Beside<T> {
    fn join(&mut self) {
        if let Some(UnderWay { thread, .. }) = self.0.take()
            && thread.join().is_err()
        {
            log::error!("a thread that planned panicked");
        }
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::super::inbox::Inbox;
    use super::super::request::{Answer, Cancel, Class, Line, Request, Waiting};
    use super::super::turns::{Left, Turn};
    use super::*;
    use crate::plan::Target;
    use std::sync::Arc;

    fn submit(inbox: &Inbox, target: Option<Target>) {
        let request = Request {
            model: "m".to_owned(),
            inputs: vec![],
            outputs: vec![],
            cancel: Cancel::new(),
            target,
            trace: None,
        };
        let waiting = Waiting::new(request, Class::Interactive, Answer::new(drop));
        assert!(inbox.submit(waiting).is_empty());
    }

    fn next(inbox: &Inbox) -> Line {
        let Some(Turn::Pass(line)) = inbox.next() else { panic!("another turn") };
        line
    }

    /// A new target kept everybody's requests waiting for its plan, on a small board for seconds.
    #[test]
    fn passes_of_others_go_on_while_a_plan_is_made() {
        let inbox = Arc::new(Inbox::default());
        submit(&inbox, Some(Target { latency_us: Some(1.0), accuracy: None }));
        (0..2).for_each(|_| submit(&inbox, None));
        let mut beside = Beside::default();
        let line = next(&inbox);
        assert!(line.target.is_some());
        inbox.park(&line);
        let ((go, goes), woken) = (bounded::<()>(0), Arc::clone(&inbox));
        let reckon = move || {
            goes.recv().unwrap();
            Ok(7)
        };
        beside.begin(reckon, move || woken.wake_all()).unwrap();
        inbox.done(Left::Nothing);
        for _ in 0..2 {
            let other = next(&inbox);
            assert!(other.target.is_none() && beside.is_under_way() && beside.take().is_none());
            assert!(inbox.pop(&other).is_some());
            inbox.done(Left::Nothing);
        }
        go.send(()).unwrap();
        assert_eq!(next(&inbox), line, "it is woken");
        assert_eq!(beside.take().unwrap().unwrap(), 7);
        assert!(beside.take().is_none() && !beside.is_under_way());
    }

    #[test]
    fn a_panic_is_an_error_of_what_was_reckoned() {
        let mut beside = Beside::<()>::default();
        let (done, is_done) = bounded(1);
        beside.begin(|| panic!("a story"), move || done.send(()).unwrap()).unwrap();
        is_done.recv().unwrap();
        let error = beside.take().unwrap().unwrap_err();
        assert!(matches!(&error, EngineError::Internal(text) if text.contains("a story")));
    }
}
