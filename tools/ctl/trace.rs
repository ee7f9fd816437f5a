//! `hermesctl trace`: one pass as a file for Perfetto or Chrome.

use super::client::{Client, ClientError, parse, segment};
use super::infer::parse_binding;
use super::npy;
use super::versions::model_name;
use clap::Args;
use hermes_base::store::Dtype;
use hermes_base::wire::Array;
use hermes_base::wire::infer_json::InferRequest;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Most elements of an input that is made up.
const MAX_ELEMENTS: usize = 1 << 26;

/// A pass to trace.
#[derive(Clone, Debug, Args)]
pub struct TraceCommand {
    /// Name of the model.
    #[arg(value_parser = model_name)]
    model: String,
    /// An input of the model; once for each.
    #[arg(long, value_name = "NAME=FILE.npy", value_parser = parse_binding)]
    input: Vec<(String, PathBuf)>,
    /// Make inputs up, with this size wherever the model leaves one open: zeros, ones in masks.
    #[arg(long, value_name = "N", default_value_t = 16, conflicts_with = "input")]
    tokens: usize,
    /// File to write: JSON in Chrome's trace event format.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl TraceCommand {
    /// Runs the command; what it returns is to be printed.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; no file is written where the daemon refuses.
    pub fn run(&self, client: &Client) -> Result<String, ClientError> {
        let model = segment(&self.model);
        let mut request = InferRequest::default();
        for (name, file) in &self.input {
            request.inputs.push((name.clone(), npy::read(file)?));
        }
        if self.input.is_empty() {
            let metadata = client.get(&format!("/v2/models/{model}"))?;
            for input in metadata["inputs"].as_array().into_iter().flatten() {
                request.inputs.push(self.made_up(input).map_err(ClientError::Usage)?);
            }
        }
        let (body, json_bytes) = request.encode();
        let path = format!("/v2/models/{model}/trace");
        let (trace, _) = client.post_binary(&path, body, Some(json_bytes))?;
        let parsed = parse(&trace)?;
        std::fs::write(&self.output, &trace)
            .map_err(|error| ClientError::Usage(format!("{}: {error}", self.output.display())))?;
        let about = &parsed["otherData"];
        let events = parsed["traceEvents"].as_array().map_or(0, Vec::len);
        if self.json {
            let report = json!({
                "model": self.model,
                "output": self.output.to_string_lossy(),
                "events": events,
                "latency_us": about["latency_us"],
            });
            return Ok(report.to_string());
        }
        let ms = |name: &str| about[name].as_f64().unwrap_or(0.0) / 1e3;
        Ok(format!(
            "{}: {events} events of a pass of {:.1} ms, of which {:.1} ms waiting for the disk; open it \
             with Perfetto or at chrome://tracing",
            self.output.display(),
            ms("latency_us"),
            ms("stall_us"),
        ))
    }

    /// An input as the model's metadata has it.
    fn made_up(&self, input: &Value) -> Result<(String, Array), String> {
        let name = input["name"].as_str().unwrap_or_default().to_owned();
        let wrong = |what: &str| format!("input {name:?}: {what}; give --input");
        let dtype = Dtype::ALL.into_iter().find(|dtype| input["datatype"] == dtype.name());
        let dtype = dtype.ok_or_else(|| wrong("its datatype is unknown"))?;
        let sizes = input["shape"].as_array().into_iter().flatten();
        let shape: Vec<usize> =
            sizes.map(|size| size.as_u64().map_or(self.tokens, |size| size as usize)).collect();
        let count = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let count = count
            .filter(|count| *count <= MAX_ELEMENTS)
            .ok_or_else(|| wrong("its shape is too large to make up"))?;
        let mut bytes = vec![0; count * dtype.size()];
        let is_integer = !matches!(dtype, Dtype::Fp16 | Dtype::Bf16 | Dtype::Fp32 | Dtype::Fp64);
        if is_integer && name.contains("mask") {
            bytes.iter_mut().step_by(dtype.size()).for_each(|low| *low = 1);
        }
        let array = Array::new(dtype, shape, bytes).map_err(|error| wrong(&error.to_string()))?;
        Ok((name, array))
    }
}
