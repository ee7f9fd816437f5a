//! Small GGUF files.

/// A value of a key.
#[derive(Clone, Debug)]
pub enum Meta {
    Number(u32),
    Float(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
    Floats(Vec<f32>),
    /// Type and bytes, as they are.
    Raw(u32, Vec<u8>),
}

use Meta::{Flag, Float, Floats, Number, Numbers, Raw, Text, Texts};

impl Meta {
    pub fn text(text: &str) -> Meta {
        Text(text.to_owned())
    }

    pub fn texts(texts: &[&str]) -> Meta {
        Texts(texts.iter().map(|text| (*text).to_owned()).collect())
    }
}

/// A file to be.
#[derive(Clone, Debug)]
pub struct Sketch {
    pub version: u32,
    pub alignment: u64,
    pub keys: Vec<(String, Meta)>,
    /// Name, dimensions innermost first, type.
    pub tensors: Vec<(String, Vec<u64>, u32)>,
}

pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_0: u32 = 2;
pub const Q8_0: u32 = 8;
pub const I32: u32 = 26;
pub const BF16: u32 = 30;

impl Sketch {
    /// A model of the Llama kind: width 32, two heads, of which one has keys.
    pub fn llama() -> Sketch {
        let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "<0x0A>", "<u>"];
        let rows = tokens.len() as u64;
        let key = |(key, value): (&str, Meta)| (key.to_owned(), value);
        let keys = [
            ("general.architecture", Meta::text("llama")),
            ("llama.context_length", Number(64)),
            ("llama.embedding_length", Number(32)),
            ("llama.block_count", Number(1)),
            ("llama.feed_forward_length", Number(64)),
            ("llama.attention.head_count", Number(2)),
            ("llama.attention.head_count_kv", Number(1)),
            ("llama.attention.layer_norm_rms_epsilon", Float(1e-5)),
            ("tokenizer.ggml.model", Meta::text("llama")),
            ("tokenizer.ggml.tokens", Meta::texts(&tokens)),
            ("tokenizer.ggml.scores", Floats(vec![0., 0., 0., -2., -3., -1., -4., 0., 0.])),
            ("tokenizer.ggml.token_type", Numbers(vec![2, 3, 3, 1, 1, 1, 1, 6, 4])),
            ("tokenizer.ggml.bos_token_id", Number(1)),
            ("tokenizer.ggml.eos_token_id", Number(2)),
        ];
        let tensors: [(&str, &[u64], u32); 11] = [
            ("token_embd.weight", &[32, rows], Q8_0),
            ("output_norm.weight", &[32], F32),
            ("blk.0.attn_norm.weight", &[32], F32),
            ("blk.0.attn_q.weight", &[32, 32], Q8_0),
            ("blk.0.attn_k.weight", &[32, 16], F32),
            ("blk.0.attn_v.weight", &[32, 16], BF16),
            ("blk.0.attn_output.weight", &[32, 32], F16),
            ("blk.0.ffn_norm.weight", &[32], F32),
            ("blk.0.ffn_gate.weight", &[32, 64], Q4_0),
            ("blk.0.ffn_up.weight", &[32, 64], Q4_0),
            ("blk.0.ffn_down.weight", &[64, 32], Q4_0),
        ];
        let tensor =
            |(name, shape, kind): &(&str, &[u64], u32)| ((*name).to_owned(), shape.to_vec(), *kind);
        let (keys, tensors) = (keys.map(key).to_vec(), tensors.iter().map(tensor).collect());
        Sketch { version: 3, alignment: 32, keys, tensors }
    }

    pub fn set(mut self, key: &str, value: Meta) -> Sketch {
        self.keys.retain(|(own, _)| own != key);
        self.keys.push((key.to_owned(), value));
        self
    }

    pub fn without(mut self, name: &str) -> Sketch {
        self.keys.retain(|(key, _)| key != name);
        self.tensors.retain(|(tensor, _, _)| tensor != name);
        self
    }

    pub fn tensor(mut self, name: &str, shape: &[u64], kind: u32) -> Sketch {
        self.tensors.retain(|(own, _, _)| own != name);
        self.tensors.push((name.to_owned(), shape.to_vec(), kind));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            meta(&mut out, value);
        }
        let mut offset = 0;
        for (name, shape, kind) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(u64::to_le_bytes(offset));
            offset = (offset + data_bytes(shape, *kind)).next_multiple_of(self.alignment);
        }
        let begin = (out.len() as u64).next_multiple_of(self.alignment);
        out.resize((begin + offset) as usize, 0x11);
        out
    }
}

/// Bytes of a tensor of a type that has some here.
fn data_bytes(shape: &[u64], kind: u32) -> u64 {
    let (values, bytes) = match kind {
        F32 | I32 => (1, 4),
        F16 | BF16 => (1, 2),
        Q4_0 => (32, 18),
        Q8_0 => (32, 34),
        _ => return 0,
    };
    let all = shape.iter().copied().fold(1, u64::saturating_mul);
    let data = (all / values).saturating_mul(bytes);
    // What is to be beyond the file's end is not written.
    if data < 1 << 24 { data } else { 0 }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.bytes());
}

fn meta(out: &mut Vec<u8>, value: &Meta) {
    let array = |out: &mut Vec<u8>, kind: u32, length: usize| {
        out.extend(9_u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((length as u64).to_le_bytes());
    };
    match value {
        Number(value) => out.extend([4_u32.to_le_bytes(), value.to_le_bytes()].concat()),
        Float(value) => out.extend([6_u32.to_le_bytes(), value.to_le_bytes()].concat()),
        Flag(value) => {
            out.extend(7_u32.to_le_bytes());
            out.push(u8::from(*value));
        }
        Text(value) => {
            out.extend(8_u32.to_le_bytes());
            text(out, value);
        }
        Texts(values) => {
            array(out, 8, values.len());
            values.iter().for_each(|value| text(out, value));
        }
        Numbers(values) => {
            array(out, 5, values.len());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
        Floats(values) => {
            array(out, 6, values.len());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
        Raw(kind, bytes) => {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
    }
}
