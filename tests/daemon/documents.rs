//! What the documents tell users to type: the commands of their indented blocks, run in their order
//! on a real model, as one would who reads them.

use crate::common::programs::program;
use crate::common::references::model_file;
use npyz::WriterBuilder;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

const DOCUMENTS: [&str; 4] = ["README.md", "CONTRIBUTING.md", "cross/README.md", "docs/boards.md"];

/// Words that a command begins with. What else is indented is a picture, a list or an answer.
const COMMANDS: [&str; 11] = [
    "cargo",
    "cross",
    "curl",
    "export",
    "grep",
    "hermes-bench",
    "hermes-shard",
    "hermesctl",
    "hermesd",
    "make",
    "ssh",
];

/// What is not run, and why.
const LEFT_OUT: [(&str, &str); 4] = [
    ("cargo ", "builds what is tested here"),
    ("cross ", "builds for another machine"),
    ("ssh ", "there is one machine: its daemon is asked directly"),
    ("hermes-shard build ./model", "the model's own folder is another one"),
];

/// A command as it is written, with the lines that it goes on in, and where.
struct Written {
    document: &'static str,
    line: usize,
    section: String,
    text: String,
}

/// Every command of a document.
fn commands(document: &'static str) -> Vec<Written> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = fs::read_to_string(path).unwrap();
    let mut found: Vec<Written> = vec![];
    let (mut section, mut goes_on) = (String::new(), false);
    for (index, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_string();
        }
        let Some(code) = line.strip_prefix("    ") else {
            goes_on = false;
            continue;
        };
        let first = code.split_whitespace().next().unwrap_or("");
        match found.last_mut().filter(|_| goes_on) {
            Some(last) => last.text.extend(["\n", code]),
            None if COMMANDS.contains(&first) => found.push(Written {
                document,
                line: index + 1,
                section: section.clone(),
                text: code.to_string(),
            }),
            None => continue,
        }
        let whole = &found.last().expect("one was found").text;
        goes_on = whole.ends_with('\\') || whole.matches('\'').count() % 2 == 1;
    }
    found
}

/// What the documents' model is here, and its inputs.
fn furnish(folder: &Path) {
    let model = model_file("paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx");
    let makers = folder.join("bge-small-en");
    fs::create_dir_all(makers.join("1_Pooling")).unwrap();
    let module = |index: u32, path: &str, kind: &str| {
        format!(
            r#"{{"idx": {index}, "path": "{path}", "type": "sentence_transformers.models.{kind}"}}"#
        )
    };
    let modules = [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")].join(", ");
    fs::write(makers.join("modules.json"), format!("[{modules}]")).unwrap();
    let pooling = r#"{"word_embedding_dimension": 384, "pooling_mode_mean_tokens": true}"#;
    fs::write(makers.join("1_Pooling/config.json"), pooling).unwrap();
    for place in [folder, &folder.join("laptop"), &makers] {
        fs::create_dir_all(place).unwrap();
        fs::copy(&model, place.join("model.onnx")).unwrap();
        fs::copy(model.with_file_name("tokenizer.json"), place.join("tokenizer.json")).unwrap();
    }
    let checkpoints = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints");
    let language_model = folder.join("SmolLM2-135M-Instruct");
    fs::create_dir_all(&language_model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(checkpoints.join("qwen2").join(name), language_model.join(name)).unwrap();
    }
    let packed = language_model.with_file_name("SmolLM2-135M-Instruct-Q8_0.gguf");
    fs::copy(checkpoints.join("gguf_q4_1.gguf"), packed).unwrap();
    fs::write(folder.join("texts.txt"), "a sentence\nanother\n").unwrap();
    for (name, values) in [("ids", [101i64, 2003, 102]), ("mask", [1, 1, 1])] {
        let file = fs::File::create(folder.join(format!("{name}.npy"))).unwrap();
        let writer = npyz::WriteOptions::new().default_dtype().shape(&[1, 3]).writer(file);
        let mut writer = writer.begin_nd().unwrap();
        writer.extend(values).unwrap();
        writer.finish().unwrap();
    }
}

/// A command as it is run: the same but for places, for daemons, and for what takes a GB.
fn as_run(text: &str, folder: &Path, port: u16) -> String {
    let socket = folder.join("hermes.sock").display().to_string();
    let text = text
        .replace("/tmp/hermes.sock", &socket)
        .replace("/tmp/board.sock", &socket)
        .replace("/var/lib/hermes", &folder.join("store").display().to_string())
        .replace("127.0.0.1:8000", &format!("127.0.0.1:{port}"))
        .replace("bert-large", "bert-tiny")
        // Programs that are built for tests take longer.
        .replace("400ms", "60s");
    match text.split_whitespace().next() {
        Some("hermesd") => format!(
            "[[ -z ${{daemon:-}} ]] || {{ kill $daemon; wait $daemon; }}\n\
             {} 2>hermesd.log & daemon=$!\n\
             until hermesctl --socket {socket} ls >/dev/null 2>&1; do\n\
             kill -0 $daemon || {{ cat hermesd.log; exit 1; }}; done",
            text.split(" #").next().unwrap_or_default()
        ),
        // It says 1 where this machine lacks something.
        Some("hermesctl") if text.starts_with("hermesctl doctor") => {
            format!("{text}\n[[ $? -le 1 ]]")
        }
        _ => text,
    }
}

/// Commands were renamed, options went, and examples told of what was no more.
#[test]
fn every_command_of_the_documents_does_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    furnish(&folder);
    let mut script = "trap '[[ -z ${daemon:-} ]] || kill $daemon; wait' EXIT\n".to_string();
    let mut run = 0;
    // One that nobody has at the moment.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for command in DOCUMENTS.into_iter().flat_map(commands) {
        let Written { document, line, section, text } = command;
        let is_left_out = LEFT_OUT.iter().any(|(start, _)| text.starts_with(start));
        if is_left_out || text.starts_with("make") {
            continue;
        }
        run += 1;
        // Versions come from a machine with a store of its own.
        let place = if section == "Versions" { folder.join("laptop") } else { folder.clone() };
        let runs = as_run(&text, &folder, port);
        script += &format!(
            "cd {place}\necho '== {document}:{line}'\n{runs}\n\
             [[ $? == 0 ]] || {{ echo 'FAILED: {document}:{line}'; cat {log}; exit 1; }}\n",
            place = place.display(),
            log = folder.join("hermesd.log").display()
        );
    }
    assert!(run > 25, "{run} commands were found");
    let programs = Path::new(program("hermesd")).parent().unwrap();
    for name in ["hermes-bench", "hermes-shard", "hermesctl"] {
        program(name);
    }
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(&script).env("PATH", path).env_remove("HERMES_SOCKET");
    let output = bash.stdin(std::process::Stdio::null()).output().unwrap();
    let end = |told: &[u8]| {
        String::from_utf8_lossy(&told[told.len().saturating_sub(4000)..]).into_owned()
    };
    assert!(output.status.success(), "{}\n{}", end(&output.stdout), end(&output.stderr));
}

#[test]
fn every_target_that_the_documents_make_is_there() {
    let makefile = Path::new(env!("CARGO_MANIFEST_DIR")).join("Makefile");
    let makefile = fs::read_to_string(makefile).unwrap();
    let mut made = 0;
    for Written { document, line, text, .. } in DOCUMENTS.into_iter().flat_map(commands) {
        for part in text.split(" #").next().unwrap_or_default().split("&&") {
            let part = part.trim().trim_start_matches("sudo ");
            let Some(targets) = part.strip_prefix("make ") else { continue };
            for target in targets.split_whitespace() {
                made += 1;
                let is_there = makefile.lines().any(|rule| rule.starts_with(&format!("{target}:")));
                assert!(is_there, "{document}:{line}: there is no target {target}");
            }
        }
    }
    assert!(made > 10, "{made} targets were found");
}
