//! `hermes-bench soak`: a great many requests of random lengths, some of them given up by their
//! clients; the daemon must answer the others and hold no more at the end than at the beginning.

use super::client::{Client, ClientError};
use super::daemon::{self, Daemon};
use super::mixed;
use super::setup::{self, Subject};
use super::synth::random::split_mix;
use anyhow::{Context, Result, ensure};
use clap::Args;
use hermes::engine::Request;
use hermes::values::size;
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Arguments of `hermes-bench soak`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub subject: Subject,
    /// Requests in all
    #[arg(long, default_value_t = 100_000)]
    pub requests: u64,
    /// Requests after which memory is looked at first
    #[arg(long, default_value_t = 1000)]
    warm: u64,
    /// Clients at once
    #[arg(long, default_value_t = 8)]
    pub clients: usize,
    /// Open dimensions are of 1 to this size
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// Budget of the daemon
    #[arg(long, value_parser = size::parse, default_value = "64MiB")]
    pub budget: u64,
    /// Seed of lengths and of what clients do
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Ask for everything that the model answers, and make a fifth of the requests wrong in every way
    /// there is: each right one must have the bits that it has alone, and no byte must be left
    #[arg(long)]
    pub mixed: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Time after which the daemon is at rest.
pub const REST: Duration = Duration::from_secs(1);

/// What a client does with a request.
enum Manner {
    /// Waits for the answer.
    Patient,
    /// Will wait for a time that is mostly too short.
    Hasty,
    /// Sends it and goes away.
    Gone,
    /// Goes away in the middle of sending.
    Half,
}

/// How the requests ended.
#[derive(Default)]
struct Ends {
    answered: AtomicU64,
    /// 504, as their `timeout` asked for.
    late: AtomicU64,
    /// Not waited for.
    left: AtomicU64,
    /// 503: the queue was full.
    busy: AtomicU64,
    /// What nobody provoked, the first few.
    failures: Mutex<Vec<String>>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { requests, warm, clients, tokens, .. } = arguments;
    ensure!(*clients > 0 && *tokens > 0, "--clients and --tokens take at least 1");
    if arguments.mixed {
        return mixed::run(arguments);
    }
    ensure!(warm < requests, "--warm takes less than --requests");
    let daemon = Daemon::start(
        &arguments.subject.store,
        arguments.budget,
        arguments.subject.variant.as_deref(),
    )?;
    let shapes: Vec<Request> = (1..=*tokens)
        .map(|tokens| setup::request(&arguments.subject.store, &arguments.subject.model, tokens))
        .collect::<Result<_>>()?;
    let (ends, next, warm_bytes) = (Ends::default(), AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let work = || -> Result<()> {
        let client = daemon.client()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= *requests {
                return Ok(());
            }
            if number == *warm {
                warm_bytes.store(daemon.resident_bytes(), Ordering::Relaxed);
            }
            let random = split_mix(&mut (arguments.seed ^ (number << 20)));
            let request = &shapes[random as usize % shapes.len()];
            ask(&daemon, &client, request, manner(random >> 32), &ends)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..*clients).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a client panicked"))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let last = daemon.client()?.get("/v2/health/live").context("the daemon is gone")?;
    ensure!(last["live"] == json!(true), "the daemon is not live: {last}");
    let (warm, end) = (warm_bytes.into_inner(), daemon.resident_bytes());
    std::thread::sleep(REST);
    let rest = daemon.resident_bytes();
    report(arguments, &ends, seconds, [warm, end, rest, daemon.peak_bytes()]);
    let failures = ends.failures.into_inner().unwrap_or_default();
    ensure!(failures.is_empty(), "{} requests failed: {}", failures.len(), failures.join("; "));
    Ok(())
}

fn report(arguments: &Arguments, ends: &Ends, seconds: f64, [warm, end, rest, peak]: [u64; 4]) {
    let count = |ends: &AtomicU64| ends.load(Ordering::Relaxed);
    let (answered, late) = (count(&ends.answered), count(&ends.late));
    let (left, busy) = (count(&ends.left), count(&ends.busy));
    let growth = 100.0 * (end as f64 / warm as f64 - 1.0);
    if arguments.json {
        let report = json!({
            "requests": arguments.requests, "answered": answered, "late": late, "left": left,
            "busy": busy, "seconds": seconds, "warm_bytes": warm, "end_bytes": end, "rest_bytes": rest,
            "peak_bytes": peak,
        });
        hermes::say!("{report}");
        return;
    }
    hermes::say!(
        "{} requests in {seconds:.0} s, {} clients",
        arguments.requests,
        arguments.clients
    );
    hermes::say!("answered {answered}, too late {late}, not waited for {left}, queue full {busy}");
    hermes::say!("after {:6}   {:8.1} MiB resident", arguments.warm, mib(warm));
    hermes::say!("at the end     {:8.1} MiB resident ({growth:+.1} %)", mib(end));
    hermes::say!("at rest        {:8.1} MiB resident", mib(rest));
    hermes::say!("at its peak    {:8.1} MiB resident", mib(peak));
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Four of five are patient.
fn manner(random: u64) -> Manner {
    match random % 20 {
        0 | 1 => Manner::Hasty,
        2 => Manner::Gone,
        3 => Manner::Half,
        _ => Manner::Patient,
    }
}

fn ask(
    daemon: &Daemon,
    client: &Client,
    request: &Request,
    manner: Manner,
    ends: &Ends,
) -> Result<()> {
    let path = format!("/v2/models/{}/infer", request.model);
    let timeout_us = if matches!(manner, Manner::Hasty) { 2000 } else { 0 };
    let (body, json_bytes) = daemon::body(request.clone(), true, timeout_us);
    let sent = match manner {
        Manner::Patient | Manner::Hasty => None,
        Manner::Gone => Some(body.len()),
        Manner::Half => Some(body.len() / 2),
    };
    if let Some(sent) = sent {
        let mut stream = UnixStream::connect(&daemon.socket)?;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: hermes\r\ncontent-length: {length}\r\n\
             content-type: application/octet-stream\r\n\
             inference-header-content-length: {json_bytes}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body[..sent])?;
        ends.left.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let ended = match client.post_binary(&path, body, Some(json_bytes)) {
        Ok(_) => &ends.answered,
        Err(ClientError::Refused { status: 504, .. }) if timeout_us > 0 => &ends.late,
        Err(ClientError::Refused { status: 503, .. }) => &ends.busy,
        Err(error) => {
            let mut failures = ends.failures.lock().expect("no client panics with it");
            if failures.len() < 10 {
                failures.push(error.to_string());
            }
            return Ok(());
        }
    };
    ended.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
