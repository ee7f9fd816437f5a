//! `hermesctl embed`: texts to vectors, a few on the terminal, any number from file to file.

mod ask;
mod bulk;
mod interrupt;
mod lines;
mod partial;
mod progress;
mod texts;

use super::client::{Client, ClientError};
use super::versions::model_name;
use ask::{Embedder, Options};
use bulk::Bulk;
use clap::{Args, ValueEnum};
use lines::{Format, Lines};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The last line of the command's help.
pub const EMBED_EXIT_CODES: &str = "Exit codes: 0 done, 1 refused by the daemon, 2 usage \
                                    (arguments or files), 3 the daemon cannot be reached, 4 lines \
                                    of the file have no vector, 130 interrupted.";

/// In place of a text or a file: standard input.
const STANDARD_INPUT: &str = "-";

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Print {
    /// For people.
    Human,
    /// The daemon's reply as it is.
    Json,
}

/// Print the vector of a text, or how alike several texts are; or embed a file of texts.
///
/// A file's texts go to the daemon in requests of a bounded size, and their vectors to FILE.partial
/// as they come; it takes its name once all are there. After an interruption the same command goes
/// on where it stopped. A line that has no vector (not UTF-8, no JSON, empty, too long for the
/// model) is named with its number, and the others go on: in .npy its row is NaN, in .jsonl it has
/// "error" in place of "embedding".
#[derive(Clone, Debug, Args)]
pub struct EmbedCommand {
    /// Name of the model.
    #[arg(value_parser = model_name)]
    model: String,
    /// The texts; a single - takes them from standard input, one a line.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    text: Vec<String>,
    /// A file of texts, one a line; - is standard input.
    #[arg(long, requires = "output")]
    file: Option<PathBuf>,
    /// What a line of the file is [default: json where its name ends in .jsonl, else text].
    #[arg(long)]
    lines: Option<Format>,
    /// Where the vectors of a file go: a row of a .npy, or a line of a .jsonl, for each of its lines.
    #[arg(long, value_name = "FILE.npy|FILE.jsonl", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Values of each vector; the others are cut off.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    dimensions: Option<u64>,
    /// Whether vectors are scaled to length one [default: as the model's makers say].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    normalize: Option<bool>,
    /// The model's prompt that goes before each text.
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
    /// What of a text that is too long goes; none refuses it [default: as the model's makers say].
    #[arg(long, value_name = "PART", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "end")]
    truncate: Option<Truncate>,
    /// Print the daemon's JSON.
    #[arg(long)]
    json: bool,
}

/// What of a text that is too long goes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Truncate {
    #[value(alias = "true")]
    End,
    Start,
    #[value(alias = "false")]
    None,
}

impl Truncate {
    /// As requests have it.
    fn name(self) -> &'static str {
        match self {
            Truncate::End => "END",
            Truncate::Start => "START",
            Truncate::None => "NONE",
        }
    }
}

impl EmbedCommand {
    /// Runs the command; what it returns is to be printed.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn run(self, client: &Client) -> Result<(String, ExitCode), ClientError> {
        let truncate = self.truncate.map(|truncate| truncate.name().to_owned());
        let (dimensions, prompt_name) = (self.dimensions, self.prompt_name);
        let options = Options { dimensions, normalize: self.normalize, prompt_name, truncate };
        let embedder = Embedder { client, model: &self.model, options };
        let takes_input = self.text == [STANDARD_INPUT];
        let input = Path::new(STANDARD_INPUT);
        let file = self.file.as_deref().or(takes_input.then_some(input));
        match (file, &self.output) {
            (Some(file), Some(output)) => {
                let format = self.lines.unwrap_or_else(|| Format::of(file));
                let code = Bulk { embedder, file, format, output }.run()?;
                Ok((String::new(), code))
            }
            (None, Some(_)) => {
                Err(ClientError::Usage("--output takes the vectors of a --file".to_owned()))
            }
            (file, None) => {
                let texts = match file {
                    Some(file) => read_all(file, self.lines.unwrap_or(Format::Text))?,
                    None => self.text,
                };
                let print = if self.json { Print::Json } else { Print::Human };
                Ok((texts::run(&embedder, &texts, print)?, ExitCode::SUCCESS))
            }
        }
    }
}

/// The texts of a few lines.
fn read_all(file: &Path, format: Format) -> Result<Vec<String>, ClientError> {
    let mut lines = Lines::open(file, format)?;
    let mut texts = Vec::new();
    while let Some(line) = lines.line()? {
        if texts.len() == ask::MAX_INPUTS {
            let advice = "--file - --output FILE takes any number";
            let message = format!("more than {} lines; {advice}", ask::MAX_INPUTS);
            return Err(ClientError::Usage(message));
        }
        let wrong = |what| ClientError::Usage(format!("line {} {what}", line.number));
        texts.push(line.text.map_err(wrong)?);
    }
    match texts.is_empty() {
        true => Err(ClientError::Usage("standard input has no texts".to_owned())),
        false => Ok(texts),
    }
}
