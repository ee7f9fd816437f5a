use thiserror::Error;

/// Why a graph cannot be run.
#[derive(Debug, Error)]
pub enum GraphError {
    /// The stored or given graph is not ONNX.
    #[error(
        "graph is not an ONNX model: {0}\nexport the model again, or copy it again if it was cut short"
    )]
    NotOnnx(String),
    /// A node that tract does not implement or cannot type.
    #[error(
        "node \"{node}\" ({op}) cannot be run: {why}\n\
         export the model without it (another opset, a fixed shape, constant folding), or fix an open dimension with --dim NAME=SIZE"
    )]
    Unsupported { node: String, op: String, why: String },
    /// A version of a domain's operators that the tables do not cover.
    #[error(
        "it wants version {version} of the operators of {domain}, of which {oldest} to {newest} \
         are known\nexport the model with one of those"
    )]
    OperatorSet { domain: &'static str, version: i64, oldest: i64, newest: i64 },
    /// The graph as a whole failed, at no node that could be named.
    #[error(
        "graph cannot be run: {0}\ntry another opset, or fix an open dimension with --dim NAME=SIZE"
    )]
    Refused(String),
    /// Tract met something that it holds for impossible.
    #[error(
        "graph cannot be run: tract gave up: {0}\ntry another opset, or fix an open dimension with --dim NAME=SIZE"
    )]
    Panicked(String),
    /// The graph leaves one size only for a dimension that its inputs leave open.
    #[error(
        "dimension \"{symbol}\" of the inputs can only be {size}\nfix it with --dim {symbol}={size}"
    )]
    Pinned { symbol: String, size: u64 },
    /// The graph leaves one size only for two dimensions.
    #[error("dimensions \"{symbol}\" and \"{other}\" of the inputs can only be the same")]
    Same { symbol: String, other: String },
    /// Sizes that the graph needs to be equal, and that may differ as far as tract can see.
    #[error(
        "the graph can be run for some sizes of the inputs only: {why}\n\
         fix {}",
        symbols.iter().map(|name| format!("--dim {name}=320")).collect::<Vec<_>>().join(" ")
    )]
    Unequal { symbols: Vec<String>, why: String },
    /// It was tried, and failed.
    #[error(
        "node \"{node}\" ({op}) cannot be run on made-up inputs of {shapes}: {why}\n\
         fix an open dimension with --dim NAME=SIZE, or give --no-trial where only real inputs can be computed with"
    )]
    Trial { node: String, op: String, shapes: String, why: String },
    /// A weight that the manifest names is not an input of the graph, or the reverse.
    #[error("graph and manifest disagree about {what}\nshard the model again")]
    Mismatch { what: String },
}
