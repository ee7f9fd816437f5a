//! Text models and what lies beside them: which output is a text's vector, and how it is made.

use super::common::small_store::{self, node, output};
use super::{Place, stderr, stdout, tool};
use hermes::store::Dtype;
use prost::Message;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, ModelProto, OperatorSetIdProto, TensorProto};

/// The model of `small_store::words`, its output called `name`.
fn words(name: &str) -> ModelProto {
    let words = small_store::words();
    let mut graph = words.graph;
    graph.input.retain(|input| input.name != "table");
    let (weight, shape, values) = &words.weights[0];
    graph.initializer.push(TensorProto {
        name: weight.to_string(),
        data_type: 1,
        dims: shape.map(|size| size as i64).to_vec(),
        float_data: values.clone(),
        ..TensorProto::default()
    });
    graph.node.last_mut().unwrap().output = vec![name.to_string()];
    graph.output = vec![output(name, Dtype::Fp32)];
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// [`words`] with one more output, which is one vector for a text.
fn words_and(tokens: &str, text: &str) -> ModelProto {
    let mut model = words(tokens);
    let graph = model.graph.as_mut().unwrap();
    let mut reduced = node("ReduceMax", &[tokens], text);
    let attribute = |name: &str, ints: &[i64], kind: AttributeType| AttributeProto {
        name: name.to_string(),
        r#type: kind as i32,
        ints: ints.to_vec(),
        ..AttributeProto::default()
    };
    reduced.attribute = vec![
        attribute("axes", &[1], AttributeType::Ints),
        attribute("keepdims", &[], AttributeType::Int),
    ];
    graph.node.push(reduced);
    graph.output.push(output(text, Dtype::Fp32));
    model
}

/// A place with the model of `small_store::words` and its tokenizer in `text.json`.
pub fn place_of_words() -> Place {
    let place = Place::new();
    place.save(&words("hidden"));
    fs::write(place.path("text.json"), tokenizer()).unwrap();
    place
}

fn tokenizer() -> String {
    small_store::words().tokenizer.unwrap()
}

/// Writes a repository: the model at `model`, its tokenizer, and these configs.
fn repository(folder: &Path, model: &str, proto: &ModelProto, configs: &[(&str, Value)]) {
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put(model, &proto.encode_to_vec());
    put("tokenizer.json", tokenizer().as_bytes());
    configs.iter().for_each(|(name, config)| put(name, config.to_string().as_bytes()));
}

/// Shards `path` into the store of `place`; returns the report.
fn build(place: &Place, path: &Path, more: &[&str]) -> Result<Value, String> {
    let mut command = tool();
    command.arg("build").arg(path).arg("--store").arg(place.store()).arg("--json").args(more);
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(stderr(&output)),
    }
}

fn pooling(mode: &str) -> Value {
    let mut config = json!({"word_embedding_dimension": 4});
    for known in [
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    ] {
        config[format!("pooling_mode_{known}")] = json!(known == mode);
    }
    config
}

/// Files beside a model were not read: every text was pooled by mean and cut where tokenizer.json
/// says, which is 128 tokens for a model that takes 256.
#[test]
fn makers_files_say_how_texts_become_vectors() {
    let place = Place::new();
    let check = |configs: &[(&str, Value)], expected: &[(&str, Value)]| {
        let repo = tempfile::tempdir_in(place.path("")).unwrap();
        repository(repo.path(), "model.onnx", &words("last_hidden_state"), configs);
        let report = build(&place, repo.path(), &["--name", "m", "--force"]).unwrap();
        for (pointer, value) in expected {
            assert_eq!(report.pointer(pointer), Some(value), "{pointer} of {report}");
        }
    };
    let modes = [
        ("cls_token", "cls"),
        ("mean_tokens", "mean"),
        ("max_tokens", "max"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len"),
        ("weightedmean_tokens", "weightedmean"),
        ("lasttoken", "lasttoken"),
    ];
    for (key, name) in modes {
        let config = ("1_Pooling/config.json", pooling(key));
        check(&[config], &[("/task/pooling", json!(name))]);
    }
    let modules = json!([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "9_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]);
    check(
        &[
            ("modules.json", modules),
            (
                "9_Pooling/config.json",
                json!({"pooling_mode_cls_token": true, "include_prompt": false}),
            ),
            ("sentence_bert_config.json", json!({"max_seq_length": 256, "do_lower_case": true})),
            ("tokenizer_config.json", json!({"model_max_length": 512})),
            (
                "config.json",
                json!({"max_position_embeddings": 512, "architectures": ["BertModel"]}),
            ),
            (
                "config_sentence_transformers.json",
                json!({"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt_name": "query"}),
            ),
        ],
        &[
            ("/task/pooling", json!("cls")),
            ("/task/output", json!("last_hidden_state")),
            ("/text/max_tokens", json!(256)),
            ("/text/truncates", json!(true)),
            ("/text/lowercase", json!(true)),
            ("/text/skips_prompt", json!(true)),
            ("/text/prompts/1", json!({"name": "query", "text": "q: "})),
            ("/text/default_prompt", json!("query")),
        ],
    );
    // The tokenizer's own length where nobody else says one, within the positions that there are.
    check(&[], &[("/text/max_tokens", json!(6)), ("/text/truncates", json!(true))]);
    let positions = ("config.json", json!({"max_position_embeddings": 5}));
    check(&[positions], &[("/text/max_tokens", json!(5))]);
    let endless = ("tokenizer_config.json", json!({"model_max_length": 1e30}));
    check(&[endless], &[("/text/max_tokens", json!(6))]);
    let shown = stdout(
        &tool()
            .args(["inspect", "m", "--store", place.store().to_str().unwrap()])
            .output()
            .unwrap(),
    );
    assert!(shown.contains("texts are cut at 6 tokens: truncation of tokenizer.json"), "{shown}");
    assert!(shown.contains("pooling mean: guessed"), "{shown}");
}

/// Of a BERT with both, pooler_output was taken, the head of next-sentence prediction; of a
/// classifier, its logits.
#[test]
fn what_is_not_plain_is_not_guessed() {
    let place = Place::new();
    let try_build = |model: &ModelProto, configs: &[(&str, Value)], more: &[&str]| {
        let repo = tempfile::tempdir_in(place.path("")).unwrap();
        repository(repo.path(), "model.onnx", model, configs);
        build(&place, repo.path(), &[&["--name", "m", "--force"], more].concat())
    };
    let undecided = |model: &ModelProto, configs: &[(&str, Value)], words: &[&str]| {
        let report = try_build(model, configs, &[]).unwrap();
        assert_eq!(report["task"], json!(null), "{report}");
        let said = report["text"]["sources"].as_array().unwrap().last().unwrap();
        let said = said.as_str().unwrap();
        assert!(said.starts_with("no embeddings: "), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    let decided = |report: Result<Value, String>, output: &str, pooling: &str| {
        let task = &report.unwrap()["task"];
        assert_eq!((&task["output"], &task["pooling"]), (&json!(output), &json!(pooling)));
    };
    let both = words_and("last_hidden_state", "pooler_output");
    undecided(&both, &[], &["\"last_hidden_state\"", "\"pooler_output\"", "--pooling mean"]);
    decided(try_build(&both, &[], &["--pooling", "max"]), "last_hidden_state", "max");
    let by_file = ("1_Pooling/config.json", pooling("mean_tokens"));
    decided(try_build(&both, &[by_file], &[]), "last_hidden_state", "mean");
    decided(try_build(&both, &[], &["--embedding", "pooler_output"]), "pooler_output", "none");

    let plain = words_and("token_embeddings", "sentence_embedding");
    decided(try_build(&plain, &[], &[]), "sentence_embedding", "none");
    let classifier = words_and("hidden", "logits");
    undecided(&classifier, &[], &["--embedding"]);
    let head = ("config.json", json!({"architectures": ["BertForSequenceClassification"]}));
    undecided(&words("last_hidden_state"), &[head], &["BertForSequenceClassification"]);

    let dense = json!([
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]);
    let configs = [("modules.json", dense), ("1_Pooling/config.json", pooling("mean_tokens"))];
    undecided(&words("last_hidden_state"), &configs, &["2_Dense", "--embedding"]);
    let mut two = pooling("mean_tokens");
    two["pooling_mode_cls_token"] = json!(true);
    let configs = [("1_Pooling/config.json", two)];
    undecided(&words("last_hidden_state"), &configs, &["joins the vectors"]);
    let strange = [("1_Pooling/config.json", json!({"pooling_mode": "attention"}))];
    let refused = try_build(&words("last_hidden_state"), &strange, &[]).unwrap_err();
    assert!(
        refused.contains("1_Pooling/config.json") && refused.contains("attention"),
        "{refused}"
    );
    let refused = try_build(&both, &[], &["--pooling", "middle"]).unwrap_err();
    assert!(refused.contains("pooling \"middle\" is unknown"), "{refused}");
}

#[test]
fn repositories_are_found_as_exporters_lay_them_out() {
    let place = Place::new();
    let check = |model: &str, given: &str| {
        let repo = place.path("little-embedder");
        repository(&repo, model, &words("last_hidden_state"), &[]);
        let report = build(&place, &repo.join(given), &["--force"]).unwrap();
        assert_eq!(report["model"], "little-embedder", "{model} given {given:?}");
        assert_eq!(report["task"]["output"], "last_hidden_state", "{model} given {given:?}");
        fs::remove_dir_all(repo).unwrap();
    };
    for model in ["model.onnx", "onnx/model.onnx"] {
        check(model, model);
        check(model, "");
    }
    check("onnx/model_quantized.onnx", "");
    check("onnx/model_quantized.onnx", "onnx/model_quantized.onnx");
    let repo = place.path("several");
    repository(&repo, "onnx/a.onnx", &words("last_hidden_state"), &[]);
    let refused = |words: &[&str]| {
        let said = build(&place, &repo, &[]).unwrap_err();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    repository(&repo, "onnx/b.onnx", &words("last_hidden_state"), &[]);
    refused(&["several ONNX files", "a.onnx", "b.onnx"]);
    fs::remove_dir_all(repo.join("onnx")).unwrap();
    refused(&["has no ONNX file", "optimum-cli"]);
}
