//! `hermesctl top`: the daemon at work, drawn once a second from its metrics.

use super::scrape::{Sample, Scrape};
use super::{Client, ClientError, table};
use crate::api::size::Size;
use crate::sys::terminal::{self, Keys, Woken};
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
    let version = scrape.named("hermes_build_info").next().and_then(|s| s.labels.get("version"));
    let pressure = scrape.named("hermes_pressure").find(|sample| sample.value > 0.0);
    let pressure = pressure.and_then(|sample| sample.labels.get("level"));
    let size = |name: &str| Size(scrape.sum(name) as u64);
    let mut text = format!(
        "hermesd {}  budget {}  resident {}  window {}\npressure {}  connections {}  waiting {} of {}\n\n",
        version.map_or("-", String::as_str),
        size("hermes_budget_bytes"),
        size("hermes_resident_bytes"),
        size("hermes_window_bytes"),
        pressure.map_or("-", String::as_str),
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
        "READ/S",
        "STALL",
        "PINNED",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for Sample { labels, .. } in scrape.named("hermes_passes_total") {
        let Some(model) = labels.get("model") else { continue };
        let ready = scrape.named("hermes_model_ready");
        let ready = ready.into_iter().find(|sample| sample.labels.get("model") == Some(model));
        let variant = ready.and_then(|sample| sample.labels.get("variant"));
        let state = match ready.map(|sample| sample.value > 0.0) {
            None => "unloaded",
            Some(true) => "ready",
            Some(false) => "failed",
        };
        let per_second = |name: &str| match rate(name, model) {
            Some(rate) => format!("{rate:.1}"),
            None => "-".to_owned(),
        };
        let read = rate("hermes_read_bytes_total", model);
        let pass = rate("hermes_pass_seconds_total", model).filter(|pass| *pass > 0.0);
        let stall = rate("hermes_stall_seconds_total", model).zip(pass);
        let answered = scrape
            .named("hermes_requests_total")
            .filter(|s| s.labels.get("model") == Some(model))
            .filter(|s| s.labels.get("outcome").is_some_and(|outcome| outcome == "answered"));
        rows.push([
            model.clone(),
            variant.map_or("-", String::as_str).to_owned(),
            state.to_owned(),
            answered.map(|sample| sample.value).sum::<f64>().to_string(),
            per_second("hermes_pass_requests_total"),
            per_second("hermes_passes_total"),
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
                 hermes_model_ready{{model=\"m\",variant=\"q8\"}} 1\n",
                f64::from(passes) / 10.0,
                f64::from(passes) / 40.0,
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
        assert_eq!((row[5], row[row.len() - 4], row[row.len() - 3]), ("3.0", "25", "%"));
        assert!(frame(&after, None).lines().last().unwrap().contains("  -  "));
    }
}
