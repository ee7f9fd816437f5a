//! Whether the client of a Unix socket has gone. One that has only ended what it sends still waits
//! for its answer: which of both it did, the kernel tells of a Unix socket. A port's client ends by
//! the same packet in both cases.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::sleep;

/// How often a socket is looked at whose client has ended what it sends: the event loop tells of that,
/// and of nothing that follows.
const HALF_CLOSED_TICK: Duration = Duration::from_millis(50);

/// Waits until the client of `socket` has gone: at once where it closes what it has open, within
/// some 50 ms where it had ended what it sends before.
pub async fn departed(socket: &UnixStream) {
    // It is ready for good once nothing more will come; a failure is one of the event loop.
    if socket.ready(Interest::PRIORITY).await.is_err() {
        return;
    }
    while !is_hung_up(socket) {
        sleep(HALF_CLOSED_TICK).await;
    }
}

/// Whether nobody has the other end open any more (`POLLHUP` of poll(2)).
fn is_hung_up(socket: &UnixStream) -> bool {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    // No event is asked for: those that are told without, there are.
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// A stream of a socket that others may look at meanwhile.
#[derive(Debug)]
pub struct SharedStream(pub Arc<UnixStream>);

impl AsyncRead for SharedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|count| buffer.advance(count))),
            }
        }
    }
}

impl SharedStream {
    /// Does `write` once the socket takes something.
    fn poll_try(
        &self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(context, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(context, |socket| socket.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is the kernel's at once.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(self.0.as_raw_fd(), Shutdown::Write)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Who had ended what it sends was taken for gone.
    #[tokio::test]
    async fn who_has_ended_what_it_sends_is_there_until_it_leaves() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let socket = Arc::new(near);
        let mut stream = SharedStream(Arc::clone(&socket));
        let mut gone = Box::pin(departed(&socket));
        far.write_all(b"asked").await.unwrap();
        far.shutdown().await.unwrap();
        let mut asked = vec![];
        stream.read_to_end(&mut asked).await.unwrap();
        let is_gone = poll_fn(|context| Poll::Ready(gone.as_mut().poll(context).is_ready())).await;
        assert_eq!((&*asked, is_gone), (&b"asked"[..], false));
        let answer = vec![7; 1 << 20];
        let write = async {
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let mut read = vec![];
        let (_, count) = tokio::join!(write, far.read_to_end(&mut read));
        assert_eq!((count.unwrap(), read), (answer.len(), answer));
        drop(far);
        gone.await;
        // And at once where nothing was ended before.
        let (near, far) = UnixStream::pair().unwrap();
        assert!(!is_hung_up(&near));
        drop(far);
        departed(&near).await;
    }
}
