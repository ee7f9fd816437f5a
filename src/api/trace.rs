//! `POST /v2/models/{model}/trace`: what happened during one pass, as Chrome's trace event format
//! has it; Perfetto and chrome://tracing show it.

use super::envelope::OipError;
use super::granted;
use super::oip;
use super::pieces::Pieces;
use super::state::{Api, ModelPathArg};
use super::target;
use super::traffic::AnsweredBy;
use crate::stream::{Event, Node, Trace, What};
use crate::wire::PIECE_BYTES;
use crate::wire::infer_tensor::put;
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;

/// What an event and its name are taken to weigh.
const EVENT_BYTES: u64 = 192;

/// Takes a request as `infer` does, and answers with the trace of its pass.
pub async fn trace(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OipError> {
    let trace = Arc::new(Trace::begin());
    let done = oip::run(&api, path, &headers, body, Some(Arc::clone(&trace))).await?;
    let events = trace.events();
    let held = events.len() as u64 * EVENT_BYTES;
    let grant = granted::grant(&api, held).await?;
    let stats = done.reply.stats;
    let about = json!({
        "model": done.model,
        "version": done.reply.version,
        "latency_us": stats.latency_us,
        "stall_us": stats.stall_us,
        "bytes_read": stats.bytes_read,
    });
    let body = Body::new(Pieces::new(TracePieces::new(&about, events), grant));
    let json = HeaderValue::from_static("application/json");
    let by = Extension(AnsweredBy(done.model.into()));
    let choice = target::choice_header(&[done.reply.choice]);
    Ok((by, choice, [(header::CONTENT_TYPE, json)], body).into_response())
}

/// A trace's text, piece by piece.
struct TracePieces {
    head: Vec<u8>,
    threads: Vec<String>,
    events: std::vec::IntoIter<Event>,
    ended: bool,
}

impl TracePieces {
    fn new(about: &Value, events: Vec<Event>) -> TracePieces {
        let mut threads: Vec<String> = events.iter().map(|event| event.thread.clone()).collect();
        threads.sort_unstable();
        threads.dedup();
        let mut head = b"{\"displayTimeUnit\":\"ms\",\"otherData\":".to_vec();
        put(&mut head, about);
        head.extend(b",\"traceEvents\":[");
        put(&mut head, &name_of("process_name", 0, "hermesd"));
        for (index, thread) in threads.iter().enumerate() {
            head.push(b',');
            put(&mut head, &name_of("thread_name", index + 1, thread));
        }
        TracePieces { head, threads, events: events.into_iter(), ended: false }
    }
}

/// The event that names a process or a thread.
fn name_of(what: &str, thread: usize, name: &str) -> Value {
    json!({ "ph": "M", "pid": 1, "tid": thread, "name": what, "args": { "name": name } })
}

impl Iterator for TracePieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut text = std::mem::take(&mut self.head);
        while text.len() < PIECE_BYTES / 2 && !self.ended {
            let Some(event) = self.events.next() else {
                text.extend(b"]}");
                self.ended = true;
                break;
            };
            let thread = self.threads.binary_search(&event.thread).map_or(0, |index| index + 1);
            text.push(b',');
            put(&mut text, &describe(&event, thread));
        }
        Some(text.into())
    }
}

fn describe(event: &Event, thread: usize) -> Value {
    let (name, kind, about) = match &event.what {
        What::Load { block, bytes } => {
            (format!("load {block}"), "load", json!({ "block": block, "bytes": bytes }))
        }
        What::Release { block } => {
            (format!("release {block}"), "release", json!({ "block": block }))
        }
        What::Wait { block } => (format!("wait {block}"), "wait", json!({ "block": block })),
        What::Lease { block } => (format!("lease {block}"), "lease", json!({ "block": block })),
        What::Node(node) => {
            let Node { name, op, multiplications, processors_us } = node;
            let about = json!({
                "op": op,
                "multiplications": multiplications,
                "processors_us": processors_us,
            });
            (name.clone(), "node", about)
        }
    };
    json!({
        "ph": "X",
        "pid": 1,
        "tid": thread,
        "ts": event.start_us,
        "dur": event.length_us,
        "name": name,
        "cat": kind,
        "args": about,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_whole_however_long() {
        let event = |index: usize| Event {
            thread: format!("loader-{}", index % 3),
            what: match index % 2 {
                0 => What::Load { block: index, bytes: 7 },
                _ => What::Node(Node {
                    name: "a \"quoted\" node".to_owned(),
                    op: "Add".to_owned(),
                    ..Node::default()
                }),
            },
            start_us: index as u64,
            length_us: 2,
        };
        for count in [0, 1, 5000] {
            let pieces = TracePieces::new(&json!({}), (0..count).map(event).collect());
            let text = pieces.collect::<Vec<_>>().concat();
            let trace: Value = serde_json::from_slice(&text).unwrap();
            let events = trace["traceEvents"].as_array().unwrap();
            assert_eq!(events.len(), 1 + count.min(3) + count);
            for event in events.iter().filter(|event| event["ph"] == "X") {
                let thread = &events[event["tid"].as_u64().unwrap() as usize]["args"]["name"];
                let index = event["ts"].as_u64().unwrap();
                assert_eq!(*thread, format!("loader-{}", index % 3));
            }
        }
    }
}
