//! Bytes become text as soon as their characters are whole.

/// Bytes of characters that have begun. What is no UTF-8 becomes U+FFFD, one for each longest
/// beginning of a character, as soon as that is certain: the text is the same however its bytes
/// come.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// The beginning of a character: three bytes at most.
    held: Vec<u8>,
    /// Characters of the text so far.
    count: usize,
}

impl Whole {
    /// The text that is whole with these bytes.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = &self.held[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (whole, broken) = rest.split_at(error.valid_up_to());
                    // What was found valid is decoded once more: no unsafe code for it.
                    text.push_str(&String::from_utf8_lossy(whole));
                    let Some(bad) = error.error_len() else {
                        rest = broken;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &broken[bad..];
                }
            }
        }
        self.held = rest.to_vec();
        self.count += text.chars().count();
        text
    }

    /// The place of the character that the first of these bytes is of, where they come next: the
    /// one that has begun, or where they do not go on with it, one behind it.
    pub fn place(&self, bytes: &[u8]) -> usize {
        let begun = [&self.held[..], &bytes[..bytes.len().min(1)]].concat();
        let is_broken = std::str::from_utf8(&begun).is_err_and(|error| error.error_len().is_some());
        self.count + usize::from(is_broken && !self.held.is_empty())
    }

    /// The text that is left when no more bytes come: U+FFFD for half a character.
    pub fn end(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_have_the_place_of_their_character() {
        let check = |pieces: &[&[u8]], right: &[usize]| {
            let mut whole = Whole::default();
            let places = pieces.iter().map(|piece| {
                let place = whole.place(piece);
                whole.push(piece);
                place
            });
            assert_eq!(places.collect::<Vec<_>>(), right, "{pieces:?}");
        };
        check(&[b"ab", b"c", b"\xf6", b"\xff", b"", b"d"], &[0, 2, 3, 4, 5, 5]);
        // What begins a character may go on or not.
        check(&[b"\xe4", b"\xb8", b"", b"\x96", b"a"], &[0, 0, 0, 0, 1]);
        check(&[b"a\xe4\xb8", b"\xe4", b"a", b"b"], &[0, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn text_is_the_same_however_its_bytes_come(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), Just(0xe4), Just(0xb8), Just(0x96), Just(0xf0)], 0..24),
            cut in 1_usize..5,
        ) {
            let mut whole = Whole::default();
            let mut text: String = bytes.chunks(cut).map(|piece| whole.push(piece)).collect();
            text += &whole.end();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
