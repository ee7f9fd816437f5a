//! Profiles and plans: what was measured of a model on this board, and what is best done with it.

use super::choice::{choice_json, choice_text, more_json};
use super::envelope::OipError;
use super::error::ApiError;
use super::state::{Api, Asked, FoundModel, ModelPathArg};
use crate::engine::{Answered, Inquiry};
use crate::plan::{
    Alternative, Bound, Forecast, MAX_TOKENS, PinPlace, Placement, Plan, Planned, Profile, Skipped,
    Usage, Way,
};
use crate::store::check_length;
use crate::values::size::{self, Size};
use crate::values::{Accuracy, Latency, target};
use crate::wire::quote::quote;
use crate::wire::table;
use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What a plan can be asked for, as parameters of the query.
const PARAMETERS: [&str; 9] =
    ["latency", "accuracy", "budget", "tokens", "use", "source", "loaders", "threads", "window"];

/// Most bytes of a budget or a window: beyond any board's, and far from what overflows.
const MAX_BYTES: u64 = 1 << 40;

/// Why a row that looks sooner than the plan is not the plan.
const SOONER: &str = "The plan was chosen for blocks that take unevenly long, and for what a narrow \
                      window costs beside: what looks sooner here was later there, or holds more.";

/// Width of what people read.
const COLUMNS: usize = 80;

/// Most threads, of either kind.
const MAX_THREADS: u64 = 255;

/// `POST /v2/repository/models/{model}/profile`: measures the model, which takes some tens of
/// passes; other requests are answered meanwhile.
pub async fn profile(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
) -> Result<Json<Profile>, OipError> {
    let FoundModel { model, .. } = api.find(path).await.map_err(ApiError::closing)?;
    let profile = Asked::new(|reply| api.engine.request_profile(&model, reply)).wait().await?;
    Ok(Json(Profile::clone(&profile)))
}

/// `GET /v2/models/{model}/plan`: how passes would be played, by what was measured.
pub async fn plan(
    State(api): State<Arc<Api>>,
    path: ModelPathArg,
    uri: Uri,
) -> Result<Json<Value>, OipError> {
    let FoundModel { model, .. } = api.find(path).await.map_err(ApiError::closing)?;
    let inquiry = parse(uri.query().unwrap_or_default())?;
    if let Some(tokens) = inquiry.tokens {
        let name = model.clone();
        let longest = api.help(move |api, _| Ok(api.engine.longest_text(&name)?)).await?;
        let checked = check_length(&model, tokens, longest);
        checked.map_err(|wrong| ApiError::invalid(format!("parameter \"tokens\": {wrong}")))?;
    }
    let known = Asked::new(|reply| api.engine.request_known(&model, reply)).wait().await?;
    let answered = api.help(move |_, _| Ok(known.plan(inquiry)?)).await?;
    Ok(Json(describe(&answered)))
}

/// What a query asks for.
fn parse(query: &str) -> Result<Inquiry, ApiError> {
    let mut inquiry = Inquiry::default();
    let (mut latency, mut accuracy) = (None::<Latency>, None::<Accuracy>);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let fixed = &mut inquiry.fixed;
        let put = match name {
            "latency" => put(&mut latency, value.parse()),
            "accuracy" => put(&mut accuracy, value.parse()),
            "budget" => put(&mut inquiry.budget_bytes, bytes(value)),
            "tokens" => put(&mut inquiry.tokens, number(value, 1..=MAX_TOKENS)),
            "use" => put(&mut inquiry.usage, usage(value)),
            "source" => put(&mut fixed.source, value.parse::<Way>().map_err(|e| e.to_string())),
            "loaders" => put(&mut fixed.loaders, threads(value)),
            "threads" => put(&mut fixed.threads, threads(value)),
            "window" => put(&mut fixed.window_bytes, bytes(value)),
            _ => Err(format!("it is unknown: there are {}", PARAMETERS.join(", "))),
        };
        put.map_err(|wrong| ApiError::invalid(format!("parameter {}: {wrong}", quote(name))))?;
    }
    inquiry.target = target(latency, accuracy);
    Ok(inquiry)
}

fn put<T>(place: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    match place.replace(value?) {
        None => Ok(()),
        Some(_) => Err("it is given twice".to_owned()),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    match size::parse(text).map_err(|error| error.to_string())? {
        bytes if bytes <= MAX_BYTES => Ok(bytes),
        _ => Err(format!("{text} is more than {}", Size(MAX_BYTES))),
    }
}

fn number(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!("{} is no number from {} to {}", quote(text), range.start(), range.end())
    })
}

fn threads(text: &str) -> Result<usize, String> {
    number(text, 1..=MAX_THREADS).map(|count| count as usize)
}

fn usage(text: &str) -> Result<Usage, String> {
    let known = [Usage::Cyclic, Usage::OneShot];
    let named = known.into_iter().find(|usage| usage.to_string() == text);
    named.ok_or_else(|| format!("{} is unknown: there are cyclic and one-shot", quote(text)))
}

fn describe(answered: &Answered) -> Value {
    let Answered { profile, budget_bytes, wish, planned, choice, advice } = answered;
    let alternative = |Alternative { plan, forecast, differs_in }: &Alternative| {
        json!({
            "differs_in": differs_in.to_string(),
            "plan": plan,
            "forecast": figures(forecast),
        })
    };
    let mut described = json!({
        "model": profile.model,
        "version": profile.version,
        "variant": profile.variant,
        "budget_bytes": budget_bytes,
        "tokens": wish.tokens,
        "use": wish.usage,
        "plan": planned.plan,
        "forecast": figures(&planned.forecast),
        "granted_bytes": planned.granted_bytes,
        "fits": planned.fits,
        "alternatives": planned.alternatives.iter().map(alternative).collect::<Vec<_>>(),
        "advice": advice,
        "text": text(answered),
    });
    if let Some(choice) = choice {
        described["choice"] = choice_json(choice);
        described["more"] = more_json(choice);
    }
    described
}

fn figures(forecast: &Forecast) -> Value {
    let us = |time_us: f64| time_us.round() as u64;
    json!({
        "latency_us": us(forecast.latency_us),
        "stall_us": us(forecast.stall_us),
        "bytes_read": forecast.bytes_read,
        "peak_bytes": forecast.peak_bytes,
        "io_us": us(forecast.io_us),
        "compute_us": us(forecast.compute_us),
        "bound": match forecast.bound() {
            Bound::Disk => "disk",
            Bound::Compute => "compute",
        },
    })
}

/// The same for people.
fn text(answered: &Answered) -> String {
    let Answered { profile, budget_bytes, wish, planned, choice, advice } = answered;
    let Planned { plan, forecast, fits, alternatives, .. } = planned;
    let ms = |time_us: f64| format!("{:.1} ms", time_us / 1e3);
    let (io, compute) = (ms(forecast.io_us), ms(forecast.compute_us));
    let bound = match (fits, forecast.bound()) {
        (true, _) => format!("It fits: all of it stays, and computing takes {compute}."),
        (false, Bound::Disk) => {
            format!("The disk is the bound: reading takes {io}, computing {compute}.")
        }
        (false, Bound::Compute) => {
            format!("Compute is the bound: it takes {compute}, reading {io}.")
        }
    };
    let mut figures = vec![["", "LATENCY", "STALL", "READ", "HELD"].map(str::to_owned)];
    let mut ways =
        vec![["", "SOURCE", "LOADERS", "CORES", "THREADS", "WINDOW", "PINS"].map(str::to_owned)];
    let mut add = |name: String, plan: &Plan, forecast: &Forecast| {
        ways.push(way(&name, plan));
        figures.push([
            name,
            ms(forecast.latency_us),
            ms(forecast.stall_us),
            Size(forecast.bytes_read).to_string(),
            Size(forecast.peak_bytes).to_string(),
        ]);
    };
    add("plan".to_owned(), plan, forecast);
    for Alternative { plan, forecast, differs_in } in alternatives {
        add(differs_in.to_string(), plan, forecast);
    }
    let Profile { model, version, variant, skipped, .. } = &**profile;
    let skipped = skipped.iter().map(|Skipped { what, why }| {
        table::wrapped(&format!("not measured: {what}: {why}"), COLUMNS) + "\n"
    });
    let skipped: String = skipped.collect();
    let (tokens, usage, budget) = (wish.tokens, wish.usage, Size(*budget_bytes));
    let about = format!(
        "{model} {version} ({variant}), passes of {tokens} tokens, {usage} use, a budget of \
         {budget}."
    );
    let choice = choice.as_ref().map_or_else(String::new, choice_text);
    let is_sooner = |other: &Alternative| other.forecast.latency_us < forecast.latency_us;
    let unfair = match alternatives.iter().any(is_sooner) {
        true => format!("{}\n\n", table::wrapped(SOONER, COLUMNS)),
        false => String::new(),
    };
    format!(
        "{}\n{bound}\n\n{choice}{}\n\n{unfair}{}\n{skipped}\n{}",
        table::wrapped(&about, COLUMNS),
        table::lines(&figures),
        table::lines(&ways),
        table::wrapped(&advice.to_string(), COLUMNS)
    )
}

/// How a plan's passes are played, as a row.
fn way(name: &str, plan: &Plan) -> [String; 7] {
    let Plan { source, loaders, threads, placement, window_bytes, pin_bytes, pins, .. } = plan;
    let placement = match placement {
        Placement::Shared => "shared",
        Placement::Apart => "apart",
    };
    let pins = match (pin_bytes, pins) {
        (0, _) => "none".to_owned(),
        (bytes, PinPlace::Head) => format!("{}, head", Size(*bytes)),
        (bytes, PinPlace::Spread) => format!("{}, spread", Size(*bytes)),
    };
    [
        name.to_owned(),
        source.to_string(),
        loaders.to_string(),
        placement.to_owned(),
        threads.to_string(),
        Size(*window_bytes).to_string(),
        pins,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Overrides, Target};

    #[test]
    fn queries_say_what_is_wanted() {
        let query = "latency=400ms&accuracy=0.99&budget=64MiB&tokens=7&use=one-shot&source=direct&loaders=2&threads=3&window=1";
        let (source, loaders, threads) = (Some(Way::Direct), Some(2), Some(3));
        let fixed =
            Overrides { source, loaders, threads, window_bytes: Some(1), ..Overrides::default() };
        let expected = Inquiry {
            budget_bytes: Some(64 << 20),
            tokens: Some(7),
            usage: Some(Usage::OneShot),
            target: Target { latency_us: Some(4e5), accuracy: Some(0.99) },
            fixed,
        };
        assert_eq!(parse(query).unwrap(), expected);
        assert_eq!(parse("").unwrap(), Inquiry::default());
    }

    #[test]
    fn wrong_queries_are_told_by_name() {
        let check = |query: &str, expected: &str| {
            let message = parse(query).unwrap_err().message;
            assert!(message.starts_with(expected), "{message}");
        };
        check("colour=1", "parameter \"colour\": it is unknown: there are latency, accuracy, budg");
        check("latency=0", "parameter \"latency\": no answer takes no time");
        check("latency=31536000s", "parameter \"latency\": 31536000s is more than an hour");
        check("latency=fast", "parameter \"latency\": \"fast\" is not a time");
        check("accuracy=2", "parameter \"accuracy\": an accuracy of 2: give more than 0");
        check("accuracy=NaN", "parameter \"accuracy\": an accuracy of NaN");
        check("accuracy=1&accuracy=1", "parameter \"accuracy\": it is given twice");
        check("budget", "parameter \"budget\": \"\" is not a size: write bytes");
        check("budget=64Mbit", "parameter \"budget\": \"64Mbit\" is not a size");
        check("window=9999GiB", "parameter \"window\": 9999GiB is more than 1 TiB");
        check("tokens=0", "parameter \"tokens\": \"0\" is no number from 1 to 1000000");
        check("threads=256", "parameter \"threads\": \"256\" is no number from 1 to 255");
        check("loaders=-1", "parameter \"loaders\": \"-1\" is no number from 1 to 255");
        check("use=daily", "parameter \"use\": \"daily\" is unknown: there are cyclic and one-sh");
        check("source=tape", "parameter \"source\": \"tape\" is unknown: there are mapped and di");
        check("tokens=1&tokens=2", "parameter \"tokens\": it is given twice");
    }
}
