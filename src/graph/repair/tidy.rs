//! Ways of saying the same that tract takes for something else.

use super::{attribute, text};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

/// Drops inputs and outputs that are named only to be left out at the end, which tract counts, and
/// explicit pads where `auto_pad` says that there are none, which tract prefers; says that what is
/// made of a shape is 0 in f32, where tract takes f64.
pub fn tidy(node: &mut NodeProto) {
    for names in [&mut node.input, &mut node.output] {
        while names.len() > 1 && names.last().is_some_and(|name| name.is_empty()) {
            names.pop();
        }
    }
    if text(node, "auto_pad", "NOTSET") != "NOTSET" {
        node.attribute.retain(|attribute| attribute.name != "pads");
    }
    if node.op_type == "ConstantOfShape" && attribute(node, "value").is_none() {
        node.attribute.push(AttributeProto {
            name: "value".to_string(),
            r#type: AttributeType::Tensor as i32,
            t: Some(TensorProto {
                data_type: DataType::Float as i32,
                dims: vec![1],
                float_data: vec![0.0],
                ..Default::default()
            }),
            ..Default::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::draft;
    use super::*;

    #[test]
    fn what_is_left_out_at_the_end_is_not_named() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let mut node = NodeProto {
            input: names(&["x", "", "w", "", ""]),
            output: names(&["y", ""]),
            attribute: vec![draft::ints("pads", &[1, 1])],
            ..Default::default()
        };
        tidy(&mut node);
        assert_eq!(node.input, ["x", "", "w"]);
        assert_eq!(node.output, ["y"]);
        assert_eq!(node.attribute.len(), 1, "pads hold without auto_pad");
        node.attribute.push(draft::string("auto_pad", "SAME_UPPER"));
        tidy(&mut node);
        assert_eq!(node.attribute.len(), 1);
    }
}
