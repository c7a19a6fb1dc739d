//! Building a vocabulary for WordPiece from text.
//!
//! Text is counted as the tokenizer sees it, normalised and divided into words; a Chinese character is a word of its own.
//! A new vocabulary has the special tokens, then every character, as the first of a word and as a later one (`##`), then
//! subwords, made by joining the most frequent pair of neighbours again and again (byte-pair encoding, Sennrich et al.
//! 2016). Or it is the part of an existing one that occurs, by which the text is divided as by the whole.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::tokenizer::{Tokenizer, normalized};
use crate::error::{Error, Result};

/// The tokens that begin a new vocabulary.
pub const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A longer word is `[UNK]` to WordPiece, in characters.
const LONGEST_WORD: usize = 100;

/// Different words that are kept; if there are more, those that came once are dropped.
const MOST_WORDS: usize = 1 << 22;

/// Which tokens a vocabulary has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VocabOptions {
    /// Tokens at most, special ones included.
    pub size: Option<usize>,
    /// A token that occurs less often is left out.
    pub min_count: u64,
    /// Subwords at most; `None` is none without a `size`, and with one as many as it leaves room for.
    pub merges: Option<usize>,
}

impl VocabOptions {
    /// Whether subwords are wanted.
    pub fn has_merges(&self) -> bool {
        self.merges.map_or(self.size.is_some(), |merges| merges > 0)
    }

    fn check(&self, special: usize) -> Result<()> {
        match self.size {
            Some(size) if size <= special => {
                let message = format!("{size} leaves no room for text: the special tokens alone are {special}");
                Err(Error::input("size", message))
            }
            _ => Ok(()),
        }
    }
}

/// A vocabulary, and how well it covers the text it was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    /// The lines of `vocab.txt`.
    pub tokens: Vec<String>,
    /// How many of them are characters, alone or inside a word.
    pub characters: usize,
    /// How many are longer.
    pub subwords: usize,
    /// Characters (of an existing vocabulary: tokens) of the text, white space aside.
    pub total: u64,
    /// How many of those the vocabulary lacks.
    pub uncovered: u64,
}

impl Vocabulary {
    /// The content of `vocab.txt`: one token a line.
    pub fn to_text(&self) -> String {
        self.tokens.iter().flat_map(|token| [token, "\n"]).collect()
    }
}

/// How often characters and words occur.
#[derive(Clone, Debug, Default)]
pub struct WordCounts {
    /// By whether they begin a word.
    characters: HashMap<(char, bool), u64>,
    /// Those of several characters.
    words: HashMap<String, u64>,
    total: u64,
    too_long: u64,
}

impl WordCounts {
    /// Counts `text`; whole words only where there will be subwords.
    pub fn add(&mut self, text: &str, words: bool) {
        let normalizer = BertNormalizer::new(true, true, None, true);
        let mut divided = PreTokenizedString::from(normalized(Some(&normalizer), text));
        // BERT's pre-tokenizer has no way to fail.
        let _ = BertPreTokenizer.pre_tokenize(&mut divided);
        for (word, ..) in divided.get_splits(OffsetReferential::Original, OffsetType::None) {
            let len = word.chars().count();
            self.total += len as u64;
            if len > LONGEST_WORD {
                self.too_long += len as u64;
                continue;
            }
            for (i, c) in word.chars().enumerate() {
                *self.characters.entry((c, i == 0)).or_default() += 1;
            }
            if words && len > 1 {
                count(&mut self.words, word, 1);
            }
        }
    }

    /// Adds the counts of more text.
    pub fn merge(&mut self, more: WordCounts) {
        self.total += more.total;
        self.too_long += more.too_long;
        for (character, n) in more.characters {
            *self.characters.entry(character).or_default() += n;
        }
        for (word, n) in more.words {
            count(&mut self.words, &word, n);
        }
        if self.words.len() > MOST_WORDS {
            self.words.retain(|_, n| *n > 1);
        }
    }

    /// The vocabulary: special tokens, characters and subwords, each the most frequent first.
    ///
    /// # Errors
    /// There was no text; a size that leaves no room for it.
    pub fn vocabulary(self, options: &VocabOptions) -> Result<Vocabulary> {
        options.check(SPECIAL.len())?;
        let named = |((c, first), n): ((char, bool), u64)| (if first { c.to_string() } else { format!("##{c}") }, n);
        let mut characters: Vec<(String, u64)> = self.characters.into_iter().map(named).collect();
        characters.retain(|(_, n)| *n >= options.min_count);
        characters.sort_unstable_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
        let room = options.size.unwrap_or(usize::MAX) - SPECIAL.len();
        characters.truncate(room);
        if characters.is_empty() {
            let message =
                format!("no character occurs {} times or more: there is nothing to make of it", options.min_count);
            return Err(Error::input("text", message));
        }
        let covered: u64 = characters.iter().map(|(_, n)| n).sum();
        let room = room - characters.len();
        let merges = if options.has_merges() { options.merges.unwrap_or(usize::MAX).min(room) } else { 0 };
        let subwords = subwords(self.words, &characters, merges, options.min_count);
        let counts = (characters.len(), subwords.len());
        let characters = characters.into_iter().map(|(token, _)| token);
        Ok(Vocabulary {
            tokens: SPECIAL.iter().map(|token| token.to_string()).chain(characters).chain(subwords).collect(),
            characters: counts.0,
            subwords: counts.1,
            total: self.total,
            uncovered: self.total - covered,
        })
    }
}

fn count(counts: &mut HashMap<String, u64>, word: &str, more: u64) {
    match counts.get_mut(word) {
        Some(n) => *n += more,
        None => {
            counts.insert(word.to_owned(), more);
        }
    }
}

/// Symbols of words, and the pairs in which they stand side by side.
struct Pairs {
    symbols: Vec<String>,
    ids: HashMap<String, u32>,
    /// Words as symbols, with their counts.
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<(u32, u32), u64>,
    /// The words that a pair is in, or was.
    places: HashMap<(u32, u32), BTreeSet<u32>>,
}

impl Pairs {
    fn symbol(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        self.symbols.push(name.to_owned());
        let id = self.symbols.len() as u32 - 1;
        self.ids.insert(name.to_owned(), id);
        id
    }

    fn joined(&self, (left, right): (u32, u32)) -> String {
        let right = &self.symbols[right as usize];
        format!("{}{}", self.symbols[left as usize], right.strip_prefix("##").unwrap_or(right))
    }

    /// Counts the pairs of word `i`, or takes them back.
    fn count(&mut self, i: u32, back: bool) {
        let (word, n) = &self.words[i as usize];
        for pair in word.windows(2) {
            let pair = (pair[0], pair[1]);
            let count = self.counts.entry(pair).or_default();
            *count = if back { *count - n } else { *count + n };
            if !back {
                self.places.entry(pair).or_default().insert(i);
            }
        }
    }

    /// Makes `pair` one symbol everywhere; returns the pairs whose counts have changed.
    fn join(&mut self, pair: (u32, u32), symbol: u32) -> BTreeSet<(u32, u32)> {
        let mut changed = BTreeSet::new();
        for i in self.places.remove(&pair).unwrap_or_default() {
            self.count(i, true);
            let word = &mut self.words[i as usize].0;
            changed.extend(word.windows(2).map(|pair| (pair[0], pair[1])));
            let mut joined = Vec::with_capacity(word.len());
            let mut rest = &word[..];
            while let [first, after @ ..] = rest {
                let here = after.first().is_some_and(|second| (*first, *second) == pair);
                joined.push(if here { symbol } else { *first });
                rest = if here { &after[1..] } else { after };
            }
            *word = joined;
            changed.extend(word.windows(2).map(|pair| (pair[0], pair[1])));
            self.count(i, false);
        }
        changed
    }
}

/// The first `merges` subwords of byte-pair encoding, none that occurs less often than `min_count`. Words with a
/// character that is not in the vocabulary are `[UNK]` and do not count.
fn subwords(words: HashMap<String, u64>, characters: &[(String, u64)], merges: usize, min_count: u64) -> Vec<String> {
    if merges == 0 {
        return Vec::new();
    }
    let mut pairs = Pairs {
        symbols: Vec::new(),
        ids: HashMap::new(),
        words: Vec::new(),
        counts: HashMap::new(),
        places: HashMap::new(),
    };
    for (name, _) in characters {
        pairs.symbol(name);
    }
    let mut words: Vec<(String, u64)> = words.into_iter().collect();
    words.sort_unstable();
    for (word, n) in words {
        let named = |(i, c): (usize, char)| if i == 0 { c.to_string() } else { format!("##{c}") };
        let symbols: Option<Vec<u32>> = word.chars().enumerate().map(|c| pairs.ids.get(&named(c)).copied()).collect();
        if let Some(symbols) = symbols {
            pairs.words.push((symbols, n));
            pairs.count(pairs.words.len() as u32 - 1, false);
        }
    }
    // the most frequent first, of those the first by name; counts in the heap may be out of date
    let entry = |pairs: &Pairs, pair| (pairs.counts[&pair], Reverse(pairs.joined(pair)), Reverse(pair));
    let mut heap: BinaryHeap<_> = pairs.counts.keys().map(|&pair| entry(&pairs, pair)).collect();
    let mut made = Vec::new();
    while made.len() < merges {
        let Some((n, Reverse(name), Reverse(pair))) = heap.pop() else { break };
        if pairs.counts.get(&pair) != Some(&n) {
            continue;
        }
        if n < min_count.max(1) {
            break;
        }
        // another pair may have made the same
        if !pairs.ids.contains_key(&name) {
            made.push(name.clone());
        }
        let symbol = pairs.symbol(&name);
        for pair in pairs.join(pair, symbol) {
            heap.push(entry(&pairs, pair));
        }
    }
    made
}

/// How often the tokens of an existing vocabulary occur.
#[derive(Clone, Debug, Default)]
pub struct TokenCounts {
    counts: HashMap<u32, u64>,
}

impl TokenCounts {
    /// Counts `text`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn add(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<()> {
        for id in tokenizer.encode_ids(text)? {
            *self.counts.entry(id).or_default() += 1;
        }
        Ok(())
    }

    /// Adds the counts of more text.
    pub fn merge(&mut self, more: TokenCounts) {
        for (id, n) in more.counts {
            *self.counts.entry(id).or_default() += n;
        }
    }

    /// The tokens of `tokenizer`'s file that occur often enough, and its special ones, in the file's order.
    ///
    /// # Errors
    /// None occurs; a size that leaves no room for them.
    pub fn vocabulary(self, tokenizer: &Tokenizer, options: &VocabOptions) -> Result<Vocabulary> {
        let in_file = (tokenizer.vocab_len() - tokenizer.appended().len()) as u32;
        let special: Vec<u32> = (0..in_file).filter(|&id| tokenizer.is_special(id)).collect();
        options.check(special.len())?;
        let total = self.counts.values().sum();
        let mut found: Vec<(u32, u64)> = self.counts.into_iter().filter(|(id, _)| !tokenizer.is_special(*id)).collect();
        found.retain(|(_, n)| *n >= options.min_count);
        found.sort_unstable_by_key(|(id, n)| (Reverse(*n), *id));
        found.truncate(options.size.unwrap_or(usize::MAX) - special.len());
        if found.is_empty() {
            let message = format!(
                "no token of {} occurs {} times or more: there is nothing to keep",
                tokenizer.path().display(),
                options.min_count
            );
            return Err(Error::input("text", message));
        }
        let covered: u64 = found.iter().map(|(_, n)| n).sum();
        let mut ids: Vec<u32> = found.iter().map(|(id, _)| *id).chain(special).collect();
        ids.sort_unstable();
        let tokens: Vec<String> = ids.iter().filter_map(|&id| tokenizer.token(id)).map(str::to_owned).collect();
        let bare = |id: u32| tokenizer.token(id).map(|token| token.strip_prefix("##").unwrap_or(token).chars().count());
        let characters = found.iter().filter(|(id, _)| bare(*id) == Some(1)).count();
        Ok(Vocabulary { tokens, characters, subwords: found.len() - characters, total, uncovered: total - covered })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::files::Source;
    use super::*;

    const ALL: VocabOptions = VocabOptions { size: None, min_count: 1, merges: None };

    fn counted(texts: &[&str]) -> WordCounts {
        let mut counts = WordCounts::default();
        for text in texts {
            let mut part = WordCounts::default();
            part.add(text, true);
            counts.merge(part);
        }
        counts
    }

    fn tokenizer(vocabulary: &Vocabulary) -> Tokenizer {
        let text = vocabulary.to_text();
        let source =
            Source { dir: Path::new("test"), vocab: text.as_bytes(), special_tokens_map: None, tokenizer_config: None };
        Tokenizer::from_bytes(source, false).unwrap()
    }

    #[test]
    fn characters_come_by_frequency_then_by_name() {
        let vocabulary = counted(&["你好，你！", "Été au lit", "你"]).vocabulary(&ALL).unwrap();
        let wanted = ["你", "##t", "##e", "##i", "##u", "a", "e", "l", "好", "！", "，"];
        assert_eq!(vocabulary.tokens[..5], SPECIAL);
        assert_eq!(vocabulary.tokens[5..], wanted);
        assert_eq!((vocabulary.characters, vocabulary.subwords, vocabulary.uncovered), (11, 0, 0));
        let ids = tokenizer(&vocabulary).encode_ids("你好ÉTÉ").unwrap();
        assert_eq!(ids, [5, 13, 11, 6, 7]);
    }

    #[test]
    fn rare_characters_are_left_out_and_counted() {
        let options = VocabOptions { min_count: 2, ..ALL };
        let vocabulary = counted(&["你好你你", "好人"]).vocabulary(&options).unwrap();
        assert_eq!(vocabulary.tokens[5..], ["你", "好"]);
        assert_eq!((vocabulary.total, vocabulary.uncovered), (6, 1));
        let options = VocabOptions { size: Some(6), ..ALL };
        assert_eq!(counted(&["你好你你", "好人"]).vocabulary(&options).unwrap().tokens[5..], ["你"]);
        let error = counted(&["你"]).vocabulary(&VocabOptions { size: Some(5), ..ALL }).unwrap_err().to_string();
        assert!(error.contains("the special tokens alone are 5"), "{error}");
        assert!(counted(&["\u{200b}"]).vocabulary(&ALL).is_err());
    }

    #[test]
    fn subwords_are_those_of_byte_pair_encoding() {
        let words = [("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)];
        let texts: Vec<&str> = words.iter().flat_map(|(word, n)| vec![*word; *n]).collect();
        let options = VocabOptions { merges: Some(5), ..ALL };
        let vocabulary = counted(&texts).vocabulary(&options).unwrap();
        // by hand: es and st 9, then est 9; ow and lo 7, then low 7; ew, ne and west 6
        let made = &vocabulary.tokens[5 + vocabulary.characters..];
        assert_eq!(made, ["##es", "##est", "##ow", "low", "##ew"]);
        let tokens = tokenizer(&vocabulary).encode("lowest newest").unwrap().tokens;
        assert_eq!(tokens, ["low", "##est", "n", "##ew", "##est"]);
    }

    #[test]
    fn a_size_is_filled_with_subwords_and_not_exceeded() {
        let texts = ["banana bandana", "ananas", "香蕉"];
        for size in 10..24 {
            let options = VocabOptions { size: Some(size), ..ALL };
            let vocabulary = counted(&texts).vocabulary(&options).unwrap();
            assert!(vocabulary.tokens.len() <= size, "{size}: {:?}", vocabulary.tokens);
            assert!(size > 20 || vocabulary.tokens.len() == size, "{size}: {:?}", vocabulary.tokens);
            let all: BTreeSet<&String> = vocabulary.tokens.iter().collect();
            assert_eq!(all.len(), vocabulary.tokens.len());
        }
        let twice = VocabOptions { merges: Some(100), min_count: 100, ..ALL };
        assert!(counted(&texts).vocabulary(&twice).is_err());
    }

    #[test]
    fn words_that_wordpiece_refuses_are_not_counted() {
        let long = "x".repeat(101);
        let vocabulary = counted(&[&long, "ab"]).vocabulary(&ALL).unwrap();
        assert_eq!(vocabulary.tokens[5..], ["##b", "a"]);
        assert_eq!(vocabulary.uncovered, 101);
    }

    /// The part of a vocabulary divides the text as the whole does.
    #[test]
    fn an_existing_vocabulary_is_reduced_to_what_occurs() {
        let texts = ["lowest newest", "香蕉", "low！", "é \u{1f600}"];
        let whole = counted(&["low lower lowest newest widest", "香蕉苹果！", "e"]);
        let whole = tokenizer(&whole.vocabulary(&VocabOptions { merges: Some(30), ..ALL }).unwrap());
        let mut counts = TokenCounts::default();
        for text in texts {
            let mut part = TokenCounts::default();
            part.add(&whole, text).unwrap();
            counts.merge(part);
        }
        let vocabulary = counts.vocabulary(&whole, &ALL).unwrap();
        let reduced = tokenizer(&vocabulary);
        assert!(reduced.vocab_len() < whole.vocab_len() && vocabulary.tokens[..5] == SPECIAL);
        for text in texts {
            assert_eq!(reduced.encode(text).unwrap().tokens, whole.encode(text).unwrap().tokens, "{text}");
        }
        assert!(vocabulary.tokens.iter().skip(5).map(|token| whole.id(token)).is_sorted());
        assert_eq!(vocabulary.uncovered, 1, "the face");
    }
}
