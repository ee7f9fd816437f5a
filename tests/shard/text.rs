//! Text models and what lies beside them: which output is a text's vector, and how it is made.

use super::common::daemon::Daemon;
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

/// modules.json: the network, then these.
fn modules(more: &[(&str, &str)]) -> Value {
    let all = std::iter::once(&("", "Transformer")).chain(more);
    let module = |(idx, (path, kind)): (usize, &(&str, &str))| {
        let class = format!("sentence_transformers.models.{kind}");
        json!({"idx": idx, "name": idx.to_string(), "path": path, "type": class})
    };
    all.enumerate().map(module).collect()
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
    let list = modules(&[("9_Pooling", "Pooling"), ("2_Normalize", "Normalize")]);
    check(
        &[
            ("modules.json", list),
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
            ("/text/keeps_length", json!(false)),
        ],
    );
    // As newer releases write it.
    let config = ("1_Pooling/config.json", json!({"pooling_mode": "mean_sqrt_len_tokens"}));
    check(&[config], &[("/task/pooling", json!("mean_sqrt_len"))]);
    let config =
        ("1_Pooling/config.json", json!({"pooling_mode": ["lasttoken"], "embedding_dimension": 4}));
    check(&[config], &[("/task/pooling", json!("lasttoken"))]);
    // The tokenizer's own length where nobody else says one, within the positions that there are.
    check(&[], &[("/text/max_tokens", json!(6)), ("/text/truncates", json!(true))]);
    let positions = ("config.json", json!({"max_position_embeddings": 5}));
    check(&[positions], &[("/text/max_tokens", json!(5))]);
    let endless = ("tokenizer_config.json", json!({"model_max_length": 1e30}));
    check(&[endless], &[("/text/max_tokens", json!(6))]);
    // Where the tokenizer and the model say it, what tokenizer.json was last cut to is not asked.
    let length = |more: &[(&str, Value)], expected: u64| {
        check(more, &[("/text/max_tokens", json!(expected)), ("/text/truncates", json!(true))]);
    };
    let tokenizer = ("tokenizer_config.json", json!({"model_max_length": 64}));
    let model = ("config.json", json!({"max_position_embeddings": 50}));
    let sentence = ("sentence_bert_config.json", json!({"max_seq_length": 40}));
    length(std::slice::from_ref(&tokenizer), 64);
    length(&[tokenizer.clone(), model.clone()], 50);
    length(std::slice::from_ref(&model), 50);
    length(&[tokenizer.clone(), model.clone(), sentence.clone()], 40);
    let none =
        ("sentence_bert_config.json", json!({"max_seq_length": null, "do_lower_case": false}));
    length(&[tokenizer.clone(), none], 64);
    let roberta = json!({"max_position_embeddings": 50, "model_type": "xlm-roberta"});
    length(&[("config.json", roberta)], 48);
    let gpt2 = json!({"n_positions": 30, "model_type": "gpt2"});
    length(&[("config.json", gpt2)], 30);
    length(&[("sentence_roberta_config.json", json!({"max_seq_length": 20}))], 20);
    let left = json!({"model_max_length": 64, "truncation_side": "left", "padding_side": "left"});
    check(&[("tokenizer_config.json", left)], &[("/text/cuts_start", json!(true))]);
    let dot = modules(&[("1_Pooling", "Pooling")]);
    let pooled = ("1_Pooling/config.json", pooling("cls_token"));
    check(&[("modules.json", dot), pooled], &[("/text/keeps_length", json!(true))]);
    check(&[], &[("/text/keeps_length", json!(false))]);
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
    // What was pooled within has its prompt in it.
    let mut without_prompt = pooling("mean_tokens");
    without_prompt["include_prompt"] = json!(false);
    let config = ("1_Pooling/config.json", without_prompt);
    decided(try_build(&plain, &[config], &[]), "token_embeddings", "mean");
    let mut unfilled = words("last_hidden_state");
    let graph = unfilled.graph.as_mut().unwrap();
    let names = graph.input.iter_mut().map(|input| &mut input.name);
    let names = names.chain(graph.node.iter_mut().flat_map(|node| &mut node.input));
    names.filter(|name| *name == "attention_mask").for_each(|name| *name = "task_id".to_string());
    undecided(&unfilled, &[], &["\"task_id\""]);
    let classifier = words_and("hidden", "logits");
    undecided(&classifier, &[], &["--embedding"]);
    let head = ("config.json", json!({"architectures": ["BertForSequenceClassification"]}));
    undecided(&words("last_hidden_state"), &[head], &["BertForSequenceClassification"]);

    let dense = modules(&[("1_Pooling", "Pooling"), ("2_Dense", "Dense")]);
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

/// Modules with code of their own were taken for those of the same name; a pooling that modules.json
/// names and that is not there was guessed, as was one of another model; fields of a wrong type were
/// passed over.
#[test]
fn files_that_are_broken_or_contradict_each_other_are_told_by_name() {
    let place = Place::new();
    let (hidden, mean) = (words("last_hidden_state"), pooling("mean_tokens"));
    let try_build = |model: &ModelProto, configs: &[(&str, Value)]| {
        let repo = tempfile::tempdir_in(place.path("")).unwrap();
        repository(repo.path(), "model.onnx", model, configs);
        build(&place, repo.path(), &["--name", "m", "--force"])
    };
    let undecided = |configs: &[(&str, Value)], words: &[&str]| {
        let report = try_build(&hidden, configs).unwrap();
        assert_eq!(report["task"], json!(null), "{report}");
        let said = report["text"]["sources"].as_array().unwrap().last().unwrap();
        let said = said.as_str().unwrap();
        assert!(said.starts_with("no embeddings: "), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    let of = |modules: Value| [("modules.json", modules), ("1_Pooling/config.json", mean.clone())];
    let custom = json!([
        {"path": "", "type": "custom_st.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]);
    undecided(&of(custom), &["custom_st.Transformer"]);
    let normalized_first = modules(&[("2_Normalize", "Normalize"), ("1_Pooling", "Pooling")]);
    undecided(&of(normalized_first), &["2_Normalize", "where none belongs"]);
    undecided(&of(modules(&[("2_Normalize", "Normalize")])), &["2_Normalize"]);
    undecided(&of(modules(&[])), &["names no pooling"]);
    undecided(&[of(modules(&[("1_Pooling", "Pooling")]))[0].clone()], &["there is no 1_Pooling"]);
    let mut wide = mean.clone();
    wide["word_embedding_dimension"] = json!(384);
    undecided(&[("1_Pooling/config.json", wide)], &["384 values", "have 4"]);
    let kind = ("config_sentence_transformers.json", json!({"model_type": "CrossEncoder"}));
    undecided(&[kind], &["CrossEncoder"]);
    let task = ("sentence_bert_config.json", json!({"transformer_task": "fill-mask"}));
    undecided(&[task], &["fill-mask"]);
    let chat = ("sentence_bert_config.json", json!({"modality_config": {"message": {}}}));
    undecided(&[chat], &["messages"]);
    let end = json!({"add_eos_token": true, "eos_token": {"content": "cat"}});
    undecided(&[("tokenizer_config.json", end.clone())], &["\"cat\"", "add_eos_token"]);
    // One that is there, before the padding of tokenizer.json.
    let mut framed: Value = serde_json::from_str(&tokenizer()).unwrap();
    framed["post_processor"] =
        json!({"type": "BertProcessing", "sep": ["cat", 1], "cls": ["dog", 2]});
    let configs = [("tokenizer_config.json", end), ("tokenizer.json", framed)];
    assert_eq!(try_build(&hidden, &configs).unwrap()["task"]["pooling"], "mean");

    let refused = |name: &str, config: Value, words: &[&str]| {
        let said = try_build(&hidden, &[(name, config)]).unwrap_err();
        assert!(said.contains(name) && words.iter().all(|word| said.contains(word)), "{said}");
    };
    refused("modules.json", json!({"path": ""}), &[]);
    refused("modules.json", json!([{"path": "../x", "type": "Pooling"}]), &["leaves the folder"]);
    refused("1_Pooling/config.json", json!([]), &["no JSON object"]);
    refused("1_Pooling/config.json", json!({"pooling_mode_cls_token": "true"}), &["neither true"]);
    let neither = json!({"pooling_mode": "cls", "include_prompt": 0});
    refused("1_Pooling/config.json", neither, &["include_prompt"]);
    refused("1_Pooling/config.json", pooling("none"), &["names no pooling"]);
    refused("sentence_bert_config.json", json!({"max_seq_length": "256"}), &["256"]);
    const PROMPTS: &str = "config_sentence_transformers.json";
    refused(PROMPTS, json!({"prompts": ["query: "]}), &["map"]);
    refused(PROMPTS, json!({"prompts": {"query": 1}}), &["string"]);
    refused(PROMPTS, json!({"default_prompt_name": "query"}), &["no prompt \"query\""]);
    // What newer releases write where there are no prompts.
    let empty = json!({"prompts": {"query": "", "document": null}, "default_prompt_name": null});
    let report = try_build(&hidden, &[(PROMPTS, empty)]).unwrap();
    assert_eq!(report["text"]["prompts"][0], json!({"name": "document", "text": ""}));
}

/// Each word's vector is 1 at the word's own place and 0.5 elsewhere, for `[UNK] cat dog car`.
fn vector_of(word: usize) -> [f64; 4] {
    std::array::from_fn(|at| if at == word { 1.0 } else { 0.5 })
}

/// Folders as their makers lay them out, built with nothing but their path: what is answered is what
/// their files say.
#[test]
fn folders_are_served_as_their_makers_mean_them() {
    const PROMPTS: &str = "config_sentence_transformers.json";
    const CAT: usize = 1;
    const DOG: usize = 2;
    const CAR: usize = 3;
    let place = Place::new();
    let make = |name: &str, model: &str, pooled: Value, last: &str, more: &[(&str, Value)]| {
        let list: Vec<_> = [("1_Pooling", "Pooling"), ("2_Normalize", last)]
            .into_iter()
            .filter(|(_, kind)| !kind.is_empty())
            .collect();
        let configs = [
            ("modules.json", modules(&list)),
            ("1_Pooling/config.json", pooled),
            ("config.json", json!({"max_position_embeddings": 5, "architectures": ["BertModel"]})),
        ];
        let repo = place.path(name);
        repository(&repo, model, &words("last_hidden_state"), &[&configs, more].concat());
        build(&place, &repo, &[]).unwrap();
    };
    let (cls, mean, last) = (pooling("cls_token"), pooling("mean_tokens"), pooling("lasttoken"));
    let prompts = json!({"prompts": {"query": "dog ", "passage": "car "}});
    make("bge", "onnx/model.onnx", cls, "Normalize", &[]);
    make("e5", "model.onnx", mean.clone(), "Normalize", &[(PROMPTS, prompts.clone())]);
    make("last", "onnx/model.onnx", json!({"pooling_mode": "lasttoken"}), "Normalize", &[]);
    make("dot", "model.onnx", pooling("max_tokens"), "", &[]);
    let mut instructed = mean;
    instructed["include_prompt"] = json!(false);
    let asked = json!({"prompts": {"query": "dog "}, "default_prompt_name": "query"});
    make("instructed", "model.onnx", instructed, "Normalize", &[(PROMPTS, asked)]);
    let mut from_left = last;
    from_left["embedding_dimension"] = json!(4);
    let left =
        ("tokenizer_config.json", json!({"truncation_side": "left", "padding_side": "left"}));
    make("left", "model.onnx", from_left, "Normalize", &[left]);

    let daemon = Daemon::start(&place.store(), &place.path("s"), &["--budget", "96MiB"]);
    let check = |model: &str, text: &str, more: Value, expected: [f64; 4]| {
        let mut body = json!({"model": model, "input": text});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, reply) = daemon.post("/v1/embeddings", &body.to_string());
        assert_eq!(status, 200, "{reply}");
        let found: Vec<f64> =
            serde_json::from_value(reply["data"][0]["embedding"].clone()).unwrap();
        let is_same = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(is_same && found.len() == 4, "{model}, {text:?}, {more}: {found:?}");
    };
    let unit = |vector: [f64; 4]| {
        let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
        vector.map(|value| value / length)
    };
    let mean_of = |words: &[usize]| {
        let sum = |at| words.iter().map(|word| vector_of(*word)[at]).sum::<f64>();
        unit(std::array::from_fn(sum))
    };
    let none = || json!({});
    let query = || json!({"prompt_name": "query"});
    check("bge", "dog cat cat", none(), unit(vector_of(DOG)));
    check("e5", "cat", none(), mean_of(&[CAT]));
    check("e5", "cat", query(), mean_of(&[DOG, CAT]));
    check("e5", "cat cat", json!({"prompt_name": "passage"}), mean_of(&[CAR, CAT, CAT]));
    // Cut at five tokens, the prompt's among them.
    let long = "cat cat cat dog car car car";
    check("e5", long, none(), mean_of(&[CAT, CAT, CAT, DOG, CAR]));
    check("e5", long, query(), mean_of(&[DOG, CAT, CAT, CAT, DOG]));
    check("last", "dog cat car", none(), unit(vector_of(CAR)));
    check("last", "dog dog dog dog cat car", none(), unit(vector_of(CAT)));
    check("left", "dog dog dog dog cat car", none(), unit(vector_of(CAR)));
    check("dot", "dog cat", none(), [0.5, 1.0, 1.0, 0.5]);
    check("instructed", "cat car", none(), mean_of(&[CAT, CAR]));
    check("instructed", "cat car", json!({"prompt_name": null}), mean_of(&[CAT, CAR]));
}

/// A network in a folder of its own, as older releases lay it out, was not found, or found without
/// what its makers say.
#[test]
fn a_network_may_have_a_folder_of_its_own() {
    let place = Place::new();
    for (model, given) in [
        ("0_Transformer/model.onnx", ""),
        ("0_Transformer/model.onnx", "0_Transformer/model.onnx"),
        ("0_Transformer/onnx/model.onnx", ""),
        ("onnx/model.onnx", ""),
    ] {
        let repo = place.path("older");
        let mut list = modules(&[("1_Pooling", "Pooling")]);
        list[0]["path"] = json!("0_Transformer");
        let configs = [
            ("modules.json", list),
            ("1_Pooling/config.json", pooling("max_tokens")),
            ("0_Transformer/sentence_distilbert_config.json", json!({"max_seq_length": 5})),
            ("0_Transformer/config.json", json!({"max_position_embeddings": 512})),
        ];
        repository(&repo, model, &words("last_hidden_state"), &configs);
        fs::rename(repo.join("tokenizer.json"), repo.join("0_Transformer/tokenizer.json")).unwrap();
        let report = build(&place, &repo.join(given), &["--force"]).unwrap();
        assert_eq!(report["model"], "older", "{model} given {given:?}");
        assert_eq!(report["task"]["pooling"], "max", "{model} given {given:?}: {report}");
        assert_eq!(report["text"]["max_tokens"], 5, "{model} given {given:?}");
        fs::remove_dir_all(repo).unwrap();
    }
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
