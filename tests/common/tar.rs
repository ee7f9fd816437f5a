//! Archives as an attacker writes them: every field as wished.

/// An entry; what it declares and what it holds may differ.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub kind: u8,
    pub link: String,
    pub declared: u64,
    pub content: Vec<u8>,
}

/// What stands for "as long as the content".
const HONEST: u64 = u64::MAX;

impl Entry {
    pub fn file(name: &str, content: impl Into<Vec<u8>>) -> Entry {
        Entry { content: content.into(), ..Entry::kind(name, b'0', "") }
    }

    /// An entry without content, of a type of tar(5).
    pub fn kind(name: &str, kind: u8, link: &str) -> Entry {
        let (name, link) = (name.to_owned(), link.to_owned());
        Entry { name, kind, link, declared: HONEST, content: Vec::new() }
    }

    /// What pax says of the entry that follows.
    pub fn pax(key: &str, value: &str) -> Entry {
        let rest = format!(" {key}={value}\n");
        let length = (1..=99).find(|length| length.to_string().len() + rest.len() == *length);
        let content = format!("{}{rest}", length.expect("a short record"));
        Entry { kind: b'x', ..Entry::file("pax", content) }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let mut head = [0; 512];
        let mut put = |at: usize, text: &[u8]| head[at..at + text.len()].copy_from_slice(text);
        put(0, self.name.as_bytes());
        put(100, b"0000644\x000000000\x000000000\0");
        let declared = match self.declared {
            HONEST => self.content.len() as u64,
            declared => declared,
        };
        match declared < 1 << 33 {
            true => put(124, format!("{declared:011o}\0").as_bytes()),
            false => put(124, &[&[0x80, 0, 0, 0][..], &declared.to_be_bytes()].concat()),
        }
        put(136, b"00000000000\0        ");
        put(156, &[self.kind]);
        put(157, self.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(head);
        bytes.extend(&self.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
}

/// The entries, and the end.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut bytes));
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}
