//! `hermesctl top`: the daemon at work, drawn once a second from its metrics.

use super::client::{Client, ClientError};
use super::scrape::{Sample, Scrape};
use hermes_base::sys::terminal::{self, Keys, Woken};
use hermes_base::values::size::Size;
use hermes_base::wire::table;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Between two frames.
const PERIOD: Duration = Duration::from_secs(1);

/// Characters of a bar.
const BAR: usize = 32;

/// Clears the screen from the cursor, which goes to its beginning.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// The terminal's other screen, so that what was there comes back; and the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Draws frames until `q` or Ctrl-C. Returns the one frame where the output is no terminal, or
/// `once` is asked.
///
/// # Errors
///
/// [`ClientError`]; the terminal is as it was in any case.
pub fn run(client: &Client, once: bool) -> Result<String, ClientError> {
    let keys = match once {
        true => None,
        false => Keys::take().map_err(|error| ClientError::Usage(error.to_string()))?,
    };
    let Some(keys) = keys else {
        return Ok(frame(&Moment::read(client)?, None));
    };
    let _screen = Screen::enter();
    let mut before = None;
    loop {
        let now = Moment::read(client)?;
        draw(&frame(&now, before.as_ref()));
        before = Some(now);
        let end = Instant::now() + PERIOD;
        loop {
            match keys.wait(end.saturating_duration_since(Instant::now())) {
                Woken::Time => break,
                // q, Ctrl-C, Ctrl-D.
                Woken::End | Woken::Key(b'q' | 3 | 4) => return Ok(String::new()),
                Woken::Key(_) => {}
            }
        }
    }
}

/// What one frame shows, as one JSON object: sizes in bytes, counters since the daemon's start.
///
/// # Errors
///
/// [`ClientError`].
pub fn json(client: &Client) -> Result<String, ClientError> {
    Ok(report(&Moment::read(client)?.scrape).to_string())
}

/// The other screen, left again on drop.
struct Screen;

impl Screen {
    fn enter() -> Screen {
        put(ENTER);
        Screen
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        put(LEAVE);
    }
}

/// Draws what of a frame fits.
fn draw(frame: &str) {
    let (columns, rows) = terminal::size();
    let lines = frame.lines().take(rows.saturating_sub(1));
    let lines = lines.map(|line| line.chars().take(columns).collect::<String>());
    let text = lines.map(|line| line + CLEAR_LINE).collect::<Vec<_>>().join("\r\n");
    put(&format!("{HOME}{text}\r\n{CLEAR_BELOW}"));
}

fn put(text: &str) {
    // A terminal that is gone is noticed when a key is waited for.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

/// The metrics and when they were read.
struct Moment {
    at: Instant,
    scrape: Scrape,
}

impl Moment {
    fn read(client: &Client) -> Result<Moment, ClientError> {
        let scrape = Scrape::parse(&client.get_text("/metrics")?)
            .map_err(|line| ClientError::Broken(format!("no metric: {line}")))?;
        Ok(Moment { at: Instant::now(), scrape })
    }
}

/// What a metric rose by in a second, if there is a moment before.
type Rate<'a> = dyn Fn(&str, &str) -> Option<f64> + 'a;

fn frame(now: &Moment, before: Option<&Moment>) -> String {
    let scrape = &now.scrape;
    let size = |name: &str| Size(scrape.sum(name) as u64);
    let mut text = format!(
        "hermesd {}  budget {}  resident {}  window {}\npressure {}  connections {}  waiting {} of {}\n\n",
        version(scrape).unwrap_or("-"),
        size("hermes_budget_bytes"),
        size("hermes_resident_bytes"),
        size("hermes_window_bytes"),
        pressure(scrape).unwrap_or("-"),
        scrape.sum("hermes_connections"),
        scrape.sum("hermes_waiting_requests"),
        scrape.sum("hermes_waiting_requests_limit"),
    );
    let budget = scrape.sum("hermes_budget_bytes");
    let mut held = 0.0;
    for Sample { labels, value, .. } in scrape.named("hermes_ledger_bytes") {
        bar(&mut text, labels.get("category").map_or("", String::as_str), *value, budget);
        held += value;
    }
    bar(&mut text, "free", budget - held, budget);
    let rate = |name: &str, model: &str| {
        let before = before?;
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        let rise = scrape.of(name, "model", model) - before.scrape.of(name, "model", model);
        (seconds > 0.0).then(|| rise / seconds)
    };
    write!(text, "\n{}", models(scrape, &rate)).expect("a string takes every write");
    text
}

fn version(scrape: &Scrape) -> Option<&str> {
    let info = scrape.named("hermes_build_info").next()?;
    info.labels.get("version").map(String::as_str)
}

fn pressure(scrape: &Scrape) -> Option<&str> {
    let level = scrape.named("hermes_pressure").find(|sample| sample.value > 0.0)?;
    level.labels.get("level").map(String::as_str)
}

/// The names of the models, in the order of the metrics.
fn names(scrape: &Scrape) -> impl Iterator<Item = &String> {
    scrape.named("hermes_passes_total").filter_map(|sample| sample.labels.get("model"))
}

/// The variant a model is loaded in, and its state.
fn state<'a>(scrape: &'a Scrape, model: &str) -> (Option<&'a str>, &'static str) {
    let mut ready = scrape.named("hermes_model_ready");
    let ready = ready.find(|sample| sample.labels.get("model").is_some_and(|name| name == model));
    let state = match ready.map(|sample| sample.value > 0.0) {
        None => "unloaded",
        Some(true) => "ready",
        Some(false) => "failed",
    };
    (ready.and_then(|sample| sample.labels.get("variant")).map(String::as_str), state)
}

/// Requests of a model that ended as `outcome`.
fn ended(scrape: &Scrape, model: &str, outcome: &str) -> f64 {
    let is = |sample: &Sample, label, value| sample.labels.get(label).is_some_and(|l| l == value);
    let of = scrape.named("hermes_requests_total");
    let of = of.filter(|sample| is(sample, "model", model) && is(sample, "outcome", outcome));
    of.map(|sample| sample.value).sum()
}

/// Tokens as they are written, the first ones of texts and later ones.
const TOKENS: [&str; 2] =
    ["hermes_first_token_duration_seconds_count", "hermes_next_token_duration_seconds_count"];

/// Tokens that a model wrote.
fn tokens(scrape: &Scrape, model: &str) -> f64 {
    TOKENS.iter().map(|name| scrape.of(name, "model", model)).sum()
}

/// What a frame shows, with the counters that its rates are made of.
fn report(scrape: &Scrape) -> Value {
    let sum = |name: &str| scrape.sum(name) as u64;
    let ledger = scrape.named("hermes_ledger_bytes").filter_map(|sample| {
        Some((sample.labels.get("category")?.clone(), json!(sample.value as u64)))
    });
    let models = names(scrape).map(|model| {
        let (variant, state) = state(scrape, model);
        let count = |name: &str| scrape.of(name, "model", model) as u64;
        let us = |name: &str| (scrape.of(name, "model", model) * 1e6).round() as u64;
        json!({
            "name": model,
            "variant": variant,
            "state": state,
            "answered": ended(scrape, model, "answered") as u64,
            "passes": count("hermes_passes_total"),
            "written_tokens": tokens(scrape, model) as u64,
            "pass_requests": count("hermes_pass_requests_total"),
            "pass_us": us("hermes_pass_seconds_total"),
            "stall_us": us("hermes_stall_seconds_total"),
            "bytes_read": count("hermes_read_bytes_total"),
            "pinned_bytes": count("hermes_pinned_bytes"),
        })
    });
    json!({
        "version": version(scrape),
        "pressure": pressure(scrape),
        "budget_bytes": sum("hermes_budget_bytes"),
        "resident_bytes": sum("hermes_resident_bytes"),
        "window_bytes": sum("hermes_window_bytes"),
        "connections": sum("hermes_connections"),
        "waiting": sum("hermes_waiting_requests"),
        "waiting_limit": sum("hermes_waiting_requests_limit"),
        "ledger_bytes": ledger.collect::<Map<_, _>>(),
        "models": models.collect::<Vec<_>>(),
    })
}

fn bar(text: &mut String, name: &str, value: f64, whole: f64) {
    let share = if whole > 0.0 { (value / whole).clamp(0.0, 1.0) } else { 0.0 };
    let full = (share * BAR as f64).round() as usize;
    let (full, rest) = ("#".repeat(full), ".".repeat(BAR - full));
    writeln!(text, "{name:<12}[{full}{rest}] {}", Size(value.max(0.0) as u64))
        .expect("a string takes every write");
}

fn models(scrape: &Scrape, rate: &Rate<'_>) -> String {
    let head = [
        "MODEL",
        "VARIANT",
        "STATE",
        "ANSWERED",
        "ANSWERS/S",
        "PASSES/S",
        "TOKENS/S",
        "READ/S",
        "STALL",
        "PINNED",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for model in names(scrape) {
        let (variant, state) = state(scrape, model);
        let per_second = |name: &str| match rate(name, model) {
            Some(rate) => format!("{rate:.1}"),
            None => "-".to_owned(),
        };
        let read = rate("hermes_read_bytes_total", model);
        let rates = TOKENS.map(|name| rate(name, model));
        let written = rates[0].zip(rates[1]).map(|(first, next)| first + next);
        let written = written.filter(|_| tokens(scrape, model) > 0.0);
        let pass = rate("hermes_pass_seconds_total", model).filter(|pass| *pass > 0.0);
        let stall = rate("hermes_stall_seconds_total", model).zip(pass);
        rows.push([
            model.clone(),
            variant.unwrap_or("-").to_owned(),
            state.to_owned(),
            ended(scrape, model, "answered").to_string(),
            per_second("hermes_pass_requests_total"),
            per_second("hermes_passes_total"),
            written.map_or("-".to_owned(), |rate| format!("{rate:.1}")),
            read.map_or("-".to_owned(), |read| Size(read.max(0.0) as u64).to_string()),
            stall.map_or("-".to_owned(), |(stall, pass)| format!("{:.0} %", 100.0 * stall / pass)),
            Size(scrape.of("hermes_pinned_bytes", "model", model) as u64).to_string(),
        ]);
    }
    table::lines(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_shows_levels_and_rates() {
        let moment = |at: Instant, passes: u32| {
            let text = format!(
                "hermes_build_info{{version=\"1.2\"}} 1\nhermes_budget_bytes 4194304\n\
                 hermes_ledger_bytes{{category=\"window\"}} 1048576\n\
                 hermes_pressure{{level=\"none\"}} 0\nhermes_pressure{{level=\"pins\"}} 1\n\
                 hermes_passes_total{{model=\"m\"}} {passes}\n\
                 hermes_pass_seconds_total{{model=\"m\"}} {}\n\
                 hermes_stall_seconds_total{{model=\"m\"}} {}\n\
                 hermes_first_token_duration_seconds_count{{model=\"m\"}} 1\n\
                 hermes_next_token_duration_seconds_count{{model=\"m\"}} {}\n\
                 hermes_model_ready{{model=\"m\",variant=\"q8\"}} 1\n",
                f64::from(passes) / 10.0,
                f64::from(passes) / 40.0,
                7 * passes,
            );
            Moment { at, scrape: Scrape::parse(&text).unwrap() }
        };
        let start = Instant::now();
        let before = moment(start, 4);
        let after = moment(start + Duration::from_secs(2), 10);
        let text = frame(&after, Some(&before));
        assert!(text.contains("hermesd 1.2  budget 4 MiB"), "{text}");
        assert!(text.contains("pressure pins"), "{text}");
        let bar = format!("window      [{}{}] 1 MiB", "#".repeat(8), ".".repeat(24));
        assert!(text.contains(&bar), "{text}");
        let row: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(row[..3], ["m", "q8", "ready"]);
        assert_eq!(row[6], "21.0");
        assert_eq!((row[5], row[row.len() - 4], row[row.len() - 3]), ("3.0", "25", "%"));
        assert!(frame(&after, None).lines().last().unwrap().contains("  -  "));
    }
}
