//! The settings in force as TOML, with the origin of each value as a comment.

use super::models::SECTION;
use super::{Effective, KEYS, Key};
use crate::daemon::rights::Right;
use crate::values::size::Size;
use std::fmt::Write;
use toml::Value;

/// A config file that sets what is set, shows the rest in comments, and says where each value
/// comes from.
pub fn show(effective: &Effective) -> String {
    let mut text = String::new();
    for file in &effective.files {
        push(&mut text, format_args!("# read: {}\n", file.display()));
    }
    let mut section = "";
    for key in &KEYS {
        let (within, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if within != section {
            push(&mut text, format_args!("\n[{within}]\n"));
            section = within;
        }
        match effective.value(key) {
            Some((value, origin)) => {
                push(&mut text, format_args!("{name} = {value}  # {origin}\n"))
            }
            None => match default_of(effective, key) {
                Some(value) => push(&mut text, format_args!("{name} = {value}  # default\n")),
                None => push(&mut text, format_args!("# {name}: {}\n", hint(effective, key))),
            },
        }
    }
    let mut section = "";
    for (model, name, (value, origin)) in effective.model_values() {
        if model != section {
            push(&mut text, format_args!("\n[{SECTION}.{}]\n", Value::from(model)));
            section = model;
        }
        push(&mut text, format_args!("{name} = {value}  # {origin}\n"));
    }
    text
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a string takes everything");
}

fn default_of(effective: &Effective, key: &Key) -> Option<Value> {
    let settings = &effective.settings;
    let list = |right| settings.rights.texts(right).into();
    Some(match key.name {
        "store" => settings.store.to_string_lossy().into_owned().into(),
        "socket" => settings.socket()?.to_string_lossy().into_owned().into(),
        "tokens" => i64::try_from(settings.tokens.0).unwrap_or(i64::MAX).into(),
        "profiles" => settings.profiles.into(),
        "drain" => i64::from(settings.drain).into(),
        "log" => format!("{:?}", settings.log).to_lowercase().into(),
        "rights.infer" => list(Right::Infer),
        "rights.load" => list(Right::Load),
        "rights.install" => list(Right::Install),
        _ => return None,
    })
}

fn hint(effective: &Effective, key: &Key) -> String {
    match key.name {
        "budget" => format!("{}, now {}", key.default, Size(effective.settings.budget_bytes())),
        _ => key.default.to_string(),
    }
}
