//! What a layer's tensors are called beside those of other layers: query, key, up, down.

/// Parts of a weight's name that say nothing of it.
const EMPTY: [&str; 6] = ["weight", "weights", "kernel", "dense", "linear", "matmul"];

/// Operators, as which exporters name nodes and the weights that they folded.
const OPERATORS: [&str; 2] = ["matmul", "gemm"];

/// Width of what people read.
const COLUMNS: usize = 80;

/// Most characters of a layer's name before a row of cells.
const MAX_LABEL: usize = 28;

/// A layer and its tensors, each with its kind and its bits.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerBits {
    /// Its name.
    pub layer: String,
    /// The tensors in their order.
    pub cells: Vec<(String, f64)>,
}

/// The kind of each tensor of a layer: the last part of its name that says something, with more of the
/// name where others end alike; its number where nothing is left, as of `onnx::MatMul_497`.
pub fn kinds(names: &[&str]) -> Vec<String> {
    let parts: Vec<Vec<&str>> = names.iter().map(|name| telling_parts(name)).collect();
    let suffix = |of: &[&str], length: usize| of[of.len().saturating_sub(length)..].join(".");
    let kind = |(index, of): (usize, &Vec<&str>)| {
        let is_own = |length: &usize| {
            let mine = suffix(of, *length);
            parts
                .iter()
                .enumerate()
                .all(|(at, other)| at == index || suffix(other, *length) != mine)
        };
        let length = (1..=of.len()).find(is_own);
        length.map_or_else(|| format!("#{}", index + 1), |length| suffix(of, length))
    };
    parts.iter().enumerate().map(kind).collect()
}

/// The name that tells of what kind a tensor is: its weight's, or that of the node that uses it where an
/// exporter has named the weight.
pub fn telling<'a>(weight: &'a str, node: &'a str) -> &'a str {
    if telling_parts(weight).is_empty() { node } else { weight }
}

fn telling_parts(name: &str) -> Vec<&str> {
    let tells = |part: &&str| {
        let lower = part.to_lowercase();
        let is_number = part.chars().all(|c| c.is_ascii_digit());
        let is_made_up = OPERATORS.iter().any(|of| lower.starts_with(of)) || part.contains("::");
        !(is_number || is_made_up || EMPTY.contains(&lower.as_str()))
    };
    name.split(['.', '/']).filter(tells).collect()
}

/// A table of bits, layers by kinds; layers of the same kinds have one head.
pub fn bits_table(layers: &[LayerBits]) -> String {
    let label = layers.iter().map(|of| of.layer.chars().count()).max().unwrap_or(0).min(MAX_LABEL);
    let same = |a: &LayerBits, b: &LayerBits| kinds_of(a).eq(kinds_of(b));
    let mut lines = vec![];
    for alike in layers.chunk_by(same) {
        let widths: Vec<usize> =
            kinds_of(&alike[0]).map(|kind| kind.chars().count().max(4) + 2).collect();
        for columns in fitting(&widths, COLUMNS - label) {
            let row = |name: &str, cells: Vec<String>| {
                let cells = cells.iter().zip(&widths[columns.clone()]);
                let cells: String = cells.map(|(cell, &width)| format!("{cell:>width$}")).collect();
                format!("{:label$}{cells}", shortened(name, label))
            };
            let head = kinds_of(&alike[0]).map(str::to_owned).collect::<Vec<_>>();
            lines.push(row("", head[columns.clone()].to_vec()));
            for of in alike {
                let bits = of.cells[columns.clone()].iter().map(|(_, bits)| format!("{bits:.1}"));
                lines.push(row(&of.layer, bits.collect()));
            }
        }
    }
    lines.join("\n")
}

fn kinds_of(layer: &LayerBits) -> impl Iterator<Item = &str> {
    layer.cells.iter().map(|(kind, _)| kind.as_str())
}

/// Runs of columns that each come to at most `most`, as far as single ones do.
fn fitting(widths: &[usize], most: usize) -> Vec<std::ops::Range<usize>> {
    let (mut runs, mut begin, mut width) = (vec![], 0, 0);
    for (index, own) in widths.iter().enumerate() {
        if width + own > most && index > begin {
            runs.push(begin..index);
            (begin, width) = (index, 0);
        }
        width += own;
    }
    runs.push(begin..widths.len());
    runs
}

/// The end of a name that is too long: it is what differs.
fn shortened(name: &str, most: usize) -> String {
    match name.chars().count() {
        count if count > most => {
            let end: String = name.chars().skip(count + 2 - most).collect();
            format!("..{end}")
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_what_names_differ_in() {
        let check = |names: &[&str], expected: &[&str]| assert_eq!(kinds(names), expected);
        check(
            &[
                "encoder.layer.0.attention.self.query.weight",
                "encoder.layer.0.attention.self.key.weight",
                "encoder.layer.0.attention.output.dense.weight",
                "encoder.layer.0.intermediate.dense.weight",
                "encoder.layer.0.output.dense.weight",
            ],
            &["query", "key", "attention.output", "intermediate", "layer.output"],
        );
        check(
            &["h.3.attn.c_attn.weight", "h.3.attn.c_proj.weight", "h.3.mlp.c_proj.weight"],
            &["c_attn", "attn.c_proj", "mlp.c_proj"],
        );
        check(&["onnx::MatMul_497", "onnx::MatMul_500"], &["#1", "#2"]);
        check(&["/h.3/attn/c_attn/Gemm", "/h.3/mlp/c_fc/MatMul_1"], &["c_attn", "c_fc"]);
        check(&["a.w", "a.w"], &["#1", "#2"]);
        check(&["", "weight"], &["#1", "#2"]);
        check(&[], &[]);
    }

    #[test]
    fn a_node_tells_where_a_weight_does_not() {
        let node = "/encoder/layer.3/attention/self/query/MatMul";
        assert_eq!(telling("onnx::MatMul_497", node), node);
        assert_eq!(telling("layer.3.query.weight", node), "layer.3.query.weight");
        assert_eq!(telling("onnx::MatMul_497", ""), "");
    }

    fn layer(name: &str, kinds: &[&str]) -> LayerBits {
        let cells = kinds.iter().enumerate().map(|(at, kind)| (kind.to_string(), 2.56 + at as f64));
        LayerBits { layer: name.to_owned(), cells: cells.collect() }
    }

    #[test]
    fn layers_of_the_same_kinds_have_one_head() {
        let kinds = ["query", "up"];
        let layers = [layer("layer.0", &kinds), layer("layer.1", &kinds), layer("pooler", &["p"])];
        let expected = "         query    up\n\
                        layer.0    2.6   3.6\n\
                        layer.1    2.6   3.6\n            p\n\
                        pooler    2.6";
        assert_eq!(bits_table(&layers), expected);
        assert_eq!(bits_table(&[]), "");
    }

    #[test]
    fn tables_fit_a_terminal() {
        let kinds: Vec<String> = (0..40).map(|at| format!("kind{at}")).collect();
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        let name = "a.layer.whose.name.is.longer.than.a.column.has.room.for.17";
        let table = bits_table(&[layer(name, &kinds)]);
        assert!(table.lines().all(|line| line.len() <= COLUMNS), "{table}");
        assert!(table.contains("for.17") && table.contains("kind39"), "{table}");
    }
}
