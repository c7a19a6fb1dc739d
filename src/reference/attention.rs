//! Causal self-attention.

use ndarray::{Array1, ArrayView1};

use super::{Reference, span};
use crate::backend::{AttentionDims, AttentionOps, CacheRows, Spans};
use crate::rng::Mask;

impl AttentionOps for Reference {
    fn attention_fwd(
        &self,
        y: &mut Vec<f64>,
        lse: &mut Vec<f64>,
        qkv: &Vec<f64>,
        mask: Mask,
        spans: &Spans<Self>,
        dims: AttentionDims,
    ) {
        let (width, head_dim) = (dims.width(), dims.head_dim);
        let part = |token: usize, part: usize, head: usize| ArrayView1::from(&qkv[place(dims, token, part, head)]);
        for row in 0..spans.rows {
            let tokens = span(&spans.bounds, row);
            for head in 0..dims.heads {
                for t in tokens.clone() {
                    let visible = tokens.start..t + 1;
                    let keys = visible.clone().map(|s| part(s, 1, head));
                    let values = visible.map(|s| part(s, 2, head));
                    let out = &mut y[t * width + head * head_dim..][..head_dim];
                    let masked = Some((mask, (t * dims.heads + head) as u64));
                    lse[t * dims.heads + head] = attend(out, part(t, 0, head), keys, values, masked);
                }
            }
        }
    }

    fn attention_bwd(
        &self,
        dqkv: &mut Vec<f64>,
        dy: &Vec<f64>,
        y: &Vec<f64>,
        lse: &Vec<f64>,
        qkv: &Vec<f64>,
        mask: Mask,
        spans: &Spans<Self>,
        dims: AttentionDims,
    ) {
        let (width, head_dim) = (dims.width(), dims.head_dim);
        let scale = 1.0 / (head_dim as f64).sqrt();
        for row in 0..spans.rows {
            let tokens = span(&spans.bounds, row);
            dqkv[tokens.start * 3 * width..tokens.end * 3 * width].fill(0.0);
            for head in 0..dims.heads {
                let part = |token: usize, part: usize| ArrayView1::from(&qkv[place(dims, token, part, head)]);
                for t in tokens.clone() {
                    let out = t * width + head * head_dim..t * width + (head + 1) * head_dim;
                    let (dy, y) = (ArrayView1::from(&dy[out.clone()]), ArrayView1::from(&y[out]));
                    let query = part(t, 0);
                    for s in tokens.start..=t {
                        let (key, value) = (part(s, 1), part(s, 2));
                        let p = (query.dot(&key) * scale - lse[t * dims.heads + head]).exp();
                        let m = mask.factor((t * dims.heads + head) as u64, s - tokens.start);
                        let g = p * (m * dy.dot(&value) - dy.dot(&y)) * scale;
                        for d in 0..head_dim {
                            dqkv[place(dims, t, 0, head).start + d] += g * key[d];
                            dqkv[place(dims, s, 1, head).start + d] += g * query[d];
                            dqkv[place(dims, s, 2, head).start + d] += m * p * dy[d];
                        }
                    }
                }
            }
        }
    }

    fn attention_cached_fwd(
        &self,
        y: &mut Vec<f64>,
        keys: &mut Vec<f64>,
        values: &mut Vec<f64>,
        qkv: &Vec<f64>,
        tokens: &Vec<u32>,
        rows: &CacheRows<Self>,
        dims: AttentionDims,
    ) {
        let (width, head_dim, positions) = (dims.width(), dims.head_dim, &tokens[rows.spans.end..]);
        for row in 0..rows.spans.rows {
            let slot = rows.slots[row] as usize;
            for head in 0..dims.heads {
                let place = |t: usize| ((slot * dims.heads + head) * rows.capacity + t) * head_dim;
                for token in span(&rows.spans.bounds, row) {
                    let t = positions[token] as usize;
                    let part = |part: usize| &qkv[token * 3 * width + part * width + head * head_dim..][..head_dim];
                    keys[place(t)..][..head_dim].copy_from_slice(part(1));
                    values[place(t)..][..head_dim].copy_from_slice(part(2));
                    let cached =
                        |cache: &'_ [f64], s: usize| ArrayView1::from(&cache[place(s)..][..head_dim]).to_owned();
                    let keys: Vec<_> = (0..=t).map(|s| cached(keys, s)).collect();
                    let values: Vec<_> = (0..=t).map(|s| cached(values, s)).collect();
                    let out = &mut y[token * width + head * head_dim..][..head_dim];
                    attend(
                        out,
                        ArrayView1::from(part(0)),
                        keys.iter().map(|k| k.view()),
                        values.iter().map(|v| v.view()),
                        None,
                    );
                }
            }
        }
    }
}

/// Where a token's query (`part` 0), key (1) or value (2) of one head lies in `qkv`.
fn place(dims: AttentionDims, token: usize, part: usize, head: usize) -> std::ops::Range<usize> {
    let start = (token * 3 + part) * dims.width() + head * dims.head_dim;
    start..start + dims.head_dim
}

/// `out = softmax(q · k / √D) v` for one query, the softmax multiplied with a row of a mask; returns the logarithm of the
/// softmax's denominator.
fn attend<'a>(
    out: &mut [f64],
    query: ArrayView1<'_, f64>,
    keys: impl Iterator<Item = ArrayView1<'a, f64>>,
    values: impl Iterator<Item = ArrayView1<'a, f64>>,
    mask: Option<(Mask, u64)>,
) -> f64 {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let scores: Array1<f64> = keys.map(|k| query.dot(&k) * scale).collect();
    let max = scores.fold(f64::NEG_INFINITY, |m, &s| m.max(s));
    let weights = scores.mapv(|s| (s - max).exp());
    let total = weights.sum();
    out.fill(0.0);
    for (s, (weight, value)) in weights.iter().zip(values).enumerate() {
        let factor = mask.map_or(1.0, |(mask, row)| mask.factor(row, s));
        for (o, v) in out.iter_mut().zip(value) {
            *o += factor * weight / total * v;
        }
    }
    max + total.ln()
}
