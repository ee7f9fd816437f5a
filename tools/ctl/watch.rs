//! `hermesctl ps`, `stats`, `top` and `trace`: what the daemon does and has done.

use super::client::{Client, ClientError, segment};
use super::list::served_in;
use super::top;
use super::trace::TraceCommand;
use super::versions::model_name;
use clap::Subcommand;
use hermes_base::values::size::Size;
use hermes_base::wire::table;
use serde_json::{Value, json};

/// Commands that watch the daemon.
#[derive(Clone, Debug, Subcommand)]
pub enum WatchCommand {
    /// List the models that are loaded.
    Ps {
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what models have done since the daemon's start.
    Stats {
        /// Name of the model [default: all that did something].
        #[arg(value_parser = model_name)]
        model: Option<String>,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the daemon at work, once a second; q ends it.
    Top {
        /// Show one frame and end, as where the output is no terminal.
        #[arg(long)]
        once: bool,
        /// Print what one frame shows as one JSON object, and end.
        #[arg(long)]
        json: bool,
    },
    /// Run a model once and write what happened when, for Perfetto or Chrome.
    Trace(TraceCommand),
}

impl WatchCommand {
    /// Runs the command; what it returns is to be printed.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn run(&self, client: &Client) -> Result<String, ClientError> {
        match self {
            WatchCommand::Ps { json } => {
                let mut stats = client.get("/v2/models/stats")?;
                let models = list(&mut stats);
                models.retain(|model| model["hermes"]["state"] != "unloaded");
                match json {
                    true => Ok(json!(models).to_string()),
                    false if models.is_empty() => Ok("no model is loaded".to_owned()),
                    false => Ok(loaded(models)),
                }
            }
            WatchCommand::Stats { model, json } => {
                let mut stats = match model {
                    Some(model) => client.get(&format!("/v2/models/{}/stats", segment(model)))?,
                    None => client.get("/v2/models/stats")?,
                };
                match json {
                    true => Ok(stats.to_string()),
                    false => Ok(done(list(&mut stats))),
                }
            }
            WatchCommand::Top { json: true, .. } => top::json(client),
            WatchCommand::Top { once, .. } => top::run(client, *once),
            WatchCommand::Trace(command) => command.run(client),
        }
    }
}

fn list(stats: &mut Value) -> &mut Vec<Value> {
    if !stats["model_stats"].is_array() {
        *stats = json!({ "model_stats": [] });
    }
    stats["model_stats"].as_array_mut().expect("it was made one")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn loaded(models: &[Value]) -> String {
    let head = ["MODEL", "VERSION", "VARIANT", "STATE", "TAPE", "GRAPH", "PINNED"];
    let mut rows = vec![head.map(str::to_owned)];
    for model in models {
        let own = &model["hermes"];
        let size = |name: &str| Size(own[name].as_u64().unwrap_or(0)).to_string();
        rows.push([
            text(&model["name"]),
            text(&model["version"]),
            served_in(own),
            text(&own["state"]),
            size("tape_bytes"),
            size("graph_bytes"),
            size("pinned_bytes"),
        ]);
    }
    table::lines(&rows)
}

fn done(models: &[Value]) -> String {
    let head = [
        "MODEL",
        "STATE",
        "ANSWERED",
        "FAILED",
        "CANCELLED",
        "REFUSED",
        "PASSES",
        "QUEUE",
        "PASS",
        "STALL",
        "READ",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for model in models {
        let own = &model["hermes"];
        let count = |name: &str| own[name].as_u64().unwrap_or(0);
        let mean = |us: &str, of: &str| match count(of) {
            0 => "-".to_owned(),
            of => format!("{:.1} ms", count(us) as f64 / of as f64 / 1e3),
        };
        let stall = match count("pass_us") {
            0 => "-".to_owned(),
            pass_us => format!("{:.0} %", 100.0 * count("stall_us") as f64 / pass_us as f64),
        };
        rows.push([
            text(&model["name"]),
            text(&own["state"]),
            count("answered").to_string(),
            count("failed").to_string(),
            count("cancelled").to_string(),
            count("refused").to_string(),
            count("passes").to_string(),
            mean("queue_us", "pass_requests"),
            mean("pass_us", "passes"),
            stall,
            Size(count("bytes_read")).to_string(),
        ]);
    }
    table::lines(&rows)
}
