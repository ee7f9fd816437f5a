//! What compiling the patterns of rules takes, told from their text: a class of characters is an
//! automaton of its own, each time that it stands there.

/// Most that all patterns of a list of rules may take; those of published tokenizers take 3 MiB.
pub const MAX_BYTES: u64 = 16 << 20;

/// What a character of a pattern takes, and a class of characters; measured: 0.3 and 227 KiB.
const CHARACTER_BYTES: u64 = 1 << 10;
const CLASS_BYTES: u64 = 256 << 10;

/// What compiling any pattern takes.
const FIXED_BYTES: u64 = 32 << 10;

/// Most that compiling a text to be found takes, in bytes.
pub fn text_bytes(text: &str) -> u64 {
    FIXED_BYTES + text.len() as u64 * CHARACTER_BYTES
}

/// Most that compiling a pattern takes, in bytes.
pub fn bytes(pattern: &str) -> u64 {
    let pattern: Vec<char> = pattern.chars().collect();
    let mut at = 0;
    // What each group that is open has come to, and the last part of each, which may be repeated.
    let (mut groups, mut last) = (vec![0_u64], 0_u64);
    while let Some(c) = pattern.get(at) {
        let (mut length, mut part) = (1, CHARACTER_BYTES);
        match c {
            '\\' => (length, part) = escape(&pattern[at..]),
            '[' => {
                length = class_length(&pattern[at..]);
                part = CLASS_BYTES + length as u64 * CHARACTER_BYTES;
            }
            '(' => {
                groups.push(0);
                part = 0;
            }
            // What is in a group is one part of what it stands in.
            ')' if groups.len() > 1 => part = groups.pop().unwrap_or_default(),
            '{' => {
                let (count, digits) = most_times(&pattern[at + 1..]);
                length = 2 + digits;
                part = last.saturating_mul(count.saturating_sub(1)).saturating_add(CHARACTER_BYTES);
                // What is repeated so may be repeated again.
                last = last.saturating_add(part);
            }
            _ => {}
        }
        if let Some(open) = groups.last_mut() {
            *open = open.saturating_add(part);
        }
        if !matches!(c, '{' | '*' | '+' | '?') {
            last = part;
        }
        at += length;
    }
    groups.into_iter().fold(FIXED_BYTES, u64::saturating_add)
}

/// How long an escape is that begins here, and what it takes: a letter stands for a class, but for
/// some.
fn escape(pattern: &[char]) -> (usize, u64) {
    let kind = pattern.get(1).copied().unwrap_or_default();
    let is_named = matches!(kind, 'p' | 'P' | 'x' | 'u' | 'U') && pattern.get(2) == Some(&'{');
    let name = pattern.iter().skip(2).take_while(|c| is_named && **c != '}').count();
    let length = (2 + name + usize::from(is_named)).min(pattern.len());
    let is_class = kind.is_ascii_alphanumeric() && !"nrtbBxuU".contains(kind);
    (length, if is_class { CLASS_BYTES } else { CHARACTER_BYTES })
}

/// How long a class is that begins here; one may be within another.
fn class_length(pattern: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(c) = pattern.get(at) {
        match c {
            '\\' => at += 1,
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at.min(pattern.len())
}

/// The greatest number up to a closing brace, and what is read of it.
fn most_times(pattern: &[char]) -> (u64, usize) {
    let is_count = |c: &&char| c.is_ascii_digit() || matches!(c, ',' | ' ');
    let count: String = pattern.iter().take_while(is_count).collect();
    let numbers = count.split([',', ' ']).filter(|number| !number.is_empty());
    let most = numbers.map(|number| number.parse().unwrap_or(u64::MAX)).max();
    (most.unwrap_or(1), count.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 300 rules of 20 letters each, which repeat a class 150 times and more, took 635 MiB to compile
    /// in a budget of 64.
    #[test]
    fn patterns_take_what_their_classes_do_as_often_as_they_stand_there() {
        let check = |pattern: &str, classes: u64| {
            assert_eq!(bytes(pattern) / CLASS_BYTES, classes, "{pattern}");
        };
        check("", 0);
        check("'s|'t| {2,}", 0);
        check(r"\w", 1);
        check(r"\w{40,80}x", 80);
        check(r"(?:\w|\p{L}){10}", 20);
        check(r"(?:(?:\w{10}){10}){2,5}", 500);
        check(r"\w{10}{10}", 100);
        check(r"[^\s\p{L}\p{N}]+", 1);
        check(r"[a[^\]b]c]{3}", 3);
        check(r"\(\n\\\x{2581}\u{2581}", 0);
        check(r"\w{99999999999999999999}", u64::MAX / CLASS_BYTES);
        // What Llama 3 and GPT-4o have.
        let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        check(words, 12);
        assert!(bytes(words) < 4 << 20);
    }
}
