//! The results as text: CSV for programs, Markdown tables like the paper's for people.

use super::disks::Disk;
use super::measure::Measured;
use super::policy::{Policy, Step};
use super::results::{Agreement, Cell, Record, Results};
use anyhow::{Context, Result, anyhow, ensure};
use hermes::values::size::Size;
use std::fmt::Write;
use std::str::FromStr;

/// How the passes were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    pub tokens: usize,
    pub window_bytes: u64,
}

/// The fields of a line; the last may have commas.
const FIELDS: &str = "model,disk,policy,repeat,tokens,window_bytes,load_us,latency_us,stall_us,\
                      bytes_read,window_peak_bytes,peak_rss_bytes,charged_bytes,digest,plan";

/// Speed-up over the one-loader pipeline that the paper reports for BERT-Large with six agents.
const PAPER_SPEED_UP: f64 = 4.24;

/// One line a measured pass.
pub fn csv(results: &Results, setting: &Setting) -> String {
    let Setting { tokens, window_bytes } = setting;
    let mut text = format!("{FIELDS}\n");
    for record in &results.records {
        let m = &record.measured;
        let charged = m.charged_bytes.map_or(String::new(), |bytes| bytes.to_string());
        let (model, disk, step, repeat) = (&record.model, record.disk, record.step, record.repeat);
        let (load, latency, stall, read) = (m.load_us, m.latency_us, m.stall_us, m.bytes_read);
        let (peak, rss, plan) = (m.window_peak_bytes, m.peak_rss_bytes, &m.plan);
        line(
            &mut text,
            format_args!(
                "{model},{disk},{step},{repeat},{tokens},{window_bytes},{load},{latency},{stall},\
                 {read},{peak},{rss},{charged},{:016x},\"{plan}\"",
                m.digest
            ),
        );
    }
    text
}

/// The passes that [`csv`] has written.
///
/// # Errors
/// Where a line is none of its, or of another setting.
pub fn parse_csv(text: &str, setting: &Setting) -> Result<Vec<Record>> {
    let mut lines = text.lines().enumerate();
    let head = lines.next().map_or("", |(_, head)| head);
    ensure!(head == FIELDS, "line 1: the fields are not {FIELDS}");
    lines
        .map(|(index, line)| {
            let (record, of) = parse_line(line).with_context(|| format!("line {}", index + 1))?;
            ensure!(
                of == *setting,
                "line {}: a pass of {} tokens and a window of {}, not {} and {}",
                index + 1,
                of.tokens,
                Size(of.window_bytes),
                setting.tokens,
                Size(setting.window_bytes)
            );
            Ok(record)
        })
        .collect()
}

fn parse_line(line: &str) -> Result<(Record, Setting)> {
    let count = FIELDS.split(',').count();
    let fields: Vec<&str> = line.splitn(count, ',').collect();
    ensure!(fields.len() == count, "{} fields of {count}", fields.len());
    fn parse<T: FromStr<Err: std::fmt::Display>>(name: &str, field: &str) -> Result<T> {
        field.parse().map_err(|error| anyhow!("{name}: {field:?}: {error}"))
    }
    let number =
        |index: usize| parse::<u64>(FIELDS.split(',').nth(index).unwrap_or(""), fields[index]);
    let charged_bytes = if fields[12].is_empty() { None } else { Some(number(12)?) };
    let measured = Measured {
        load_us: number(6)?,
        latency_us: number(7)?,
        stall_us: number(8)?,
        bytes_read: number(9)?,
        window_peak_bytes: number(10)?,
        pinned_bytes: 0,
        peak_rss_bytes: number(11)?,
        charged_bytes,
        digest: u64::from_str_radix(fields[13], 16).context("digest")?,
        plan: fields[14].trim_matches('"').to_string(),
    };
    let record = Record {
        model: fields[0].to_string(),
        disk: parse("disk", fields[1])?,
        step: parse("policy", fields[2])?,
        repeat: number(3)? as usize,
        measured,
    };
    Ok((record, Setting { tokens: number(4)? as usize, window_bytes: number(5)? }))
}

/// Tables and sentences.
pub fn markdown(results: &Results, setting: &Setting) -> String {
    let Setting { tokens, window_bytes } = *setting;
    let mut text = String::new();
    line(&mut text, format_args!("# Policies of the papers on one tape\n"));
    line(
        &mut text,
        format_args!(
            "One pass with a cold page cache in a process of its own, {tokens} tokens where a model \
             takes tokens, a window of {} for tape. Rounds go over all policies in turns; medians \
             (least to most). MB are 10^6 bytes. *Weights* are the most streamed weights \
             held at once, *RSS* the process's peak, each with its share of load-all's. *Limit* is \
             the larger of T_io, the tape played without computing, and T_compute, a pass with \
             everything pinned, both measured in the same rounds.\n",
            Size(window_bytes)
        ),
    );
    for model in results.models() {
        line(&mut text, format_args!("## {model}\n"));
        line(&mut text, format_args!("{}\n", agreement(results, model)));
        for disk in results.disks(model) {
            policies(&mut text, results, model, disk);
        }
        speed_up(&mut text, results, model);
        tape(&mut text, results, model);
    }
    if !results.left_out.is_empty() {
        line(&mut text, format_args!("## Left out\n"));
        for sentence in &results.left_out {
            line(&mut text, format_args!("- {sentence}"));
        }
    }
    text
}

fn agreement(results: &Results, model: &str) -> String {
    match results.agreement(model) {
        Some(Agreement::Identical { passes }) => {
            format!("The outputs of all {passes} passes are identical.")
        }
        Some(Agreement::Different) => "**The outputs are DIFFERENT.**".to_string(),
        None => "No pass gave outputs.".to_string(),
    }
}

/// The paper's Tables II and III, for one disk.
fn policies(text: &mut String, results: &Results, model: &str, disk: Disk) {
    line(text, format_args!("### {model} on {}\n", disk.title()));
    let median = |step| results.cell(model, disk, step).map(|cell| cell.latency_ms.median);
    let rounds = results.rounds(model, disk);
    let plural = if rounds == 1 { "" } else { "s" };
    if let (Some(io), Some(compute)) = (median(Step::Play), median(Step::Resident)) {
        let bound = if io > compute { "disk" } else { "processor" };
        line(
            text,
            format_args!(
                "{rounds} round{plural}. T_io {io:.1} ms, T_compute {compute:.1} ms: bound by the \
                 {bound}.\n"
            ),
        );
    }
    for plan in results.plans(model, disk, Policy::Tape) {
        line(text, format_args!("Tape was played by this plan: {plan}.\n"));
    }
    line(
        text,
        format_args!(
            "| policy | latency ms | over pipeswitch | of the limit | weights MB | RSS MB |\n\
             |---|---:|---:|---:|---:|---:|"
        ),
    );
    let baseline = results.pass(model, disk, Policy::PipeSwitch);
    let whole = results.pass(model, disk, Policy::LoadAll);
    let limit_ms = results.limit_ms(model, disk);
    for policy in results.policies(model, disk) {
        let Some(cell) = results.pass(model, disk, policy) else { continue };
        let Cell { latency_ms: ms, weights_mb, rss_mb, .. } = cell;
        let speed_up = baseline.map(|base| base.latency_ms.median / ms.median);
        let ratio = limit_ms.map(|limit| ms.median / limit);
        line(
            text,
            format_args!(
                "| {policy} | {:.1} ({:.1} to {:.1}) | {} | {} | {} | {} |",
                ms.median,
                ms.low,
                ms.high,
                times(speed_up),
                times(ratio),
                with_share(weights_mb, whole.map(|whole| whole.weights_mb)),
                with_share(rss_mb, whole.map(|whole| whole.rss_mb)),
            ),
        );
    }
    text.push('\n');
}

/// What more agents give on each disk, against what blocks and a window give.
fn speed_up(text: &mut String, results: &Results, model: &str) {
    let disks = results.disks(model);
    let mut agents: Vec<usize> = vec![];
    for policy in disks.iter().flat_map(|disk| results.policies(model, *disk)) {
        if let Policy::PipeLoad { agents: count } = policy {
            agents.push(count);
        }
    }
    agents.sort_unstable();
    agents.dedup();
    if !agents.contains(&1) || agents.len() < 2 {
        return;
    }
    line(text, format_args!("### Where the speed-up of {model} comes from\n"));
    let heads: String = agents.iter().map(|count| format!(" {count} agents |")).collect();
    let heads = heads.replace(" 1 agents", " 1 agent, ms");
    line(text, format_args!("| disk | T_io ms | T_compute ms | pipeswitch ms |{heads} tape |"));
    line(text, format_args!("|---|{}", "---:|".repeat(agents.len() + 4)));
    let mut best: Option<(f64, usize, Disk)> = None;
    for disk in disks {
        let median = |step| results.cell(model, disk, step).map(|cell| cell.latency_ms.median);
        let one = median(Step::Pass(Policy::PipeLoad { agents: 1 }));
        let gain = |policy| Some(one? / median(Step::Pass(policy))?);
        let gains: String = agents
            .iter()
            .map(|&count| match count {
                1 => format!(" {} |", number(one)),
                agents => format!(" {} |", times(gain(Policy::PipeLoad { agents }))),
            })
            .collect();
        line(
            text,
            format_args!(
                "| {disk} | {} | {} | {} |{gains} {} |",
                number(median(Step::Play)),
                number(median(Step::Resident)),
                number(median(Step::Pass(Policy::PipeSwitch))),
                times(gain(Policy::Tape))
            ),
        );
        let count = results.best_pipeload(model, disk).map(|(agents, _)| agents);
        let top = count.and_then(|agents| Some((gain(Policy::PipeLoad { agents })?, agents, disk)));
        if top.is_some_and(|(gain, ..)| best.is_none_or(|(most, ..)| gain > most)) {
            best = top;
        }
    }
    if let Some((gain, agents, disk)) = best {
        line(
            text,
            format_args!(
                "\nThe figures behind one agent are speed-ups over it. The most that several give is \
                 {gain:.2} x, with {agents} on {disk}; the paper reports {PAPER_SPEED_UP} x for six \
                 on its machine. No policy can gain more than one agent's latency over the larger of \
                 T_io and T_compute.\n"
            ),
        );
    }
}

/// Tape against its limit and against the papers.
fn tape(text: &mut String, results: &Results, model: &str) {
    line(text, format_args!("### Tape against the others on {model}\n"));
    line(
        text,
        format_args!(
            "| disk | of the limit | of pipeswitch's latency | weights saved against pipeswitch | \
             of the best pipeload's latency | its weights over tape's |\n\
             |---|---:|---:|---:|---:|---:|"
        ),
    );
    for disk in results.disks(model) {
        let Some(tape) = results.pass(model, disk, Policy::Tape) else { continue };
        let ms = tape.latency_ms.median;
        let switch = results.pass(model, disk, Policy::PipeSwitch);
        let saved = switch.map(|switch| 100.0 * (1.0 - tape.weights_mb / switch.weights_mb));
        let best = results.best_pipeload(model, disk);
        let latency = best.map_or("-".to_string(), |(agents, cell)| {
            format!("{:.3} (pipeload-{agents})", ms / cell.latency_ms.median)
        });
        line(
            text,
            format_args!(
                "| {disk} | {} | {} | {} | {latency} | {} |",
                ratio(results.limit_ms(model, disk).map(|limit| ms / limit)),
                ratio(switch.map(|switch| ms / switch.latency_ms.median)),
                saved.map_or("-".to_string(), |saved| format!("{saved:.1} %")),
                times(best.map(|(_, cell)| cell.weights_mb / tape.weights_mb)),
            ),
        );
    }
    text.push('\n');
}

fn line(text: &mut String, arguments: std::fmt::Arguments) {
    writeln!(text, "{arguments}").expect("a string takes all");
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |value| format!("{value:.1}"))
}

fn times(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |value| format!("{value:.2} x"))
}

fn ratio(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |value| format!("{value:.3}"))
}

fn with_share(mb: f64, whole_mb: Option<f64>) -> String {
    let share = whole_mb.map_or(String::new(), |whole| format!(" ({:.1} %)", 100.0 * mb / whole));
    format!("{mb:.1}{share}")
}

#[cfg(test)]
mod tests {
    use super::super::results::example;
    use super::*;

    const SETTING: Setting = Setting { tokens: 128, window_bytes: 16 << 20 };

    #[test]
    fn csv_has_a_line_for_each_pass_and_as_many_fields_as_its_head() {
        let results = example();
        let text = csv(&results, &SETTING);
        assert_eq!(text.lines().count(), 1 + results.records.len());
        let head = text.lines().next().unwrap();
        assert!(head.starts_with("model,disk,policy,repeat,"), "{head}");
        let first = text.lines().nth(1).unwrap();
        let expected = "bert,real,load-all,1,128,16777216,240000,1101000,550500,1200000000,\
                        1200000000,1240000000,,000000000000002a,\"a plan, quickly\"";
        assert_eq!(first, expected);
        let read = parse_csv(&text, &SETTING).unwrap();
        assert_eq!(csv(&Results { records: read, left_out: vec![] }, &SETTING), text);
    }

    #[test]
    fn csv_of_others_is_refused_by_line_and_field() {
        let text = csv(&example(), &SETTING);
        let check = |text: &str, setting: &Setting, expected: &str| {
            let error = format!("{:#}", parse_csv(text, setting).unwrap_err());
            assert!(error.contains(expected), "{error} lacks {expected}");
        };
        check("", &SETTING, "line 1: the fields are not");
        check(&text, &Setting { tokens: 16, ..SETTING }, "line 2: a pass of 128 tokens");
        check(&text.replacen(",550500,", ",x,", 1), &SETTING, "line 2: stall_us: \"x\": ");
        check(&text.replacen("load-all", "load", 1), &SETTING, "line 2: policy: \"load\": give");
        check(&format!("{text}bert,real"), &SETTING, "2 fields of 15");
    }

    #[test]
    fn tables_give_the_papers_figures() {
        let text = markdown(&example(), &SETTING);
        let has = |wanted: &str| assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        has("The outputs of all 48 passes are identical.");
        has("3 rounds. T_io 702.0 ms, T_compute 402.0 ms: bound by the disk.");
        has("| tape | 722.0 (721.0 to 723.0) | 1.06 x | 1.03 x | 16.0 (1.3 %) | 56.0 (4.5 %) |");
        has("| pipeload-6 | 752.0 (751.0 to 753.0) | 1.01 x | 1.07 x | 350.0 (29.2 %) |");
        has("| real | 702.0 | 402.0 | 762.0 | 752.0 | 1.00 x | 1.00 x | 1.00 x | 1.04 x |");
        has("| real | 1.028 | 0.948 | 98.7 % | 0.960 (pipeload-1) | 6.25 x |");
        assert!(!text.contains("Left out"));
    }

    #[test]
    fn what_is_missing_is_said_and_shown_as_a_dash() {
        let mut results = example();
        results.records.retain(|record| record.step == Step::Pass(Policy::Tape));
        results.left_out.push("bert by load-all does not fit".to_string());
        let text = markdown(&results, &SETTING);
        let has = |wanted: &str| assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        has("| tape | 722.0 (721.0 to 723.0) | - | - | 16.0 | 56.0 |");
        has("| real | - | - | - | - | - |");
        has("- bert by load-all does not fit");
    }
}
