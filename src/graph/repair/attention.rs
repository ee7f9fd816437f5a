//! Attention spelled out, wherever it is more than a softmax of products.
//!
//! Tract's own takes a mask of booleans for numbers, aligns a causal mask as if there were no
//! past, knows no windows, caps or cache of given lengths, and answers NaN for rows of which every
//! key is masked. Plain attention is left to it: it never holds all of the scores.

use super::draft::{self, Replacement};
use super::kinds::Kinds;
use super::{attribute, float, input, int, output};
use tract_onnx::pb::NodeProto;
use tract_onnx::pb::tensor_proto::DataType;

/// What its fourth output shows.
mod shown {
    pub const PRODUCT: i64 = 0;
    pub const CAPPED: i64 = 1;
    pub const BIASED: i64 = 2;
    pub const WEIGHTS: i64 = 3;
}

pub fn attention(
    node: &NodeProto,
    kinds: &Kinds,
    draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    let lengths = input(node, 6);
    let window = ["left_window_size", "right_window_size"]
        .map(|name| int(node, name, -1))
        .map(|size| if size < 0 { None } else { Some(size) });
    let spelled = Spelled {
        node,
        causal: int(node, "is_causal", 0) == 1,
        left: window[0],
        right: window[1],
        heads: attribute(node, "q_num_heads").map(|q| (q.i, int(node, "kv_num_heads", q.i))),
        softcap: float(node, "softcap", 0.0),
        draft,
    };
    let is_plain = input(node, 3).is_none()
        && lengths.is_none()
        && !spelled.is_banded()
        && spelled.softcap == 0.0
        && attribute(node, "softmax_precision").is_none()
        && output(node, 3).is_none();
    if is_plain {
        return Ok(None);
    }
    spelled.nodes(kinds).map(Some)
}

/// com.microsoft's MultiHeadAttention, which differs in what its inputs are.
pub fn multi_head(
    node: &NodeProto,
    kinds: &Kinds,
    draft: Replacement,
) -> Result<Option<Vec<NodeProto>>, String> {
    if int(node, "unidirectional", 0) == 0 {
        return Ok(None);
    }
    let given = (3..node.input.len()).find(|at| input(node, *at).is_some());
    if node.input.len() < 3 || given.is_some() || node.output.len() > 1 {
        let why = "its attribute unidirectional is 1; with it only query, key and value are \
                   computed, without bias, mask, past or present";
        return Err(why.to_string());
    }
    let heads = int(node, "num_heads", 1);
    let mut plain = NodeProto { domain: String::new(), ..node.clone() };
    plain.attribute.retain(|attribute| attribute.name == "scale");
    let attributes = [("q_num_heads", heads), ("kv_num_heads", heads), ("is_causal", 1)];
    plain.attribute.extend(attributes.map(|(name, value)| draft::int(name, value)));
    attention(&plain, kinds, draft)
}

struct Spelled<'a> {
    node: &'a NodeProto,
    causal: bool,
    left: Option<i64>,
    right: Option<i64>,
    /// Heads of queries and of keys, where the inputs have three axes.
    heads: Option<(i64, i64)>,
    softcap: f32,
    draft: Replacement,
}

impl Spelled<'_> {
    /// Whether a query's place says which keys it sees.
    fn is_banded(&self) -> bool {
        self.causal || self.left.is_some() || self.right.is_some()
    }

    fn nodes(mut self, kinds: &Kinds) -> Result<Vec<NodeProto>, String> {
        let node = self.node;
        let q = self.with_heads(&node.input[0], self.heads.map(|heads| heads.0));
        let k = self.with_heads(&node.input[1], self.heads.map(|heads| heads.1));
        let v = self.with_heads(&node.input[2], self.heads.map(|heads| heads.1));
        let (past, k, v) = match (input(node, 4), input(node, 5)) {
            (Some(past_k), Some(past_v)) => {
                let past = self.draft.length(past_k, 2);
                let k = self.draft.concat(&[past_k, &k], 2);
                (Some(past), k, self.draft.concat(&[past_v, &v], 2))
            }
            (None, None) => (None, k, v),
            _ => return Err("of past_key and past_value it has only one".to_string()),
        };
        let scores = self.scores(&q, &k);
        let capped = self.capped(&scores);
        let mut biased = capped.clone();
        if let Some(mask) = input(node, 3) {
            biased = self.masked(&biased, mask, &k, kinds)?;
        }
        if let Some(allowed) = self.allowed(&q, &k, past.as_deref()) {
            let bias = self.as_bias(&allowed);
            biased = self.draft.node("Add", &[&biased, &bias]);
        }
        let weights = self.weights(&biased);
        let y = self.weighted(&weights, &q, &v);
        let shown = match int(node, "qk_matmul_output_mode", shown::PRODUCT) {
            shown::CAPPED => &capped,
            shown::BIASED => &biased,
            shown::WEIGHTS => &weights,
            _ => &scores,
        };
        let made = [Some(y), Some(k), Some(v), Some(shown.clone())];
        for (at, made) in made.iter().enumerate() {
            if let (Some(made), Some(wanted)) = (made, output(node, at)) {
                let identity = self.draft.node("Identity", &[made]);
                self.draft.give(&identity, wanted);
            }
        }
        Ok(self.draft.finish())
    }

    /// Axes batch, head, token, channel.
    fn with_heads(&mut self, x: &str, heads: Option<i64>) -> String {
        match heads {
            None => x.to_string(),
            Some(heads) => {
                let split = self.draft.reshape(x, &[0, 0, heads, -1]);
                self.draft.transpose(&split, &[0, 2, 1, 3])
            }
        }
    }

    /// Queries by the heads of keys that they share: batch, head of keys, query of it, token,
    /// channel.
    fn grouped(&mut self, x: &str, like: &str) -> String {
        let batch = self.draft.size(x, 0);
        let heads = self.draft.size(like, 1);
        let rest = self.draft.ints(&[-1]);
        let (rows, columns) = (self.draft.size(x, 2), self.draft.size(x, 3));
        let shape = self.draft.concat(&[&batch, &heads, &rest, &rows, &columns], 0);
        self.draft.node("Reshape", &[x, &shape])
    }

    /// The reverse: all heads of `like` on one axis.
    fn ungrouped(&mut self, x: &str, like: &str) -> String {
        let (batch, heads) = (self.draft.size(like, 0), self.draft.size(like, 1));
        let (rows, columns) = (self.draft.size(x, 3), self.draft.size(x, 4));
        let shape = self.draft.concat(&[&batch, &heads, &rows, &columns], 0);
        self.draft.node("Reshape", &[x, &shape])
    }

    /// The scaled products of queries and keys.
    fn scores(&mut self, q: &str, k: &str) -> String {
        let scale = match attribute(self.node, "scale") {
            Some(scale) => self.draft.float_like(scale.f, q),
            None => {
                let channels = self.draft.length(q, 3);
                let channels = self.draft.cast(&channels, DataType::Float);
                let root = self.draft.node("Sqrt", &[&channels]);
                let scale = self.draft.node("Reciprocal", &[&root]);
                self.draft.node("CastLike", &[&scale, q])
            }
        };
        let q_scaled = self.draft.node("Mul", &[q, &scale]);
        if self.has_one_query_a_key() {
            let turned = self.draft.transpose(k, &[0, 1, 3, 2]);
            return self.draft.node("MatMul", &[&q_scaled, &turned]);
        }
        let groups = self.grouped(&q_scaled, k);
        let turned = self.draft.transpose(k, &[0, 1, 3, 2]);
        let turned = self.draft.unsqueeze(&turned, &[2]);
        let products = self.draft.node("MatMul", &[&groups, &turned]);
        self.ungrouped(&products, q)
    }

    fn weighted(&mut self, weights: &str, q: &str, v: &str) -> String {
        let y = if self.has_one_query_a_key() {
            self.draft.node("MatMul", &[weights, v])
        } else {
            let groups = self.grouped(weights, v);
            let values = self.draft.unsqueeze(v, &[2]);
            let products = self.draft.node("MatMul", &[&groups, &values]);
            self.ungrouped(&products, q)
        };
        match self.heads {
            None => y,
            Some(_) => {
                let turned = self.draft.transpose(&y, &[0, 2, 1, 3]);
                self.draft.reshape(&turned, &[0, 0, -1])
            }
        }
    }

    fn has_one_query_a_key(&self) -> bool {
        self.heads.is_some_and(|(q, kv)| q == kv)
    }

    fn capped(&mut self, scores: &str) -> String {
        if self.softcap == 0.0 {
            return scores.to_string();
        }
        let cap = self.draft.float_like(self.softcap, scores);
        let scaled = self.draft.node("Div", &[scores, &cap]);
        let squashed = self.draft.node("Tanh", &[&scaled]);
        self.draft.node("Mul", &[&squashed, &cap])
    }

    /// Adds a mask, or the numbers that one of booleans stands for.
    fn masked(
        &mut self,
        scores: &str,
        mask: &str,
        k: &str,
        kinds: &Kinds,
    ) -> Result<String, String> {
        let kind = kinds.kind(mask);
        let is_short = match kinds.dims(mask).as_deref() {
            Some([.., size]) => size.is_some() && self.keys(kinds).is_none_or(|n| Some(n) != *size),
            _ => false,
        };
        let bias = match kind {
            Some(DataType::Bool) => self.as_bias_like(mask, scores),
            Some(DataType::Float | DataType::Float16 | DataType::Double) => mask.to_string(),
            Some(other) => return Err(format!("its attn_mask is of {}", other.as_str_name())),
            None => return Err("the type of its attn_mask is not to be seen".to_string()),
        };
        if !is_short {
            return Ok(self.draft.node("Add", &[scores, &bias]));
        }
        // Keys beyond a short mask are masked.
        let (keys, known) = (self.draft.size(k, 2), self.draft.size(mask, -1));
        let missing = self.draft.node("Sub", &[&keys, &known]);
        let rank = kinds.rank(mask).unwrap_or(2);
        let before = self.draft.ints(&vec![0; 2 * rank - 1]);
        let pads = self.draft.concat(&[&before, &missing], 0);
        let nothing = self.draft.float(f32::NEG_INFINITY);
        let nothing = self.draft.node("CastLike", &[&nothing, scores]);
        let bias = self.draft.node("Pad", &[&bias, &pads, &nothing]);
        Ok(self.draft.node("Add", &[scores, &bias]))
    }

    /// How many keys there are, where the graph declares it.
    fn keys(&self, kinds: &Kinds) -> Option<i64> {
        let axis = if self.heads.is_some() { 1 } else { 2 };
        let length = |name: Option<&str>, axis: usize| match name {
            None => Some(0),
            Some(name) => *kinds.dims(name)?.get(axis)?,
        };
        Some(length(input(self.node, 4), 2)? + length(input(self.node, 1), axis)?)
    }

    /// Which keys each query may see by its place: a tensor of booleans.
    fn allowed(&mut self, q: &str, k: &str, past: Option<&str>) -> Option<String> {
        let lengths = input(self.node, 6).map(str::to_string);
        if !self.is_banded() && lengths.is_none() {
            return None;
        }
        let (zero, one) = (self.draft.int(0), self.draft.int(1));
        let keys = self.draft.length(k, 2);
        let columns = self.draft.node("Range", &[&zero, &keys, &one]);
        let lengths = lengths.map(|lengths| self.draft.unsqueeze(&lengths, &[1, 2, 3]));
        let mut allowed = lengths.as_ref().map(|n| self.draft.node("Less", &[&columns, n]));
        if self.is_banded() {
            let queries = self.draft.length(q, 2);
            let rows = self.draft.node("Range", &[&zero, &queries, &one]);
            let mut rows = self.draft.unsqueeze(&rows, &[1]);
            if let Some(past) = past {
                rows = self.draft.node("Add", &[&rows, past]);
            } else if let Some(lengths) = &lengths {
                let before = self.draft.node("Sub", &[lengths, &queries]);
                rows = self.draft.node("Add", &[&rows, &before]);
            }
            let right = if self.causal { Some(0) } else { self.right };
            if let Some(right) = right {
                let right = self.draft.int(right);
                let last = self.draft.node("Add", &[&rows, &right]);
                let inside = self.draft.node("LessOrEqual", &[&columns, &last]);
                allowed = Some(self.both(allowed, inside));
            }
            if let Some(left) = self.left {
                let left = self.draft.int(left);
                let first = self.draft.node("Sub", &[&rows, &left]);
                let inside = self.draft.node("GreaterOrEqual", &[&columns, &first]);
                allowed = Some(self.both(allowed, inside));
            }
        }
        allowed
    }

    fn both(&mut self, one: Option<String>, other: String) -> String {
        match one {
            Some(one) => self.draft.node("And", &[&one, &other]),
            None => other,
        }
    }

    fn as_bias(&mut self, allowed: &str) -> String {
        let q = self.node.input[0].clone();
        self.as_bias_like(allowed, &q)
    }

    /// 0 where it is allowed to look, else minus infinity.
    fn as_bias_like(&mut self, allowed: &str, like: &str) -> String {
        let zero = self.draft.float_like(0.0, like);
        let nothing = self.draft.float_like(f32::NEG_INFINITY, like);
        self.draft.node("Where", &[allowed, &zero, &nothing])
    }

    /// The softmax, with rows of zeros where all is masked.
    fn weights(&mut self, biased: &str) -> String {
        let q = self.node.input[0].clone();
        let mut scores = biased.to_string();
        if let Some(precision) = attribute(self.node, "softmax_precision") {
            scores = self.draft.node_with("Cast", &[biased], vec![draft::int("to", precision.i)]);
        }
        let axis = draft::int("axis", -1);
        let weights = self.draft.node_with("Softmax", &[&scores], vec![axis]);
        let weights = self.draft.node("CastLike", &[&weights, &q]);
        // What is masked without a mask is nothing: only -inf in every place makes a NaN of it.
        let nothing = self.draft.float_like(f32::NEG_INFINITY, biased);
        let masked = self.draft.node("Equal", &[biased, &nothing]);
        let zero = self.draft.float_like(0.0, &q);
        self.draft.node("Where", &[&masked, &zero, &weights])
    }
}
