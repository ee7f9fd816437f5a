//! GlobalLpPool, of which tract divides the sum by the number of elements, and takes no absolute
//! values.

use super::draft::Replacement;
use super::int;
use super::kinds::Kinds;
use tract_onnx::pb::NodeProto;
use tract_onnx::pb::tensor_proto::DataType;

/// The root of the mean power, times the root of the number of elements: the sum itself may be more
/// than the type has.
pub fn global_lp_pool(
    node: &NodeProto,
    _: &Kinds,
    mut draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let (x, p) = (&node.input[0], int(node, "p", 2));
    if p < 1 {
        return Err(format!("its attribute p is {p}"));
    }
    let size = draft.node("Abs", &[x]);
    let power = draft.float_like(p as f32, x);
    let raised = draft.node("Pow", &[&size, &power]);
    let mean = draft.node("GlobalAveragePool", &[&raised]);
    let whole = draft.node("Size", &[x]);
    let mut count = draft.cast(&whole, DataType::Float);
    for axis in [0, 1] {
        let length = draft.length(x, axis);
        let length = draft.cast(&length, DataType::Float);
        count = draft.node("Div", &[&count, &length]);
    }
    let one_of_them = draft.float(1.0 / p as f32);
    let count = draft.node("Pow", &[&count, &one_of_them]);
    let count = draft.node("CastLike", &[&count, x]);
    let root = draft.float_like(1.0 / p as f32, x);
    let mean = draft.node("Pow", &[&mean, &root]);
    let y = draft.node("Mul", &[&mean, &count]);
    Ok(Some(draft.finish_as(&y, node)))
}
