//! Tokens a second against the budget, for one disk.

use super::figures::Record;
use crate::paper::ink;
use anyhow::Result;
use plotters::prelude::*;

/// What was written, and what is possible; both axes are logarithmic.
pub fn rates(title: &str, records: &[Record]) -> Result<String> {
    let mib = |record: &Record| record.budget_bytes as f64 / f64::from(1 << 20);
    type Line = (&'static str, RGBColor, fn(&Record) -> f64);
    let lines: [Line; 2] =
        [("possible", ink::GREY, Record::limit), ("Hermes", ink::VERMILION, Record::rate)];
    let rates = records.iter().flat_map(|record| [record.rate(), record.limit()]);
    let (least, most) = range(rates);
    let (first, last) = range(records.iter().map(mib));
    ink::picture((820, 480), |area| {
        ink::write(area, title, (20, 24), ink::TITLE)?;
        let (plot, key) = area.margin(44, 24, 10, 0).split_horizontally(660);
        let ticks = ink::log_ticks;
        let mut chart = ChartBuilder::on(&plot)
            .x_label_area_size(34)
            .y_label_area_size(66)
            .margin_right(10)
            .build_cartesian_2d(
                (first..last).log_scale().with_key_points(ticks(first, last)),
                (least..most).log_scale().with_key_points(ticks(least, most)),
            )
            .map_err(ink::failed)?;
        chart
            .configure_mesh()
            .max_light_lines(0)
            .bold_line_style(ink::PALE)
            .axis_style(ink::GREY)
            .label_style(("sans-serif", ink::SMALL))
            .axis_desc_style(("sans-serif", ink::LABEL))
            .x_label_formatter(&|mib| ink::short(*mib))
            .y_label_formatter(&|rate| ink::short(*rate))
            .y_desc("tokens a second")
            .draw()
            .map_err(ink::failed)?;
        for (index, (name, color, rate)) in lines.into_iter().enumerate() {
            let points: Vec<(f64, f64)> =
                records.iter().map(|record| (mib(record), rate(record))).collect();
            let line = PathElement::new(points.clone(), color.stroke_width(3));
            chart.draw_series([line]).map_err(ink::failed)?;
            let dots = points.into_iter().map(|point| Circle::new(point, 5, color.filled()));
            chart.draw_series(dots).map_err(ink::failed)?;
            let y = 30 + 26 * index as i32;
            ink::stroke(&key, vec![(8, y), (32, y)], color.stroke_width(3))?;
            ink::write(&key, name, (40, y), ink::SMALL)?;
        }
        ink::write_around(area, "budget, MiB", (390, 462), ink::LABEL)
    })
}

/// A range around the values that is not empty.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (least, most) = values
        .filter(|value| *value > 0.0)
        .fold((f64::INFINITY, 0.0), |(least, most), value| (value.min(least), value.max(most)));
    let least = if least.is_finite() { least } else { 1.0 };
    (least / 1.4, most.max(least) * 1.4)
}

#[cfg(test)]
mod tests {
    use super::super::figures::example;
    use super::*;

    #[test]
    fn what_was_written_and_what_is_possible_is_drawn() {
        for records in [example(), vec![]] {
            let svg = rates("gpt2 on sd", &records).unwrap();
            assert!(svg.starts_with("<svg ") && !svg.contains("NaN"));
            assert!(svg.contains("possible\n") && svg.contains("Hermes\n"), "{svg}");
            assert_eq!(svg.matches("<circle").count(), 2 * records.len());
        }
    }
}
