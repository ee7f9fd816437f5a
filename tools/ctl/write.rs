//! `hermesctl generate` and `chat`: texts of a language model, printed as they come.

use super::client::{Client, ClientError, Ended};
use super::prompt::{Interrupts, Lines};
use super::versions::model_name;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::future::pending;
use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::Instant;

/// In place of a prompt: standard input.
const STANDARD_INPUT: &str = "-";

/// The shell's exit code for SIGINT.
const INTERRUPTED: u8 = 130;

/// Tokens of a text where nobody says another number.
const USUAL_TOKENS: u32 = 256;

const COMMANDS: &str =
    "/clear begins anew, /stats tells how fast answers come, /exit ends the chat";

/// Commands that have a model write.
#[derive(Clone, Debug, Subcommand)]
pub enum WriteCommand {
    /// Have a model go on with a text, and print what it writes as it comes.
    Generate {
        /// Name of the model.
        #[arg(value_parser = model_name)]
        model: String,
        /// The text to go on with; - takes it from standard input.
        prompt: String,
        #[command(flatten)]
        manner: Manner,
    },
    /// Chat with a model: a line is a message, and the answer is printed as it comes.
    ///
    /// /clear forgets what was said, /stats tells from then on how fast answers come, /exit or the end
    /// of the input ends the chat. Ctrl-C ends an answer; what was said of it is remembered. Where none
    /// comes it ends the chat, with exit code 130.
    Chat {
        /// Name of the model.
        #[arg(value_parser = model_name)]
        model: String,
        /// What the model is told before all else.
        #[arg(long, value_name = "TEXT")]
        system: Option<String>,
        #[command(flatten)]
        manner: Manner,
    },
}

/// How a text is written.
#[derive(Clone, Debug, Args)]
pub struct Manner {
    /// Most tokens that are written [default: 256 of a text, as the daemon has it of an answer].
    #[arg(long, value_name = "COUNT")]
    max_tokens: Option<u32>,
    /// How far the model may stray from what is likeliest; 0 is not at all [default: the model's].
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// The same seed gives the same text.
    #[arg(long)]
    seed: Option<i64>,
}

impl WriteCommand {
    /// Runs the command, which prints by itself.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn run(self, client: &Client) -> Result<(String, ExitCode), ClientError> {
        match self {
            WriteCommand::Generate { model, prompt, manner } => {
                generate(client, &model, &prompt, &manner)?;
            }
            WriteCommand::Chat { model, system, manner } => {
                let interrupts = Interrupts::take(client.runtime());
                let (history, tells) = (vec![], false);
                let chat = Chat { client, interrupts, model, system, manner, history, tells };
                return Ok((String::new(), chat.run()?));
            }
        }
        Ok((String::new(), ExitCode::SUCCESS))
    }
}

impl Manner {
    fn request(&self, model: &str) -> Map<String, Value> {
        let mut request = Map::new();
        let mut put = |name: &str, value: Value| drop(request.insert(name.to_owned(), value));
        put("model", json!(model));
        put("stream", json!(true));
        put("stream_options", json!({ "include_usage": true }));
        put("max_tokens", json!(self.max_tokens));
        put("temperature", json!(self.temperature));
        put("seed", json!(self.seed));
        request
    }
}

fn generate(
    client: &Client,
    model: &str,
    prompt: &str,
    manner: &Manner,
) -> Result<(), ClientError> {
    let mut request = manner.request(model);
    let prompt = match prompt {
        STANDARD_INPUT => {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text);
            read.map_err(|error| ClientError::Usage(format!("standard input: {error}")))?;
            text.strip_suffix('\n').unwrap_or(&text).to_owned()
        }
        text => text.to_owned(),
    };
    request.insert("prompt".to_owned(), json!(prompt));
    request.insert("max_tokens".to_owned(), json!(manner.max_tokens.unwrap_or(USUAL_TOKENS)));
    let mut printer = Printer::new();
    let body = Value::Object(request).to_string().into_bytes();
    client.events("/v1/completions", body, pending(), |event| {
        printer.print(event["choices"][0]["text"].as_str().unwrap_or_default())
    })?;
    printer.end_line();
    Ok(())
}

/// Prints pieces of a text as they come.
struct Printer {
    text: String,
    is_terminal: bool,
}

impl Printer {
    fn new() -> Printer {
        Printer { text: String::new(), is_terminal: io::stdout().is_terminal() }
    }

    /// A terminal obeys control characters, and a model may write any.
    fn print(&mut self, piece: &str) -> io::Result<()> {
        self.text.push_str(piece);
        let is_tame = |c: &char| !self.is_terminal || !c.is_control() || matches!(c, '\n' | '\t');
        let tame: String = piece.chars().filter(is_tame).collect();
        let mut out = io::stdout().lock();
        out.write_all(tame.as_bytes())?;
        out.flush()
    }

    fn end_line(&self) {
        if !self.text.ends_with('\n') {
            // A closed pipe, as of `| head`, is no failure.
            let _ = io::stdout().write_all(b"\n");
        }
    }
}

struct Chat<'a> {
    client: &'a Client,
    interrupts: Interrupts,
    model: String,
    system: Option<String>,
    manner: Manner,
    /// The messages so far, but for the system's.
    history: Vec<Value>,
    /// Whether it is told how fast answers come.
    tells: bool,
}

impl Chat<'_> {
    fn run(mut self) -> Result<ExitCode, ClientError> {
        let is_person = io::stdin().is_terminal() && io::stdout().is_terminal();
        if is_person {
            hermes_base::tell!("{COMMANDS}");
        }
        // A closed pipe is no failure.
        let prompt = |text: &[u8]| {
            let mut out = io::stdout().lock();
            is_person.then(|| drop(out.write_all(text).and_then(|()| out.flush())));
        };
        let unreadable = |error| ClientError::Usage(format!("standard input: {error}"));
        let mut lines = Lines::read().map_err(unreadable)?;
        loop {
            prompt(b"> ");
            let line = self.client.runtime().block_on(async {
                tokio::select! {
                    line = lines.next() => Some(line),
                    () = self.interrupts.next() => None,
                }
            });
            let Some(line) = line else {
                prompt(b"\n");
                return Ok(ExitCode::from(INTERRUPTED));
            };
            let Some(line) = line.map_err(unreadable)? else {
                prompt(b"\n");
                return Ok(ExitCode::SUCCESS);
            };
            match line.trim() {
                "" => {}
                "/exit" => return Ok(ExitCode::SUCCESS),
                "/clear" => self.history.clear(),
                "/stats" => self.tells = !self.tells,
                command if command.starts_with('/') && !command.contains(char::is_whitespace) => {
                    hermes_base::tell!("there is no {command}: {COMMANDS}");
                }
                said => match self.answer(said) {
                    Ok(true) => {}
                    // Nobody reads the answers.
                    Ok(false) => return Ok(ExitCode::SUCCESS),
                    Err(error @ ClientError::Refused { .. }) if is_person => {
                        hermes_base::tell!("{error}");
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Has a message answered; false where the output is closed. Of a message that is refused nothing
    /// is remembered.
    fn answer(&mut self, said: &str) -> Result<bool, ClientError> {
        self.history.push(json!({ "role": "user", "content": said }));
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let messages: Vec<Value> = system.chain(self.history.iter().cloned()).collect();
        let mut request = self.manner.request(&self.model);
        request.insert("messages".to_owned(), Value::Array(messages));
        let body = Value::Object(request).to_string().into_bytes();
        let mut printer = Printer::new();
        let mut pace = Pace::new();
        let end = self.interrupts.next();
        let ended = self.client.events("/v1/chat/completions", body, end, |event| {
            pace.note(event);
            printer.print(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default())
        });
        let ended = match ended {
            Err(error) if printer.text.is_empty() => {
                self.history.pop();
                return Err(error);
            }
            ended => ended,
        };
        printer.end_line();
        self.history.push(json!({ "role": "assistant", "content": printer.text }));
        if let (true, Some(told)) = (self.tells, pace.told()) {
            hermes_base::tell!("{told}");
        }
        Ok(ended? != Ended::Closed)
    }
}

/// How fast an answer came.
struct Pace {
    begin: Instant,
    first: Option<Instant>,
    usage: Value,
}

impl Pace {
    fn new() -> Pace {
        Pace { begin: Instant::now(), first: None, usage: Value::Null }
    }

    fn note(&mut self, event: &Value) {
        let content = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        if self.first.is_none() && !content.is_empty() {
            self.first = Some(Instant::now());
        }
        if event["usage"].is_object() {
            self.usage = event["usage"].clone();
        }
    }

    /// In words; none where the answer was ended before it told.
    fn told(&self) -> Option<String> {
        let count = |of: &Value| of.as_u64();
        let written = count(&self.usage["completion_tokens"])?;
        let (prompt, cached) = (
            count(&self.usage["prompt_tokens"])?,
            count(&self.usage["prompt_tokens_details"]["cached_tokens"])?,
        );
        let first = self.first?;
        let waited = (first - self.begin).as_secs_f64();
        let rest = first.elapsed().as_secs_f64();
        let rate = written.saturating_sub(1) as f64 / rest.max(1e-9);
        Some(format!(
            "{written} tokens, {rate:.1} a second, the first after {waited:.2} s; {prompt} tokens of \
             the chat, {cached} of them still there"
        ))
    }
}
