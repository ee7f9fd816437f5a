//! `hermes-bench socket`: what the socket and HTTP add to a pass, and what idle clients hold.

use super::daemon::{self, Daemon};
use super::setup::{self, Subject, Times};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hermes::engine::Request;
use hermes::values::size;
use hermes::wire::infer_reply::InferReply;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Arguments of `hermes-bench socket`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Size of every open dimension of the inputs
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Requests of each kind
    #[arg(long, default_value_t = 50)]
    repeat: usize,
    /// Clients that connect, ask once and stay
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Budget of the daemon; an eighth of it is for connections
    #[arg(long, value_parser = size::parse, default_value = "256MiB")]
    budget: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What a request took beyond its pass.
#[derive(Default)]
struct Overheads {
    binary_us: Vec<u64>,
    json_us: Vec<u64>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {
        subject: Subject { store, model, variant }, tokens, repeat, idle, budget, ..
    } = arguments;
    ensure!(*repeat > 0 && *idle > 0, "--repeat and --idle take at least 1");
    let daemon = Daemon::start(store, *budget, variant.as_deref())?;
    let empty_bytes = daemon.resident_bytes();
    let clients = connect(&daemon, *idle)?;
    let client_bytes = daemon.resident_bytes().saturating_sub(empty_bytes) / *idle as u64;
    drop(clients);
    let request = setup::request(store, model, *tokens)?;
    let overheads = overheads(&daemon, &request, *repeat)?;
    let (binary, json) = (Times(overheads.binary_us), Times(overheads.json_us));
    if arguments.json {
        let report = json!({
            "model": model, "tokens": tokens, "binary_us": binary.json(), "json_us": json.json(),
            "idle_daemon_bytes": empty_bytes, "clients": idle, "client_bytes": client_bytes,
        });
        hermes::say!("{report}");
        return Ok(());
    }
    hermes::say!("{model}, {tokens} tokens, {repeat} requests of each kind: time beyond the pass");
    hermes::say!("binary tensors  {}", binary.line());
    hermes::say!("JSON replies    {}", json.line());
    hermes::say!("idle daemon     {:8.1} MiB resident", empty_bytes as f64 / f64::from(1 << 20));
    hermes::say!("idle client     {:8.1} KiB, of {idle}", client_bytes as f64 / 1024.0);
    Ok(())
}

/// Requests as hermesctl makes them, each on a connection of its own.
fn overheads(daemon: &Daemon, request: &Request, repeat: usize) -> Result<Overheads> {
    let client = daemon.client()?;
    let path = format!("/v2/models/{}/infer", request.model);
    let mut overheads = Overheads::default();
    for round in 0..=repeat {
        for is_binary in [true, false] {
            let (body, json_bytes) = daemon::body(request.clone(), is_binary, 0);
            let began = Instant::now();
            let (reply, head) = client.post_binary(&path, body, Some(json_bytes))?;
            let took_us = began.elapsed().as_micros() as u64;
            let head = head.unwrap_or(reply.len());
            let (text, binary) = reply.split_at_checked(head).context("a reply that is cut")?;
            let parsed = InferReply::parse(text, binary)?;
            let beyond_us = took_us.saturating_sub(parsed.parameters.latency_us);
            // The first round loads the model.
            match (round, is_binary) {
                (0, _) => {}
                (_, true) => overheads.binary_us.push(beyond_us),
                (_, false) => overheads.json_us.push(beyond_us),
            }
        }
    }
    Ok(overheads)
}

/// Clients that have asked once and been answered.
fn connect(daemon: &Daemon, count: usize) -> Result<Vec<UnixStream>> {
    let connect = |_| {
        let mut stream = UnixStream::connect(&daemon.socket)?;
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: hermes\r\n\r\n")?;
        let mut reply = [0; 4096];
        let length = stream.read(&mut reply)?;
        match reply[..length].starts_with(b"HTTP/1.1 200") {
            true => Ok(stream),
            false => bail!("refused: {}", String::from_utf8_lossy(&reply[..length])),
        }
    };
    (0..count).map(connect).collect()
}
