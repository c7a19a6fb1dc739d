//! Causal self-attention.
//!
//! One routine serves both ops: it computes some queries of one head from keys and values that lie a fixed distance apart.
//! A score is one sum over the components of a key, and an output one over the keys, in their order: hence a cached step
//! gives the bits of the whole pass. Lanes are keys where scores are summed, so that no sum runs across lanes: many
//! queries share panels, in which a component of [`KEYS`] keys is side by side; for a few, keys are turned in registers.
//!
//! Where weights are narrow, a step would soon read more of keys and values than of weights: so they are cached as bf16.

use std::ops::Range;

use super::attention_bwd::Forward;
use super::spans;
use crate::backend::{AttentionDims, AttentionOps, CacheRows, Spans, Storage};
use crate::cpu::parallel::{Tile, with_scratch};
use crate::cpu::simd::{
    Bf16Words, Kernel, Simd, Transpose, Widen, bf16_dots, bf16_weighted, dots, fetch, log, scaled_by, small_product,
    softmax,
};
use crate::cpu::{Buffer, Cpu};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::rng::Mask;

/// Multiply-adds below which attention stays on the calling thread.
const SERIAL: usize = 1 << 13;
/// Queries of a task, for which keys are arranged once.
const TASK: usize = 64;
/// Queries that pass over the keys together.
pub(super) const QUERIES: usize = 16;
/// Queries for which values are read once.
const GROUP: usize = 4;
/// Tokens whose keys and values are asked for while few queries of another head are at work: they share the first-level
/// cache.
const SOON: usize = 64;
/// Keys of a panel: few enough that their keys and values stay in the first-level cache.
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
        self.attend(y, lse, (qkv, dims, mask), sequences, |row, head| {
            let start = rows.bounds[2 * row] as usize;
            let qkv = &qkv[start * 3 * width + head * dims.head_dim..];
            Memory { keys: &qkv[width..], values: &qkv[2 * width..], stride: 3 * width, narrow: false }
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

    fn cache(&self, vectors: usize, head_dim: usize) -> Result<Buffer<f32>> {
        Buffer::try_zeroed(vectors.saturating_mul(vector_len(self.caches_narrow(), head_dim)))
    }

    fn attention_cached_fwd(
        &self,
        y: &mut Buffer<f32>,
        keys: &mut Buffer<f32>,
        values: &mut Buffer<f32>,
        qkv: &Buffer<f32>,
        tokens: &Buffer<u32>,
        rows: &CacheRows<Self>,
        dims: AttentionDims,
    ) {
        let positions = &tokens[rows.spans.end..][..rows.spans.end];
        let past = |start: usize| positions.get(start).map_or(0, |position| *position as usize);
        let sequences =
            spans(&rows.spans.bounds, rows.spans.rows).map(|(start, end)| Sequence { start, end, past: past(start) });
        let vectors = Vectors { narrow: self.caches_narrow(), dims, capacity: rows.capacity };
        self.append(keys, values, qkv, sequences.clone().zip(&rows.slots[..rows.spans.rows]), vectors);
        with_scratch(rows.spans.end * dims.heads, |lse| {
            self.attend(y, lse, (qkv, dims, Mask::NONE), sequences, |row, head| {
                let first = rows.slots[row] as usize * vectors.of_slot() + head * vectors.of_head();
                let (stride, narrow) = (vectors.len(), vectors.narrow);
                Memory { keys: &keys[first..], values: &values[first..], stride, narrow }
            });
        });
    }
}

/// How a cache holds keys, or values: `(slots, H, capacity, D)`, or half as many words.
#[derive(Clone, Copy)]
struct Vectors {
    /// Whether they are words of two bf16.
    narrow: bool,
    dims: AttentionDims,
    capacity: usize,
}

impl Vectors {
    /// Floats of a vector.
    fn len(self) -> usize {
        vector_len(self.narrow, self.dims.head_dim)
    }

    /// Floats of a head in a slot.
    fn of_head(self) -> usize {
        self.capacity * self.len()
    }

    /// Floats of a slot.
    fn of_slot(self) -> usize {
        self.dims.heads * self.of_head()
    }
}

/// The new tokens of a row, and how many came before them.
struct Sequence {
    start: usize,
    end: usize,
    past: usize,
}

/// Queries of one head, each of which sees one key more than the one before.
struct Queries<'a> {
    qkv: &'a [f32],
    dims: AttentionDims,
    mask: Mask,
    head: usize,
    /// Tokens of the batch.
    range: Range<usize>,
    /// Keys before the first query's own.
    seen: usize,
}

/// Keys and values of one head of one row.
#[derive(Clone, Copy)]
struct Memory<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    /// From one token to the next.
    stride: usize,
    /// Whether they are words of two bf16.
    narrow: bool,
}

/// Floats of a key, or of a value.
fn vector_len(narrow: bool, head_dim: usize) -> usize {
    if narrow { head_dim.div_ceil(2) } else { head_dim }
}

impl Cpu {
    /// Where weights are narrow, so are cached keys and values.
    fn caches_narrow(&self) -> bool {
        self.dtype() != Dtype::F32
    }

    /// Puts the keys and values of new tokens into their slots.
    fn append<'a>(
        &self,
        keys: &mut [f32],
        values: &mut [f32],
        qkv: &[f32],
        rows: impl Iterator<Item = (Sequence, &'a u32)>,
        vectors: Vectors,
    ) {
        let Vectors { narrow, dims, capacity } = vectors;
        let (width, slot) = (dims.width(), vectors.of_slot().max(1));
        let mut slots: Vec<_> = keys.chunks_mut(slot).zip(values.chunks_mut(slot)).map(Some).collect();
        let mut rows: Vec<_> = rows
            .map(|(row, slot)| (row, slots[*slot as usize].take().expect("each row has a slot of its own")))
            .collect();
        self.for_each(&mut rows, |_, (Sequence { start, end, past }, (keys, values))| {
            let count = *end - *start;
            assert!(*past + count <= capacity, "{past} + {count} tokens in a cache of {capacity}");
            for (t, qkv) in (*past..).zip(qkv[*start * 3 * width..*end * 3 * width].chunks_exact(3 * width)) {
                for (cache, x) in [(&mut *keys, &qkv[width..2 * width]), (&mut *values, &qkv[2 * width..])] {
                    for (head, x) in x.chunks_exact(dims.head_dim).enumerate() {
                        let words = &mut cache[head * vectors.of_head() + t * vectors.len()..][..vectors.len()];
                        match narrow {
                            true => self.run(Bf16Words { words, x }),
                            false => words.copy_from_slice(x),
                        }
                    }
                }
            }
        });
    }

    fn attend<'a>(
        &self,
        y: &mut [f32],
        lse: &mut [f32],
        (qkv, dims, mask): (&[f32], AttentionDims, Mask),
        sequences: impl Iterator<Item = Sequence> + Clone + Sync,
        memory: impl Fn(usize, usize) -> Memory<'a> + Sync,
    ) {
        let (width, head_dim) = (dims.width(), dims.head_dim);
        let tokens = sequences.clone().map(|s| s.end).max().unwrap_or(0);
        let work: usize = sequences.clone().map(|s| (s.end - s.start) * (s.past + s.end - s.start) * width).sum();
        let (block, heads) = if work < SERIAL { (tokens.max(1), dims.heads) } else { (TASK, 1) };
        self.pool.tiles(tokens, block, [(y, width, heads * head_dim), (lse, dims.heads, heads)], |[mut y, mut lse]| {
            let (tokens, heads) = (y.rows(), y.cols().start / head_dim..y.cols().end / head_dim);
            let of_task = sequences.clone().enumerate().filter_map(|(row, Sequence { start, end, past })| {
                let range = tokens.start.max(start)..tokens.end.min(end);
                (!range.is_empty()).then(|| (row, range.clone(), past + range.start - start))
            });
            let mut work = of_task
                .flat_map(|(row, range, seen)| {
                    heads.clone().map(move |head| (row, Queries { qkv, dims, mask, head, range: range.clone(), seen }))
                })
                .peekable();
            while let Some((row, queries)) = work.next() {
                if let Some((row, next)) = work.peek().filter(|(_, next)| next.range.len() < GROUP) {
                    let tokens = (next.seen + next.range.len()).min(SOON);
                    self.run(Fetch { memory: memory(*row, next.head), tokens, head_dim });
                }
                let memory = memory(row, queries.head);
                self.attend_head(&mut y, &mut lse, queries, memory);
            }
        });
    }

    /// `y = softmax(q kᵀ / √D) v`; `y` and `lse` hold what is computed.
    fn attend_head<'a>(&self, y: &mut Tile<'a>, lse: &mut Tile<'a>, all: Queries<'_>, memory: Memory<'_>) {
        let head_dim = all.dims.head_dim;
        let (last, few) = (all.seen + all.range.len(), all.range.len() < GROUP);
        if memory.narrow && !few {
            return with_scratch(2 * last * head_dim, |wide| {
                let (keys, values) = wide.split_at_mut(last * head_dim);
                for (y, words) in [(&mut *keys, memory.keys), (&mut *values, memory.values)] {
                    self.run(Widen { y, width: head_dim, words: (words, memory.stride) });
                }
                self.attend_head(y, lse, all, Memory { keys, values, stride: head_dim, narrow: false });
            });
        }
        let shared = if few { 0 } else { last.next_multiple_of(KEYS) };
        with_scratch(shared * head_dim, |panels| {
            if shared > 0 {
                self.arrange(panels, (memory.keys, memory.stride), last, head_dim);
            }
            for first in all.range.clone().step_by(QUERIES) {
                let (range, seen) = (first..all.range.end.min(first + QUERIES), all.seen + first - all.range.start);
                let most = (seen + range.len()).next_multiple_of(KEYS);
                with_scratch(range.len() * (most + head_dim), |scratch| {
                    let (scores, sums) = scratch.split_at_mut(range.len() * most);
                    self.run(Attend { y, lse, scores, sums, queries: Queries { range, seen, ..all }, panels, memory });
                });
            }
        });
    }

    /// Puts `count` keys, or values, into panels of [`KEYS`].
    pub(super) fn arrange(&self, panels: &mut [f32], (x, stride): (&[f32], usize), count: usize, head_dim: usize) {
        for (first, panel) in (0..count).step_by(KEYS).zip(panels.chunks_exact_mut(KEYS * head_dim)) {
            let size = (KEYS.min(count - first), head_dim);
            self.run(Transpose { y: (panel, KEYS), x: (&x[first * stride..], stride), size });
        }
    }
}

/// Asks for keys and values.
struct Fetch<'a> {
    memory: Memory<'a>,
    tokens: usize,
    head_dim: usize,
}

impl Kernel for Fetch<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Fetch { memory: Memory { keys, values, stride, narrow }, tokens, head_dim } = self;
        let len = vector_len(narrow, head_dim);
        fetch(s, keys, stride, (0..tokens, len));
        fetch(s, values, stride, (0..tokens, len));
    }
}

/// At most [`QUERIES`] queries.
struct Attend<'a, 'b> {
    y: &'a mut Tile<'b>,
    /// A row for each query, a column for each head.
    lse: &'a mut Tile<'b>,
    /// A row for each query, as long as all panels.
    scores: &'a mut [f32],
    /// A row of `D` for each query.
    sums: &'a mut [f32],
    queries: Queries<'a>,
    /// Keys in panels, unless the queries are few.
    panels: &'a [f32],
    memory: Memory<'a>,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attend { y, lse, scores, sums, queries, panels, memory } = self;
        let Queries { qkv, dims, mask, head, range, seen } = queries;
        let Memory { keys, values, stride, narrow } = memory;
        let (head_dim, count) = (dims.head_dim, range.len());
        let columns = head * head_dim..(head + 1) * head_dim;
        let (last, row) = (seen + count, scores.len() / count);
        let q = (&qkv[range.start * 3 * dims.width() + columns.start..], 3 * dims.width());
        for (first, panel) in (0..last).step_by(KEYS).zip(panels.chunks_exact(KEYS * head_dim)) {
            // Queries before the panel's first key see nothing of it.
            let blind = first.saturating_sub(seen);
            let y = (&mut scores[blind * row + first..], row);
            small_product(s, y, (&q.0[blind * q.1..], q.1), (panel, KEYS), (count - blind, head_dim, KEYS), false);
        }
        if panels.is_empty() {
            for i in 0..count {
                let scores = &mut scores[i * row..][..seen + i + 1];
                let q = &q.0[i * q.1..][..head_dim];
                match narrow {
                    true => bf16_dots(s, scores, q, (keys, stride)),
                    false => dots(s, scores, q, (keys, stride)),
                }
            }
            fetch(s, values, stride, (0..last.min(KEYS), vector_len(narrow, head_dim)));
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (mut greatest, mut totals) = ([0.0; QUERIES], [1.0; QUERIES]);
        for i in 0..count {
            let (scores, unseen) = scores[i * row..][..row].split_at_mut(seen + i + 1);
            scaled_by(s, scores, scale);
            (greatest[i], totals[i]) = softmax(s, scores);
            mask.apply(((range.start + i) * dims.heads + head) as u64, 0, scores);
            unseen.fill(0.0);
        }
        for i in (0..count).step_by(S::LANES) {
            let v = s.add(s.load(&greatest[i..]), log(s, s.load(&totals[i..])));
            s.store(&mut totals[i..], v);
        }
        if narrow {
            for i in 0..count {
                let (y, weights) = (&mut sums[i * head_dim..][..head_dim], &scores[i * row..][..seen + i + 1]);
                bf16_weighted(s, y, weights, (values, stride));
            }
        } else {
            for first in (0..last).step_by(KEYS) {
                let values = (&values[first * stride..], stride);
                // Few queries at a time: to keys that the last one sees, the others give the weight zero.
                for i in (0..count).step_by(GROUP) {
                    let rows = GROUP.min(count - i);
                    let terms = KEYS.min((seen + i + rows).saturating_sub(first));
                    let (y, w) = (&mut sums[i * head_dim..], &scores[i * row + first..]);
                    small_product(s, (y, head_dim), (w, row), values, (rows, terms, head_dim), first > 0);
                }
            }
        }
        for i in 0..count {
            let sums = &sums[i * head_dim..][..head_dim];
            y.part(range.start + i, columns.clone()).copy_from_slice(sums);
            lse.part(range.start + i, head..head + 1)[0] = totals[i];
        }
    }
}
