//! Time against bytes: the axes that the plots have in common.

use super::ink::{self, Area};
use anyhow::Result;
use plotters::coord::combinators::{BindKeyPoints, LogCoord, WithKeyPoints};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::ops::Range;

/// Bytes in any unit along the bottom, on a logarithmic scale; milliseconds up from 0.
pub struct Chart<'a> {
    chart:
        ChartContext<'a, SVGBackend<'a>, Cartesian2d<WithKeyPoints<LogCoord<f64>>, RangedCoordf64>>,
    range: Range<f64>,
    /// From milliseconds to what the axis shows.
    scale: f64,
    /// Where the area begins in the picture.
    corner: (i32, i32),
}

impl<'a> Chart<'a> {
    /// Draws the axes, times in seconds where they are long.
    pub fn new(area: &Area<'a>, range: Range<f64>, most_ms: f64) -> Result<Chart<'a>> {
        let (unit, scale) = if most_ms >= 2000.0 { ("s", 1e-3) } else { ("ms", 1.0) };
        let ticks = ink::log_ticks(range.start, range.end);
        let mut chart = ChartBuilder::on(area)
            .x_label_area_size(34)
            .y_label_area_size(66)
            .margin_right(10)
            .build_cartesian_2d(
                range.clone().log_scale().with_key_points(ticks),
                0.0..most_ms * scale,
            )
            .map_err(ink::failed)?;
        ink::axes(&mut chart)
            .y_labels(6)
            .x_label_formatter(&|bytes| ink::short(*bytes))
            .y_label_formatter(&|time| ink::short(*time))
            .y_desc(format!("time of a pass, {unit}"))
            .draw()
            .map_err(ink::failed)?;
        Ok(Chart { chart, range, scale, corner: area.get_base_pixel() })
    }

    /// A line through points of bytes and milliseconds.
    pub fn line(
        &mut self,
        points: impl IntoIterator<Item = (f64, f64)>,
        style: ShapeStyle,
    ) -> Result<()> {
        let points: Vec<_> = points.into_iter().map(|(x, ms)| (x, ms * self.scale)).collect();
        self.chart.draw_series([PathElement::new(points, style)]).map_err(ink::failed)?;
        Ok(())
    }

    /// A line across all bytes.
    pub fn level(&mut self, ms: f64, style: ShapeStyle) -> Result<()> {
        self.line([(self.range.start, ms), (self.range.end, ms)], style)
    }

    /// Where a point is in the area.
    pub fn place(&self, (x, ms): (f64, f64)) -> (i32, i32) {
        let (left, top) = self.chart.backend_coord(&(x, ms * self.scale));
        (left - self.corner.0, top - self.corner.1)
    }
}
