//! Who is served next: lines take turns, the requests of a line keep their order. Pure: no clock, no
//! thread.

use std::collections::VecDeque;

/// Waiting requests in lines.
#[derive(Debug)]
pub struct Queue<L, T> {
    /// Lines in which requests wait, the next to be served first.
    lines: VecDeque<(L, VecDeque<T>)>,
}

impl<L, T> Default for Queue<L, T> {
    fn default() -> Queue<L, T> {
        Queue { lines: VecDeque::new() }
    }
}

impl<L: Clone + PartialEq, T> Queue<L, T> {
    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.lines.iter().map(|(_, line)| line.len()).sum()
    }

    /// Lines with how many wait in each.
    pub fn lines(&self) -> impl Iterator<Item = (&L, usize)> {
        self.lines.iter().map(|(name, line)| (name, line.len()))
    }

    /// Appends a request to its line.
    pub fn push(&mut self, name: L, request: T) {
        match self.lines.iter_mut().find(|(other, _)| *other == name) {
            Some((_, line)) => line.push_back(request),
            None => self.lines.push_back((name, VecDeque::from([request]))),
        }
    }

    /// The line whose turn it is, of those for which `is_served` holds; it goes to the end.
    pub fn next_line(&mut self, is_served: impl Fn(&L) -> bool) -> Option<L> {
        let at = self.lines.iter().position(|(name, _)| is_served(name))?;
        let (name, line) = self.lines.remove(at)?;
        self.lines.push_back((name.clone(), line));
        Some(name)
    }

    /// The first request of a line.
    pub fn pop(&mut self, name: &L) -> Option<T> {
        let at = self.lines.iter().position(|(other, _)| other == name)?;
        let (_, line) = &mut self.lines[at];
        let request = line.pop_front();
        if line.is_empty() {
            self.lines.remove(at);
        }
        request
    }

    /// Puts a request back at the head of its line.
    pub fn put_back(&mut self, name: L, request: T) {
        match self.lines.iter_mut().find(|(other, _)| *other == name) {
            Some((_, line)) => line.push_front(request),
            None => self.lines.push_back((name, VecDeque::from([request]))),
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
    fn lines_take_turns_and_requests_keep_their_order() {
        let mut queue = Queue::default();
        for (line, request) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)] {
            queue.push(line, request);
        }
        let mut served = vec![];
        while let Some(line) = queue.next_line(|_| true) {
            served.push((line, queue.pop(&line).unwrap()));
        }
        assert_eq!(served, [("a", 1), ("b", 4), ("c", 5), ("a", 2), ("b", 6), ("a", 3)]);
        assert_eq!(queue.len(), 0);
        ["a", "b", "c"].into_iter().for_each(|line| queue.push(line, 0));
        let next = |queue: &mut Queue<_, _>| queue.next_line(|line| *line != "a");
        assert_eq!([(); 3].map(|()| next(&mut queue)), [Some("b"), Some("c"), Some("b")]);
        assert_eq!(queue.next_line(|_| true), Some("a"), "it has waited longest");
    }

    #[test]
    fn what_is_gone_leaves_its_line_and_what_is_put_back_comes_first() {
        let mut queue = Queue::default();
        queue.push("a", 1);
        queue.push("b", 2);
        assert_eq!(queue.remove(|request| *request == 1), [1]);
        queue.push("a", 3);
        queue.put_back("a", 0);
        assert_eq!(queue.lines().collect::<Vec<_>>(), [(&"b", 1), (&"a", 2)]);
        assert_eq!((queue.len(), queue.pop(&"a"), queue.pop(&"a")), (3, Some(0), Some(3)));
    }

    proptest! {
        /// No line waits for more turns than there are other lines.
        #[test]
        fn nobody_starves(requests in prop::collection::vec(0usize..5, 1..60)) {
            let mut queue = Queue::default();
            for line in &requests {
                queue.push(*line, ());
            }
            let mut since = [0; 5];
            while let Some(served) = queue.next_line(|_| true) {
                queue.pop(&served).unwrap();
                for (line, since) in since.iter_mut().enumerate() {
                    *since = if line == served { 0 } else { *since + 1 };
                    let waits = queue.lines().any(|(name, _)| *name == line);
                    prop_assert!(!waits || *since < 5);
                }
            }
        }
    }
}
