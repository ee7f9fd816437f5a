//! What other implementations give for the same chats, files, logits and streams: `tests/data/text`.

use super::chat::{Chat, ChatError, Controls};
use super::clock::Moment;
use super::messages::{Form, normalize};
use super::sampler::{Said, Sampling, logprobs};
use super::stops::Stops;
use super::template::TemplateError;
use super::whole::Whole;
use super::{Value, settings};
use crate::store::Generation;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/text")
}

fn read(name: &str) -> Json {
    serde_json::from_slice(&fs::read(folder().join(name)).unwrap()).unwrap()
}

/// The same with objects in their order.
fn read_in_order(name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder().join(name)).unwrap()).unwrap()
}

fn field(value: &Value, name: &str) -> Option<Value> {
    value.get_attr(name).ok().filter(|field| !field.is_undefined() && !field.is_none())
}

fn text(value: &Value, name: &str) -> Option<String> {
    field(value, name).and_then(|text| text.as_str().map(str::to_owned))
}

fn is_true(value: &Value, name: &str) -> bool {
    field(value, name).is_some_and(|flag| flag.is_true())
}

fn items(value: &Value) -> Vec<Value> {
    value.try_iter().unwrap().collect()
}

fn pairs(value: Option<Value>) -> Vec<(String, Value)> {
    let map = value.unwrap_or_else(|| Value::from_pairs::<_, String, Value>([]));
    let keys = map.try_iter().unwrap();
    keys.map(|key| (key.as_str().unwrap().to_owned(), map.get_item(&key).unwrap())).collect()
}

/// 2026-02-03T04:05:06, where a case says nothing else.
fn moment(case: &Value) -> Moment {
    let now = text(case, "now").unwrap_or_else(|| "2026-02-03T04:05:06".to_owned());
    let mut numbers = now.split(['-', 'T', ':']).map(|number| number.parse::<u32>().unwrap());
    let mut next = || numbers.next().unwrap();
    Moment {
        year: i64::from(next()),
        month: next(),
        day: next(),
        hour: next(),
        minute: next(),
        second: next(),
    }
}

/// Checks one rendering against a case's `right` or `error`.
fn check(name: &str, case: &Value, rendered: Result<String, ChatError>) {
    let about = text(case, "about").or_else(|| text(case, "template")).unwrap_or_default();
    let Some(error) = field(case, "error") else {
        assert_eq!(rendered.as_ref(), Ok(&text(case, "right").unwrap()), "{name}: {about}");
        return;
    };
    match (&rendered, text(&error, "raised")) {
        (Err(ChatError::Template(TemplateError::Raised(words))), Some(right)) => {
            assert_eq!(*words, right, "{name}: {about}");
        }
        (_, Some(right)) => panic!("{name}: {about}: {rendered:?}, not {right:?} raised"),
        (Err(ChatError::Template(TemplateError::Raised(_))), None) => {
            panic!("{name}: {about}: {rendered:?}")
        }
        (Err(_), None) => {}
        (Ok(_), None) => assert_eq!(error.as_str(), Some("may"), "{name}: {about}: {rendered:?}"),
    }
}

#[test]
fn chats_are_rendered_as_transformers_renders_them() {
    let mut count = 0;
    for entry in fs::read_dir(folder().join("templates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let file = read_in_order(&format!("templates/{name}"));
        let templates = match text(&file, "template") {
            Some(source) => vec![("default".to_owned(), source)],
            None => items(&field(&file, "templates").unwrap())
                .iter()
                .map(|one| (text(one, "name").unwrap(), text(one, "template").unwrap()))
                .collect(),
        };
        let special = pairs(field(&file, "special")).into_iter();
        let generation = Generation {
            templates: templates.into_iter().collect(),
            special_tokens: special
                .map(|(name, token)| (name, token.as_str().unwrap().to_owned()))
                .collect(),
            ..Generation::default()
        };
        for case in items(&field(&file, "cases").unwrap()) {
            let has_clock = !is_true(&file, "no_clock") && !is_true(&case, "no_clock");
            let chat = Chat {
                messages: field(&case, "messages").unwrap_or_else(|| Value::from(())),
                tools: field(&case, "tools"),
                documents: field(&case, "documents"),
                template: text(&case, "named"),
                add_generation_prompt: is_true(&case, "add_generation_prompt"),
                continue_final_message: is_true(&case, "continue_final_message"),
                variables: pairs(field(&case, "variables")),
                now: has_clock.then(|| moment(&case)),
            };
            let prompt = chat.prompt_as_it_is(&generation, &Controls::default(), 64 << 10);
            check(&name, &case, prompt.map(|prompt| prompt.text));
            // Whatever reads like a control token is still what was written.
            let controls = ["<|im_end|>", "<s>", "</s>", "<|eot_id|>"].map(|token| (token, true));
            let controls = Controls::new(controls.into_iter(), &Generation::default());
            let marked = chat.prompt_as_it_is(&generation, &controls, 64 << 10).map(|prompt| {
                prompt.mark.map_or(prompt.text.clone(), |mark| prompt.text.replace(mark, ""))
            });
            check(&name, &case, marked);
            count += 1;
        }
    }
    assert!(count > 80, "{count} cases");
}

/// One of them fails, rather than print something else: no template of the models that we know of
/// has it.
const NOT_THERE: [&str; 1] = ["{{ '%s=%d' % ('a', 3) }}"];

/// Those that print something else: an invisible character inside of a list is not escaped.
const OTHERWISE: [&str; 1] = ["{{ ['tab\\t', 'line\\n', 'back\\\\', '\u{fc}', '\\u200b'] }}"];

#[test]
fn expressions_are_worth_what_they_are_in_python() {
    let file = read_in_order("expressions.json");
    for case in items(&field(&file, "cases").unwrap()) {
        let source = text(&case, "template").unwrap();
        let chat = Chat {
            variables: pairs(field(&file, "variables")),
            now: Some(moment(&file)),
            add_generation_prompt: false,
            ..Chat::new(field(&file, "messages").unwrap())
        };
        let templates = [("default".to_owned(), source.clone())].into();
        let generation = Generation { templates, ..Generation::default() };
        let prompt = chat.prompt_as_it_is(&generation, &Controls::default(), 1000);
        let rendered = prompt.map(|prompt| prompt.text);
        match () {
            _ if NOT_THERE.contains(&source.as_str()) => {
                assert!(
                    rendered.is_err(),
                    "{source}: {rendered:?}, and it was said not to be there"
                );
            }
            _ if OTHERWISE.contains(&source.as_str()) => {}
            _ => check("expressions", &case, rendered),
        }
    }
}

#[test]
fn messages_are_taken_as_clients_send_them() {
    let file = read_in_order("messages.json");
    for case in items(&field(&file, "cases").unwrap()) {
        let about = text(&case, "about").unwrap();
        let given = normalize(&field(&case, "messages").unwrap(), Form::default());
        if field(&case, "error").is_some() {
            assert!(given.is_err(), "{about}: {given:?}");
            continue;
        }
        let given = given.unwrap_or_else(|error| panic!("{about}: {error}"));
        let also = field(&case, "also").map(|also| items(&also)).unwrap_or_default();
        let right = [field(&case, "right").unwrap()].into_iter().chain(also);
        // Text, so that the order of keys counts where it is the client's.
        let told = |value: &Value| serde_json::to_value(value).unwrap();
        assert!(right.clone().any(|right| told(&right) == told(&given)), "{about}: {given:?}");
        let arguments = |messages: &Value| {
            let call = messages.get_item_by_index(0).ok()?;
            let call = field(&call, "tool_calls")?.get_item_by_index(0).ok()?;
            field(&field(&call, "function")?, "arguments").map(|some| some.to_string())
        };
        assert!(right.clone().any(|right| arguments(&right) == arguments(&given)), "{about}");
    }
    let null = |form| {
        let messages = r#"[{"role":"assistant","content":null,"tool_calls":[{"function":
            {"name":"f","arguments":{"b":1,"a":"x"}}}]}]"#;
        let messages = normalize(&serde_json::from_str(messages).unwrap(), form).unwrap();
        messages.get_item_by_index(0).unwrap()
    };
    let plain = null(Form { arguments_are_text: true, null_is_empty: true });
    assert_eq!(text(&plain, "content").as_deref(), Some(""));
    assert!(plain.to_string().contains(r#"'{"b":1,"a":"x"}'"#), "{plain}");
}

#[test]
fn the_files_of_models_are_understood() {
    let file = read("model-files.json");
    for case in file["cases"].as_array().unwrap() {
        let about = case["about"].as_str().unwrap();
        let mut files = BTreeMap::new();
        for (name, content) in case["files"].as_object().unwrap() {
            let mut content = content.clone();
            if let Some(size) = content.get("vocabulary").and_then(Json::as_u64) {
                let words = (0..size).map(|id| (format!("w{id}"), Json::from(id)));
                content["model"]["vocab"] = Json::Object(words.collect());
            }
            let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
            files.insert(name.clone(), text.into_bytes());
        }
        let found = settings::read(&files, None).unwrap_or_else(|error| panic!("{about}: {error}"));
        let told = serde_json::to_value(&found).unwrap();
        for (key, right) in case["right"].as_object().unwrap() {
            let is = |name: &str| told.get(name).cloned().unwrap_or_else(|| serde_json::json!({}));
            match key.as_str() {
                "templates" => assert_eq!(is("templates"), *right, "{about}"),
                "variables" => assert_eq!(is("special_tokens"), *right, "{about}"),
                "eos_ids" => assert_eq!(is("end_tokens"), *right, "{about}"),
                "sampling" => assert_eq!(is("sampling"), *right, "{about}"),
                "context" => assert_eq!(is("context"), *right, "{about}"),
                "told" => {
                    let lines = found.sources.iter();
                    let words = ["no token ends", "is no token", "no chat template \""];
                    let says = |line: &&String| words.iter().any(|word| line.contains(word));
                    assert!(lines.clone().any(|line| says(&line)), "{about}: {lines:?}");
                }
                other => panic!("{about}: {other}"),
            }
        }
        let again = Generation::parse(&found.to_json()).unwrap();
        assert_eq!(again, found, "{about}");
    }
}

fn logits(case: &Json) -> Vec<f32> {
    let number = |value: &Json| match value.as_str() {
        Some("nan") => f32::NAN,
        Some("inf") => f32::INFINITY,
        Some("-inf") => f32::NEG_INFINITY,
        _ => value.as_f64().unwrap() as f32,
    };
    case["logits"].as_array().unwrap().iter().map(number).collect()
}

fn ids(value: &Json) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn tokens_are_drawn_as_transformers_draws_them() {
    let file = read("samplers.json");
    let tolerance = file["tolerance"].as_f64().unwrap();
    for case in file["cases"].as_array().unwrap() {
        let about = case["about"].as_str().unwrap();
        let logits = logits(case);
        let params = &case["params"];
        let number = |name: &str, plain: f64| params[name].as_f64().unwrap_or(plain);
        let plain = Sampling::default();
        let mut sampling = Sampling {
            temperature: number("temperature", plain.temperature),
            top_k: params["top_k"].as_i64().unwrap_or(plain.top_k),
            top_p: number("top_p", plain.top_p),
            min_p: number("min_p", plain.min_p),
            repetition_penalty: number("repetition_penalty", plain.repetition_penalty),
            frequency_penalty: number("frequency_penalty", plain.frequency_penalty),
            presence_penalty: number("presence_penalty", plain.presence_penalty),
            logit_bias: vec![],
        };
        let biases = params["logit_bias"].as_object().into_iter().flatten();
        let biases: Result<Vec<_>, _> = biases
            .map(|(key, bias)| Sampling::bias(key, bias.as_f64().unwrap(), logits.len()))
            .collect();
        let checked = biases.and_then(|biases| {
            sampling.logit_bias = biases;
            sampling.check()
        });
        if let Some(param) = case["refused"].as_str() {
            assert_eq!(checked.map_err(|error| error.param), Err(param), "{about}");
            continue;
        }
        assert_eq!(checked, Ok(()), "{about}");
        let mut said = Said::after(&ids(&case["prompt"]));
        ids(&case["output"]).into_iter().for_each(|id| said.push(id));
        let candidates = sampling.candidates(&logits, &said);
        if !case["failed"].is_null() {
            assert!(candidates.is_err(), "{about}: {candidates:?}");
            continue;
        }
        let candidates = candidates.unwrap_or_else(|error| panic!("{about}: {error}"));
        let is_near = |given: &[(u32, f64)], right: &Json| {
            let right: Vec<(u32, f64)> = right
                .as_array()
                .unwrap()
                .iter()
                .map(|pair| {
                    let value = pair[1].as_f64().unwrap_or(f64::NEG_INFINITY);
                    (u32::try_from(pair[0].as_u64().unwrap()).unwrap(), value)
                })
                .collect();
            let likely = |all: &[(u32, f64)]| all.iter().filter(|(_, p)| *p >= 1e-9).count();
            likely(given) == likely(&right)
                && given.iter().zip(&right).all(|(a, b)| {
                    a.0 == b.0
                        && (a.1 == b.1 || (a.1 - b.1).abs() <= tolerance * b.1.abs().max(1.0))
                })
        };
        assert!(is_near(&candidates, &case["candidates"]), "{about}: {candidates:?}");
        let right = case["logprobs"].as_array().unwrap();
        let (_, likeliest) = logprobs(&logits, None, right.len());
        for ((id, logprob), pair) in likeliest.iter().zip(right) {
            let wanted = pair[1].as_f64().unwrap_or(f64::NEG_INFINITY);
            let is_right =
                *logprob == wanted || (logprob - wanted).abs() <= tolerance * wanted.abs().max(1.0);
            assert!(
                is_right && u64::from(*id) == pair[0].as_u64().unwrap(),
                "{about}: {likeliest:?}"
            );
        }
    }
}

#[test]
fn texts_end_at_stop_strings() {
    let file = read("stops.json");
    for case in file["cases"].as_array().unwrap() {
        let about = case["about"].as_str().unwrap();
        let strings = case["stop"].as_array().unwrap().iter();
        let strings = strings.map(|string| string.as_str().unwrap().to_owned()).collect();
        let (mut stops, mut whole) = (Stops::new(strings).unwrap(), Whole::default());
        let (mut chunks, mut matched) = (vec![], None);
        for piece in case["pieces"].as_array().unwrap() {
            let bytes = match piece.as_str() {
                Some(text) => text.as_bytes().to_vec(),
                None => {
                    let hex = piece["hex"].as_str().unwrap().as_bytes();
                    let digits = hex.chunks(2).map(|two| std::str::from_utf8(two).unwrap());
                    digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
                }
            };
            let passed = stops.push(&whole.push(&bytes));
            chunks.push(passed.text);
            matched = passed.stop;
            if matched.is_some() {
                break;
            }
        }
        let mut end = String::new();
        if matched.is_none() {
            let passed = stops.push(&whole.end());
            matched = passed.stop;
            end = passed.text + &stops.end();
        }
        let right = case["chunks"].as_array().unwrap().iter().map(|chunk| chunk.as_str().unwrap());
        assert_eq!(chunks, right.collect::<Vec<_>>(), "{about}");
        assert_eq!(end, case["end"].as_str().unwrap(), "{about}");
        assert_eq!(matched.as_deref(), case["matched"].as_str(), "{about}");
        assert_eq!(chunks.len() as u64, case["pieces_read"].as_u64().unwrap(), "{about}");
    }
}

/// What Python gives for texts of all lengths about a width, and where parts begin and end.
#[test]
fn texts_are_padded_cut_and_compared_as_in_python() {
    let check = |source: &str, right: &str| {
        let generation = Generation {
            templates: [("default".to_owned(), source.to_owned())].into(),
            ..Generation::default()
        };
        let chat = Chat::new(Value::from(Vec::<Value>::new()));
        let prompt = chat.prompt_as_it_is(&generation, &Controls::default(), 1000);
        assert_eq!(prompt.map(|prompt| prompt.text).as_deref(), Ok(right), "{source}");
    };
    check(
        "{{ 'ab'.center(5, '-') }} {{ 'abc'.center(6, '-') }} {{ 'ab'.center(1) }}",
        "--ab- -abc-- ab",
    );
    check("{{ 'ab'.rjust(4) }}|{{ '-7'.zfill(4) }}|{{ 'abc'.zfill(2) }}", "  ab|-007|abc");
    check("{{ 'abc'.startswith('bc', -2) }} {{ 'abc'.endswith('b', 0, -1) }}", "True True");
    check("{{ 'abc'.startswith('', 4) }} {{ 'abc'.endswith(('x', 'y')) }}", "False False");
    check(
        "{{ 'abcdefgh' | truncate(4, true, leeway=0) }} {{ 'ab cd' | truncate(3) }}",
        "a... ab cd",
    );
    let numbers = "{{ 'x' | int }} {{ ' 42 ' | int }} {{ '3.7' | int }} {{ none | int }}";
    check(numbers, "0 42 3 0");
    check("{{ '0x1f' | int(0, 16) }} {{ 'x' | int(default=5) }} {{ '-7' | int }}", "31 5 -7");
    check("{{ '1e3' | float }} {{ 'x' | float }}", "1000.0 0.0");
    check(
        "{{ 'a b  c'.rsplit(None, 1) }} {{ ' a b'.rsplit(None, 1) }}",
        "['a b', 'c'] [' a', 'b']",
    );
    check("{{ ' a b c'.split(maxsplit=1) }} {{ ' a  b '.split() }}", "['a', 'b c'] ['a', 'b']");
    check("{{ 'a,b,c'.split(sep=',', maxsplit=1) }} {{ ''.split(',') }}", "['a', 'b,c'] ['']");
    check("{{ 'a,b,c'.rsplit(',', 1) }} {{ {'a': 1}.copy() }}", "['a,b', 'c'] {'a': 1}");
    let places = "{{ 'abcabc'.find('b', 2) }} {{ 'abcb'.rfind('b', 0, 2) }} {{ 'a'.find('a', 1) }}";
    check(places, "4 1 -1");
    check("{% set e = 1e-5 %}{{ [1e22, 1e-7, 1.0] }} {{ 'x' ~ e }}", "[1e+22, 1e-07, 1.0] x1e-05");
    check("{{ [1e-5] | join(',') }} {{ {'a': (1,)} | string }}", "1e-05 {'a': (1,)}");
    check("{{ 'one two three' | truncate(length=9, end='!', leeway=0) }}", "one two!");
}
