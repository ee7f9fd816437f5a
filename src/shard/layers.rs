//! Which layer a weight belongs to, from the names of the nodes that use it.

/// Words that name a repeated part without saying of what.
const GENERIC: [&str; 6] = ["layer", "layers", "block", "blocks", "h", "resblocks"];

/// Words worth keeping in place of a generic one.
const STACKS: [&str; 4] = ["encoder", "decoder", "vision_model", "text_model"];

/// The layer of each use, given the names of the consuming nodes in tape order: the weights
/// before the first repeated scope are `embeddings`, each repeated scope is one layer, those
/// after the last are `head`. Where nothing repeats all is one layer, `model`.
pub fn assign(nodes: &[&str]) -> Vec<String> {
    let scopes: Vec<Option<Scope>> = nodes.iter().map(|node| Scope::parse(node)).collect();
    let repeats = |scope: &Scope| {
        scopes.iter().flatten().any(|s| s.prefix == scope.prefix && s.number != scope.number)
    };
    let repeated: Vec<Option<&Scope>> =
        scopes.iter().map(|scope| scope.as_ref().filter(|s| repeats(s))).collect();
    let Some(last) = repeated.iter().rposition(Option::is_some) else {
        return vec!["model".to_string(); nodes.len()];
    };
    let mut current = "embeddings".to_string();
    repeated
        .iter()
        .enumerate()
        .map(|(index, scope)| {
            if let Some(scope) = scope {
                current = scope.name();
            } else if index > last {
                current = "head".to_string();
            }
            current.clone()
        })
        .collect()
}

/// A numbered scope of a node's name: `encoder.layer` 3 of `/encoder/layer.3/output/MatMul`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    prefix: Vec<String>,
    number: u64,
}

impl Scope {
    /// The outermost numbered scope; a number that ends the name counts nodes, not layers.
    fn parse(node: &str) -> Option<Scope> {
        let parts: Vec<&str> = node.split(['/', '.']).filter(|part| !part.is_empty()).collect();
        let inner = &parts[..parts.len().saturating_sub(1)];
        inner.iter().enumerate().find_map(|(index, part)| {
            let word = part.trim_end_matches(|c: char| c.is_ascii_digit());
            let number = part[word.len()..].parse().ok()?;
            let mut prefix: Vec<String> = inner[..index].iter().map(|p| p.to_string()).collect();
            let word = word.trim_end_matches(['_', '-']);
            if !word.is_empty() {
                prefix.push(word.to_string());
            }
            (!prefix.is_empty()).then_some(Scope { prefix, number })
        })
    }

    fn name(&self) -> String {
        let last = self.prefix.last().map(String::as_str).unwrap_or("layer");
        let stack = self.prefix.iter().rev().find(|word| STACKS.contains(&word.as_str()));
        let word = match stack {
            Some(stack) if GENERIC.contains(&last) => stack,
            _ => last,
        };
        format!("{word}.{}", self.number)
    }
}

/// A layer's name as part of a file name.
pub fn file_stem(layer: &str) -> String {
    layer
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(nodes: &[&str], expected: &[&str]) {
        assert_eq!(assign(nodes), expected, "{nodes:?}");
    }

    #[test]
    fn bert_of_the_legacy_exporter() {
        check(
            &[
                "/embeddings/word_embeddings/Gather",
                "/encoder/layer.0/attention/self/query/MatMul",
                "/encoder/layer.0/output/dense/MatMul",
                "/encoder/layer.1/attention/self/query/MatMul",
                "/pooler/dense/Gemm",
            ],
            &["embeddings", "encoder.0", "encoder.0", "encoder.1", "head"],
        );
    }

    #[test]
    fn decoders_vision_models_and_stages() {
        check(
            &[
                "/transformer/wte/Gather",
                "/transformer/h.0/attn/c_attn/Gemm",
                "/transformer/h.1/mlp/Gemm",
                "/lm_head/MatMul",
            ],
            &["embeddings", "h.0", "h.1", "head"],
        );
        check(
            &["/blocks/blocks.0/attn/qkv/MatMul", "/blocks/blocks.1/attn/qkv/MatMul"],
            &["blocks.0", "blocks.1"],
        );
        check(
            &["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"],
            &["layers.0", "layers.1", "head"],
        );
        check(
            &["/conv1/Conv", "/layer1/layer1.0/conv1/Conv", "/layer2/layer2.0/conv1/Conv"],
            &["embeddings", "layer.1", "layer.2"],
        );
    }

    #[test]
    fn numbers_that_count_nodes_are_no_layers() {
        check(&["MatMul_1", "MatMul_2"], &["model", "model"]);
        check(&["/a/MatMul_1", "/a/b/MatMul_2", ""], &["model", "model", "model"]);
        check(&[], &[]);
    }

    #[test]
    fn a_weight_between_layers_stays_with_the_layer_before() {
        check(&["/h.0/a/MatMul", "/shared/MatMul", "/h.1/a/MatMul"], &["h.0", "h.0", "h.1"]);
    }

    #[test]
    fn file_names_are_tame() {
        assert_eq!(file_stem("../a b/c.1"), ".._a_b_c.1");
    }
}
