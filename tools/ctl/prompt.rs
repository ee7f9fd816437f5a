//! Whoever types: lines of standard input, and Ctrl-C, which ends an answer where one comes and the
//! program where none does.

use std::future::pending;
use std::io::{self, BufRead};
use std::thread;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver};

/// Ctrl-C, from the time it is taken to the program's end.
#[derive(Debug)]
pub struct Interrupts(Option<Signal>);

impl Interrupts {
    /// Takes it. Where it cannot be taken, it ends the program.
    pub fn take(runtime: &Runtime) -> Interrupts {
        let _within = runtime.enter();
        Interrupts(signal(SignalKind::interrupt()).ok())
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        let Some(signal) = &mut self.0 else { return pending().await };
        if signal.recv().await.is_none() {
            pending().await
        }
    }
}

/// Lines of standard input. A thread waits for them: a read goes on after a signal.
#[derive(Debug)]
pub struct Lines(Receiver<io::Result<String>>);

impl Lines {
    /// Begins to read.
    ///
    /// # Errors
    /// The system's, where it has no thread for us.
    pub fn read() -> io::Result<Lines> {
        let (sender, receiver) = mpsc::channel(1);
        let read = move || {
            for line in io::stdin().lock().lines() {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        };
        // It ends with the program, whatever it waits for.
        thread::Builder::new().name("lines".to_owned()).spawn(read)?;
        Ok(Lines(receiver))
    }

    /// The next line; none at the input's end.
    pub async fn next(&mut self) -> io::Result<Option<String>> {
        self.0.recv().await.transpose()
    }
}
