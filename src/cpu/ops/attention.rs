//! Causal self-attention.
//!
//! One routine serves both ops: it computes one query of one head from keys and values that lie a fixed distance apart,
//! in an order given by the index of the key within its sequence. Hence a cached step gives the bits of the whole pass.

use super::spans;
use crate::backend::{AttentionDims, AttentionOps, CacheRows, Spans};
use crate::cpu::parallel::{Tile, with_scratch};
use crate::cpu::simd::{Kernel, Simd, dot, dots, softmax, weighted_sum};
use crate::cpu::{Buffer, Cpu};

/// Multiply-adds below which attention stays on the calling thread.
const SERIAL: usize = 1 << 16;
/// Queries of a task.
const QUERIES: usize = 16;

impl AttentionOps for Cpu {
    fn attention_fwd(&self, y: &mut Buffer<f32>, qkv: &Buffer<f32>, rows: &Spans<Self>, dims: AttentionDims) {
        let width = dims.width();
        let sequences = spans(&rows.bounds, rows.rows).map(|(start, end)| Sequence { start, end, past: 0 });
        self.attend(y, qkv, dims, sequences, |row, head| {
            let start = rows.bounds[2 * row] as usize;
            let qkv = &qkv[start * 3 * width + head * dims.head_dim..];
            Memory { keys: &qkv[width..], values: &qkv[2 * width..], stride: 3 * width }
        });
    }

    fn attention_cached_fwd(
        &self,
        y: &mut Buffer<f32>,
        keys: &mut Buffer<f32>,
        values: &mut Buffer<f32>,
        qkv: &Buffer<f32>,
        rows: &CacheRows<Self>,
        dims: AttentionDims,
    ) {
        let (width, head_dim, capacity) = (dims.width(), dims.head_dim, rows.capacity);
        let count = rows.spans.rows;
        let place = |row: usize, head: usize| (rows.slots[row] as usize * dims.heads + head) * capacity * head_dim;
        let sequences = spans(&rows.spans.bounds, count)
            .zip(&rows.past[..count])
            .map(|((start, end), past)| Sequence { start, end, past: *past as usize });
        for (row, Sequence { start, end, past }) in sequences.clone().enumerate() {
            assert!(past + end - start <= capacity, "{past} + {} tokens in a cache of {capacity}", end - start);
            for (t, qkv) in (past..).zip(qkv[start * 3 * width..end * 3 * width].chunks_exact(3 * width)) {
                for head in 0..dims.heads {
                    let (from, to) = (head * head_dim, place(row, head) + t * head_dim);
                    keys[to..to + head_dim].copy_from_slice(&qkv[width + from..][..head_dim]);
                    values[to..to + head_dim].copy_from_slice(&qkv[2 * width + from..][..head_dim]);
                }
            }
        }
        self.attend(y, qkv, dims, sequences, |row, head| {
            let first = place(row, head);
            Memory { keys: &keys[first..], values: &values[first..], stride: head_dim }
        });
    }
}

/// The new tokens of a row, and how many came before them.
struct Sequence {
    start: usize,
    end: usize,
    past: usize,
}

/// Keys and values of one head of one row.
struct Memory<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    /// From one token to the next.
    stride: usize,
}

impl Cpu {
    fn attend<'a>(
        &self,
        y: &mut [f32],
        qkv: &[f32],
        dims: AttentionDims,
        sequences: impl Iterator<Item = Sequence> + Clone + Sync,
        memory: impl Fn(usize, usize) -> Memory<'a> + Sync,
    ) {
        let (width, head_dim) = (dims.width(), dims.head_dim);
        let tokens = sequences.clone().map(|s| s.end).max().unwrap_or(0);
        let work: usize = sequences.clone().map(|s| (s.end - s.start) * (s.past + s.end - s.start) * width).sum();
        let block = if work < SERIAL { (tokens.max(1), width) } else { (QUERIES, head_dim) };
        self.pool.tiles(y, (tokens, width), block, |mut tile: Tile<'_>| {
            for (row, Sequence { start, end, past }) in sequences.clone().enumerate() {
                let queries = tile.rows().start.max(start)..tile.rows().end.min(end);
                for head in tile.cols().start / head_dim..tile.cols().end / head_dim {
                    let part = head * head_dim..(head + 1) * head_dim;
                    for t in queries.clone() {
                        let Memory { keys, values, stride } = memory(row, head);
                        let q = &qkv[t * 3 * width..][part.clone()];
                        let y = tile.part(t, part.clone());
                        with_scratch(past + t - start + 1, |scores| {
                            self.run(Attend { y, scores, q, keys, values, stride });
                        });
                    }
                }
            }
        });
    }
}

/// `y = softmax(q kᵀ / √D) v` over as many keys as there are scores.
struct Attend<'a> {
    y: &'a mut [f32],
    scores: &'a mut [f32],
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    stride: usize,
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attend { y, scores, q, keys, values, stride } = self;
        let head_dim = q.len();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let quads = scores.len() / 4 * 4;
        for j in (0..quads).step_by(4) {
            let keys = &keys[j * stride..];
            let dots = dots(s, q, [keys, &keys[stride..], &keys[2 * stride..], &keys[3 * stride..]]);
            for i in 0..4 {
                scores[j + i] = dots[i] * scale;
            }
        }
        for j in quads..scores.len() {
            scores[j] = dot(s, q, &keys[j * stride..][..head_dim]) * scale;
        }
        softmax(s, scores);
        weighted_sum(s, y, scores, values, stride);
    }
}
