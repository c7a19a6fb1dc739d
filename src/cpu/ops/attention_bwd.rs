//! The backward pass of attention: softmax weights are computed again from the saved logarithms of their denominators,
//! a block of queries by keys at a time, so that no T×T matrix is ever stored.
//!
//! A head of a span is computed by one thread: every sum over keys or queries runs in their order.

use std::ops::Range;

use super::attention::{KEYS, QUERIES};
use super::spans;
use crate::backend::{AttentionDims, Spans};
use crate::cpu::Cpu;
use crate::cpu::parallel::{Tile, with_scratch};
use crate::cpu::simd::{Kernel, Simd, dot, exp, small_product, transpose};
use crate::rng::Mask;

/// What a backward pass reads.
#[derive(Clone, Copy)]
pub(super) struct Forward<'a> {
    pub dy: &'a [f32],
    pub y: &'a [f32],
    pub lse: &'a [f32],
    pub qkv: &'a [f32],
    pub mask: Mask,
    pub dims: AttentionDims,
}

impl Forward<'_> {
    /// Where the vector of `head` starts in `y` and `dy`.
    #[inline(always)]
    fn place(&self, token: usize, head: usize) -> usize {
        token * self.dims.width() + head * self.dims.head_dim
    }

    /// Where query (`part` 0), key (1) or value (2) of `head` starts in `qkv`.
    #[inline(always)]
    fn part(&self, token: usize, part: usize, head: usize) -> usize {
        self.place(3 * token + part, head)
    }
}

impl Cpu {
    /// `dqkv (N, 3C)` is taken as `(3N, C)`, in which a head of a span is one rectangle.
    pub(super) fn attend_bwd(&self, dqkv: &mut [f32], forward: Forward<'_>, rows: &Spans<Self>) {
        let dims = forward.dims;
        let bands = spans(&rows.bounds, rows.rows).map(|(start, end)| 3 * start..3 * end);
        self.pool.bands(dqkv, (dims.width(), dims.head_dim), bands, |_, tile| self.attend_head_bwd(tile, forward));
    }

    /// One head of one span, whose rows in `tile` are a token's query, key and value.
    fn attend_head_bwd(&self, mut tile: Tile<'_>, forward: Forward<'_>) {
        let AttentionDims { head_dim, .. } = forward.dims;
        let (start, count, stride) = (tile.rows().start / 3, tile.rows().len() / 3, 3 * forward.dims.width());
        let head = tile.cols().start / head_dim;
        let (len, panels) = (count * head_dim, count.next_multiple_of(KEYS) * head_dim);
        with_scratch(2 * panels + 3 * len, |scratch| {
            let (keys, scratch) = scratch.split_at_mut(panels);
            let (values, sums) = scratch.split_at_mut(panels);
            for (part, panels) in [(1, &mut *keys), (2, &mut *values)] {
                self.arrange(panels, (&forward.qkv[forward.part(start, part, head)..], stride), count, head_dim);
            }
            sums.fill(0.0);
            let (dq, dk_dv) = sums.split_at_mut(len);
            let (dk, dv) = dk_dv.split_at_mut(len);
            for first in (0..count).step_by(KEYS) {
                let range = first..count.min(first + KEYS);
                let place = first * head_dim..(first + KEYS) * head_dim;
                let (keys, values) = (&keys[place.clone()], &values[place]);
                for first in (first / QUERIES * QUERIES..count).step_by(QUERIES) {
                    let queries = first..count.min(first + QUERIES);
                    let sums = [&mut *dq, &mut *dk, &mut *dv];
                    self.run(Block { sums, forward, start, head, queries, range: range.clone(), keys, values });
                }
            }
            for t in 0..count {
                for (part, sums) in [&*dq, &*dk, &*dv].into_iter().enumerate() {
                    tile.row(3 * (start + t) + part).copy_from_slice(&sums[t * head_dim..][..head_dim]);
                }
            }
        });
    }
}

/// Adds what queries and keys of one block do to each other.
struct Block<'a> {
    /// `dq`, `dk`, `dv`, each `(T, D)`.
    sums: [&'a mut [f32]; 3],
    forward: Forward<'a>,
    /// First token of the span.
    start: usize,
    head: usize,
    /// Tokens of the span, as those of `range`.
    queries: Range<usize>,
    /// Of the keys.
    range: Range<usize>,
    /// Panels.
    keys: &'a [f32],
    values: &'a [f32],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { sums: [dq, dk, dv], forward, start, head, queries, range, keys, values } = self;
        let Forward { dy, y, lse, qkv, mask, dims } = forward;
        let (width, head_dim) = (dims.width(), dims.head_dim);
        let (count, scale) = (queries.len(), 1.0 / (head_dim as f32).sqrt());
        let first = start + queries.start;
        let q = (&qkv[forward.part(first, 0, head)..], 3 * width);
        let dy_rows = (&dy[forward.place(first, head)..], width);
        // p_ts and g_ts, a row for each query; zero where it does not see the key.
        let (mut p, mut g) = ([0.0; QUERIES * KEYS], [0.0; QUERIES * KEYS]);
        small_product(s, (&mut p, KEYS), q, (keys, KEYS), (count, head_dim, KEYS), false);
        small_product(s, (&mut g, KEYS), dy_rows, (values, KEYS), (count, head_dim, KEYS), false);
        for (i, query) in queries.clone().enumerate() {
            let t = start + query;
            let seen = range.end.min(query + 1).saturating_sub(range.start);
            let (p, unseen_p) = p[i * KEYS..][..KEYS].split_at_mut(seen);
            let (g, unseen_g) = g[i * KEYS..][..KEYS].split_at_mut(seen);
            unseen_p.fill(0.0);
            unseen_g.fill(0.0);
            let masked = ((t * dims.heads + head) as u64, range.start);
            mask.apply(masked.0, masked.1, g);
            let (dy, y) = (&dy[forward.place(t, head)..][..head_dim], &y[forward.place(t, head)..][..head_dim]);
            let (norm, mean) = (s.splat(lse[t * dims.heads + head]), s.splat(dot(s, dy, y)));
            for j in (0..seen).step_by(S::LANES) {
                let v = exp(s, s.sub(s.mul(s.load(&p[j..]), s.splat(scale)), norm));
                let slope = s.mul(s.mul(v, s.splat(scale)), s.sub(s.load(&g[j..]), mean));
                s.store(&mut p[j..], v);
                s.store(&mut g[j..], slope);
            }
            mask.apply(masked.0, masked.1, p);
        }
        let k = (&qkv[forward.part(start + range.start, 1, head)..], 3 * width);
        let dq = &mut dq[queries.start * head_dim..];
        small_product(s, (dq, head_dim), (&g, KEYS), k, (count, range.len(), head_dim), true);
        let mut transposed = [0.0; KEYS * QUERIES];
        for (sums, weights, rows) in [(dk, &g, q), (dv, &p, dy_rows)] {
            transpose(s, (&mut transposed, QUERIES), (weights, KEYS), (count, range.len()));
            let sums = &mut sums[range.start * head_dim..];
            small_product(s, (sums, head_dim), (&transposed, QUERIES), rows, (range.len(), count, head_dim), true);
        }
    }
}
