//! GridSample between pixels by cubes, whose border tract takes otherwise than ONNX Runtime.

use super::draft::Replacement;
use super::kinds::Kinds;
use super::text;
use tract_onnx::pb::NodeProto;

pub fn grid_sample(
    node: &NodeProto,
    _: &Kinds,
    _: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let is_cubic = ["bicubic", "cubic"].contains(&text(node, "mode", ""));
    match is_cubic && text(node, "padding_mode", "zeros") == "border" {
        true => Err("its padding_mode is \"border\", which is not computed of cubes".to_string()),
        false => Ok(None),
    }
}
