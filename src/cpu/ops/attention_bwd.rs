//! The backward pass of attention: softmax weights are computed again from the saved logarithms of their denominators,
//! a block of queries by keys at a time, so that no T×T matrix is ever stored.
//!
//! A head of a span is computed by one thread: every sum over keys or queries runs in their order.

use std::ops::Range;

use super::attention::{KEYS, QUERIES, scaled_dots};
use super::spans;
use crate::backend::{AttentionDims, Spans};
use crate::cpu::Cpu;
use crate::cpu::parallel::Tile;
use crate::cpu::simd::{Kernel, Simd, add_weighted, add_weighted_column, dot, exp};
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
        self.pool.bands(dqkv, (dims.width(), dims.head_dim), bands, |_, tile| self.run(AttendBwd { tile, forward }));
    }
}

/// One head of one span.
struct AttendBwd<'a> {
    /// The rows of a token are its query, key and value.
    tile: Tile<'a>,
    forward: Forward<'a>,
}

impl Kernel for AttendBwd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AttendBwd { mut tile, forward } = self;
        let (start, end) = (tile.rows().start / 3, tile.rows().end / 3);
        for row in tile.rows() {
            tile.row(row).fill(0.0);
        }
        for first in (start..end).step_by(QUERIES) {
            let queries = first..end.min(first + QUERIES);
            for first in (start..queries.end).step_by(KEYS) {
                let keys = first..queries.end.min(first + KEYS);
                block(s, &mut tile, &forward, start, queries.clone(), keys);
            }
        }
    }
}

/// Adds what queries and keys of one block do to each other; `start` is the first token of their span.
#[inline(always)]
fn block<S: Simd>(
    s: S,
    tile: &mut Tile<'_>,
    forward: &Forward<'_>,
    start: usize,
    queries: Range<usize>,
    keys: Range<usize>,
) {
    let Forward { dy, y, lse, qkv, mask, dims } = *forward;
    let (width, head_dim) = (dims.width(), dims.head_dim);
    let head = tile.cols().start / head_dim;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let of_keys = |part| &qkv[forward.part(keys.start, part, head)..];
    // p_ts and g_ts, a row for each query.
    let (mut weights, mut slopes) = ([0.0; QUERIES * KEYS], [0.0; QUERIES * KEYS]);
    for (i, t) in queries.clone().enumerate() {
        let seen = keys.end.min(t + 1).saturating_sub(keys.start);
        let (p, g) = (&mut weights[i * KEYS..][..seen], &mut slopes[i * KEYS..][..seen]);
        let (dy, y) = (&dy[forward.place(t, head)..][..head_dim], &y[forward.place(t, head)..][..head_dim]);
        let q = &qkv[forward.part(t, 0, head)..][..head_dim];
        scaled_dots(s, p, scale, q, of_keys(1), 3 * width);
        scaled_dots(s, g, 1.0, dy, of_keys(2), 3 * width);
        let masked = ((t * dims.heads + head) as u64, keys.start - start);
        mask.apply(masked.0, masked.1, g);
        let (norm, mean) = (s.splat(lse[t * dims.heads + head]), s.splat(dot(s, dy, y)));
        for j in (0..seen).step_by(S::LANES) {
            let v = exp(s, s.sub(s.load(&p[j..]), norm));
            let slope = s.mul(s.mul(v, s.splat(scale)), s.sub(s.load(&g[j..]), mean));
            s.store(&mut p[j..], v);
            s.store(&mut g[j..], slope);
        }
        mask.apply(masked.0, masked.1, p);
        add_weighted(s, tile.row(3 * t), g, of_keys(1), 3 * width);
    }
    for (j, key) in keys.clone().enumerate() {
        // The queries that see this key.
        let i = key.saturating_sub(queries.start);
        let t = queries.start + i;
        let column = i * KEYS + j..queries.len() * KEYS;
        let (q, dy) = (&qkv[forward.part(t, 0, head)..], &dy[forward.place(t, head)..]);
        add_weighted_column(s, tile.row(3 * key + 1), &slopes[column.clone()], KEYS, q, 3 * width);
        add_weighted_column(s, tile.row(3 * key + 2), &weights[column], KEYS, dy, width);
    }
}
