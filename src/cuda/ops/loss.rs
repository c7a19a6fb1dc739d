//! The reconstruction loss.

use std::sync::PoisonError;

use super::first;
use crate::backend::{Draw, LossOps, Rules};
use crate::cuda::problem::{Problem, Types};
use crate::cuda::{Buffer, Cuda, int};

impl LossOps for Cuda {
    fn cross_entropy_fwd(&self, loss: &mut Buffer, logits: &Buffer, targets: &Buffer, tokens: usize, vocab: usize) {
        let args =
            [first(loss, tokens), first(logits, tokens * vocab), first(targets, tokens), int(tokens), int(vocab)];
        self.launch("cross_entropy_fwd", Problem::matrix(Types::F32, tokens, vocab), &args);
    }

    fn cross_entropy_bwd(&self, logits: &mut Buffer, targets: &Buffer, weights: &Buffer, tokens: usize, vocab: usize) {
        let args =
            [first(logits, tokens * vocab), first(targets, tokens), first(weights, tokens), int(tokens), int(vocab)];
        self.launch("cross_entropy_bwd", Problem::matrix(Types::F32, tokens, vocab), &args);
    }

    fn sample<'a>(
        &self,
        tokens: &mut [u32],
        logits: &Buffer,
        draws: impl ExactSizeIterator<Item = Draw<'a>>,
        vocab: usize,
    ) {
        let rows = draws.len();
        let (mut settings, mut history) = (Vec::with_capacity(SETTINGS * rows), Vec::new());
        for draw in draws {
            let first = history.len();
            // without a penalty nobody reads it
            if draw.repetition_penalty != 1.0 {
                history.extend_from_slice(draw.history);
            }
            settings.extend(words(&draw, first, history.len()));
        }
        let buffers = || {
            let (chosen, ids) = (self.memory.buffer(rows, 4)?, self.memory.buffer(history.len().max(1), 4)?);
            Ok((chosen, ids, self.memory.buffer(rows * vocab, 8)?))
        };
        let Some((chosen, ids, weights)) = self.attempt(buffers) else { return };
        // a step that draws as the one before has nothing to send
        let mut held = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_none_or(|(words, _)| *words != settings) {
            let Some(set) = self.attempt(|| self.memory.buffer(settings.len(), 4)) else { return };
            self.write(&set, settings.iter().map(|word| word.to_ne_bytes()));
            *held = Some((settings, set));
        }
        let Some((_, set)) = held.as_ref() else { return };
        self.write(&ids, history.iter().map(|id| id.to_ne_bytes()));
        let args = [
            first(&chosen, rows),
            first(&weights, rows * vocab),
            first(logits, rows * vocab),
            first(set, SETTINGS * rows),
            first(&ids, history.len()),
            int(rows),
            int(vocab),
        ];
        self.launch("sample", Problem::matrix(Types::F32, rows, vocab), &args);
        self.read(&chosen, 0, rows, |i, bytes| tokens[i] = u32::from_ne_bytes(bytes));
    }
}

/// Words of a row's settings: `SampleRow` in `kernels/loss/sample_v01_row.cu`.
const SETTINGS: usize = 12;

fn words(draw: &Draw<'_>, first: usize, end: usize) -> [u32; SETTINGS] {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let step = if let Rules::Greedy = draw.rules { 0 } else { draw.step };
    let ([seed_low, seed_high], [number_low, number_high]) = (halves(draw.seed), halves(draw.number));
    [
        draw.rules as u32,
        draw.top_k as u32,
        draw.top_p.to_bits(),
        draw.temperature.to_bits(),
        draw.repetition_penalty.to_bits(),
        seed_low,
        seed_high,
        number_low,
        number_high,
        step,
        first as u32,
        end as u32,
    ]
}
