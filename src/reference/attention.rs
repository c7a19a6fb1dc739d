//! Causal self-attention.

use ndarray::{Array1, ArrayView1};

use super::{Reference, span};
use crate::backend::{AttentionDims, AttentionOps, CacheRows, Spans};

impl AttentionOps for Reference {
    fn attention_fwd(&self, y: &mut Vec<f64>, qkv: &Vec<f64>, spans: &Spans<Self>, dims: AttentionDims) {
        let (width, head_dim) = (dims.width(), dims.head_dim);
        let part = |token: usize, part: usize, head: usize| {
            let start = token * 3 * width + part * width + head * head_dim;
            ArrayView1::from(&qkv[start..start + head_dim])
        };
        for row in 0..spans.rows {
            let tokens = span(&spans.bounds, row);
            for head in 0..dims.heads {
                for t in tokens.clone() {
                    let visible = tokens.start..t + 1;
                    let keys = visible.clone().map(|s| part(s, 1, head));
                    let values = visible.map(|s| part(s, 2, head));
                    let out = &mut y[t * width + head * head_dim..][..head_dim];
                    attend(out, part(t, 0, head), keys, values);
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
        rows: &CacheRows<Self>,
        dims: AttentionDims,
    ) {
        let (width, head_dim) = (dims.width(), dims.head_dim);
        for row in 0..rows.spans.rows {
            let (slot, past) = (rows.slots[row] as usize, rows.past[row] as usize);
            for head in 0..dims.heads {
                let place = |t: usize| ((slot * dims.heads + head) * rows.capacity + t) * head_dim;
                for (i, token) in span(&rows.spans.bounds, row).enumerate() {
                    let t = past + i;
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
                    );
                }
            }
        }
    }
}

/// `out = softmax(q · k / √D) v` for one query.
fn attend<'a>(
    out: &mut [f64],
    query: ArrayView1<'_, f64>,
    keys: impl Iterator<Item = ArrayView1<'a, f64>>,
    values: impl Iterator<Item = ArrayView1<'a, f64>>,
) {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let scores: Array1<f64> = keys.map(|k| query.dot(&k) * scale).collect();
    let max = scores.fold(f64::NEG_INFINITY, |m, &s| m.max(s));
    let weights = scores.mapv(|s| (s - max).exp());
    let total = weights.sum();
    out.fill(0.0);
    for (weight, value) in weights.iter().zip(values) {
        for (o, v) in out.iter_mut().zip(value) {
            *o += weight / total * v;
        }
    }
}
