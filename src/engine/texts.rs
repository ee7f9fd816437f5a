//! Texts that have ended, whose keys and values are kept for those that begin as they did: a chat
//! that goes on, another question behind the same instructions.

use super::past::Past;
use super::step::Tenant;
use super::targets::TargetKey;
use crate::stream::Grant;
use crate::sys::lock::lock;
use std::sync::Mutex;

/// Tokens that two texts have in common at least, to be worth anything.
const LEAST_TOKENS: usize = 8;

/// Texts that are kept, the one that was used longest ago first.
#[derive(Default)]
pub(super) struct Texts(Mutex<Vec<Text>>);

/// A text that is kept.
pub(super) struct Text {
    pub model: String,
    pub tenant: Tenant,
    /// What its passes were asked to keep to: others may have other precisions.
    pub target: Option<TargetKey>,
    /// The tokens of `past`.
    pub ids: Vec<u32>,
    pub past: Past,
    pub grant: Grant,
}

impl Text {
    /// Whether its keys and values are those of another text of this kind.
    fn is_of(&self, tenant: &Tenant, target: Option<TargetKey>) -> bool {
        self.tenant == *tenant && self.target == target
    }
}

impl Texts {
    /// Keeps a text if `is_loaded` says that its model is, within so many bytes for all; those that
    /// were used longest ago go, and those that it goes on.
    pub fn keep(&self, text: Text, limit_bytes: u64, is_loaded: impl FnOnce(&Tenant) -> bool) {
        if text.ids.len() < LEAST_TOKENS || text.grant.bytes() > limit_bytes {
            return;
        }
        let mut kept = lock(&self.0);
        // Whoever unloads it forgets its texts afterwards.
        if !is_loaded(&text.tenant) {
            return;
        }
        let is_alike = |other: &Text| other.is_of(&text.tenant, text.target);
        if kept.iter().any(|other| is_alike(other) && other.ids.starts_with(&text.ids)) {
            return;
        }
        kept.retain(|other| !(is_alike(other) && text.ids.starts_with(&other.ids)));
        let mut bytes = text.grant.bytes() + bytes_of(&kept);
        while bytes > limit_bytes && !kept.is_empty() {
            bytes -= kept.remove(0).grant.bytes();
        }
        kept.push(text);
    }

    /// Keys and values of the text that begins as `ids` for longest, and how many of its tokens count:
    /// the last of `ids` is always to be read.
    pub fn find(
        &self,
        tenant: &Tenant,
        target: Option<TargetKey>,
        ids: &[u32],
    ) -> Option<(Past, usize)> {
        let mut kept = lock(&self.0);
        let most = ids.len().saturating_sub(1);
        let common = |text: &Text| {
            let alike = text.ids.iter().zip(&ids[..most]).take_while(|(one, other)| one == other);
            alike.count()
        };
        let found = kept.iter().enumerate().filter(|(_, text)| text.is_of(tenant, target));
        let (index, tokens) =
            found.map(|(index, text)| (index, common(text))).max_by_key(|(_, tokens)| *tokens)?;
        if tokens < LEAST_TOKENS || !kept[index].past.can_cut(tokens) {
            return None;
        }
        let text = kept.remove(index);
        let past = text.past.clone();
        kept.push(text);
        Some((past, tokens))
    }

    /// Lets the text go that was used longest ago; whether there was one.
    pub fn give_way(&self) -> bool {
        let mut kept = lock(&self.0);
        let gone = (!kept.is_empty()).then(|| kept.remove(0));
        gone.is_some()
    }

    /// Lets go what is of a model.
    pub fn forget(&self, model: &str) {
        lock(&self.0).retain(|text| text.model != model);
    }

    /// Lets all go.
    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Bytes that are granted for them.
    pub fn bytes(&self) -> u64 {
        bytes_of(&lock(&self.0))
    }
}

fn bytes_of(kept: &[Text]) -> u64 {
    kept.iter().map(|text| text.grant.bytes()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::step::Tenancy;
    use super::*;
    use crate::stream::{Category, Ledger};
    use std::sync::Arc;

    fn text(ledger: &Arc<Ledger>, tenancy: &Tenancy, ids: &[u32]) -> Text {
        Text {
            model: "m".to_string(),
            tenant: tenancy.tenant(),
            target: None,
            ids: ids.to_vec(),
            past: Past::default(),
            grant: ledger.try_grant(Category::Session, ids.len() as u64).unwrap(),
        }
    }

    #[test]
    fn the_longest_beginning_is_found_and_the_oldest_goes() {
        let (ledger, texts, tenancy) = (Ledger::new(1000), Texts::default(), Tenancy::default());
        let numbers: Vec<u32> = (0..60).collect();
        let keep = |ids: &[u32]| texts.keep(text(&ledger, &tenancy, ids), 70, |_| true);
        let find = |ids: &[u32]| texts.find(&tenancy.tenant(), None, ids).map(|(_, count)| count);
        keep(&numbers[..20]);
        assert_eq!(find(&numbers), Some(20));
        assert_eq!(find(&numbers[..20]), Some(19), "one is to be read");
        assert_eq!(find(&numbers[..8]), None, "that is not worth it");
        assert_eq!(find(&numbers[1..]), None);
        // One that goes on takes the other's place, and what is there already changes nothing.
        keep(&numbers[..30]);
        keep(&numbers[..25]);
        assert_eq!((texts.bytes(), find(&numbers)), (30, Some(30)));
        let other = [&numbers[..10], &[99; 20]].concat();
        keep(&other);
        assert_eq!(texts.bytes(), 60);
        assert_eq!(find(&numbers), Some(30));
        keep(&numbers[40..]);
        assert_eq!((texts.bytes(), find(&other)), (50, Some(10)), "it was used longest ago");
        keep(&[7; 71]);
        assert_eq!(texts.bytes(), 50, "that is more than there may be");
        keep(&[7; LEAST_TOKENS - 1]);
        assert_eq!(texts.bytes(), 50, "nobody would find it");
        let stranger = Tenancy::default();
        assert!(texts.find(&stranger.tenant(), None, &numbers).is_none());
        texts.keep(text(&ledger, &stranger, &[5; 9]), 70, |_| false);
        assert_eq!(texts.bytes(), 50, "its model is not loaded");
        assert!(texts.give_way());
        assert_eq!(ledger.held_in_all_bytes(), texts.bytes());
        texts.forget("m");
        assert!(!texts.give_way());
        assert_eq!(ledger.held_in_all_bytes(), 0);
        assert!(!tenancy.is_used(), "what is kept uses no model");
    }
}
