//! Columns of text.

/// Lines of `rows`, each column as wide as its widest cell; the first row is the head.
pub fn lines<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `text` in lines of at most `columns` characters, as far as its words allow.
pub fn wrapped(text: &str, columns: usize) -> String {
    let (mut lines, mut width) = (String::with_capacity(text.len()), 0);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > columns {
            lines.push('\n');
            width = 0;
        } else if width > 0 {
            lines.push(' ');
            width += 1;
        }
        lines.push_str(word);
        width += length;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "LONG", "C"], ["bbb", "", "c"]].map(|row| row.map(str::to_owned));
        assert_eq!(lines(&rows), "A    LONG  C\nbbb        c");
    }

    #[test]
    fn lines_end_before_they_are_too_long() {
        let check = |text: &str, expected: &str| assert_eq!(wrapped(text, 9), expected);
        check("", "");
        check("one two three", "one two\nthree");
        check("seventeen-letters a  b", "seventeen-letters\na b");
        check("four five", "four five");
    }
}
