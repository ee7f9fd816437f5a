//! `hermes-shard install`: a version's folder or tar, verified and put into a store.

use crate::interrupt;
use crate::rehearsal;
use crate::report::Progress;
use anyhow::{Context, Result};
use hermes::store::{self, Archive, Package};
use serde_json::json;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

/// Installs the version in `source` into the store in `store_dir`, which is created where it is
/// missing.
pub fn run(source: &Path, store_dir: &Path, force: bool, json: bool) -> Result<ExitCode> {
    interrupt::begin()?;
    let package = Interruptible(Package::open(source)?);
    let archive = Archive::open(package).with_context(|| format!("{}", source.display()))?;
    interrupt::writing();
    let mut progress = Progress::new(0, json);
    let received = archive.receive(store_dir, force, |event| match event {
        store::Progress::Expect(bytes) => progress = Progress::new(bytes, json),
        store::Progress::Wrote(bytes) => progress.advance(bytes),
    });
    progress.finish();
    let received = received.with_context(|| format!("{}", source.display()))?;
    let bytes = received.bytes();
    let progress = Progress::new(bytes, json);
    let verified = received.verify(|bytes| progress.advance(bytes));
    progress.finish();
    let verified = verified.with_context(|| format!("{}", source.display()))?;
    rehearsal::of_version(verified.dir()).with_context(|| format!("{}", source.display()))?;
    interrupt::check()?;
    let dir = verified.install(force);
    let dir = dir.with_context(|| format!("{}", source.display()))?;
    let (model, version) = (&dir.manifest.model, &dir.manifest.version);
    match json {
        true => hermes::say!("{}", json!({ "model": model, "version": version, "bytes": bytes })),
        false => hermes::say!("{model}: version {version} is installed ({bytes} bytes)"),
    }
    Ok(ExitCode::SUCCESS)
}

/// A source that breaks off once a signal has come: what was received is removed then.
struct Interruptible<R>(R);

impl<R: Read> Read for Interruptible<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        interrupt::check().map_err(io::Error::other)?;
        self.0.read(buffer)
    }
}
