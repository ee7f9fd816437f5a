//! What all pictures share: colours that the colour-blind can tell apart, text, ticks, keys.

use anyhow::{Result, anyhow};
use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A part of a picture.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Colours of Okabe and Ito, and greys.
pub const BLACK: RGBColor = RGBColor(0, 0, 0);
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub const SKY: RGBColor = RGBColor(86, 180, 233);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const VERMILION: RGBColor = RGBColor(213, 94, 0);
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);
pub const GREY: RGBColor = RGBColor(120, 120, 120);
pub const PALE: RGBColor = RGBColor(225, 225, 225);

/// Sizes of text.
pub const TITLE: i32 = 20;
pub const LABEL: i32 = 15;
pub const SMALL: i32 = 13;

/// Draws a picture and gives its SVG.
pub fn picture(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// What plotters says, as an error that can be passed on.
pub fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

/// The axes of a chart: lines where labels are, and no others.
pub fn axes<'a, 'b, X, Y>(
    chart: &'b mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
) -> MeshStyle<'a, 'b, X, Y, SVGBackend<'a>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut mesh = chart.configure_mesh();
    mesh.max_light_lines(0)
        .bold_line_style(PALE)
        .axis_style(GREY)
        .label_style(("sans-serif", SMALL))
        .axis_desc_style(("sans-serif", LABEL));
    mesh
}

/// Black text that begins at `at`, vertically centred.
pub fn write(area: &Area, text: &str, at: (i32, i32), size: i32) -> Result<()> {
    put(area, text, at, size, HPos::Left)
}

/// Black text that ends at `at`, vertically centred.
pub fn write_before(area: &Area, text: &str, at: (i32, i32), size: i32) -> Result<()> {
    put(area, text, at, size, HPos::Right)
}

/// Black text around `at`.
pub fn write_around(area: &Area, text: &str, at: (i32, i32), size: i32) -> Result<()> {
    put(area, text, at, size, HPos::Center)
}

fn put(area: &Area, text: &str, at: (i32, i32), size: i32, side: HPos) -> Result<()> {
    let style = ("sans-serif", size).into_text_style(area).color(&BLACK);
    area.draw_text(text, &style.pos(Pos::new(side, VPos::Center)), at).map_err(failed)
}

/// A filled rectangle.
pub fn fill(
    area: &Area,
    from: (i32, i32),
    to: (i32, i32),
    style: impl Into<ShapeStyle>,
) -> Result<()> {
    let style: ShapeStyle = style.into();
    area.draw(&Rectangle::new([from, to], style.filled())).map_err(failed)
}

/// A line through points.
pub fn stroke(area: &Area, points: Vec<(i32, i32)>, style: impl Into<ShapeStyle>) -> Result<()> {
    area.draw(&PathElement::new(points, style)).map_err(failed)
}

/// Round numbers from 0 to `most`, about `count` of them.
pub fn ticks(most: f64, count: usize) -> Vec<f64> {
    let rough = most / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|s| s * power >= rough).unwrap_or(10.0);
    (0..).map(|i| i as f64 * step * power).take_while(|tick| *tick <= most * 1.0001).collect()
}

/// 1, 2 and 5 in each power of ten between `least` and `most`; more than six lose the 2 and 5.
pub fn log_ticks(least: f64, most: f64) -> Vec<f64> {
    let within = |steps: &[f64]| -> Vec<f64> {
        let powers = least.log10().floor() as i32..=most.log10().ceil() as i32;
        let all = powers.flat_map(|power| steps.iter().map(move |s| s * 10f64.powi(power)));
        all.filter(|tick| (least..=most).contains(tick)).collect()
    };
    let all = within(&[1.0, 2.0, 5.0]);
    if all.len() > 6 { within(&[1.0]) } else { all }
}

/// A number of about three digits.
pub fn short(value: f64) -> String {
    match value {
        v if v == 0.0 || v >= 20.0 => format!("{v:.0}"),
        v if v >= 2.0 => format!("{v:.1}").trim_end_matches(".0").to_string(),
        v => format!("{v:.2}").trim_end_matches('0').trim_end_matches('.').to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(730.0, 5), [0.0, 200.0, 400.0, 600.0]);
        assert_eq!(ticks(1.0, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(log_ticks(12.0, 1500.0), [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        assert_eq!(log_ticks(1.0, 1500.0), [1.0, 10.0, 100.0, 1000.0]);
    }

    #[test]
    fn numbers_are_short() {
        let check = |value, expected: &str| assert_eq!(short(value), expected);
        check(0.0, "0");
        check(0.6000000000000001, "0.6");
        check(2.5, "2.5");
        check(16.0, "16");
        check(1000.0, "1000");
    }
}
