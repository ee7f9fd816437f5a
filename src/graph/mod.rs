//! From an ONNX skeleton to a plan whose big weights come from the tape.
//!
//! `skim` takes the weights out of an ONNX file without loading them, `import` turns the rest
//! into a tract plan with streamed ops, `ops` evaluates those, `lockstep` the whole plan for several
//! requests at once. Nothing here reads a block, knows a window or speaks HTTP.

mod attention;
mod bounds;
mod builders;
mod check;
mod checked;
mod constants;
mod datum;
mod decided;
pub mod dims;
mod error;
mod half;
mod import;
mod indexed;
mod integers;
mod kernel;
mod lockstep;
mod logits;
mod memory;
mod nan;
mod of_sizes;
mod ops;
mod ordered;
mod ports;
mod position;
mod product;
pub mod progress;
mod quantize;
mod repair;
mod sample;
mod sizes;
pub mod skim;
mod squeeze;
mod trial;
mod uses;
mod vet;
mod view;
mod walker;
pub mod writer;

pub use attention::{Keeping, KeptPast, MOST_NEW, OPERATOR};
pub use datum::{array_of, datum_of, dtype_of, tensor_of};
pub use error::GraphError;
pub use import::{Imported, import};
pub use indexed::indexed_rows;
pub use kernel::{Kernels, READ_AHEAD_BYTES};
pub use lockstep::{AtNode, Lockstep, Outcomes, Visit, Walk};
pub use memory::Footprint;
pub use ops::{Feed, TapeFeed};
pub use position::IndexOutOfRange;
pub use product::{Lease, Product};
pub use sample::{has_open_dimension, sample_inputs, sample_of_shapes};
pub use sizes::{Choice, Sizes};
pub use trial::{ReadWeight, Trial, Tried};
pub use uses::{UseKind, WeightUse, streamed_slots};
pub use walker::{WalkError, Walker, Weights};
