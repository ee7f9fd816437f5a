//! `GET /metrics`: the daemon's figures in Prometheus' text format 0.0.4.
//!
//! Every metric is declared once, in [`METRICS`]; `tests/daemon/metrics.rs` fails where one of them
//! never moves while the daemon works.

use super::envelope::OipError;
use super::speed::Speeds;
use super::state::Api;
use super::traffic::{BOUNDS_US, Figures, Times};
use crate::daemon::address::Address;
use crate::engine::{Counted, EngineStats, Loaded, Pressure};
use crate::stream::{Category, Ledger};
use crate::sys::heap;
use crate::sys::memory::{self, ProcessMemory};
use crate::sys::refaults::{Refaults, refaults};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use std::fmt::Write;
use std::sync::Arc;
use std::time::SystemTime;

/// The format's content type.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A declared metric.
struct Metric {
    name: &'static str,
    kind: MetricKind,
    help: &'static str,
    read: fn(&Snapshot<'_>, &mut Samples<'_>),
}

/// What a metric's value may do.
#[derive(Clone, Copy)]
enum MetricKind {
    /// Rise, from the daemon's start.
    Counter,
    /// Rise and fall.
    Gauge,
    /// Count what was no larger than each of some bounds.
    Histogram,
}

/// What the metrics are read from, at one moment.
struct Snapshot<'a> {
    stats: EngineStats,
    ledger: &'a Ledger,
    process: ProcessMemory,
    refaults: Option<Refaults>,
    traffic: Figures,
    speeds: Speeds,
    begin: SystemTime,
    connections: usize,
    addresses: &'a [Address],
}

const METRICS: &[Metric] = &[
    gauge("hermes_build_info", "Always 1; the version is the label.", |_, to| {
        to.put(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    }),
    counter(
        "hermes_requests_total",
        "Requests of the engine, by model and outcome.",
        |from, to| {
            for model in &from.stats.models {
                let counted = &model.counted;
                for (outcome, count) in [
                    ("answered", counted.answered),
                    ("failed", counted.failed),
                    ("cancelled", counted.cancelled),
                    ("refused", counted.refused),
                ] {
                    to.put(&[("model", &model.name), ("outcome", outcome)], count as f64);
                }
            }
        },
    ),
    counter("hermes_passes_total", "Traversals of the tape.", |from, to| {
        to.put_counted(from, |counted| counted.passes as f64);
    }),
    counter(
        "hermes_pass_requests_total",
        "Requests that took part in a pass; more than passes where some shared one.",
        |from, to| to.put_counted(from, |counted| counted.seats as f64),
    ),
    counter("hermes_queue_seconds_total", "Time requests waited for their pass.", |from, to| {
        to.put_counted(from, |counted| seconds(counted.queue_us));
    }),
    counter("hermes_pass_seconds_total", "Time passes took.", |from, to| {
        to.put_counted(from, |counted| seconds(counted.pass_us));
    }),
    counter("hermes_stall_seconds_total", "Time passes waited for the disk.", |from, to| {
        to.put_counted(from, |counted| seconds(counted.stall_us));
    }),
    counter("hermes_read_bytes_total", "Bytes of tape read.", |from, to| {
        to.put_counted(from, |counted| counted.bytes_read as f64);
    }),
    counter("hermes_blocks_released_total", "Blocks whose memory was given back.", |from, to| {
        to.put_counted(from, |counted| counted.blocks_released as f64);
    }),
    counter("hermes_loads_total", "Times a model was loaded.", |from, to| {
        to.put_counted(from, |counted| counted.loads as f64);
    }),
    counter("hermes_load_seconds_total", "Time loading took.", |from, to| {
        to.put_counted(from, |counted| seconds(counted.load_us));
    }),
    gauge("hermes_model_ready", "1 where a loaded model answers, 0 after an error.", |from, to| {
        for (name, loaded) in from.loaded() {
            let labels =
                [("model", name), ("version", &*loaded.version), ("variant", &*loaded.variant)];
            to.put(&labels, f64::from(u8::from(loaded.in_service)));
        }
    }),
    gauge("hermes_tape_bytes", "Bytes of a loaded model's tape on disk.", |from, to| {
        to.put_loaded(from, |loaded| loaded.tape_bytes);
    }),
    gauge("hermes_graph_bytes", "Bytes of a loaded model's graph in memory.", |from, to| {
        to.put_loaded(from, |loaded| loaded.graph_bytes);
    }),
    gauge("hermes_pinned_bytes", "Bytes of tape that stay in memory.", |from, to| {
        to.put_loaded(from, |loaded| loaded.pinned_bytes);
    }),
    gauge("hermes_waiting_requests", "Requests that wait for their pass.", |from, to| {
        to.put(&[], from.stats.waiting as f64);
    }),
    gauge("hermes_waiting_requests_limit", "Requests that may wait.", |from, to| {
        to.put(&[], from.stats.waiting_limit as f64);
    }),
    gauge("hermes_sessions", "Texts that are generated, or wait for that.", |from, to| {
        to.put(&[], from.stats.sessions as f64);
    }),
    gauge("hermes_kept_text_bytes", "Bytes of texts that have ended and may go on.", |from, to| {
        to.put(&[], from.stats.kept_text_bytes as f64);
    }),
    gauge("hermes_window_bytes", "Bytes of tape that a pass may hold.", |from, to| {
        to.put(&[], from.stats.window_bytes as f64);
    }),
    gauge("hermes_ledger_bytes", "Bytes held, by what they are held for.", |from, to| {
        for category in Category::ALL {
            let held = from.ledger.held_bytes(category) as f64;
            to.put(&[("category", category.name())], held);
        }
    }),
    gauge("hermes_budget_bytes", "Bytes that the whole process may hold.", |from, to| {
        to.put(&[], from.ledger.budget_bytes() as f64);
    }),
    gauge("hermes_resident_bytes", "Bytes of the process in memory.", |from, to| {
        to.put(&[], from.process.resident_bytes as f64);
    }),
    gauge("hermes_heap_bytes", "Bytes allocated and not freed.", |_, to| {
        to.put(&[], heap::live_bytes() as f64);
    }),
    gauge("hermes_pressure", "1 for the level of memory pressure that holds.", |from, to| {
        for level in Pressure::ALL {
            let holds = from.stats.pressure == level;
            to.put(&[("level", level.name())], f64::from(u8::from(holds)));
        }
    }),
    counter(
        "hermes_refaults_total",
        "Pages of files read again soon after the kernel dropped them: workingset_refault_file of \
         the cgroup's memory.stat or, scope system, of /proc/vmstat.",
        |from, to| {
            if let Some(refaults) = from.refaults {
                to.put(&[("scope", refaults.scope)], refaults.pages as f64);
            }
        },
    ),
    counter(
        "hermes_http_responses_total",
        "Answers, by route and status; route other where a method or a path leads nowhere.",
        |from, to| {
            for (((method, route), status), count) in &from.traffic.answers {
                let status = status.to_string();
                let labels = [("method", *method), ("route", *route), ("status", &*status)];
                to.put(&labels, *count as f64);
            }
        },
    ),
    histogram(
        "hermes_http_request_duration_seconds",
        "Time from a request's head to the last byte of its answer, by route and, where one \
         computed the answer, by model.",
        |from, to| {
            for (((method, route), model), times) in &from.traffic.times {
                let model = model.as_deref().unwrap_or("");
                to.put_times(&[("method", method), ("route", route), ("model", model)], times);
            }
        },
    ),
    counter("hermes_prompt_tokens_total", "Tokens of prompts.", |from, to| {
        to.put_counted(from, |counted| counted.prompt_tokens as f64);
    }),
    counter("hermes_sessions_total", "Texts that were begun.", |from, to| {
        to.put_counted(from, |counted| counted.sessions as f64);
    }),
    counter(
        "hermes_prefix_hits_total",
        "Texts that began as one whose keys and values were kept.",
        |from, to| to.put_counted(from, |counted| counted.prefix_hits as f64),
    ),
    counter(
        "hermes_cached_tokens_total",
        "Tokens of prompts whose keys and values were kept.",
        |from, to| to.put_counted(from, |counted| counted.cached_tokens as f64),
    ),
    counter("hermes_generated_tokens_total", "Tokens of texts that models wrote.", |from, to| {
        to.put_counted(from, |counted| counted.generated_tokens as f64);
    }),
    counter(
        "hermes_proposed_tokens_total",
        "Tokens that were guessed from the text itself, to be read together with the last one.",
        |from, to| to.put_counted(from, |counted| counted.proposed_tokens as f64),
    ),
    counter(
        "hermes_accepted_tokens_total",
        "Guessed tokens that the text went on with: each saved a pass.",
        |from, to| to.put_counted(from, |counted| counted.accepted_tokens as f64),
    ),
    histogram(
        "hermes_first_token_duration_seconds",
        "Time from a text's being asked for to its first token, by model.",
        |from, to| {
            for (model, times) in &from.speeds.first {
                to.put_times(&[("model", model)], times);
            }
        },
    ),
    histogram(
        "hermes_next_token_duration_seconds",
        "Time from a token of a text to the next one, by model.",
        |from, to| {
            for (model, times) in &from.speeds.next {
                to.put_times(&[("model", model)], times);
            }
        },
    ),
    gauge("process_start_time_seconds", "When the daemon began to serve.", |from, to| {
        let since = from.begin.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        to.put(&[], since.as_secs_f64());
    }),
    gauge("hermes_listening", "Always 1; the label is an address that is served.", |from, to| {
        for address in from.addresses {
            to.put(&[("address", &address.to_string())], 1.0);
        }
    }),
    gauge("hermes_connections", "Connections that are open.", |from, to| {
        to.put(&[], from.connections as f64);
    }),
];

type ReadMetric = fn(&Snapshot<'_>, &mut Samples<'_>);

const fn counter(name: &'static str, help: &'static str, read: ReadMetric) -> Metric {
    Metric { name, kind: MetricKind::Counter, help, read }
}

const fn gauge(name: &'static str, help: &'static str, read: ReadMetric) -> Metric {
    Metric { name, kind: MetricKind::Gauge, help, read }
}

const fn histogram(name: &'static str, help: &'static str, read: ReadMetric) -> Metric {
    Metric { name, kind: MetricKind::Histogram, help, read }
}

impl Snapshot<'_> {
    fn loaded(&self) -> impl Iterator<Item = (&str, &Loaded)> {
        let models = self.stats.models.iter();
        models.filter_map(|model| Some((&*model.name, model.loaded.as_ref()?)))
    }
}

/// The samples of one metric.
struct Samples<'a> {
    name: &'static str,
    text: &'a mut String,
}

impl Samples<'_> {
    fn put(&mut self, labels: &[(&str, &str)], value: f64) {
        self.put_part("", labels, value);
    }

    /// A sample of the metric's, under its name and `suffix`.
    fn put_part(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (index, (name, label)) in labels.iter().enumerate() {
            let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let open = if index == 0 { '{' } else { ',' };
            write!(self.text, "{open}{name}=\"{label}\"").expect("a string takes every write");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        writeln!(self.text, "{close} {value}").expect("a string takes every write");
    }

    /// A histogram's samples: what took no longer than each bound, all together, how many.
    fn put_times(&mut self, labels: &[(&str, &str)], times: &Times) {
        let mut bounds = BOUNDS_US.iter().map(|bound_us| seconds(*bound_us).to_string());
        let mut count = 0;
        for counted in times.counts {
            count += counted;
            let bound = bounds.next().unwrap_or_else(|| "+Inf".to_owned());
            let labels = [labels, &[("le", &*bound)]].concat();
            self.put_part("_bucket", &labels, count as f64);
        }
        self.put_part("_sum", labels, seconds(times.sum_us));
        self.put_part("_count", labels, count as f64);
    }

    fn put_counted(&mut self, from: &Snapshot<'_>, value: impl Fn(&Counted) -> f64) {
        for model in &from.stats.models {
            self.put(&[("model", &model.name)], value(&model.counted));
        }
    }

    fn put_loaded(&mut self, from: &Snapshot<'_>, value: impl Fn(&Loaded) -> u64) {
        for (name, loaded) in from.loaded() {
            self.put(&[("model", name)], value(loaded) as f64);
        }
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// `GET /metrics`.
pub async fn metrics(State(api): State<Arc<Api>>) -> Result<Response, OipError> {
    let text = api.look(|api| {
        Ok(render(&Snapshot {
            stats: api.engine.stats(),
            ledger: api.engine.ledger(),
            process: memory::process(),
            refaults: refaults(),
            traffic: api.traffic.figures(),
            speeds: api.speed.figures(),
            begin: api.traffic.begin,
            connections: api.connections.count(),
            addresses: &api.addresses,
        }))
    });
    let kind = HeaderValue::from_static(CONTENT_TYPE);
    Ok(([(header::CONTENT_TYPE, kind)], text.await?).into_response())
}

fn render(snapshot: &Snapshot<'_>) -> String {
    let mut text = String::new();
    for Metric { name, kind, help, read } in METRICS {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")
            .expect("a string takes every write");
        read(snapshot, &mut Samples { name, text: &mut text });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = String::new();
        let mut samples = Samples { name: "m", text: &mut text };
        samples.put(&[("a", "x\"\\\ny"), ("b", "")], 1.5);
        samples.put(&[], 1e15);
        assert_eq!(text, "m{a=\"x\\\"\\\\\\ny\",b=\"\"} 1.5\nm 1000000000000000\n");
    }

    #[test]
    fn names_follow_the_conventions() {
        for metric in METRICS {
            let is_counter = matches!(metric.kind, MetricKind::Counter);
            assert_eq!(metric.name.ends_with("_total"), is_counter, "{}", metric.name);
            let is_histogram = matches!(metric.kind, MetricKind::Histogram);
            assert_eq!(metric.name.ends_with("_duration_seconds"), is_histogram);
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']));
            assert_eq!(METRICS.iter().filter(|other| other.name == metric.name).count(), 1);
        }
    }
}
