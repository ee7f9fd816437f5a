//! `hermesctl`: asks a running hermesd, for people and for scripts.
//!
//! Each command is one file beside this one; none of them is linked into the daemon.

mod client;
mod doctor;
mod embed;
mod infer;
mod list;
mod map;
mod npy;
mod plan;
mod prompt;
mod repository;
// Tests read all of it.
#[allow(dead_code)]
mod scrape;
mod show;
mod top;
mod trace;
mod versions;
mod watch;
mod write;

use clap::{CommandFactory, Parser, Subcommand};
use client::{Client, ClientError, EXIT_CODES, default_socket};
use doctor::DOCTOR_EXIT_CODES;
use embed::{EMBED_EXIT_CODES, EmbedCommand, Print};
use hermes_base::manual;
use hermes_base::sys::terminal;
use infer::{InferCommand, Show, parse_binding};
use plan::PlanCommand;
use repository::RepositoryCommand;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use versions::{VersionsCommand, model_name};
use watch::WatchCommand;
use write::WriteCommand;

/// Asks hermesd to run models.
#[derive(Parser)]
#[command(name = "hermesctl", version, after_help = EXIT_CODES)]
struct Args {
    /// Unix socket of the daemon [default: $HERMES_SOCKET or /run/hermes/hermes.sock].
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the models.
    Ls {
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a model: inputs, variants, budgets, texts, files, versions.
    Show {
        /// Name of the model, or of the model and one of its versions [default: the served one].
        #[arg(value_name = "MODEL[/VERSION]")]
        what: String,
        /// Print the daemon's JSON, and the versions.
        #[arg(long)]
        json: bool,
    },
    /// Run a model on arrays from .npy files.
    Infer {
        /// Name of the model.
        #[arg(value_parser = model_name)]
        model: String,
        /// An input of the model; once for each.
        #[arg(long, value_name = "NAME=FILE.npy", value_parser = parse_binding)]
        input: Vec<(String, PathBuf)>,
        /// An output to save; where none is named, all are asked for and summed up.
        #[arg(long, value_name = "NAME=FILE.npy", value_parser = parse_binding)]
        output: Vec<(String, PathBuf)>,
        /// A request body (Open Inference Protocol v2) to send in place of the inputs.
        #[arg(long, value_name = "FILE", conflicts_with = "input")]
        request: Option<PathBuf>,
        /// Write the daemon's JSON to FILE in place of printing anything.
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        reply: Option<PathBuf>,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    #[command(after_help = EMBED_EXIT_CODES)]
    Embed(EmbedCommand),
    #[command(flatten)]
    Write(WriteCommand),
    #[command(flatten)]
    Repository(RepositoryCommand),
    #[command(flatten)]
    Plan(PlanCommand),
    #[command(flatten)]
    Versions(VersionsCommand),
    #[command(flatten)]
    Watch(WatchCommand),
    /// Tell what this board offers, what stands in the way, and how to mend it.
    ///
    /// Needs neither root nor a daemon. Reads the store's disk for a second.
    #[command(after_help = DOCTOR_EXIT_CODES)]
    Doctor {
        /// Folder of the models, whose disk is read [default: $HERMES_STORE or /var/lib/hermes].
        #[arg(long, value_name = "DIR")]
        store: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell: source <(hermesctl completions bash).
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    if let Some(code) = manual::written(command(), "1") {
        return code;
    }
    let args = <Args as clap::FromArgMatches>::from_arg_matches(&command().get_matches());
    let args = args.unwrap_or_else(|error| error.exit());
    match run(args) {
        Ok((text, code)) => {
            // A closed pipe, as of `| head`, is no failure.
            let end = if text.is_empty() { "" } else { "\n" };
            let _ = match std::io::stdout().is_terminal() {
                true => write!(std::io::stdout(), "{}{end}", terminal::tame(&text)),
                false => write!(std::io::stdout(), "{text}{end}"),
            };
            code
        }
        Err(error) => {
            hermes_base::tell!("hermesctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: Args) -> Result<(String, ExitCode), ClientError> {
    let socket = args.socket.unwrap_or_else(default_socket);
    let client = Client::new(&socket)
        .map_err(|source| ClientError::Unreachable { socket: socket.clone(), source })?;
    let print = |json: bool| if json { Print::Json } else { Print::Human };
    let text = match args.command {
        Command::Ls { json } => list::run(&client, print(json)),
        Command::Show { what, json } => show::run(&client, &what, print(json)),
        Command::Versions(command) => command.run(&client),
        Command::Embed(command) => return command.run(&client),
        Command::Write(command) => return command.run(&client),
        Command::Infer { model, input, output, request, reply, json } => {
            let show = match (reply, json) {
                (Some(file), _) => Show::File(file),
                (None, true) => Show::Json,
                (None, false) => Show::Summary,
            };
            InferCommand { model, inputs: input, outputs: output, request, show }.run(&client)
        }
        Command::Repository(command) => command.run(&client),
        Command::Plan(command) => command.run(&client),
        Command::Watch(command) => command.run(&client),
        Command::Completions { shell } => Ok(completions(shell)),
        Command::Doctor { store, json } => {
            let diagnosis = doctor::run(&client, store.as_deref(), json)?;
            return Ok((diagnosis.text, ExitCode::from(u8::from(!diagnosis.is_well))));
        }
    };
    text.map(|text| (text, ExitCode::SUCCESS))
}

fn completions(shell: clap_complete::Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), "hermesctl", &mut text);
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// The command line; the help of a command that has no exit codes of its own ends with the usual.
fn command() -> clap::Command {
    Args::command().mut_subcommands(|command| {
        // They are values, to be told what is wrong with them, and no flags.
        let command = command.allow_negative_numbers(true);
        match command.get_after_help() {
            Some(_) => command,
            None => command.after_help(EXIT_CODES),
        }
    })
}
