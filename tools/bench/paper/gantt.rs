//! One pass of each policy in time: what each loader does, when compute works and waits, and how
//! much is held. A pass has thousands of events; they are counted into columns of equal time, and
//! a column's strength says how much of it was busy.

use super::ink::{self, Area};
use super::trace::{Span, Traced};
use anyhow::Result;
use plotters::prelude::*;
use std::ops::Range;

/// A traced pass with its name.
pub struct Row {
    pub name: String,
    pub traced: Traced,
}

/// Largest picture; a finer one is drawn again with wider columns.
const MAX_SVG_BYTES: usize = 300_000;

/// Widths of columns in pixels, tried in turn.
const COLUMN_PX: [i32; 4] = [2, 4, 8, 16];

const LEFT: i32 = 150;
const WIDTH: i32 = 900;
const LANE: i32 = 11;
const COMPUTE: i32 = 14;
const HELD: i32 = 34;
const GAP: i32 = 16;
const TOP: i32 = 78;

/// Draws the passes under each other on one axis of time. `layers` has the number of blocks of
/// each layer, in the order of the tape.
pub fn picture(title: &str, rows: &[Row], layers: &[usize]) -> Result<String> {
    let mut svg = String::new();
    for column in COLUMN_PX {
        svg = draw(title, rows, layers, column)?;
        if svg.len() <= MAX_SVG_BYTES {
            break;
        }
    }
    Ok(svg)
}

fn height(row: &Row) -> i32 {
    row.traced.loaders().len() as i32 * LANE + COMPUTE + HELD + 6
}

fn draw(title: &str, rows: &[Row], layers: &[usize], column: i32) -> Result<String> {
    let end_us = rows.iter().map(|row| row.traced.end_us()).max().unwrap_or(0).max(1);
    let bytes = |row: &Row| row.traced.loads.iter().map(|load| load.bytes).sum::<u64>();
    let scale = Scale {
        end_us,
        columns: (WIDTH / column) as usize,
        column,
        tape_bytes: rows.iter().map(bytes).max().unwrap_or(0).max(1),
        layer_ends: ends(layers),
    };
    let body: i32 = rows.iter().map(|row| height(row) + GAP).sum();
    let size = ((LEFT + WIDTH + 110) as u32, (TOP + body + 50) as u32);
    ink::picture(size, |area| {
        ink::write(area, title, (20, 24), ink::TITLE)?;
        keys(area)?;
        axis(area, &scale, body)?;
        let mut top = TOP;
        for row in rows {
            lanes(area, row, &scale, top)?;
            top += height(row) + GAP;
        }
        Ok(())
    })
}

/// How time, bytes and layers become places and shades.
struct Scale {
    end_us: u64,
    columns: usize,
    column: i32,
    tape_bytes: u64,
    /// Index of the block behind each layer's last.
    layer_ends: Vec<usize>,
}

fn ends(layers: &[usize]) -> Vec<usize> {
    let sums = layers.iter().scan(0, |sum, count| {
        *sum += count;
        Some(*sum)
    });
    sums.collect()
}

impl Scale {
    /// Index of the layer that a block belongs to.
    fn layer(&self, block: usize) -> usize {
        self.layer_ends.partition_point(|end| *end <= block)
    }

    /// Share of each column that spans cover.
    fn busy(&self, spans: impl Iterator<Item = Span>) -> Vec<f64> {
        let mut busy = vec![0.0; self.columns];
        let width_us = self.end_us as f64 / self.columns as f64;
        for Span(from, to) in spans {
            let (from, to) = (from as f64 / width_us, to as f64 / width_us);
            let columns = from as usize..(to.ceil() as usize).min(self.columns);
            for (share, column) in busy[columns.clone()].iter_mut().zip(columns) {
                let (start, end) = (column as f64, column as f64 + 1.0);
                *share += (to.min(end) - from.max(start)).max(0.0);
            }
        }
        busy
    }

    /// Most bytes held in each column up to the pass's end, by the steps in which they change.
    fn most(&self, steps: &[(u64, u64)], end_us: u64) -> Vec<u64> {
        let column = |us: u64| (us as f64 / self.end_us as f64 * self.columns as f64) as usize;
        let mut most = vec![0; column(end_us).min(self.columns)];
        for (index, (from, bytes)) in steps.iter().enumerate() {
            let until = steps.get(index + 1).map_or(end_us, |next| next.0);
            for slot in most.iter_mut().take(column(until) + 1).skip(column(*from)) {
                *slot = (*slot).max(*bytes);
            }
        }
        most
    }

    fn x(&self, us: u64) -> i32 {
        LEFT + (us as f64 / self.end_us as f64 * f64::from(WIDTH)).round() as i32
    }
}

/// Quarters of a column that are busy; a little is shown as a quarter.
fn quarters(busy: f64) -> u8 {
    if busy < 0.02 { 0 } else { ((busy * 4.0).round() as u8).clamp(1, 4) }
}

/// Runs of equal columns.
fn runs<T: PartialEq + Copy>(columns: &[T]) -> Vec<(Range<usize>, T)> {
    let mut runs: Vec<(Range<usize>, T)> = vec![];
    for (index, value) in columns.iter().enumerate() {
        match runs.last_mut() {
            Some((range, last)) if last == value => range.end = index + 1,
            _ => runs.push((index..index + 1, *value)),
        }
    }
    runs
}

/// One policy's lanes: loaders, compute, bytes held.
fn lanes(area: &Area, row: &Row, scale: &Scale, top: i32) -> Result<()> {
    let traced = &row.traced;
    ink::write(area, &row.name, (20, top + 6), ink::LABEL)?;
    let took = format!("{} ms", ink::short(traced.end_us() as f64 / 1e3));
    ink::write(area, &took, (20, top + 24), ink::SMALL)?;
    let mut y = top;
    for loader in traced.loaders() {
        ink::write_before(area, "load", (LEFT - 8, y + LANE / 2), ink::SMALL)?;
        load_lane(area, traced, loader, scale, y)?;
        y += LANE;
    }
    ink::write_before(area, "compute", (LEFT - 8, y + COMPUTE / 2), ink::SMALL)?;
    let nodes = scale.busy(traced.nodes.iter().copied());
    let waits = scale.busy(traced.waits.iter().copied());
    let works: Vec<f64> = nodes.iter().zip(&waits).map(|(node, wait)| node - wait).collect();
    // What of a column was waited lies under what of it was worked.
    for (parts, color) in [(waits, ink::VERMILION), (works, ink::GREEN)] {
        let columns: Vec<u8> = parts.into_iter().map(quarters).collect();
        for (range, quarters) in runs(&columns) {
            let share = i32::from(quarters) * (COMPUTE - 2) / 4;
            let bottom = y + COMPUTE - 1;
            let edges = match color == ink::GREEN {
                true => (bottom - share, bottom),
                false => (y + 1, y + 1 + share),
            };
            bar(area, scale, range, edges, color.into(), quarters > 0)?;
        }
    }
    y += COMPUTE + 3;
    held(area, traced, scale, y)
}

/// A loader's blocks, layers in two shades by turns.
fn load_lane(area: &Area, traced: &Traced, loader: usize, scale: &Scale, y: i32) -> Result<()> {
    let loads = || traced.loads.iter().filter(|load| load.loader == loader);
    let busy = scale.busy(loads().map(|load| load.span));
    let even = loads().filter(|load| scale.layer(load.block).is_multiple_of(2));
    let even = scale.busy(even.map(|load| load.span));
    let columns: Vec<(u8, bool)> = busy
        .iter()
        .zip(&even)
        .map(|(all, even)| (quarters(*all), *all > 0.0 && *even * 2.0 >= *all))
        .collect();
    for (range, (quarters, is_even)) in runs(&columns) {
        let color = if is_even { ink::BLUE } else { ink::SKY };
        let color = color.mix(f64::from(quarters) / 4.0);
        bar(area, scale, range, (y + 1, y + LANE - 1), color, quarters > 0)?;
    }
    Ok(())
}

fn bar(
    area: &Area,
    scale: &Scale,
    columns: Range<usize>,
    (top, bottom): (i32, i32),
    color: RGBAColor,
    is_there: bool,
) -> Result<()> {
    if !is_there {
        return Ok(());
    }
    let x = |column: usize| LEFT + column as i32 * scale.column;
    ink::fill(area, (x(columns.start), top), (x(columns.end), bottom), color)
}

/// Bytes held over time, as an area whose full height is the whole tape.
fn held(area: &Area, traced: &Traced, scale: &Scale, y: i32) -> Result<()> {
    ink::write_before(area, "held", (LEFT - 8, y + HELD / 2), ink::SMALL)?;
    let floor = y + HELD;
    let steps = traced.held();
    let mut points = vec![(LEFT, floor)];
    for (range, bytes) in runs(&scale.most(&steps, traced.end_us())) {
        let height = (bytes as f64 / scale.tape_bytes as f64 * f64::from(HELD)).ceil() as i32;
        let x = |column: usize| LEFT + column as i32 * scale.column;
        points.extend([(x(range.start), floor - height), (x(range.end), floor - height)]);
    }
    let right = points.last().map_or(LEFT, |(x, _)| *x);
    points.push((right, floor));
    area.draw(&Polygon::new(points, ink::GREY.mix(0.6))).map_err(ink::failed)?;
    ink::stroke(area, vec![(LEFT, floor), (LEFT + WIDTH, floor)], ink::PALE)?;
    let most = steps.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0) as f64 / 1e6;
    let text = format!("{} MB", ink::short(most));
    ink::write(area, &text, (LEFT + WIDTH + 10, floor - 7), ink::SMALL)
}

fn axis(area: &Area, scale: &Scale, body: i32) -> Result<()> {
    let (unit, us) = if scale.end_us >= 2_000_000 { ("s", 1e6) } else { ("ms", 1e3) };
    let bottom = TOP + body;
    for tick in ink::ticks(scale.end_us as f64 / us, 8) {
        let x = scale.x((tick * us) as u64);
        ink::stroke(area, vec![(x, TOP - 6), (x, bottom)], ink::PALE)?;
        ink::write_around(area, &ink::short(tick), (x, bottom + 12), ink::SMALL)?;
    }
    let text = format!("time from the first load, {unit}");
    ink::write_around(area, &text, (LEFT + WIDTH / 2, bottom + 34), ink::LABEL)
}

fn keys(area: &Area) -> Result<()> {
    let keys = [
        (ink::BLUE, "a layer loads"),
        (ink::SKY, "the next layer loads"),
        (ink::GREEN, "compute works"),
        (ink::VERMILION, "compute waits"),
        (ink::GREY, "weights held (full height: the whole tape)"),
    ];
    let widths = [120, 168, 130, 124, 0];
    let mut x = LEFT;
    for ((color, text), width) in keys.into_iter().zip(widths) {
        ink::fill(area, (x, 45), (x + 14, 57), color)?;
        ink::write(area, text, (x + 20, 51), ink::SMALL)?;
        x += width;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::trace::{Load, Release};
    use super::*;

    /// A pass of `blocks` blocks with two loaders, each block held until it was used.
    fn row(blocks: usize, is_busy: impl Fn(usize) -> bool) -> Row {
        let mut traced = Traced::default();
        for block in 0..blocks {
            let start = block as u64 * 1000;
            let length = if is_busy(block) { 1000 } else { 300 };
            let (loader, bytes, span) = (block % 2, 1 << 20, Span(start, start + length));
            traced.loads.push(Load { loader, block, bytes, span });
            traced.waits.push(Span(start, start + length));
            traced.nodes.push(Span(start, start + 1000));
            traced.releases.push(Release { block, at_us: start + 2500 });
        }
        Row { name: "pipeload-2".to_string(), traced }
    }

    #[test]
    fn columns_tell_how_much_of_them_was_busy() {
        let layer_ends = ends(&[2, 0, 3]);
        let scale = Scale { end_us: 40, columns: 4, column: 2, tape_bytes: 1, layer_ends };
        let busy = scale.busy([Span(5, 25), Span(38, 99)].into_iter());
        assert_eq!(busy.iter().map(|share| quarters(*share)).collect::<Vec<_>>(), [2, 4, 2, 1]);
        assert_eq!([0, 1, 2, 4, 5].map(|block| scale.layer(block)), [0, 0, 2, 2, 3]);
        assert_eq!(scale.most(&[(0, 5), (11, 9), (19, 2), (60, 0)], 35), [5, 9, 2]);
        assert_eq!(runs(&[1, 1, 2, 1]), [(0..2, 1), (2..3, 2), (3..4, 1)]);
        assert_eq!([0.0, 0.01, 0.03, 0.6, 1.0, 2.0].map(quarters), [0, 0, 1, 2, 4, 4]);
    }

    #[test]
    fn a_pass_of_a_thousand_blocks_is_a_small_picture() {
        // Neighbours differ, so that nothing can be merged.
        let rows: Vec<Row> = (0..8).map(|_| row(1200, |block| block * block % 7 < 3)).collect();
        let svg = picture("bert on sata", &rows, &[50; 24]).unwrap();
        assert!(svg.len() <= MAX_SVG_BYTES, "{} bytes", svg.len());
        assert!(svg.contains("#0072B2") && svg.contains("#56B4E9"), "two shades of layers");
        assert!(svg.contains("#009E73") && svg.contains("#D55E00"), "work and waits");
        assert_eq!(svg.matches("pipeload-2\n").count(), 8);
        assert!(svg.contains("1200 ms") && svg.contains("3.1 MB"));
    }

    #[test]
    fn an_empty_pass_is_drawn() {
        let rows = [Row { name: "tape".to_string(), traced: Traced::default() }];
        let svg = picture("nothing", &rows, &[]).unwrap();
        assert!(svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
    }
}
