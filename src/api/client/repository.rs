//! `hermesctl load`, `unload` and `ps`: which models are in memory.

use super::{Client, ClientError, EXIT_CODES, parse, segment, table};
use clap::Subcommand;
use serde_json::Value;

/// Commands about which models are loaded.
#[derive(Clone, Debug, Subcommand)]
pub enum RepositoryCommand {
    /// Load a model, anew where it is loaded already.
    #[command(after_help = EXIT_CODES)]
    Load(ModelArgs),
    /// Unload a model; a request loads it again.
    #[command(after_help = EXIT_CODES)]
    Unload(ModelArgs),
    /// List the models that are loaded.
    #[command(after_help = EXIT_CODES)]
    Ps {
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A model.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// Name of the model.
    model: String,
    /// Print the daemon's JSON.
    #[arg(long)]
    json: bool,
}

impl RepositoryCommand {
    /// Runs the command; what it returns is to be printed.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn run(&self, client: &Client) -> Result<String, ClientError> {
        match self {
            RepositoryCommand::Load(args) => args.run(client, "load"),
            RepositoryCommand::Unload(args) => args.run(client, "unload"),
            RepositoryCommand::Ps { json } => {
                let reply = client.post("/v2/repository/index", b"{\"ready\":true}".to_vec())?;
                match json {
                    true => Ok(String::from_utf8_lossy(&reply).into_owned()),
                    false => Ok(list(&parse(&reply)?)),
                }
            }
        }
    }
}

impl ModelArgs {
    fn run(&self, client: &Client, verb: &str) -> Result<String, ClientError> {
        let path = format!("/v2/repository/models/{}/{verb}", segment(&self.model));
        let reply = client.post(&path, Vec::new())?;
        if self.json {
            return Ok(String::from_utf8_lossy(&reply).into_owned());
        }
        let entry = parse(&reply)?;
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let state = if text("state") == "READY" { "ready".to_owned() } else { text("reason") };
        Ok(format!("{} {} is {state}", text("name"), text("version")))
    }
}

fn list(index: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let entries = index.as_array().into_iter().flatten();
    let rows: Vec<_> =
        entries.map(|entry| vec![text(&entry["name"]), text(&entry["version"])]).collect();
    match rows.is_empty() {
        true => "no model is loaded; a request or hermesctl load does it".to_owned(),
        false => table(&["MODEL", "VERSION"], rows),
    }
}
