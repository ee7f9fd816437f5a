//! Peak memory against the number of documents.

use super::figures::{BATCHES, Figures, System};
use crate::paper::ink::{self, Area};
use anyhow::Result;
use plotters::prelude::*;

/// Colours of batches, from the smallest.
const BATCH_COLORS: [RGBColor; 4] = [ink::SKY, ink::BLUE, ink::PURPLE, ink::BLACK];

/// A line for each system; both axes are logarithmic.
pub fn memory(model: &str, figures: &[Figures], budget_mib: f64) -> Result<String> {
    let counts = figures.iter().map(|figures| figures.documents as f64);
    let peaks = figures.iter().map(Figures::peak_mib).chain([budget_mib]);
    let (first, last) = range(counts);
    let (least, most) = range(peaks);
    let mut systems: Vec<System> = vec![];
    for figures in figures {
        if !systems.contains(&figures.system) {
            systems.push(figures.system);
        }
    }
    ink::picture((820, 480), |area| {
        ink::write(area, &format!("{model}: peak memory of many texts"), (20, 24), ink::TITLE)?;
        let (plot, key) = area.margin(44, 24, 10, 0).split_horizontally(570);
        let (x, y) = (first / 1.4..last * 1.4, least / 1.6..most * 1.4);
        let mut chart = ChartBuilder::on(&plot)
            .x_label_area_size(34)
            .y_label_area_size(66)
            .margin_right(10)
            .build_cartesian_2d(
                x.clone().log_scale().with_key_points(ink::log_ticks(x.start, x.end)),
                y.clone().log_scale().with_key_points(ink::log_ticks(y.start, y.end)),
            )
            .map_err(ink::failed)?;
        ink::axes(&mut chart)
            .x_label_formatter(&|count| ink::short(*count))
            .y_label_formatter(&|mib| ink::short(*mib))
            .y_desc("most memory resident, MiB")
            .draw()
            .map_err(ink::failed)?;
        let budget = [(x.start, budget_mib), (x.end, budget_mib)];
        let budget = PathElement::new(budget, ink::GREEN.stroke_width(2));
        chart.draw_series([budget]).map_err(ink::failed)?;
        for system in &systems {
            let of = figures.iter().filter(|figures| figures.system == *system);
            let points: Vec<(f64, f64)> =
                of.map(|figures| (figures.documents as f64, figures.peak_mib())).collect();
            let line = PathElement::new(points.clone(), style(*system));
            chart.draw_series([line]).map_err(ink::failed)?;
            let dots = points.into_iter().map(|point| match system {
                System::Onnx { sorted: true, .. } => Circle::new(point, 4, style(*system)),
                _ => Circle::new(point, 4, style(*system).filled()),
            });
            chart.draw_series(dots).map_err(ink::failed)?;
        }
        ink::write_around(area, "documents", (330, 462), ink::LABEL)?;
        keys(&key, &systems)
    })
}

/// The least and the most; a range that is not empty.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 1.0), |(least, most), value| (least.min(value), most.max(value)))
}

fn style(system: System) -> ShapeStyle {
    match system {
        System::Hermes => ink::VERMILION.stroke_width(4),
        System::Onnx { batch, .. } => {
            let index = BATCHES.iter().position(|known| *known == batch).unwrap_or(0);
            BATCH_COLORS[index % BATCH_COLORS.len()].stroke_width(2)
        }
    }
}

/// What the lines mean.
fn keys(area: &Area, systems: &[System]) -> Result<()> {
    let budget = ("Hermes's budget".to_owned(), ink::GREEN.stroke_width(2), None);
    let of = |system: &System| {
        let is_hollow = matches!(system, System::Onnx { sorted: true, .. });
        (system.to_string(), style(*system), Some(is_hollow))
    };
    for (index, (name, style, dot)) in systems.iter().map(of).chain([budget]).enumerate() {
        let y = 30 + 26 * index as i32;
        ink::stroke(area, vec![(8, y), (32, y)], style)?;
        if let Some(is_hollow) = dot {
            let style = if is_hollow { style } else { style.filled() };
            area.draw(&Circle::new((20, y), 4, style)).map_err(ink::failed)?;
        }
        ink::write(area, &name, (40, y), ink::SMALL)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_has_its_line_and_its_name() {
        let of = |system, documents, peak_bytes| Figures {
            system,
            documents,
            seconds: vec![1.0],
            cpu_seconds: vec![1.0],
            peak_bytes,
            passes_s: None,
        };
        let batch = |batch, sorted| System::Onnx { batch, sorted };
        let figures = [
            of(System::Hermes, 100, 50 << 20),
            of(System::Hermes, 1000, 50 << 20),
            of(batch(1, false), 100, 300 << 20),
            of(batch(256, false), 1000, 3 << 30),
            of(batch(256, true), 1000, 2 << 30),
        ];
        let svg = memory("m", &figures, 64.0).unwrap();
        assert!(svg.starts_with("<svg ") && !svg.contains("NaN"));
        for name in ["Hermes\n", "ONNX, 1 at once\n", "ONNX, 256 at once\n", "256 sorted\n"] {
            assert!(svg.contains(name), "{name}: {svg}");
        }
        assert_eq!(svg.matches("#D55E00").count(), 2 + 3, "two lines and three dots");
    }
}
