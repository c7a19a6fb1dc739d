//! Ids to text as a person would write it.
//!
//! A space is put where the tokenizer would otherwise read two words as one, and around ASCII punctuation next to words
//! that are written with spaces; so there is none between Chinese characters, and text without unknown words survives
//! decoding and encoding. What stands between two tokens depends on what came before only, so a stream has nothing to
//! hold back.

use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// What becomes of `[UNK]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// It is shown by its name.
    #[default]
    Show,
    /// It is left out.
    Drop,
}

/// What [`Tokenizer::decode`] leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Leave out the special tokens, except `[UNK]`.
    pub skip_special: bool,
    /// What becomes of `[UNK]`.
    pub unk: Unknown,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions { skip_special: true, unk: Unknown::Show }
    }
}

impl Tokenizer {
    /// The text of `ids`.
    ///
    /// # Errors
    /// An id that is not in the vocabulary.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> Result<String> {
        let mut stream = StreamDecoder::new(self, options);
        let mut text = String::new();
        for &id in ids {
            text.push_str(stream.push(id)?);
        }
        Ok(text)
    }
}

/// Decodes token by token: what [`push`](Self::push) returns, joined, is what [`Tokenizer::decode`] makes of all ids.
#[derive(Clone, Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    options: DecodeOptions,
    /// The last character so far, and the one before it if no space is between.
    last: Option<char>,
    before: Option<char>,
    /// Whether the last `"` was an opening one.
    quoted: bool,
    text: String,
}

/// Tokens that are shown by name are spaced like this word.
const WORD: &str = "x";

impl<'a> StreamDecoder<'a> {
    /// At the beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer, options: DecodeOptions) -> Self {
        StreamDecoder { tokenizer, options, last: None, before: None, quoted: false, text: String::new() }
    }

    /// The text that token `id` adds, final as it is; empty if the token is left out.
    ///
    /// # Errors
    /// `id` is not in the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        self.text.clear();
        let tokenizer = self.tokenizer;
        let token = tokenizer.token(id).ok_or_else(|| {
            let len = tokenizer.vocab_len();
            Error::input("ids", format!("{id} is not in the vocabulary, whose {len} ids are 0 to {}", len - 1))
        })?;
        let special = tokenizer.is_special(id);
        let left_out = if id == tokenizer.specials().unk {
            self.options.unk == Unknown::Drop
        } else {
            self.options.skip_special && special
        };
        if left_out {
            return Ok("");
        }
        let continued = token.strip_prefix("##").filter(|rest| !rest.is_empty() && !special);
        let shown = continued.unwrap_or(token);
        let like = if special { WORD } else { shown };

        let spaced = continued.is_none() && like.chars().next().is_some_and(|first| self.needs_space(first));
        if spaced {
            self.text.push(' ');
        }
        self.text.push_str(shown);
        let mut tail = like.chars().rev();
        let last = tail.next();
        self.before = tail.next().or(self.last.filter(|_| !spaced));
        self.last = last;
        self.quoted ^= like == "\"";
        Ok(&self.text)
    }

    fn needs_space(&self, next: char) -> bool {
        let Some(last) = self.last else { return false };
        let word = |c| self.tokenizer.fuses('x', c);
        let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
        match (last, next) {
            ('"', _) => !self.quoted && word(next),
            (',' | ';' | ':' | '.' | '!' | '?' | ')', '"') => !self.quoted,
            (_, '"') => !self.quoted && word(last),
            (',' | ':' | '.', _) if digit(self.before) && digit(Some(next)) => false,
            (',' | ';' | ':' | '.' | '!' | '?' | ')' | ']' | '%', _) => word(next),
            (_, '(' | '[' | '$') => word(last),
            _ => self.tokenizer.fuses(last, next),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::files::Source;
    use super::*;

    /// A vocabulary of exactly the tokens asked for, and the text they decode to.
    fn decoded(tokens: &str, options: DecodeOptions) -> String {
        let mut vocab = vec!["[PAD]", "[UNK]", "[SEP]"];
        vocab.extend(tokens.split(' '));
        vocab.sort_unstable();
        vocab.dedup();
        let vocab = vocab.join("\n");
        let source = Source {
            dir: Path::new("test"),
            vocab: vocab.as_bytes(),
            special_tokens_map: None,
            tokenizer_config: None,
        };
        let tokenizer = Tokenizer::from_bytes(source, false).unwrap();
        let ids: Vec<u32> = tokens.split(' ').map(|token| tokenizer.id(token).unwrap()).collect();
        tokenizer.decode(&ids, options).unwrap()
    }

    #[test]
    fn text_is_spaced_as_a_person_would() {
        for (tokens, text) in [
            ("今 天 ， 天 气 不 错 。", "今天，天气不错。"),
            ("训 练 的 v ##ae 模 型", "训练的vae模型"),
            ("北 京 2008 年", "北京2008年"),
            ("hello , world ! i ' m here .", "hello, world! i'm here."),
            ("gpt - 2 in 2019 . next", "gpt-2 in 2019. next"),
            ("1 , 234 , 567 . 89 元", "1,234,567.89元"),
            ("at 12 : 30", "at 12:30"),
            ("50 % 的 人 , 50 % of them", "50%的人, 50% of them"),
            ("he said \" yes , no \" and ( maybe ) left", "he said \"yes, no\" and (maybe) left"),
            ("他 说 \" 好 \" 和 ( 是 ) 。", "他说\"好\"和(是)。"),
            ("c + + 与 c #", "c++与c#"),
            ("https : / / a / b = c & d", "https://a/b=c&d"),
            ("a _ b @ c", "a_b@c"),
            ("##ing at first", "ing at first"),
            ("한국어 문장", "한국어 문장"),
        ] {
            assert_eq!(decoded(tokens, DecodeOptions::default()), text);
        }
    }

    #[test]
    fn special_and_unknown_tokens_are_options() {
        let tokens = "[PAD] 你 [UNK] 好 a [UNK] b [SEP]";
        for (skip_special, unk, text) in [
            (true, Unknown::Show, "你[UNK]好a [UNK] b"),
            (true, Unknown::Drop, "你好a b"),
            (false, Unknown::Show, "[PAD]你[UNK]好a [UNK] b [SEP]"),
            (false, Unknown::Drop, "[PAD]你好a b [SEP]"),
        ] {
            assert_eq!(decoded(tokens, DecodeOptions { skip_special, unk }), text);
        }
    }
}
