//! Who is served next: models take turns, a model's requests keep their order. Pure: no clock, no
//! thread.

use std::collections::VecDeque;

/// Waiting requests, at most `limit` of them, in a line for each model.
#[derive(Debug)]
pub struct Queue<T> {
    limit: usize,
    /// Models with waiting requests, the next to be served first.
    lines: VecDeque<(String, VecDeque<T>)>,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(limit: usize) -> Queue<T> {
        Queue { limit, lines: VecDeque::new() }
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.lines.iter().map(|(_, line)| line.len()).sum()
    }

    /// Models that requests wait for.
    pub fn models(&self) -> impl Iterator<Item = &String> {
        self.lines.iter().map(|(name, _)| name)
    }

    /// Appends a request to its model's line, or gives it back where the queue is full.
    pub fn push(&mut self, model: &str, request: T) -> Result<(), T> {
        if self.len() >= self.limit {
            return Err(request);
        }
        match self.lines.iter_mut().find(|(name, _)| name == model) {
            Some((_, line)) => line.push_back(request),
            None => self.lines.push_back((model.to_string(), VecDeque::from([request]))),
        }
        Ok(())
    }

    /// The model whose turn it is; it goes to the end of the models that wait.
    pub fn next_model(&mut self) -> Option<String> {
        let (name, line) = self.lines.pop_front()?;
        self.lines.push_back((name.clone(), line));
        Some(name)
    }

    /// The first request of a model's line.
    pub fn pop(&mut self, model: &str) -> Option<T> {
        let at = self.lines.iter().position(|(name, _)| name == model)?;
        let (_, line) = &mut self.lines[at];
        let request = line.pop_front();
        if line.is_empty() {
            self.lines.remove(at);
        }
        request
    }

    /// Puts a request back at the head of its model's line, whatever the limit.
    pub fn put_back(&mut self, model: &str, request: T) {
        match self.lines.iter_mut().find(|(name, _)| name == model) {
            Some((_, line)) => line.push_front(request),
            None => self.lines.push_back((model.to_string(), VecDeque::from([request]))),
        }
    }

    /// Takes out every request for which `is_gone` holds.
    pub fn remove(&mut self, is_gone: impl Fn(&T) -> bool) -> Vec<T> {
        let mut gone = vec![];
        for (_, line) in &mut self.lines {
            let (left, kept) = std::mem::take(line).into_iter().partition(|r| is_gone(r));
            gone.extend::<VecDeque<T>>(left);
            *line = kept;
        }
        self.lines.retain(|(_, line)| !line.is_empty());
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn models_take_turns_and_requests_keep_their_order() {
        let mut queue = Queue::new(8);
        for (model, request) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)] {
            queue.push(model, request).unwrap();
        }
        let mut served = vec![];
        while let Some(model) = queue.next_model() {
            served.push((model.clone(), queue.pop(&model).unwrap()));
        }
        let expected = [("a", 1), ("b", 4), ("c", 5), ("a", 2), ("b", 6), ("a", 3)];
        assert_eq!(served, expected.map(|(model, request)| (model.to_string(), request)));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_full_queue_gives_back_and_gone_requests_make_room() {
        let mut queue = Queue::new(2);
        queue.push("a", 1).unwrap();
        queue.push("b", 2).unwrap();
        assert_eq!(queue.push("a", 3), Err(3));
        assert_eq!(queue.remove(|request| *request == 1), [1]);
        queue.push("a", 3).unwrap();
        queue.put_back("a", 0);
        assert_eq!((queue.len(), queue.pop("a"), queue.pop("a")), (3, Some(0), Some(3)));
    }

    proptest! {
        /// No model waits for more turns than there are other models.
        #[test]
        fn nobody_starves(requests in prop::collection::vec(0usize..5, 1..60)) {
            let mut queue = Queue::new(100);
            for model in &requests {
                queue.push(&model.to_string(), ()).unwrap();
            }
            let mut since = [0; 5];
            while let Some(model) = queue.next_model() {
                queue.pop(&model).unwrap();
                let served: usize = model.parse().unwrap();
                for (model, since) in since.iter_mut().enumerate() {
                    *since = if model == served { 0 } else { *since + 1 };
                    let waits = queue.lines.iter().any(|(name, _)| *name == model.to_string());
                    prop_assert!(!waits || *since < 5);
                }
            }
        }
    }
}
