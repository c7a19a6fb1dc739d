//! Causal self-attention.
//!
//! One routine serves both ops: it computes queries of one head from keys and values that lie a fixed distance apart,
//! in an order given by the index of the key within its sequence. Hence a cached step gives the bits of the whole pass.

use std::ops::Range;

use super::attention_bwd::Forward;
use super::spans;
use crate::backend::{AttentionDims, AttentionOps, CacheRows, Spans};
use crate::cpu::parallel::{Tile, with_scratch};
use crate::cpu::simd::{Kernel, Simd, add_weighted, dot, dots, log_of, softmax};
use crate::cpu::{Buffer, Cpu};
use crate::rng::Mask;

/// Multiply-adds below which attention stays on the calling thread.
const SERIAL: usize = 1 << 16;
/// Queries that pass over the keys together.
pub(super) const QUERIES: usize = 16;
/// Keys of a pass: few enough that they share the first-level cache even where their distance maps them to the same sets.
pub(super) const KEYS: usize = 32;

impl AttentionOps for Cpu {
    fn attention_fwd(
        &self,
        y: &mut Buffer<f32>,
        lse: &mut Buffer<f32>,
        qkv: &Buffer<f32>,
        mask: Mask,
        rows: &Spans<Self>,
        dims: AttentionDims,
    ) {
        let width = dims.width();
        let sequences = spans(&rows.bounds, rows.rows).map(|(start, end)| Sequence { start, end, past: 0 });
        self.attend(y, lse, qkv, dims, mask, sequences, |row, head| {
            let start = rows.bounds[2 * row] as usize;
            let qkv = &qkv[start * 3 * width + head * dims.head_dim..];
            Memory { keys: &qkv[width..], values: &qkv[2 * width..], stride: 3 * width }
        });
    }

    fn attention_bwd(
        &self,
        dqkv: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        y: &Buffer<f32>,
        lse: &Buffer<f32>,
        qkv: &Buffer<f32>,
        mask: Mask,
        rows: &Spans<Self>,
        dims: AttentionDims,
    ) {
        self.attend_bwd(dqkv, Forward { dy, y, lse, qkv, mask, dims }, rows);
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
        let tokens = sequences.clone().map(|s| s.end).max().unwrap_or(0);
        with_scratch(tokens * dims.heads, |lse| {
            self.attend(y, lse, qkv, dims, Mask::NONE, sequences, |row, head| {
                let first = place(row, head);
                Memory { keys: &keys[first..], values: &values[first..], stride: head_dim }
            });
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
        lse: &mut [f32],
        qkv: &[f32],
        dims: AttentionDims,
        mask: Mask,
        sequences: impl Iterator<Item = Sequence> + Clone + Sync,
        memory: impl Fn(usize, usize) -> Memory<'a> + Sync,
    ) {
        let (width, head_dim) = (dims.width(), dims.head_dim);
        let tokens = sequences.clone().map(|s| s.end).max().unwrap_or(0);
        let work: usize = sequences.clone().map(|s| (s.end - s.start) * (s.past + s.end - s.start) * width).sum();
        let (block, heads) = if work < SERIAL { (tokens.max(1), dims.heads) } else { (QUERIES, 1) };
        let outputs = [(y, width, heads * head_dim), (lse, dims.heads, heads)];
        self.pool.tiles(tokens, block, outputs, |[mut tile, mut lse]| {
            for (row, Sequence { start, end, past }) in sequences.clone().enumerate() {
                let queries = tile.rows().start.max(start)..tile.rows().end.min(end);
                for head in tile.cols().start / head_dim..tile.cols().end / head_dim {
                    for first in queries.clone().step_by(QUERIES) {
                        let queries = first..queries.end.min(first + QUERIES);
                        let seen = past + first - start;
                        with_scratch(queries.len() * (seen + queries.len()), |scores| {
                            let (tile, lse, memory) = (&mut tile, &mut lse, memory(row, head));
                            self.run(Attend { tile, lse, scores, qkv, head, dims, mask, queries, seen, memory });
                        });
                    }
                }
            }
        });
    }
}

/// `y = softmax(q kᵀ / √D) v` for some queries of one head, each of which sees one key more than the one before.
///
/// Keys and values are taken [`KEYS`] at a time, so that they stay in the first-level cache while all queries pass over
/// them; the order in which a query meets them is the same as if it passed alone.
struct Attend<'a, 'b> {
    tile: &'a mut Tile<'b>,
    /// A row for each query, a column for each head.
    lse: &'a mut Tile<'b>,
    /// A row for each query.
    scores: &'a mut [f32],
    qkv: &'a [f32],
    head: usize,
    dims: AttentionDims,
    mask: Mask,
    /// Tokens of the batch.
    queries: Range<usize>,
    /// Keys before the first query's own.
    seen: usize,
    memory: Memory<'a>,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attend { tile, lse, scores, qkv, head, dims, mask, queries, seen, memory } = self;
        let Memory { keys, values, stride } = memory;
        let columns = head * dims.head_dim..(head + 1) * dims.head_dim;
        let most = seen + queries.len();
        for first in (0..most).step_by(KEYS) {
            for i in 0..queries.len() {
                let end = (first + KEYS).min(seen + i + 1).max(first);
                let q = &qkv[(queries.start + i) * 3 * dims.width()..][columns.start..columns.end];
                score(s, &mut scores[i * most..][first..end], q, &keys[first * stride..], stride);
            }
        }
        for i in 0..queries.len() {
            let scores = &mut scores[i * most..][..seen + i + 1];
            let (greatest, sum) = softmax(s, scores);
            mask.apply(((queries.start + i) * dims.heads + head) as u64, 0, scores);
            lse.part(queries.start + i, head..head + 1)[0] = greatest + log_of(s, sum);
            tile.part(queries.start + i, columns.clone()).fill(0.0);
        }
        for first in (0..most).step_by(KEYS) {
            for i in 0..queries.len() {
                let end = (first + KEYS).min(seen + i + 1).max(first);
                let y = tile.part(queries.start + i, columns.clone());
                add_weighted(s, y, &scores[i * most..][first..end], &values[first * stride..], stride);
            }
        }
    }
}

/// `score_j = q · k_j / √D`, where `k_j` starts at `j · stride`.
#[inline(always)]
fn score<S: Simd>(s: S, scores: &mut [f32], q: &[f32], keys: &[f32], stride: usize) {
    scaled_dots(s, scores, 1.0 / (q.len() as f32).sqrt(), q, keys, stride);
}

/// `y_j = scale · (q · k_j)`, where `k_j` starts at `j · stride`.
#[inline(always)]
pub(super) fn scaled_dots<S: Simd>(s: S, y: &mut [f32], scale: f32, q: &[f32], keys: &[f32], stride: usize) {
    let quads = y.len() / 4 * 4;
    for j in (0..quads).step_by(4) {
        let keys = &keys[j * stride..];
        let dots = dots(s, q, [keys, &keys[stride..], &keys[2 * stride..], &keys[3 * stride..]]);
        for i in 0..4 {
            y[j + i] = dots[i] * scale;
        }
    }
    for j in quads..y.len() {
        y[j] = dot(s, q, &keys[j * stride..][..q.len()]) * scale;
    }
}
