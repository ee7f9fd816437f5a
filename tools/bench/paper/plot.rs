//! Latency against memory: a picture for each disk, and one of all disks side by side.

use super::chart::Chart;
use super::disks::Disk;
use super::ink::{self, Area};
use super::policy::{Policy, Step};
use super::results::{Cell, Results};
use anyhow::Result;
use plotters::prelude::*;

/// Most streamed weights held, against the time of a pass, for every policy on one disk.
pub fn one_disk(results: &Results, model: &str, disk: Disk) -> Result<String> {
    ink::picture((820, 480), |area| {
        let title = format!("{model} on {}: a cold pass", disk.title());
        ink::write(area, &title, (20, 24), ink::TITLE)?;
        let (plot, key) = area.margin(44, 24, 10, 0).split_horizontally(630);
        let frame = Frame::around(results, model, &[disk]);
        panel(&plot, results, model, disk, &frame)?;
        ink::write_around(&plot, "most weights held at once, MB", (352, 412), ink::LABEL)?;
        keys(&key, (16, 30), &results.policies(model, disk), Flow::Down)
    })
}

/// The same for all of a model's disks, each with its own scale of time.
pub fn all_disks(results: &Results, model: &str) -> Result<String> {
    let disks = results.disks(model);
    let columns = disks.len().clamp(1, 3);
    let rows = disks.len().div_ceil(columns).max(1);
    let (width, height) = (390 * columns as u32, 300 * rows as u32 + 105);
    ink::picture((width.max(780), height), |area| {
        let title = format!("{model}: time of a cold pass against memory, by disk");
        ink::write(area, &title, (20, 24), ink::TITLE)?;
        let (body, foot) = area.margin(40, 0, 0, 0).split_vertically(300 * rows as i32);
        let frame = Frame::around(results, model, &disks);
        for (disk, cell) in disks.iter().zip(body.split_evenly((rows, columns))) {
            ink::write_around(&cell, &disk.title(), (215, 16), ink::LABEL)?;
            panel(&cell.margin(26, 0, 4, 8), results, model, *disk, &frame)?;
        }
        let middle = width as i32 / 2;
        ink::write_around(&foot, "most weights held at once, MB", (middle, 12), ink::LABEL)?;
        let policies: Vec<Policy> =
            disks.first().map_or(vec![], |disk| results.policies(model, *disk));
        keys(&foot, (30, 44), &policies, Flow::Across)
    })
}

/// The scale of memory that panels have in common.
struct Frame {
    least_mb: f64,
    most_mb: f64,
}

impl Frame {
    fn around(results: &Results, model: &str, disks: &[Disk]) -> Frame {
        let cells = disks.iter().flat_map(|disk| cells(results, model, *disk));
        let sizes: Vec<f64> = cells.map(|(_, cell)| cell.weights_mb.max(0.1)).collect();
        let least = sizes.iter().copied().fold(f64::INFINITY, f64::min);
        let most = sizes.iter().copied().fold(0.2, f64::max);
        Frame { least_mb: least.min(most / 2.0) / 1.5, most_mb: most * 1.5 }
    }
}

fn cells(results: &Results, model: &str, disk: Disk) -> Vec<(Policy, Cell)> {
    let policies = results.policies(model, disk).into_iter();
    policies.filter_map(|policy| Some((policy, results.pass(model, disk, policy)?))).collect()
}

/// The policies on one disk: points with their range, PIPELOAD's joined by a line, and the two
/// bounds as lines across.
fn panel<'a>(
    area: &Area<'a>,
    results: &Results,
    model: &str,
    disk: Disk,
    frame: &Frame,
) -> Result<()> {
    let cells = cells(results, model, disk);
    let limits = [Step::Play, Step::Resident].map(|step| results.cell(model, disk, step));
    let tops = cells.iter().map(|(_, cell)| cell).chain(limits.iter().flatten());
    let most_ms = tops.map(|cell| cell.latency_ms.high).fold(1e-3, f64::max) * 1.12;
    let mut chart = Chart::new(area, frame.least_mb..frame.most_mb, most_ms)?;
    for (limit, style) in limits.iter().zip([io_style(), compute_style()]) {
        if let Some(limit) = limit {
            chart.level(limit.latency_ms.median, style)?;
        }
    }
    let agents = cells.iter().filter(|(policy, _)| matches!(policy, Policy::PipeLoad { .. }));
    let curve = agents.map(|(_, cell)| (cell.weights_mb, cell.latency_ms.median));
    chart.line(curve, ink::BLUE.stroke_width(2))?;
    for (policy, cell) in &cells {
        let (x, ms) = (cell.weights_mb.max(0.1), cell.latency_ms);
        chart.line([(x, ms.low), (x, ms.high)], color(*policy).stroke_width(2))?;
        mark(area, *policy, chart.place((x, ms.median)))?;
    }
    Ok(())
}

fn color(policy: Policy) -> RGBColor {
    match policy {
        Policy::LoadAll => ink::BLACK,
        Policy::PipeSwitch => ink::ORANGE,
        Policy::PipeLoad { .. } => ink::BLUE,
        Policy::Tape => ink::VERMILION,
    }
}

fn io_style() -> ShapeStyle {
    ink::GREEN.stroke_width(2)
}

fn compute_style() -> ShapeStyle {
    ink::PURPLE.stroke_width(2)
}

/// A policy's sign: its shape tells as much as its colour; PIPELOAD's holds the number of agents.
fn mark(area: &Area, policy: Policy, (x, y): (i32, i32)) -> Result<()> {
    let style = color(policy).filled();
    let polygon = |points: Vec<(i32, i32)>| area.draw(&Polygon::new(points, style));
    match policy {
        Policy::LoadAll => ink::fill(area, (x - 6, y - 6), (x + 6, y + 6), style),
        Policy::PipeSwitch => {
            polygon(vec![(x, y - 8), (x + 8, y + 6), (x - 8, y + 6)]).map_err(ink::failed)
        }
        Policy::PipeLoad { agents } => {
            let ring = Circle::new((x, y), 8, WHITE.filled());
            area.draw(&ring).map_err(ink::failed)?;
            let ring = Circle::new((x, y), 8, style.color.stroke_width(2));
            area.draw(&ring).map_err(ink::failed)?;
            ink::write_around(area, &agents.to_string(), (x, y), ink::SMALL)
        }
        Policy::Tape => {
            polygon(vec![(x, y - 9), (x + 9, y), (x, y + 9), (x - 9, y)]).map_err(ink::failed)
        }
    }
}

/// Which way keys follow each other.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Down,
    Across,
}

/// What the signs mean.
fn keys(area: &Area, (left, top): (i32, i32), policies: &[Policy], flow: Flow) -> Result<()> {
    let mut place = (left, top);
    let mut next = |width: i32| {
        let at = place;
        match flow {
            Flow::Down => place.1 += 28,
            Flow::Across => place.0 += width,
        }
        at
    };
    let mut has_agents = false;
    for policy in policies {
        let (name, width) = match policy {
            Policy::LoadAll => ("load-all", 100),
            Policy::PipeSwitch => ("pipeswitch", 118),
            Policy::PipeLoad { .. } if has_agents => continue,
            Policy::PipeLoad { .. } => ("pipeload, n agents", 166),
            Policy::Tape => ("tape", 76),
        };
        let (x, y) = next(width);
        if let Policy::PipeLoad { .. } = policy {
            has_agents = true;
            let ring = Circle::new((x, y), 8, ink::BLUE.stroke_width(2));
            area.draw(&ring).map_err(ink::failed)?;
            ink::write_around(area, "n", (x, y), ink::SMALL)?;
        } else {
            mark(area, *policy, (x, y))?;
        }
        ink::write(area, name, (x + 16, y), ink::LABEL)?;
    }
    let lines = [("T_io", io_style(), 76), ("T_compute", compute_style(), 100)];
    for (name, style, width) in lines {
        let (x, y) = next(width);
        ink::stroke(area, vec![(x - 8, y), (x + 8, y)], style)?;
        ink::write(area, name, (x + 16, y), ink::LABEL)?;
    }
    let (x, y) = next(0);
    ink::stroke(area, vec![(x, y - 8), (x, y + 8)], ink::GREY.stroke_width(2))?;
    ink::write(area, "least to most", (x + 16, y), ink::LABEL)
}

#[cfg(test)]
mod tests {
    use super::super::results::example;
    use super::*;

    /// A picture is one well-formed element: what opens closes, and no number is lost on the way.
    fn check_svg(svg: &str) {
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        let texts = svg.matches("<text").count();
        assert_eq!(texts, svg.matches("</text>").count());
        assert!(texts > 0 && !svg.contains("NaN") && !svg.contains("inf\""));
    }

    #[test]
    fn a_disk_shows_every_policy_once_and_both_bounds() {
        let results = example();
        let svg = one_disk(&results, "bert", Disk::Real).unwrap();
        check_svg(&svg);
        let count = |color: &str| svg.matches(color).count();
        // One square, one triangle, one diamond, each again in the key.
        assert_eq!(count("<polygon opacity=\"1\" fill=\"#E69F00\""), 2);
        assert_eq!(count("<polygon opacity=\"1\" fill=\"#D55E00\""), 2);
        assert!(count("r=\"8\"") > 2 * 4, "four numbers of agents and the key");
        for name in ["load-all", "pipeswitch", "tape", "T_io", "T_compute"] {
            assert!(svg.contains(&format!("{name}\n")), "{name}");
        }
        assert!(svg.contains("bert on real (this disk): a cold pass"));
    }

    #[test]
    fn all_disks_are_side_by_side() {
        let svg = all_disks(&example(), "bert").unwrap();
        check_svg(&svg);
        assert!(svg.contains("sata (imitated, 500 MB/s)") && svg.contains("real (this disk)"));
    }

    #[test]
    fn little_is_drawn_too() {
        let mut results = example();
        results.records.truncate(1);
        check_svg(&one_disk(&results, "bert", Disk::Real).unwrap());
        check_svg(&all_disks(&results, "bert").unwrap());
    }
}
