//! The command line's share of the settings.

use super::super::address::Address;
use super::{Accuracy, Bytes, Latency, Threads, Tokens, Variant};
use crate::plan::Way;
use serde::Serialize;
use std::path::PathBuf;

/// What of the settings the command line may set.
#[derive(Debug, clap::Args, Serialize)]
pub struct Flags {
    /// Folder that hermes-shard built models into [default: /var/lib/hermes].
    #[arg(long)]
    pub store: Option<PathBuf>,
    /// Unix socket to serve [default: /run/hermes/hermes.sock, where --listen says nothing].
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Addresses to serve, with commas between: unix:/path, tcp:127.0.0.1:8000 [default: the socket].
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<Address>,
    /// File with the token that TCP clients have to send [default: none is asked for].
    #[arg(long, value_name = "FILE")]
    #[serde(rename = "token-file")]
    pub token_file: Option<PathBuf>,
    /// Memory that the whole process may hold: 64M, 1.5GiB (powers of 1024) [default: half of what
    /// there is].
    #[arg(long)]
    pub budget: Option<Bytes>,
    /// Size of the weights in memory ahead of and under compute: 16M [default: planned].
    #[arg(long)]
    pub window: Option<Bytes>,
    /// Compute threads [default: planned].
    #[arg(long)]
    pub threads: Option<Threads>,
    /// Threads that read from disk [default: planned].
    #[arg(long)]
    pub loaders: Option<Threads>,
    /// How blocks are read: mapped, or direct (past the page cache) [default: planned].
    #[arg(long)]
    pub source: Option<Way>,
    /// Variant of the weights to serve, such as f32 or q8; a model that lacks it is served in its best
    /// [default: the best each model has].
    #[arg(long)]
    pub variant: Option<Variant>,
    /// Time within which answers are to be there: 400ms, 2s; the precision of the weights follows
    /// [default: none].
    #[arg(long, value_name = "TIME")]
    pub latency: Option<Latency>,
    /// How close answers are to be to those of the best variant: 0.99 [default: as close as the
    /// latency allows].
    #[arg(long)]
    pub accuracy: Option<Accuracy>,
    /// Tokens that requests are expected to have, which plans are made for [default: 128].
    #[arg(long)]
    pub tokens: Option<Tokens>,
    /// Whether models are measured while the daemon is idle; plans follow [default: true].
    #[arg(long, value_name = "BOOL")]
    pub profiles: Option<bool>,
    /// Seconds for running requests to end after SIGTERM [default: 10].
    #[arg(long)]
    pub drain: Option<u32>,
}
