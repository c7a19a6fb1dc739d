//! Ids of many texts, quickly.

use std::sync::atomic::{AtomicU32, Ordering};

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// A character that is not a word of its own, and one that has not been seen yet.
const NONE: u32 = u32::MAX;
const UNSEEN: u32 = u32::MAX - 1;

/// Encodes as [`Tokenizer::encode_ids`] does, and many times as fast where text is Chinese.
///
/// A Chinese character or a punctuation mark is a word of its own whatever stands beside it: its id is found once, and only
/// what lies between such characters is given to the tokenizer.
pub struct BulkEncoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids of the characters of the first plane, as far as they have been seen.
    alone: Vec<AtomicU32>,
    /// The characters of tokens that are found in text as it is written: they may belong to such a token.
    whole: String,
}

impl<'a> BulkEncoder<'a> {
    /// For texts that `tokenizer` is to encode.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let ids = 0..tokenizer.vocab_len() as u32;
        let whole = ids.filter(|&id| tokenizer.is_whole(id)).filter_map(|id| tokenizer.token(id)).collect();
        BulkEncoder { tokenizer, alone: (0..1 << 16).map(|_| AtomicU32::new(UNSEEN)).collect(), whole }
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ids`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        let mut start = 0;
        for (i, c) in text.char_indices() {
            if let Some(id) = self.alone(c) {
                self.between(&text[start..i], &mut ids)?;
                ids.push(id);
                start = i + c.len_utf8();
            }
        }
        self.between(&text[start..], &mut ids)?;
        Ok(ids)
    }

    fn between(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if !text.is_empty() {
            ids.extend(self.tokenizer.encode_ids(text)?);
        }
        Ok(())
    }

    /// The id of `c` if that is a word of its own.
    fn alone(&self, c: char) -> Option<u32> {
        let place = self.alone.get(c as usize)?;
        let mut id = place.load(Ordering::Relaxed);
        if id == UNSEEN {
            id = self.find(c).unwrap_or(NONE);
            place.store(id, Ordering::Relaxed);
        }
        (id != NONE).then_some(id)
    }

    fn find(&self, c: char) -> Option<u32> {
        if c.is_ascii_alphanumeric() || c.is_whitespace() || self.whole.contains(c) {
            return None;
        }
        let fuses = [('x', c), (c, 'x'), (c, c)].into_iter().any(|(a, b)| self.tokenizer.fuses(a, b));
        match self.tokenizer.encode_ids(c.encode_utf8(&mut [0; 4])).ok()?[..] {
            [id] if !fuses => Some(id),
            _ => None,
        }
    }
}
