//! `hermesctl plan --map FILE.svg`: layers by tensors, each in the colour of its bits.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Pixels: a cell, the names of layers left of them, what is above them, and the margin.
const CELL: (usize, usize) = (46, 22);
const NAMES: usize = 230;
const HEAD: usize = 130;
const MARGIN: usize = 12;

/// Characters of a layer's or a kind's name.
const MOST_CHARACTERS: usize = 30;

/// Colours from the fewest bits to the most, and the bits up to which each is meant; the last is for
/// all above.
const COLOURS: [(f64, &str); 8] = [
    (2.9, "#fde0c5"),
    (3.9, "#facba6"),
    (4.9, "#f8b58b"),
    (5.9, "#f2855d"),
    (6.9, "#d8576b"),
    (9.9, "#a52c60"),
    (17.0, "#6a176e"),
    (f64::INFINITY, "#320a5e"),
];

/// Bits from which on text on their colour is white.
const DARK_BITS: f64 = 6.0;

/// The drawing of a plan's choice: `reply` is the daemon's; none where it has no choice.
pub fn svg(reply: &Value) -> Option<String> {
    let choice = &reply["choice"];
    let tensors: Vec<Tensor> = choice["tensors"].as_array()?.iter().map(Tensor::of).collect();
    let layers: Vec<&[Tensor]> = tensors.chunk_by(|a, b| a.layer == b.layer).collect();
    let columns = layers.iter().map(|layer| layer.len()).max()?;
    let width = (NAMES + columns * CELL.0 + 2 * MARGIN).max(640);
    let height = HEAD + layers.len() * CELL.1 + 2 * MARGIN;
    let mut drawing = Drawing::new(width, height);
    let title = format!(
        "{} {}: {:.2} bits a weight, expected accuracy {:.4}",
        text(&reply["model"]),
        text(&reply["version"]),
        choice["bits"].as_f64().unwrap_or(0.0),
        choice["accuracy"].as_f64().unwrap_or(0.0),
    );
    drawing.text((MARGIN, MARGIN + 12), "font-weight=\"bold\"", &title);
    drawing.legend(&tensors);
    drawing.kinds(&layers);
    for (row, layer) in layers.iter().enumerate() {
        let y = HEAD + row * CELL.1;
        drawing.text((MARGIN, y + 15), "", &shortened(layer[0].layer));
        for (column, tensor) in layer.iter().enumerate() {
            drawing.cell((MARGIN + NAMES + column * CELL.0, y), tensor);
        }
    }
    Some(drawing.end())
}

/// A tensor as the reply has it.
struct Tensor<'a> {
    name: &'a str,
    layer: &'a str,
    kind: &'a str,
    variant: &'a str,
    bits: f64,
    divergence: f64,
}

impl Tensor<'_> {
    fn of(value: &Value) -> Tensor<'_> {
        Tensor {
            name: text(&value["name"]),
            layer: text(&value["layer"]),
            kind: text(&value["kind"]),
            variant: text(&value["variant"]),
            bits: value["bits"].as_f64().unwrap_or(0.0),
            divergence: value["divergence"].as_f64().unwrap_or(0.0),
        }
    }
}

/// SVG as it is written.
struct Drawing(String);

impl Drawing {
    fn new(width: usize, height: usize) -> Drawing {
        let mut drawing = Drawing(String::new());
        drawing.push(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
        ));
        drawing
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a string takes everything");
    }

    fn text(&mut self, (x, y): (usize, usize), attributes: &str, text: &str) {
        let text = escaped(text);
        self.push(format_args!("<text x=\"{x}\" y=\"{y}\" {attributes}>{text}</text>\n"));
    }

    /// The variants that occur, in the colours of their bits.
    fn legend(&mut self, tensors: &[Tensor]) {
        let mut bits = BTreeMap::<&str, (f64, usize)>::new();
        for tensor in tensors {
            let (sum, count) = bits.entry(tensor.variant).or_default();
            (*sum, *count) = (*sum + tensor.bits, *count + 1);
        }
        let mean = |(variant, (sum, count))| (variant, sum / count as f64);
        let mut means: Vec<(&str, f64)> = bits.into_iter().map(mean).collect();
        means.sort_by(|a, b| a.1.total_cmp(&b.1));
        for (index, (variant, bits)) in means.iter().enumerate() {
            let (x, y) = (MARGIN + index * 104, MARGIN + 24);
            let fill = colour(*bits);
            self.push(format_args!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"14\" height=\"14\" fill=\"{fill}\"/>\n"
            ));
            self.text((x + 20, y + 11), "", &format!("{variant}, {bits:.1} bits"));
        }
    }

    /// The kinds of tensors above their columns, where all layers that have as many have the same.
    fn kinds(&mut self, layers: &[&[Tensor]]) {
        let Some(longest) = layers.iter().max_by_key(|layer| layer.len()) else { return };
        let same = |layer: &&[Tensor]| layer.iter().zip(*longest).all(|(a, b)| a.kind == b.kind);
        if !layers.iter().filter(|layer| layer.len() == longest.len()).all(same) {
            return;
        }
        for (column, tensor) in longest.iter().enumerate() {
            let (x, y) = (MARGIN + NAMES + column * CELL.0 + CELL.0 / 2, HEAD - 6);
            let turned = format!("transform=\"rotate(-35 {x} {y})\"");
            self.text((x, y), &turned, &shortened(tensor.kind));
        }
    }

    fn cell(&mut self, (x, y): (usize, usize), tensor: &Tensor) {
        let Tensor { name, variant, bits, divergence, .. } = tensor;
        let (width, height, fill) = (CELL.0 - 2, CELL.1 - 2, colour(*bits));
        let tip =
            escaped(&format!("{name}: {variant}, {bits:.2} bits, divergence {divergence:.1e}"));
        self.push(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\">\
             <title>{tip}</title></rect>\n"
        ));
        let ink = if *bits >= DARK_BITS { "white" } else { "black" };
        let attributes = format!("text-anchor=\"middle\" pointer-events=\"none\" fill=\"{ink}\"");
        self.text((x + width / 2, y + 14), &attributes, &format!("{bits:.1}"));
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

fn colour(bits: f64) -> &'static str {
    let found = COLOURS.iter().find(|(most, _)| bits <= *most);
    found.map_or(COLOURS[COLOURS.len() - 1].1, |(_, colour)| colour)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// The end of a name that is too long: it is what differs.
fn shortened(name: &str) -> String {
    match name.chars().count() {
        count if count > MOST_CHARACTERS => {
            let end: String = name.chars().skip(count + 2 - MOST_CHARACTERS).collect();
            format!("..{end}")
        }
        _ => name.to_owned(),
    }
}

/// Text within XML; control characters, which it may not have, are left out.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !c.is_control()) {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reply() -> Value {
        let tensor = |layer: &str, kind: &str, variant: &str, bits: f64| {
            json!({"name": format!("{layer}.{kind}"), "layer": layer, "kind": kind,
                "variant": variant, "bits": bits, "bytes": 1, "divergence": 0.0005})
        };
        let tensors = [
            tensor("layer.0", "query", "a3", 3.56),
            tensor("layer.0", "<up & down>", "a4", 4.56),
            tensor("layer.1", "query", "a4", 4.56),
            tensor("layer.1", "<up & down>", "f32", 32.0),
            tensor("pooler", "dense", "a4", 4.5),
        ];
        json!({"model": "m", "version": "1",
            "choice": {"bits": 4.2, "accuracy": 0.9912, "tensors": tensors}})
    }

    #[test]
    fn every_tensor_is_a_cell_in_the_colour_of_its_bits() {
        let drawn = svg(&reply()).unwrap();
        assert_eq!(drawn.matches("<title>").count(), 5);
        // A cell and its place in the legend.
        assert_eq!(drawn.matches("#facba6").count(), 2);
        assert_eq!(drawn.matches("#f8b58b").count(), 4);
        assert!(drawn.contains("m 1: 4.20 bits a weight, expected accuracy 0.9912"));
        assert!(drawn.contains("layer.0.query: a3, 3.56 bits, divergence 5.0e-4"));
        for (open, close) in [("<svg", "</svg>"), ("<text", "</text>"), ("<rect", ">")] {
            assert!(drawn.matches(open).count() <= drawn.matches(close).count(), "{open}");
        }
        assert_eq!(drawn.matches("&lt;up &amp; down&gt;").count(), 3, "{drawn}");
        assert!(!drawn.contains("<up"));
    }

    #[test]
    fn nothing_is_drawn_of_no_choice() {
        assert_eq!(svg(&json!({"model": "m"})), None);
        assert_eq!(svg(&json!({"choice": {"tensors": []}})), None);
    }
}
