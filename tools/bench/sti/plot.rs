//! Accuracy against latency and against memory, for one disk.

use super::figures::{Outcome, Played, Record};
use super::systems::System;
use crate::paper::ink::{self, Area};
use anyhow::Result;
use plotters::prelude::*;

/// What accuracy is drawn against.
#[derive(Clone, Copy, PartialEq)]
pub enum Against {
    Latency,
    Memory,
}

impl Against {
    fn of(self, played: &Played) -> f64 {
        match self {
            Against::Latency => played.latency_ms(),
            Against::Memory => played.weights_mb(),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Against::Latency => "time of a pass, ms",
            Against::Memory => "most weights held at once, MB",
        }
    }
}

/// A picture of records of one model and disk: how much of the answers is lost, on a logarithmic
/// scale, by each system.
pub fn accuracy(title: &str, records: &[Record], against: Against) -> Result<String> {
    let played: Vec<(&System, &Played)> = records
        .iter()
        .filter_map(|record| match &record.outcome {
            Outcome::Played(played) => Some((&record.system, played)),
            Outcome::Refused(_) => None,
        })
        .collect();
    let values = || played.iter().map(|(_, played)| against.of(played).max(0.01));
    let least = values().fold(f64::INFINITY, f64::min).min(1e6) / 1.5;
    let most = values().fold(least * 2.0, f64::max) * 1.5;
    let losses = || played.iter().map(|(_, played)| loss(played));
    let least_loss = losses().fold(0.1, f64::min) / 2.0;
    let most_loss = losses().fold(least_loss * 10.0, f64::max) * 2.0;
    ink::picture((820, 480), |area| {
        ink::write(area, title, (20, 24), ink::TITLE)?;
        let (plot, key) = area.margin(44, 24, 10, 0).split_horizontally(630);
        let mut chart = ChartBuilder::on(&plot)
            .x_label_area_size(34)
            .y_label_area_size(76)
            .margin_right(10)
            .build_cartesian_2d(
                (least..most).log_scale().with_key_points(ink::log_ticks(least, most)),
                (least_loss..most_loss)
                    .log_scale()
                    .with_key_points(ink::log_ticks(least_loss, most_loss)),
            )
            .map_err(ink::failed)?;
        ink::axes(&mut chart)
            .x_label_formatter(&|value| ink::short(*value))
            .y_label_formatter(&|value| format!("{value}"))
            .y_desc("1 - accuracy")
            .draw()
            .map_err(ink::failed)?;
        let mut systems: Vec<&System> = vec![];
        for (system, _) in &played {
            if !systems.contains(system) {
                systems.push(system);
            }
        }
        for (index, system) in systems.iter().enumerate() {
            let of = played.iter().filter(|(other, _)| other == system);
            let points: Vec<(f64, f64)> =
                of.map(|(_, played)| (against.of(played).max(0.01), loss(played))).collect();
            let style = style(system, index);
            let line = PathElement::new(points.clone(), style);
            chart.draw_series([line]).map_err(ink::failed)?;
            let dots = points.into_iter().map(|point| Circle::new(point, 5, style.filled()));
            chart.draw_series(dots).map_err(ink::failed)?;
        }
        ink::write_around(&plot, against.label(), (352, 412), ink::LABEL)?;
        keys(&key, &systems)
    })
}

/// Nothing that is lost has no place on a logarithmic scale: what rounding leaves stands for it.
fn loss(played: &Played) -> f64 {
    (1.0 - played.accuracy).max(1e-6)
}

fn style(system: &System, index: usize) -> ShapeStyle {
    const OTHERS: [RGBColor; 5] = [ink::BLACK, ink::SKY, ink::GREEN, ink::PURPLE, ink::GREY];
    match system {
        System::Hermes => ink::VERMILION.stroke_width(3),
        System::TwoStages => ink::BLUE.stroke_width(3),
        _ => OTHERS[index % OTHERS.len()].stroke_width(2),
    }
}

fn keys(area: &Area, systems: &[&System]) -> Result<()> {
    for (index, system) in systems.iter().enumerate() {
        let y = 30 + 26 * index as i32;
        let style = style(system, index);
        ink::stroke(area, vec![(8, y), (32, y)], style)?;
        area.draw(&Circle::new((20, y), 5, style.filled())).map_err(ink::failed)?;
        ink::write(area, &system.to_string(), (40, y), ink::SMALL)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::figures::example;
    use super::*;

    #[test]
    fn every_system_is_drawn() {
        for against in [Against::Latency, Against::Memory] {
            let svg = accuracy("bert on sd", &example(), against).unwrap();
            assert!(svg.starts_with("<svg ") && !svg.contains("NaN"));
            for name in ["load-all\n", "pipeline-a2\n", "preload-a6\n", "sti\n", "hermes\n"] {
                assert!(svg.contains(name), "{name}: {svg}");
            }
            assert_eq!(svg.matches("<circle").count(), 7 + 5, "seven passes, five keys");
        }
    }
}
