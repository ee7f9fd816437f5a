//! Files that are taken for ONNX models and are something else: known by their first bytes, and told
//! with the way to an ONNX file.

use crate::sys::file::open_regular;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a file's beginning that are looked at, and of its end, where an archive has its list.
const LOOK_BYTES: u64 = 64 << 10;

/// How files end that may be what a model was made of; configs and pages beside it are not.
const ENDS: [&str; 14] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "gguf",
    "tflite",
    "h5",
    "keras",
    "pb",
    "mlmodel",
    "xml",
    "ort",
    "zip",
    "gz",
];

const OPTIMUM: &str = "export the model that it belongs to: optimum-cli export onnx --model \
                       FOLDER_OR_NAME OUT, or torch.onnx.export in code";
const IN_FOLDER: &str = "call it model.safetensors and lay config.json beside it";
const TORCH: &str = "load it in Python and call torch.onnx.export(model, example, \"model.onnx\"), or \
                     for a model of Hugging Face: optimum-cli export onnx --model FOLDER_OR_NAME OUT";
const POINTER: &str = "a pointer of Git LFS in place of the file";
const PAGE: &str = "an HTML page, not the file that was to be downloaded";
const PULL: &str =
    "fetch the file itself: git lfs install && git lfs pull, in the folder of the repository";
const PICKLE: &str = "load it in Python and call torch.onnx.export(model, example, \"model.onnx\"), \
                      or for scikit-learn skl2onnx.to_onnx";
const UNPACK: &str = "unpack it and give the .onnx file in it";
const AGAIN: &str = "download it again; of a page for people take the link to the file itself (on \
                     Hugging Face /resolve/ in place of /blob/), with curl -fL";

/// What a file is that is no ONNX model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Words that follow "is".
    pub what: &'static str,
    /// How an ONNX file is got from it.
    pub advice: &'static str,
}

const fn foreign(what: &'static str, advice: &'static str) -> Option<Foreign> {
    Some(Foreign { what, advice })
}

impl Foreign {
    /// What the file at `path` is, where that is known and it is no ONNX model.
    pub fn of(path: &Path) -> Option<Foreign> {
        let Ok((head, tail, bytes)) = look(path) else { return None };
        by_magic(&head, bytes).or_else(|| by_text(&head)).or_else(|| by_content(&head, &tail))
    }

    /// What lies at `path` in place of a text that was not fetched: a pointer of Git LFS, or a page.
    pub fn in_place_of_text(path: &Path) -> Option<Foreign> {
        Foreign::of(path).filter(|found| [POINTER, PAGE].contains(&found.what))
    }

    /// What lies in a folder in which there is no ONNX file, by name.
    pub fn in_folder(folder: &Path) -> Option<(String, Foreign)> {
        if folder.extension().is_some_and(|end| end == "mlpackage") {
            return Some(("it".to_owned(), CORE_ML?));
        }
        let entries = fs::read_dir(folder).ok()?;
        let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        files.iter().find_map(|path| {
            let name = path.file_name()?.to_string_lossy();
            let is_model = ENDS.iter().any(|end| path.extension().is_some_and(|own| own == *end));
            Some((name.into_owned(), is_model.then(|| Foreign::of(path)).flatten()?))
        })
    }
}

/// The file's beginning, its end, and its length.
fn look(path: &Path) -> io::Result<(Vec<u8>, Vec<u8>, u64)> {
    // Nobody may ever write to a pipe. Links are usual where models are cached.
    let (file, bytes) = open_regular(&fs::canonicalize(path)?)?;
    let mut head = vec![];
    (&file).take(LOOK_BYTES).read_to_end(&mut head)?;
    let tail_bytes = bytes.min(LOOK_BYTES);
    let mut tail = vec![0; tail_bytes as usize];
    file.read_exact_at(&mut tail, bytes - tail_bytes)?;
    Ok((head, tail, bytes))
}

/// By bytes that a format begins with.
fn by_magic(head: &[u8], bytes: u64) -> Option<Foreign> {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
    };
    if bytes == 0 {
        return foreign("an empty file", AGAIN);
    }
    if [&b"tjgg"[..], b"fmgg", b"lmgg"].iter().any(|magic| at(0, magic)) {
        return foreign("a GGML file of before GGUF, weights without a graph", OPTIMUM);
    }
    if is_safetensors(head, bytes) {
        return foreign("a safetensors file, weights without a graph", IN_FOLDER);
    }
    if at(4, b"TFL3") {
        let advice = "convert it: python -m tf2onnx.convert --tflite FILE --output model.onnx";
        return foreign("a TensorFlow Lite model", advice);
    }
    if at(0, b"\x89HDF\r\n\x1a\n") {
        let advice = "convert it: python -m tf2onnx.convert --keras FILE --output model.onnx; where \
                      it has weights alone, build the model in Python before";
        return foreign("an HDF5 file, as Keras saves (.h5)", advice);
    }
    if at(4, b"ORTM") {
        return foreign(
            "a model in ONNX Runtime's own format (.ort)",
            "give the .onnx file that it was made of: there is no way back",
        );
    }
    if head.len() >= 2 && head[0] == 0x80 && (2..=5).contains(&head[1]) {
        return foreign("a Python pickle, as scikit-learn and PyTorch before 1.6 save", PICKLE);
    }
    let packed: [(&[u8], &'static str); 5] = [
        (b"\x1f\x8b", "a gzip archive"),
        (b"\xfd7zXZ\0", "an xz archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (b"BZh", "a bzip2 archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    ];
    if let Some((_, what)) = packed.into_iter().find(|(magic, _)| at(0, magic)) {
        return foreign(what, UNPACK);
    }
    if at(257, b"ustar") {
        return foreign("a tar archive", UNPACK);
    }
    if at(0, b"\x93NUMPY") {
        return foreign("a NumPy array", "give the .onnx file of the model");
    }
    if head.len() >= 16 && head.iter().all(|byte| *byte == 0) {
        return foreign("empty where it should begin: a download that was not finished", AGAIN);
    }
    None
}

/// A length of a header, and its JSON.
fn is_safetensors(head: &[u8], bytes: u64) -> bool {
    let Some((length, text)) = head.split_first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    (2..=bytes.saturating_sub(8)).contains(&length) && text.starts_with(b"{\"")
}

/// Texts of all kinds.
fn by_text(head: &[u8]) -> Option<Foreign> {
    let start = head.iter().position(|byte| !b"\xef\xbb\xbf \t\r\n".contains(byte))?;
    let text = String::from_utf8_lossy(&head[start..head.len().min(start + 4096)]).to_lowercase();
    if text.starts_with("version https://git-lfs.github.com/spec/") {
        return foreign(POINTER, PULL);
    }
    if text.starts_with('<') && (text.contains("<!doctype html") || text.contains("<html")) {
        return foreign(PAGE, AGAIN);
    }
    if text.starts_with("<?xml") || text.starts_with("<net") {
        return match text.contains("<net ") {
            true => foreign(
                "a model of OpenVINO (.xml with .bin)",
                "export the model that it was made of: OpenVINO writes no ONNX",
            ),
            false => foreign("an XML text", AGAIN),
        };
    }
    let is_object = text.starts_with('{');
    if is_object && ["\"added_tokens\"", "\"truncation\""].iter().all(|key| text.contains(key)) {
        return foreign(
            "a tokenizer (tokenizer.json), which goes beside the model",
            "give the .onnx file, or the folder in which both are",
        );
    }
    if text.starts_with("{\"") || text.starts_with("{\n") || text.starts_with("{\r") {
        return foreign("a JSON text: a config, an index of weights, or a server's error", AGAIN);
    }
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    match head[start..].iter().all(is_text) {
        true if text.contains("ir_version") => foreign(
            "an ONNX model written as text",
            "make it binary in Python: onnx.save(onnx.parser.parse_model(text), \"model.onnx\"), or \
             google.protobuf.text_format for .pbtxt",
        ),
        true => foreign("a text, such as a server's error", AGAIN),
        false => None,
    }
}

/// By what is in archives, and in protobuf messages of others.
fn by_content(head: &[u8], tail: &[u8]) -> Option<Foreign> {
    let has = |bytes: &[u8]| [head, tail].iter().any(|part| contains(part, bytes));
    if head.starts_with(b"PK\x03\x04") {
        return match () {
            _ if has(b"/data.pkl") || has(b"/constants.pkl") => {
                foreign("a PyTorch file (torch.save or TorchScript)", TORCH)
            }
            _ if has(b"model.weights.h5") => foreign(
                "a Keras model (.keras)",
                "load it with Keras 3 and call model.export(\"model.onnx\", format=\"onnx\")",
            ),
            _ if has(b".mlmodel") => CORE_ML,
            _ if has(b".npy") => foreign("NumPy arrays (.npz)", "give the .onnx file of the model"),
            _ => foreign("a zip archive", UNPACK),
        };
    }
    // ONNX begins with its version and the exporter's name: a text in this place, not a message.
    let message = match head {
        [0x08, version, 0x12, rest @ ..] if *version < 0x80 => after_length(rest),
        _ => None,
    };
    if message.is_some_and(|message| message.first() == Some(&0x0a)) {
        if has(b"coremltools") {
            return CORE_ML;
        }
        if has(b"serve") {
            return foreign(
                "a SavedModel of TensorFlow",
                "convert its folder: python -m tf2onnx.convert --saved-model FOLDER --output \
                 model.onnx",
            );
        }
    }
    is_graph_def(head).then_some(Foreign {
        what: "a frozen graph of TensorFlow (GraphDef)",
        advice: "convert it: python -m tf2onnx.convert --graphdef FILE --inputs NAME:0 \
                     --outputs NAME:0 --output model.onnx",
    })
}

const CORE_ML: Option<Foreign> = foreign(
    "a Core ML model",
    "export the model that it was made of; older .mlmodel files are converted by \
     onnxmltools.convert_coreml",
);

/// Nodes, each of which begins with its name and its operator.
fn is_graph_def(head: &[u8]) -> bool {
    let node = head.strip_prefix(&[0x0a]).and_then(after_length);
    let Some([0x0a, length, rest @ ..]) = node else { return false };
    let Some((name, after)) = rest.split_at_checked(usize::from(*length)) else { return false };
    name.iter().all(u8::is_ascii_graphic) && after.starts_with(&[0x12])
}

/// What comes after a varint that is a length.
fn after_length(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().take(5).position(|byte| byte & 0x80 == 0)?;
    bytes.get(end + 1..)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
