//! Any number of texts, from a file to a file, within a memory that does not grow with them.

use super::ask::Embedder;
use super::interrupt::Interruptible;
use super::lines::{Format, Line, Lines};
use super::partial::{Order, Partial, Row};
use super::progress::Progress;
use crate::client::ClientError;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most lines of a request.
const MAX_LINES: usize = 256;

/// Bytes of text after which a request takes no more lines.
const ENOUGH_BYTES: usize = 256 << 10;

/// How long a request should take: long enough that passes are full, short enough that little is
/// lost by an interruption.
const WANTED: Duration = Duration::from_secs(2);

/// What the exit code says where lines have no vector.
const WITHOUT_VECTORS: u8 = 4;

/// What `hermesctl embed --file` is asked to do.
pub struct Bulk<'a> {
    pub embedder: Embedder<'a>,
    pub file: &'a Path,
    pub format: Format,
    pub output: &'a Path,
}

impl Bulk<'_> {
    /// Embeds all lines, those that an interrupted run has done excepted.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; what is done stays, to be gone on with.
    pub fn run(&self) -> Result<ExitCode, ClientError> {
        if let (Ok(input), Ok(output)) = (self.file.canonicalize(), self.output.canonicalize())
            && input == output
        {
            return Err(ClientError::Usage("the vectors would replace the texts".to_owned()));
        }
        let mut lines = Lines::open(self.file, self.format)?;
        let (served, options) = (self.embedder.served()?, self.embedder.options.clone());
        let order = Order { served, options, lines: self.format };
        let mut partial = Partial::begin(self.output, order)?;
        if !lines.skip_to(partial.input())? {
            let lines = partial.input().lines;
            return Err(partial.other(&format!("the input's first {lines} lines are others now")));
        }
        let mut progress = Progress::new(self.file, partial.input().lines);
        let done = Arc::new(AtomicU64::new(partial.input().lines));
        let interruptible = Interruptible {
            partial: partial.place().to_owned(),
            done: Arc::clone(&done),
            bar: progress.bar(),
        };
        interruptible.watch();
        let embedded = self.embed(&mut lines, &mut partial, &mut progress, &done);
        progress.finish();
        if let Err(error) = embedded {
            partial.leave();
            return Err(error);
        }
        let (count, all) = (partial.without_vector(), partial.input().lines);
        partial.finish()?;
        if count > 0 {
            hermes_base::tell!("hermesctl: {count} of {all} lines have no vector");
            return Ok(ExitCode::from(WITHOUT_VECTORS));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn embed(
        &self,
        lines: &mut Lines,
        partial: &mut Partial,
        progress: &mut Progress,
        done: &AtomicU64,
    ) -> Result<(), ClientError> {
        // The first tells how long one takes.
        let mut most = 1;
        loop {
            let batch = batch(lines, most)?;
            if batch.is_empty() {
                return Ok(());
            }
            let (count, began) = (batch.len(), Instant::now());
            let rows = self.rows(batch)?;
            let took = began.elapsed();
            partial.check(self.embedder.served()?)?;
            partial.append(&rows, lines.place())?;
            done.store(partial.input().lines, Ordering::Relaxed);
            for Row { line, vector, .. } in &rows {
                if let Err(what) = vector {
                    progress.name(*line, what);
                }
            }
            progress.add(count);
            if took < WANTED / 2 && count == most {
                most = (2 * most).min(MAX_LINES);
            } else if took > WANTED * 2 {
                most = most.div_ceil(2);
            }
        }
    }

    /// What comes of each line.
    fn rows(&self, batch: Vec<Line>) -> Result<Vec<Row>, ClientError> {
        let texts: Vec<&str> = batch.iter().filter_map(|line| line.text.as_deref().ok()).collect();
        let mut vectors = match texts.is_empty() {
            true => vec![],
            false => self.embedder.vectors(&texts)?,
        }
        .into_iter();
        let row = |Line { number, id, text }| {
            let vector = text.and_then(|_| vectors.next().expect("each text has its vector"));
            Row { line: number, id, vector }
        };
        Ok(batch.into_iter().map(row).collect())
    }
}

/// The next lines, as many as a request takes.
fn batch(lines: &mut Lines, most: usize) -> Result<Vec<Line>, ClientError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while batch.len() < most && bytes < ENOUGH_BYTES {
        let Some(line) = lines.line()? else { break };
        bytes += line.text.as_ref().map_or(0, String::len);
        batch.push(line);
    }
    Ok(batch)
}
