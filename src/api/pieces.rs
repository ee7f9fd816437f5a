//! A response body that is made piece by piece as the client takes it, so that the text of a
//! large reply never is in memory whole.

use crate::stream::Grant;
use hyper::body::{Body, Bytes, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The pieces of `iterator`, and the grant for what it holds, which may be shared.
#[derive(Debug)]
pub struct Pieces<I, G = Grant> {
    iterator: I,
    _grant: G,
}

impl<I: Iterator<Item = Bytes>, G> Pieces<I, G> {
    /// A body of the iterator's pieces; `grant` is given back with it.
    pub fn new(iterator: I, grant: G) -> Pieces<I, G> {
        Pieces { iterator, _grant: grant }
    }
}

impl<I: Iterator<Item = Bytes> + Unpin, G: Unpin> Body for Pieces<I, G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.iterator.next().map(|piece| Ok(Frame::data(piece))))
    }
}
