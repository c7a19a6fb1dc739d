//! The rows of a corpus in batches: every row once an epoch, shuffled, rows of similar length together.
//!
//! An epoch's order is a permutation that is computed, not stored: a Feistel network on pairs of numbers (Black and
//! Rogaway, "Ciphers with arbitrary finite domains", 2002), whose round function is Philox. Rows are taken in that order
//! a window at a time; a window is sorted by length and cut into batches, and its batches are shuffled. So a batch costs
//! the same in the smallest and in the largest corpus, and dealing can begin at any window.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Corpus;
use crate::error::{Error, Result};
use crate::rng::{Rng, Stream};

/// How rows are dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOptions {
    /// Tokens of a batch at most; a longer row is a batch of its own. Rows are packed, so none of these is padding.
    pub tokens: usize,
    /// Rows of a batch at most.
    pub rows: Option<usize>,
    /// Rows of a window, which are sorted by length; 0 leaves them in the order in which they are drawn.
    pub bucket: usize,
    /// The order depends on this and on the epoch.
    pub seed: u64,
}

impl BatchOptions {
    fn check(&self) -> Result<()> {
        for (field, value) in [("tokens", self.tokens), ("rows", self.rows.unwrap_or(1))] {
            if value == 0 {
                return Err(Error::input(format!("batch {field}"), "0 is not possible; give at least 1"));
            }
        }
        Ok(())
    }
}

/// A place between two batches. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which time the corpus is read, from 0.
    pub epoch: u64,
    /// How many batches of the epoch came before; 0 exactly where an epoch begins.
    pub batch: u64,
    /// How many of the epoch's rows came before the window that is being dealt out.
    pub window: u64,
    /// How many batches of that window came before.
    pub in_window: u64,
}

/// Rows that are learned from at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Their numbers in the corpus.
    pub rows: Vec<u64>,
    /// Their tokens, conditions included.
    pub tokens: u64,
    /// Where the batch after this one begins.
    pub position_after: Position,
}

/// Deals out batches without end.
pub struct Batches<'a> {
    deal: Deal<'a>,
    position: Position,
    /// The batches of the position's window, if it has been opened.
    window: Option<Window>,
}

impl<'a> Batches<'a> {
    /// The batches of `corpus` that come after `from`: the same as if all before had been dealt out.
    ///
    /// # Errors
    /// Sizes of 0; a position that these options cannot lead to in this corpus.
    pub fn new(corpus: &'a Corpus, options: BatchOptions, from: Position) -> Result<Self> {
        Self::over(corpus.len(), Box::new(|row| corpus.row_len(row)), options, from)
    }

    /// As [`new`](Self::new), for `len` rows of the given lengths.
    fn over(
        len: u64,
        row_len: Box<dyn Fn(u64) -> usize + Send + Sync + 'a>,
        options: BatchOptions,
        from: Position,
    ) -> Result<Self> {
        options.check()?;
        let deal = Deal { len, row_len, options };
        let window = deal.window(from.epoch, from.window.min(len - 1));
        let bucket = (options.bucket as u64).max(1);
        let possible = from.window < len
            && from.window.is_multiple_of(bucket)
            && from.in_window < window.batches.len() as u64
            && (from.batch == 0) == (from.window == 0 && from.in_window == 0);
        if !possible {
            let message = format!(
                "{from:?} is not between two batches of these {len} rows; it belongs to another corpus or to other \
                 batch options"
            );
            return Err(Error::input("position", message));
        }
        Ok(Batches { deal, position: from, window: Some(window) })
    }

    /// Where the next batch begins.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next batch.
    #[expect(clippy::should_implement_trait, reason = "there is always one")]
    pub fn next(&mut self) -> Batch {
        let Position { epoch, batch, window: start, in_window } = self.position;
        let window = self.window.take().unwrap_or_else(|| self.deal.window(epoch, start));
        let rows = window.batch(in_window as usize);
        let tokens = rows.iter().map(|&row| (self.deal.row_len)(row) as u64).sum();
        let after = start + window.rows.len() as u64;
        self.position = if in_window + 1 < window.batches.len() as u64 {
            self.window = Some(window);
            Position { epoch, batch: batch + 1, window: start, in_window: in_window + 1 }
        } else if after < self.deal.len {
            Position { epoch, batch: batch + 1, window: after, in_window: 0 }
        } else {
            Position { epoch: epoch + 1, ..Position::default() }
        };
        Batch { rows, tokens, position_after: self.position }
    }

    /// The number of batches of an epoch. It looks at every row's length: some seconds for ten million.
    pub fn epoch_len(&self, epoch: u64) -> u64 {
        let len = self.deal.len;
        if self.deal.options.bucket == 0 {
            let (mut start, mut batches) = (0, 0);
            while start < len {
                start += self.deal.window(epoch, start).rows.len() as u64;
                batches += 1;
            }
            return batches;
        }
        let bucket = self.deal.options.bucket as u64;
        let windows = (0..len.div_ceil(bucket)).into_par_iter();
        windows.map(|window| self.deal.window(epoch, window * bucket).batches.len() as u64).sum()
    }
}

/// Some rows, and which of them make a batch together.
struct Window {
    rows: Vec<u64>,
    /// Ranges of `rows`, in the order in which they are dealt out.
    batches: Vec<(usize, usize)>,
}

impl Window {
    fn batch(&self, i: usize) -> Vec<u64> {
        let (start, end) = self.batches[i];
        self.rows[start..end].to_vec()
    }
}

struct Deal<'a> {
    len: u64,
    row_len: Box<dyn Fn(u64) -> usize + Send + Sync + 'a>,
    options: BatchOptions,
}

impl Deal<'_> {
    /// The window that begins with the epoch's row number `start`: all that is sorted together; without sorting, one
    /// batch.
    fn window(&self, epoch: u64, start: u64) -> Window {
        let BatchOptions { rows: most_rows, bucket, seed, .. } = self.options;
        let [a, b, c, d] = Rng::new(seed, Stream::Shuffle, epoch).words(0);
        let order = Permutation::new(self.len, joined(a, b));
        if bucket == 0 {
            let most = most_rows.unwrap_or(usize::MAX);
            let (mut rows, mut tokens) = (Vec::new(), 0usize);
            for row in (start..self.len).map(|i| order.at(i)).take(most) {
                tokens = tokens.saturating_add((self.row_len)(row));
                if tokens > self.options.tokens && !rows.is_empty() {
                    break;
                }
                rows.push(row);
            }
            let batches = vec![(0, rows.len())];
            return Window { rows, batches };
        }
        let end = self.len.min(start.saturating_add(bucket as u64));
        let mut rows: Vec<(usize, u64)> =
            (start..end).map(|i| order.at(i)).map(|row| ((self.row_len)(row), row)).collect();
        rows.sort_by_key(|(len, _)| *len); // stable: rows of one length stay as they were drawn
        let cut = self.cut(&rows);
        let key = Rng::new(joined(c, d), Stream::Shuffle, start).words(0);
        let order = Permutation::new(cut.len() as u64, joined(key[0], key[1]));
        let batches = (0..cut.len() as u64).map(|i| cut[order.at(i) as usize]).collect();
        Window { rows: rows.into_iter().map(|(_, row)| row).collect(), batches }
    }

    fn cut(&self, rows: &[(usize, u64)]) -> Vec<(usize, usize)> {
        let most = self.options.rows.unwrap_or(usize::MAX);
        let (mut cut, mut start, mut tokens) = (Vec::new(), 0, 0usize);
        for (i, (len, _)) in rows.iter().enumerate() {
            if i > start && (tokens.saturating_add(*len) > self.options.tokens || i - start == most) {
                cut.push((start, i));
                (start, tokens) = (i, 0);
            }
            tokens = tokens.saturating_add(*len);
        }
        cut.push((start, rows.len()));
        cut
    }
}

fn joined(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// An order of the numbers below `len`, without a table of it.
#[derive(Clone, Copy, Debug)]
struct Permutation {
    len: u64,
    key: u64,
    /// Numbers are written as `left · right_size + right`; there are hardly more such pairs than numbers.
    left_size: u64,
    right_size: u64,
}

impl Permutation {
    const ROUNDS: u64 = 8;

    /// One of the orders of `0..len`, which `key` chooses.
    fn new(len: u64, key: u64) -> Self {
        let root = len.isqrt();
        let left_size = (root + u64::from(root * root < len)).max(1);
        Permutation { len, key, left_size, right_size: len.div_ceil(left_size) }
    }

    /// The number at place `i`.
    fn at(&self, i: u64) -> u64 {
        let mut x = i;
        loop {
            x = self.pair(x);
            // pairs beyond the numbers lead on to others, and at last back to a number
            if x < self.len {
                return x;
            }
        }
    }

    fn pair(&self, x: u64) -> u64 {
        let (mut left, mut right) = (x / self.right_size, x % self.right_size);
        for round in (0..Self::ROUNDS).step_by(2) {
            left = (left + self.word(round, right) % self.left_size) % self.left_size;
            right = (right + self.word(round + 1, left) % self.right_size) % self.right_size;
        }
        left * self.right_size + right
    }

    fn word(&self, round: u64, half: u64) -> u64 {
        let [a, b, ..] = Rng::new(self.key, Stream::Shuffle, round).words(half as u32);
        joined(a, b)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_permutation_holds_every_number_once() {
        for len in (1..70).chain([1000, 4095, 4096, 4097]) {
            for key in 0..20 {
                let order = Permutation::new(len, key);
                let numbers: BTreeSet<u64> = (0..len).map(|i| order.at(i)).collect();
                assert_eq!(numbers, (0..len).collect(), "{len} {key}");
            }
        }
        for len in [u64::MAX, 1 << 63, u64::from(u32::MAX) * u64::from(u32::MAX)] {
            assert!((0..100).all(|i| Permutation::new(len, 1).at(i) < len));
            assert!((len - 100..len).all(|i| Permutation::new(len, 1).at(i) < len));
        }
    }

    /// Every number comes equally often to every place, and neighbours have nothing to do with each other.
    #[test]
    fn a_permutation_is_shuffled() {
        let (len, keys) = (10u64, 20_000u64);
        let mut counts = vec![0u32; (len * len) as usize];
        for key in 0..keys {
            let order = Permutation::new(len, key);
            (0..len).for_each(|i| counts[(i * len + order.at(i)) as usize] += 1);
        }
        let expected = (keys / len) as f64;
        let chi2: f64 = counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        assert!(chi2 < 140.0, "{chi2} at 81 degrees of freedom"); // 1 in 100 000 is above 144
        let len = 100_000;
        let order = Permutation::new(len, 3);
        let scale = |x: u64| x as f64 / len as f64 - 0.5;
        let lag: f64 = (1..len).map(|i| scale(order.at(i)) * scale(order.at(i - 1))).sum::<f64>() / len as f64 * 12.0;
        let place: f64 = (0..len).map(|i| scale(order.at(i)) * scale(i)).sum::<f64>() / len as f64 * 12.0;
        assert!(lag.abs() < 0.02 && place.abs() < 0.02, "{lag} {place}");
    }

    fn len_of(row: u64) -> usize {
        3 + (row * row % 23) as usize
    }

    fn batches(len: u64, options: BatchOptions, from: Position) -> Batches<'static> {
        Batches::over(len, Box::new(len_of), options, from).unwrap()
    }

    fn options() -> impl Strategy<Value = BatchOptions> {
        (1..120usize, prop::option::of(1..9usize), prop_oneof![Just(0), 1..80usize, Just(usize::MAX)], any::<u64>())
            .prop_map(|(tokens, rows, bucket, seed)| BatchOptions { tokens, rows, bucket, seed })
    }

    proptest! {
        #[test]
        fn every_row_comes_once_an_epoch_within_the_budget(len in 1..200u64, options in options()) {
            let mut dealt = batches(len, options, Position::default());
            for epoch in 0..3 {
                let (mut rows, mut count) = (Vec::new(), 0);
                let announced = dealt.epoch_len(epoch);
                loop {
                    prop_assert_eq!(dealt.position().epoch, epoch);
                    prop_assert_eq!(dealt.position().batch, count);
                    let batch = dealt.next();
                    let tokens: usize = batch.rows.iter().map(|&row| len_of(row)).sum();
                    prop_assert_eq!(batch.tokens, tokens as u64);
                    prop_assert!(tokens <= options.tokens || batch.rows.len() == 1);
                    prop_assert!(!batch.rows.is_empty() && batch.rows.len() <= options.rows.unwrap_or(usize::MAX));
                    rows.extend(batch.rows);
                    count += 1;
                    if batch.position_after.batch == 0 {
                        break;
                    }
                }
                prop_assert_eq!(count, announced);
                rows.sort_unstable();
                prop_assert_eq!(rows, (0..len).collect::<Vec<_>>());
            }
        }

        #[test]
        fn dealing_resumes_at_every_position(len in 1..100u64, options in options()) {
            let mut dealt = batches(len, options, Position::default());
            let (mut positions, mut all) = (vec![dealt.position()], Vec::new());
            while dealt.position().epoch < 2 {
                all.push(dealt.next());
                positions.push(dealt.position());
            }
            for (i, position) in positions[..all.len()].iter().enumerate() {
                let json = serde_json::to_string(position).unwrap();
                let mut resumed = batches(len, options, serde_json::from_str(&json).unwrap());
                for batch in &all[i..all.len().min(i + 5)] {
                    prop_assert_eq!(&resumed.next(), batch);
                }
            }
        }
    }

    #[test]
    fn orders_differ_by_epoch_and_seed() {
        let options = BatchOptions { tokens: 50, rows: None, bucket: 64, seed: 0 };
        let epoch = |seed, epoch| {
            let mut dealt = batches(500, BatchOptions { seed, ..options }, Position { epoch, ..Position::default() });
            let mut rows = Vec::new();
            while dealt.position().epoch == epoch {
                rows.push(dealt.next().rows);
            }
            rows
        };
        assert_eq!(epoch(0, 0), epoch(0, 0));
        assert_ne!(epoch(0, 0), epoch(0, 1));
        assert_ne!(epoch(0, 0), epoch(1, 0));
    }

    /// Sorting fills batches: rows of one batch differ little in length, and the batches come in no order of length.
    #[test]
    fn windows_are_sorted_and_their_batches_are_not() {
        let options = BatchOptions { tokens: 100, rows: None, bucket: 200, seed: 0 };
        let mut dealt = batches(2000, options, Position::default());
        let mut firsts = Vec::new();
        for _ in 0..25 {
            let lens: Vec<usize> = dealt.next().rows.into_iter().map(len_of).collect();
            assert!(lens.is_sorted() && lens[lens.len() - 1] - lens[0] <= 8, "{lens:?}");
            firsts.push(lens[0]);
        }
        assert!(!firsts.is_sorted());
    }

    #[test]
    fn positions_of_other_corpora_are_refused() {
        let options = BatchOptions { tokens: 50, rows: None, bucket: 64, seed: 0 };
        for from in [
            Position { window: 500, batch: 9, ..Position::default() },
            Position { window: 63, batch: 9, ..Position::default() },
            Position { window: 64, batch: 9, in_window: 64, epoch: 0 },
            Position { window: 64, ..Position::default() },
            Position { batch: 1, ..Position::default() },
        ] {
            let error = Batches::over(500, Box::new(len_of), options, from).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("another corpus"), "{error}");
        }
        for options in [BatchOptions { tokens: 0, ..options }, BatchOptions { rows: Some(0), ..options }] {
            assert!(Batches::over(500, Box::new(len_of), options, Position::default()).is_err());
        }
    }
}
