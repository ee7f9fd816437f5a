//! Gemm's factors and its addend, which tract multiplies in f32 whatever the type.

use super::draft::{self, Replacement};
use super::kinds::Kinds;
use super::{float, input, int};
use tract_onnx::pb::NodeProto;

/// alpha * A * B + beta * C, as nodes of the inputs' own type.
pub fn gemm(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let (alpha, beta) = (float(node, "alpha", 1.0), float(node, "beta", 1.0));
    let addend = input(node, 2).filter(|_| beta != 0.0);
    if alpha == 1.0 && addend.is_none() && node.input.len() == 2 {
        return Ok(None);
    }
    let flags = ["transA", "transB"].map(|name| draft::int(name, int(node, name, 0)));
    let (a, b) = (&node.input[0], &node.input[1]);
    let mut y = draft.node_with("Gemm", &[a, b], flags.to_vec());
    if alpha != 1.0 {
        let alpha = draft.float_like(alpha, a);
        y = draft.node("Mul", &[&y, &alpha]);
    }
    if let Some(addend) = addend {
        let mut addend = addend.to_string();
        if beta != 1.0 {
            let beta = draft.float_like(beta, a);
            addend = draft.node("Mul", &[&addend, &beta]);
        }
        y = draft.node("Add", &[&y, &addend]);
    }
    Ok(Some(draft.finish_as(&y, node)))
}
