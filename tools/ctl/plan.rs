//! `hermesctl profile` and `plan`: what was measured of a model, and what is best done with it.

use super::client::{Client, ClientError, parse, segment};
use super::map;
use super::versions::model_name;
use clap::{Args, Subcommand};
use hermes_base::plan::{Profile, Way};
use hermes_base::values::{Accuracy, Bytes, Latency, Threads, Tokens};
use std::fs;
use std::path::{Path, PathBuf};

/// Commands about profiles and plans.
#[derive(Clone, Debug, Subcommand)]
pub enum PlanCommand {
    /// Measure a model on this board; takes seconds to minutes.
    ///
    /// The daemon does so by itself while it is idle. It answers requests meanwhile.
    Profile {
        /// Name of the model.
        #[arg(value_parser = model_name)]
        model: String,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how a model's passes are best played, and what would help.
    ///
    /// With --latency or --accuracy also the precision of each tensor that fulfils it best, and what
    /// twice the time or the memory would give. Nothing is changed. What is not said is as the
    /// daemon has it.
    Plan(PlanArgs),
}

/// What a plan is asked for.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// Name of the model.
    #[arg(value_parser = model_name)]
    model: String,
    /// Time within which answers are to be there: 400ms, 2s.
    #[arg(long, value_name = "TIME")]
    latency: Option<Latency>,
    /// How close answers are to be to those of the best variant: 0.99.
    #[arg(long)]
    accuracy: Option<Accuracy>,
    /// Draw the choice, layers by tensors with their bits, as an SVG file.
    #[arg(long, value_name = "FILE.svg")]
    map: Option<PathBuf>,
    /// Memory that the daemon may hold: 64M, 1.5GiB (powers of 1024).
    #[arg(long)]
    budget: Option<Bytes>,
    /// Tokens of each request.
    #[arg(long)]
    tokens: Option<Tokens>,
    /// Whether requests follow each other, or come alone.
    #[arg(long = "use", value_name = "USE", value_parser = ["cyclic", "one-shot"])]
    usage: Option<String>,
    /// How blocks are read: mapped, or direct (past the page cache).
    #[arg(long)]
    source: Option<Way>,
    /// Threads that read from disk.
    #[arg(long)]
    loaders: Option<Threads>,
    /// Compute threads.
    #[arg(long)]
    threads: Option<Threads>,
    /// Size of the weights in memory ahead of and under compute: 16M.
    #[arg(long)]
    window: Option<Bytes>,
    /// Print the daemon's JSON.
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    /// The query that asks the same.
    fn query(&self) -> String {
        let bytes = |bytes: Bytes| bytes.0.to_string();
        let threads = |threads: Threads| threads.0.to_string();
        let parameters = [
            ("latency", self.latency.map(|latency| latency.to_string())),
            ("accuracy", self.accuracy.map(|accuracy| f64::from(accuracy).to_string())),
            ("budget", self.budget.map(bytes)),
            ("tokens", self.tokens.map(|tokens| tokens.0.to_string())),
            ("use", self.usage.clone()),
            ("source", self.source.map(|way| way.to_string())),
            ("loaders", self.loaders.map(threads)),
            ("threads", self.threads.map(threads)),
            ("window", self.window.map(bytes)),
        ];
        let given = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
        given.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }
}

impl PlanCommand {
    /// Runs the command; what it returns is to be printed.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn run(&self, client: &Client) -> Result<String, ClientError> {
        match self {
            PlanCommand::Profile { model, json } => {
                let path = format!("/v2/repository/models/{}/profile", segment(model));
                let reply = client.post(&path, Vec::new())?;
                if *json {
                    return Ok(String::from_utf8_lossy(&reply).into_owned());
                }
                let profile: Profile = serde_json::from_slice(&reply).map_err(|error| {
                    let advice = "--json prints it as it is";
                    ClientError::Broken(format!("the profile cannot be read: {error}; {advice}"))
                })?;
                Ok(profile.to_string())
            }
            PlanCommand::Plan(args) => {
                let path = format!("/v2/models/{}/plan?{}", segment(&args.model), args.query());
                let reply = client.get_text(&path)?;
                if let Some(file) = &args.map {
                    draw(&reply, file)?;
                }
                match args.json {
                    true => Ok(reply),
                    false => Ok(parse(reply.as_bytes())?["text"].as_str().unwrap_or("").to_owned()),
                }
            }
        }
    }
}

/// Draws the choice of a reply.
fn draw(reply: &str, file: &Path) -> Result<(), ClientError> {
    let drawn = map::svg(&parse(reply.as_bytes())?).ok_or_else(|| {
        let text = "there is no choice to draw: ask for one with --latency or --accuracy";
        ClientError::Usage(text.to_owned())
    })?;
    fs::write(file, drawn).map_err(|error| {
        ClientError::Usage(format!("{}: the map cannot be written: {error}", file.display()))
    })
}
