//! `hermes-bench together`: what several requests for one model cost beside one alone.

use super::setup::{self, Subject, Times};
use anyhow::{Result, ensure};
use clap::Args;
use hermes::engine::{Config, DiskKind, Engine, Reply, Request};
use hermes::values::size;
use serde_json::json;
use std::sync::Barrier;
use std::time::Instant;

/// Arguments of `hermes-bench together`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Requests that come at once
    #[arg(long, default_value_t = 16)]
    requests: usize,
    /// Size of every open dimension of the inputs
    #[arg(long, default_value_t = 16)]
    tokens: usize,
    /// Rounds of one alone and all at once
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Hold the disk to this many bytes a second
    #[arg(long, value_parser = size::parse)]
    throttle: Option<u64>,
    /// Budget of the engine
    #[arg(long, value_parser = size::parse, default_value = "128MiB")]
    budget: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {
        subject: Subject { store, model, .. }, requests, tokens, repeat, throttle, ..
    } = arguments;
    ensure!(*repeat > 0 && *requests > 0, "--repeat and --requests take at least 1");
    let disk = match *throttle {
        Some(bytes_per_s) => DiskKind::Throttled { bytes_per_s },
        None => DiskKind::Board,
    };
    let variant = arguments.subject.variant.clone();
    let config = Config::new(store, arguments.budget);
    let engine = Engine::start(Config { variant, disk, pin_bytes: 0, ..config })?;
    let request = setup::request(store, model, *tokens)?;
    let expected = engine.infer(request.clone())?;
    let (mut alone, mut together, mut seats) = (vec![], vec![], vec![]);
    let mut identical = true;
    for _ in 0..*repeat {
        let began = Instant::now();
        engine.infer(request.clone())?;
        alone.push(began.elapsed().as_micros() as u64);
        let (took_us, replies) = at_once(&engine, &request, *requests)?;
        together.push(took_us);
        seats.extend(replies.iter().map(|reply| reply.stats.seats));
        identical &= replies.iter().all(|reply| reply.outputs == expected.outputs);
    }
    engine.shutdown();
    let (alone, together) = (Times(alone), Times(together));
    let ratio = together.median() as f64 / alone.median() as f64;
    let most_seats = seats.iter().max().copied().unwrap_or(0);
    if arguments.json {
        let report = json!({
            "model": model, "tokens": tokens, "requests": requests, "throttle": throttle,
            "alone_us": alone.json(), "together_us": together.json(), "ratio": ratio,
            "most_seats": most_seats, "identical": identical,
        });
        hermes::say!("{report}");
    } else {
        hermes::say!("{model}, {requests} requests of {tokens} tokens at once, {repeat} rounds");
        hermes::say!("one alone  {}", alone.line());
        hermes::say!("all        {}", together.line());
        hermes::say!("ratio      {ratio:8.3}");
        hermes::say!("most requests in one pass: {most_seats}");
        hermes::say!("outputs are {}", if identical { "identical" } else { "DIFFERENT" });
    }
    Ok(())
}

/// Microseconds from the first request to the last reply of `count` threads that ask at once.
fn at_once(engine: &Engine, request: &Request, count: usize) -> Result<(u64, Vec<Reply>)> {
    let barrier = Barrier::new(count + 1);
    std::thread::scope(|scope| {
        let ask = || {
            barrier.wait();
            engine.infer(request.clone())
        };
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(ask)).collect();
        barrier.wait();
        let began = Instant::now();
        let replies: Result<Vec<Reply>, _> =
            threads.into_iter().map(|thread| thread.join().expect("a request panicked")).collect();
        Ok((began.elapsed().as_micros() as u64, replies?))
    })
}
