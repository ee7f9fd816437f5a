//! `hermes-bench soak --mixed`: right requests of every kind, and a part that is wrong in every way
//! that clients are. Each right one has the bits that it has alone, each wrong one its refusal, and
//! the ledger ends where it began.

use super::client::{Client, ClientError};
use super::daemon::Daemon;
use super::scrape::Scrape;
use super::soak::{Arguments, REST};
use super::synth::random::split_mix;
use super::wrong::{self, Wrong};
use anyhow::{Context, Result, bail, ensure};
use hermes::engine::{Array, sample_inputs};
use hermes::store::Store;
use hermes::store::manifest::{Manifest, Task};
use hermes::wire::infer_json::InferRequest;
use hermes::wire::infer_reply::InferReply;
use hermes::wire::tensor_json;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Share of the requests that are wrong: one of so many.
const WRONG_OF: u64 = 5;

/// Categories of the ledger that requests must leave as they found them. What the process takes itself
/// follows what it has run.
const LEFT_ALONE: [&str; 4] = ["graph", "tokenizer", "activations", "request"];

/// Longest wait for an answer, and for the daemon to come to rest.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest answer to a wrong request.
const MAX_REFUSAL_BYTES: usize = 8 << 10;

/// Problems that are told.
const MAX_TOLD: usize = 10;

/// A right request and what it is answered alone.
struct Right {
    what: String,
    path: String,
    /// `None` for a GET.
    body: Option<(Vec<u8>, Option<usize>)>,
    alone: Answer,
}

/// What of an answer is the same each time.
#[derive(Debug, PartialEq)]
enum Answer {
    /// Outputs, to the bit, whether they came as JSON or as binary data.
    Outputs(Vec<(String, Array)>),
    /// A field of the JSON.
    Json(Value),
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let subject = &arguments.subject;
    let daemon = Daemon::start(&subject.store, arguments.budget, subject.variant.as_deref())?;
    let manifest = Store::open(&subject.store)?.current(&subject.model)?.manifest;
    let client = daemon.client()?;
    let rights = rights(&client, &manifest, arguments.tokens)?;
    let first = inputs(&client, &manifest, 1)?;
    let wrongs = wrong::all(&manifest, &first, arguments.budget);
    let before = at_rest(&client)?;
    let (next, counts) = (AtomicU64::new(0), Mutex::new(BTreeMap::<String, u64>::new()));
    let problems = Mutex::new(Vec::new());
    let began = Instant::now();
    let work = || -> Result<()> {
        let client = daemon.client()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= arguments.requests {
                return Ok(());
            }
            let random = split_mix(&mut (arguments.seed ^ (number << 20)));
            let pick = (random >> 32) as usize;
            let (what, outcome) = match random % WRONG_OF {
                0 => {
                    let wrong = &wrongs[pick % wrongs.len()];
                    (format!("wrong: {}", wrong.what), refuse(&daemon, wrong))
                }
                _ => {
                    let right = &rights[pick % rights.len()];
                    (format!("right: {}", right.what), right.check(&client))
                }
            };
            if let Err(error) = outcome {
                let mut problems = problems.lock().expect("no client panics with it");
                problems.push(format!("{what}: {error:#}"));
            }
            *counts.lock().expect("no client panics with it").entry(what).or_default() += 1;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.clients).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a client panicked"))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let after = at_rest(&client).context("the daemon is not as it was")?;
    let problems = problems.into_inner().unwrap_or_default();
    report(arguments, &counts.into_inner().unwrap_or_default(), seconds, daemon.peak_bytes());
    let told = problems.iter().take(MAX_TOLD).cloned().collect::<Vec<_>>();
    ensure!(problems.is_empty(), "{} requests went wrong:\n{}", problems.len(), told.join("\n"));
    // A model that was measured meanwhile is planned anew, and may hold less.
    let is_more = |(name, bytes): (&String, &u64)| before.get(name).is_none_or(|had| bytes > had);
    ensure!(!after.iter().any(is_more), "bytes are left: before {before:?}, after {after:?}");
    let peak = daemon.peak_bytes();
    ensure!(peak <= arguments.budget, "{peak} bytes resident at the peak of {}", arguments.budget);
    Ok(())
}

fn report(arguments: &Arguments, counts: &BTreeMap<String, u64>, seconds: f64, peak_bytes: u64) {
    let count = |kind: &str| -> u64 {
        counts.iter().filter(|(what, _)| what.starts_with(kind)).map(|(_, count)| count).sum()
    };
    let (right, wrong) = (count("right"), count("wrong"));
    if arguments.json {
        let report = json!({ "right": right, "wrong": wrong, "seconds": seconds,
                             "peak_bytes": peak_bytes, "counts": counts });
        return println!("{report}");
    }
    let clients = arguments.clients;
    println!("{right} right and {wrong} wrong requests in {seconds:.0} s, {clients} clients");
    println!("at its peak    {:8.1} MiB resident", peak_bytes as f64 / f64::from(1 << 20));
    counts.iter().for_each(|(what, count)| println!("{count:8}  {what}"));
}

/// Right requests of each kind that the model takes, answered once each, alone.
fn rights(client: &Client, manifest: &Manifest, tokens: usize) -> Result<Vec<Right>> {
    let (mut rights, model) = (Vec::new(), &manifest.model);
    let path = format!("/v2/models/{model}/infer");
    let lengths = [1, tokens.div_ceil(7), tokens.div_ceil(3), tokens];
    for tokens in lengths {
        let inputs = inputs(client, manifest, tokens)?;
        let request = InferRequest { inputs, binary_output: true, ..InferRequest::default() };
        let (body, json_bytes) = request.encode();
        let mut add = |what: &str, body: (Vec<u8>, Option<usize>)| -> Result<()> {
            let what = format!("{what} of {tokens}");
            rights.push(Right::new(client, what, &path, Some(body), outputs)?);
            Ok(())
        };
        add("binary tensors", (body, Some(json_bytes)))?;
        add("JSON tensors", (json_body(&request.inputs), None))?;
    }
    let same = |pair: &[Right]| pair[0].alone == pair[1].alone;
    ensure!(rights.chunks_exact(2).all(same), "JSON and binary tensors have other answers");
    rights.extend(batch(client, manifest, tokens)?);
    if let (Some(Task::Embedding { .. }), Some(_)) = (&manifest.task, &manifest.tokenizer) {
        for texts in [json!("cat"), json!(["a cat", "the dog sleeps"]), json!([[1, 2, 1], [2]])] {
            let body = json!({ "model": model, "input": texts, "tokenizer": model });
            let body = body.to_string().into_bytes();
            let what = format!("embeddings of {texts}");
            let path = "/v1/embeddings";
            rights.push(Right::new(client, what, path, Some((body, None)), data)?);
        }
    }
    let metadata = |path: &str| Right::new(client, path.to_owned(), path, None, whole);
    rights.push(metadata(&format!("/v2/models/{model}"))?);
    rights.push(metadata(&format!("/v2/models/{model}/ready"))?);
    rights.push(metadata("/v2/health/ready")?);
    rights.push(metadata("/v1/models")?);
    Ok(rights)
}

/// A batch, where the model is asked in batches: one request, whose answer is that of its rows.
fn batch(client: &Client, manifest: &Manifest, tokens: usize) -> Result<Option<Right>> {
    let path = format!("/v2/models/{}/infer", manifest.model);
    let first = inputs(client, manifest, tokens)?;
    let rows = [varied(&first), first.clone(), varied(&first)];
    let body = |inputs: Vec<(String, Array)>| {
        let request = InferRequest { inputs, binary_output: true, ..InferRequest::default() };
        let (body, json_bytes) = request.encode();
        Some((body, Some(json_bytes)))
    };
    let ask =
        |what: &str, inputs| Right::new(client, what.to_owned(), &path, body(inputs), outputs);
    let Some(together) = stacked(&rows) else { return Ok(None) };
    let Ok(right) = ask("a batch of 3", together) else { return Ok(None) };
    let mut alone = Vec::new();
    for row in rows {
        match ask("a row of a batch", row)?.alone {
            Answer::Outputs(outputs) => alone.push(outputs),
            Answer::Json(_) => bail!("a row has no outputs"),
        }
    }
    let expected = stacked(&alone).map(Answer::Outputs);
    ensure!(expected.as_ref() == Some(&right.alone), "a batch has other answers than its rows");
    Ok(Some(right))
}

/// The same inputs with another first id or number.
fn varied(inputs: &[(String, Array)]) -> Vec<(String, Array)> {
    let mut inputs = inputs.to_vec();
    for (name, array) in &mut inputs {
        let is_float = array.dtype.name().starts_with("FP");
        if (is_float || name == "input_ids")
            && let Some(byte) = array.bytes.first_mut()
        {
            *byte ^= 1;
        }
    }
    inputs
}

/// Rows one above the other along the first axis; nothing where one has no such axis of length 1.
fn stacked(rows: &[Vec<(String, Array)>]) -> Option<Vec<(String, Array)>> {
    let (first, rest) = rows.split_first()?;
    let mut all = first.clone();
    for (index, (name, array)) in all.iter_mut().enumerate() {
        for row in rest {
            let (of, more) = row.get(index)?;
            if of != name || more.shape != array.shape {
                return None;
            }
        }
        let more = rest.iter().flat_map(|row| row[index].1.bytes.iter().copied());
        array.bytes.extend(more);
        match array.shape.first_mut() {
            Some(count) if *count == 1 => *count = rows.len(),
            _ => return None,
        }
    }
    Some(all)
}

/// Inputs with every open dimension at `tokens` that the model takes: large tables take the ids of
/// [`sample_inputs`], small ones smaller.
fn inputs(client: &Client, manifest: &Manifest, tokens: usize) -> Result<Vec<(String, Array)>> {
    let path = format!("/v2/models/{}/infer", manifest.model);
    let sampled = sample_inputs(&manifest.inputs, tokens)?;
    let mut small = sampled.clone();
    for (_, array) in &mut small {
        if array.bytes.len() / array.dtype.size() > 0 && !array.dtype.name().starts_with("FP") {
            let size = array.dtype.size();
            array.bytes.chunks_exact_mut(size).for_each(|value| {
                value[0] %= 2;
                value[1..].fill(0);
            });
        }
    }
    for inputs in [sampled, small] {
        let request = InferRequest { inputs, ..InferRequest::default() };
        let (body, json_bytes) = request.encode();
        match client.post_binary(&path, body, Some(json_bytes)) {
            Ok(_) => return Ok(request.inputs),
            Err(ClientError::Refused { status: 400, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("model {} takes neither of the inputs that were made up for it", manifest.model)
}

/// A request with its tensors as JSON.
pub fn json_body(inputs: &[(String, Array)]) -> Vec<u8> {
    let tensor = |(name, array): &(String, Array)| {
        let mut data = b"[".to_vec();
        tensor_json::write(array, 0, array.bytes.len() / array.dtype.size(), &mut data);
        data.push(b']');
        let data: Value = serde_json::from_slice(&data).expect("numbers are JSON");
        json!({ "name": name, "datatype": array.dtype.name(), "shape": array.shape, "data": data })
    };
    json!({ "inputs": inputs.iter().map(tensor).collect::<Vec<_>>() }).to_string().into_bytes()
}

/// Takes from an answer, and the bytes of it that are JSON, what is the same each time.
type Digest = fn(&[u8], Option<usize>) -> Result<Answer>;

fn outputs(reply: &[u8], json_bytes: Option<usize>) -> Result<Answer> {
    let (text, binary) = reply
        .split_at_checked(json_bytes.unwrap_or(reply.len()))
        .context("the reply is shorter than its JSON")?;
    Ok(Answer::Outputs(InferReply::parse(text, binary)?.outputs))
}

fn data(reply: &[u8], _: Option<usize>) -> Result<Answer> {
    let reply: Value = serde_json::from_slice(reply)?;
    Ok(Answer::Json(reply["data"].clone()))
}

fn whole(reply: &[u8], _: Option<usize>) -> Result<Answer> {
    Ok(Answer::Json(serde_json::from_slice(reply)?))
}

impl Right {
    fn new(
        client: &Client,
        what: String,
        path: &str,
        body: Option<(Vec<u8>, Option<usize>)>,
        digest: Digest,
    ) -> Result<Right> {
        let nothing = Answer::Json(Value::Null);
        let mut right = Right { what, path: path.to_owned(), body, alone: nothing };
        right.alone = right.ask(client, digest).with_context(|| right.what.clone())?;
        Ok(right)
    }

    fn ask(&self, client: &Client, digest: Digest) -> Result<Answer> {
        match &self.body {
            None => digest(client.get(&self.path)?.to_string().as_bytes(), None),
            Some((body, json_bytes)) => {
                let (reply, json_bytes) =
                    client.post_binary(&self.path, body.clone(), *json_bytes)?;
                digest(&reply, json_bytes)
            }
        }
    }

    fn check(&self, client: &Client) -> Result<()> {
        let digest = match (&self.alone, &self.body) {
            (Answer::Outputs(_), _) => outputs,
            (Answer::Json(_), Some(_)) => data,
            (Answer::Json(_), None) => whole as Digest,
        };
        ensure!(self.ask(client, digest)? == self.alone, "the answer is not the one it has alone");
        Ok(())
    }
}

/// Sends a wrong request as it is and checks that it is refused as it should be.
fn refuse(daemon: &Daemon, wrong: &Wrong) -> Result<()> {
    let mut stream = UnixStream::connect(&daemon.socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Who is refused by the head alone may find nobody who reads the rest.
    let sent = stream.write_all(&wrong.bytes);
    if wrong.statuses.is_empty() {
        return Ok(());
    }
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let status =
        answer.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
    let Some(status) = status else { bail!("no answer: {sent:?}, {read:?}") };
    let start = String::from_utf8_lossy(&answer[..answer.len().min(400)]);
    ensure!(wrong.statuses.contains(&status), "expected {:?}: {start}", wrong.statuses);
    let is_refusal = status != 200;
    ensure!(!is_refusal || answer.len() <= MAX_REFUSAL_BYTES, "{} bytes: {start}", answer.len());
    Ok(())
}

/// What the ledger has for requests to leave as it is, once nothing waits or runs.
fn at_rest(client: &Client) -> Result<BTreeMap<String, u64>> {
    let began = Instant::now();
    loop {
        let text = client.get_text("/metrics")?;
        let scrape = Scrape::parse(&text).map_err(anyhow::Error::msg)?;
        // The one that asks is connected too.
        let is_at_rest = scrape.sum("hermes_connections") <= 1.0
            && scrape.sum("hermes_waiting_requests") == 0.0
            && scrape.of("hermes_ledger_bytes", "category", "activations") == 0.0;
        if is_at_rest && began.elapsed() >= REST {
            let held = |name: &&str| {
                let bytes = scrape.of("hermes_ledger_bytes", "category", name);
                ((*name).to_owned(), bytes as u64)
            };
            return Ok(LEFT_ALONE.iter().map(held).collect());
        }
        ensure!(began.elapsed() < PATIENCE, "it does not come to rest:\n{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
