//! Ways of saying the same that tract takes for something else.

use super::text;
use tract_onnx::pb::NodeProto;

/// Drops inputs and outputs that are named only to be left out at the end, which tract counts, and
/// explicit pads where `auto_pad` says that there are none, which tract prefers.
pub fn tidy(node: &mut NodeProto) {
    for names in [&mut node.input, &mut node.output] {
        while names.len() > 1 && names.last().is_some_and(|name| name.is_empty()) {
            names.pop();
        }
    }
    if text(node, "auto_pad", "NOTSET") != "NOTSET" {
        node.attribute.retain(|attribute| attribute.name != "pads");
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
