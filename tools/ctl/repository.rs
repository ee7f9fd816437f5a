//! `hermesctl load` and `unload`: which models are in memory.

use super::client::{Client, ClientError, parse, segment};
use super::versions::model_name;
use clap::{Args, Subcommand};

/// Commands that say which models are loaded.
#[derive(Clone, Debug, Subcommand)]
pub enum RepositoryCommand {
    /// Load a model, anew where it is loaded already.
    Load(ModelArgs),
    /// Unload a model; a request loads it again.
    Unload(ModelArgs),
}

/// A model.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Name of the model.
    #[arg(value_parser = model_name)]
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
        let (args, verb) = match self {
            RepositoryCommand::Load(args) => (args, "load"),
            RepositoryCommand::Unload(args) => (args, "unload"),
        };
        let path = format!("/v2/repository/models/{}/{verb}", segment(&args.model));
        let reply = client.post(&path, Vec::new())?;
        if args.json {
            return Ok(String::from_utf8_lossy(&reply).into_owned());
        }
        let entry = parse(&reply)?;
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let state = if text("state") == "READY" { "ready".to_owned() } else { text("reason") };
        Ok(format!("{} {} is {state}", text("name"), text("version")))
    }
}
