//! `hermesctl infer`: arrays from files, through a model, to files or a summary.

use super::client::{Client, ClientError, segment};
use super::npy;
use hermes_base::wire::infer_json::{InferRequest, Wanted};
use hermes_base::wire::infer_reply::InferReply;
use hermes_base::wire::tensor_json;
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

/// Values of an output that the summary shows.
const SHOWN_VALUES: usize = 8;

/// What `hermesctl infer` is asked to do.
#[derive(Clone, Debug)]
pub struct InferCommand {
    /// The model's name.
    pub model: String,
    /// Inputs by name.
    pub inputs: Vec<(String, PathBuf)>,
    /// Outputs that are wanted, and the file for each; all if empty.
    pub outputs: Vec<(String, PathBuf)>,
    /// A request body to send as it is, in place of the inputs.
    pub request: Option<PathBuf>,
    /// What becomes of the reply.
    pub show: Show,
}

/// What becomes of a reply, beside the outputs that are saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Show {
    /// It is summed up.
    Summary,
    /// Its JSON is printed.
    Json,
    /// Its JSON is written to a file.
    File(PathBuf),
}

impl InferCommand {
    /// Runs the command; what it returns is to be printed.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; no output file is written where the daemon refuses.
    pub fn run(&self, client: &Client) -> Result<String, ClientError> {
        let path = format!("/v2/models/{}/infer", segment(&self.model));
        let (body, json_bytes) = self.body()?;
        let sent = client.post_binary(&path, body, json_bytes);
        let (reply, reply_json_bytes) = sent.map_err(|error| self.told(client, error))?;
        let broken = |error: String| ClientError::Broken(error);
        let (text, binary) = reply
            .split_at_checked(reply_json_bytes.unwrap_or(reply.len()))
            .ok_or_else(|| broken("the reply is shorter than its JSON".to_owned()))?;
        let parsed = InferReply::parse(text, binary).map_err(|error| broken(error.to_string()))?;
        for (name, file) in &self.outputs {
            let (_, array) = parsed
                .outputs
                .iter()
                .find(|(given, _)| given == name)
                .ok_or_else(|| broken(format!("the reply has no output {name:?}")))?;
            npy::write(file, array)?;
        }
        match &self.show {
            Show::Json => Ok(String::from_utf8_lossy(&reply).into_owned()),
            Show::File(file) => {
                fs::write(file, &reply)
                    .map_err(|error| ClientError::Usage(format!("{}: {error}", file.display())))?;
                Ok(String::new())
            }
            Show::Summary => Ok(summary(&parsed)),
        }
    }

    /// What was refused, with the inputs that the model takes where none was given.
    fn told(&self, client: &Client, error: ClientError) -> ClientError {
        if !self.inputs.is_empty() || self.request.is_some() {
            return error;
        }
        let ClientError::Refused { status: 400, .. } = error else { return error };
        let Ok(model) = client.get(&format!("/v2/models/{}", segment(&self.model))) else {
            return error;
        };
        let inputs = model["inputs"].as_array().into_iter().flatten();
        let input = |port: &Value| {
            let [name, kind] =
                ["name", "datatype"].map(|field| port[field].as_str().unwrap_or("-"));
            format!("--input {name}=FILE.npy ({kind} {})", port["shape"])
        };
        let inputs: Vec<String> = inputs.map(input).collect();
        match inputs.is_empty() {
            true => error,
            false => ClientError::Usage(format!(
                "{} takes inputs: give {}; or a whole request with --request FILE",
                self.model,
                inputs.join(", ")
            )),
        }
    }

    /// The body to send and how many bytes of it are JSON, where binary data follows.
    fn body(&self) -> Result<(Vec<u8>, Option<usize>), ClientError> {
        if let Some(file) = &self.request {
            return fs::read(file)
                .map(|body| (body, None))
                .map_err(|error| ClientError::Usage(format!("{}: {error}", file.display())));
        }
        let mut request = InferRequest::default();
        for (name, file) in &self.inputs {
            request.inputs.push((name.clone(), npy::read(file)?));
        }
        let wanted = |name: &String| Wanted { name: name.clone(), binary: None };
        request.outputs = self.outputs.iter().map(|(name, _)| wanted(name)).collect();
        // Who wants JSON wants to see the values.
        request.binary_output = self.show == Show::Summary;
        let (body, json_bytes) = request.encode();
        Ok((body, Some(json_bytes)))
    }
}

/// Reads `NAME=FILE`.
///
/// # Errors
///
/// For text without a name, an `=` and a file.
pub fn parse_binding(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(file)))
        }
        _ => Err("expected NAME=FILE.npy".to_owned()),
    }
}

fn summary(reply: &InferReply) -> String {
    let mut lines = Vec::new();
    let mut seen = HashSet::new();
    for (name, array) in reply.outputs.iter().filter(|(name, _)| seen.insert(name)) {
        let count = array.bytes.len() / array.dtype.size();
        let mut values = Vec::new();
        tensor_json::write(array, 0, count.min(SHOWN_VALUES), &mut values);
        let values = String::from_utf8_lossy(&values).replace(',', " ").replace("null", "NaN");
        let more = if count > SHOWN_VALUES { " ..." } else { "" };
        lines.push(format!("{name}  {} {:?}  {values}{more}", array.dtype, array.shape));
    }
    lines.push(format!(
        "{:.1} ms, of which {:.1} ms waiting for the disk; {:.1} MiB read",
        reply.parameters.latency_us as f64 / 1e3,
        reply.parameters.stall_us as f64 / 1e3,
        reply.parameters.bytes_read as f64 / f64::from(1 << 20),
    ));
    lines.join("\n")
}
