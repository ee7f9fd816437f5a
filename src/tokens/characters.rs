//! What Unicode makes of characters.

/// Most bytes of what Unicode makes of a character of a text, whole or in lower case, and most
/// characters of it taken apart. A mark may keep what is before it from being put together again.
pub(super) fn cost(c: char) -> u64 {
    let more = match c {
        '\u{fdfa}' | '\u{fdfb}' => 30,
        '\u{32ff}'..='\u{33ff}' => 15,
        '\u{2033}'..='\u{2057}'
        | '\u{2150}'..='\u{2189}'
        | '\u{222c}'..='\u{2230}'
        | '\u{247d}'..='\u{2487}'
        | '\u{2a0c}'
        | '\u{2adc}' => 9,
        '\u{1d15e}'..='\u{1d1c0}' => 8,
        '\u{f43}'..='\u{fb9}' => 6,
        '\u{3200}'..='\u{3243}' | '\u{fdf0}'..='\u{fdfc}' | '\u{1f240}'..='\u{1f248}' => 5,
        '\u{a8}'..='\u{be}'
        | '\u{37a}'..='\u{390}'
        | '\u{958}'..='\u{95f}'
        | '\u{9dc}'..='\u{9df}'
        | '\u{a33}'..='\u{a5e}'
        | '\u{b5c}'..='\u{b5d}'
        | '\u{e33}'
        | '\u{eb3}'
        | '\u{edc}'..='\u{edd}'
        | '\u{309b}'..='\u{309f}'
        | '\u{30ff}'
        | '\u{3244}'..='\u{32fe}'
        | '\u{fb13}'..='\u{fdfc}'
        | '\u{1f12a}' => 3,
        '\u{130}'..='\u{149}'
        | '\u{1c4}'..='\u{23e}'
        | '\u{2d8}'..='\u{2dd}'
        | '\u{300}'..='\u{36f}'
        | '\u{3b0}'
        | '\u{587}'
        | '\u{675}'..='\u{678}'
        | '\u{1f80}'..='\u{1fee}'
        | '\u{fa6c}'..='\u{fad7}'
        | '\u{fe71}'..='\u{fefc}'
        | '\u{1f200}'..='\u{1f201}' => 2,
        _ => 0,
    };
    c.len_utf8() as u64 + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokenizers::normalizers::BertNormalizer;
    use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

    /// What Unicode makes of any character that a text may have.
    #[test]
    fn each_character_pays_for_what_becomes_of_it() {
        let step = |kind| -> NormalizerWrapper {
            serde_json::from_value(json!({ "type": kind })).unwrap()
        };
        let whole = ["NFC", "NFKC", "Lowercase"].map(step);
        let apart = ["NFD", "NFKD"].map(step);
        let bert = NormalizerWrapper::BertNormalizer(BertNormalizer::default());
        let apart = [&apart[..], &[bert]].concat();
        let check =
            |c: char, before: &str, steps: &[NormalizerWrapper], size: fn(&str) -> usize| {
                let text = format!("{c}{before}");
                let room = text.chars().map(cost).sum::<u64>();
                for step in steps {
                    let mut made = NormalizedString::from(&*text);
                    step.normalize(&mut made).unwrap();
                    let size = size(made.get()) as u64;
                    assert!(size <= room, "{step:?} makes {size} of {text:?}, which has {room}");
                }
            };
        // Beyond are none that Unicode changes.
        for c in '\0'..='\u{2ffff}' {
            check(c, "", &whole, str::len);
            check(c, "", &apart, |text| text.chars().count());
        }
        for c in ('\0'..='\u{1fff}').filter(|c| c.is_alphabetic()) {
            for mark in ["\u{328}", "\u{327}", "\u{31b}", "\u{323}", "\u{301}"] {
                check(c, mark, &whole, str::len);
            }
        }
    }
}
