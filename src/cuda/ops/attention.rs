//! Causal attention.

use super::{bounds, first, mask, positions, whole};
use crate::backend::{AttentionDims, AttentionOps, CacheRows, Spans};
use crate::cuda::problem::Problem;
use crate::cuda::registry;
use crate::cuda::{Buffer, Cuda, int};
use crate::rng::Mask;

impl AttentionOps for Cuda {
    fn attention_fwd(
        &self,
        y: &mut Buffer,
        lse: &mut Buffer,
        qkv: &Buffer,
        dropout: Mask,
        spans: &Spans<Cuda>,
        dims: AttentionDims,
    ) {
        let [key_0, key_1, threshold, factor] = mask(dropout);
        let sizes = [int(dims.heads), int(dims.head_dim)];
        let args =
            [whole(y), whole(lse), whole(qkv), key_0, key_1, threshold, factor, bounds(spans), sizes[0], sizes[1]];
        self.launch("attention_fwd", self.over_spans(spans, dims), &args);
    }

    fn attention_bwd(
        &self,
        dqkv: &mut Buffer,
        dy: &Buffer,
        y: &Buffer,
        lse: &Buffer,
        qkv: &Buffer,
        dropout: Mask,
        spans: &Spans<Cuda>,
        dims: AttentionDims,
    ) {
        let [key_0, key_1, threshold, factor] = mask(dropout);
        let args = [
            whole(dqkv),
            whole(dy),
            whole(y),
            whole(lse),
            whole(qkv),
            key_0,
            key_1,
            threshold,
            factor,
            bounds(spans),
            int(dims.heads),
            int(dims.head_dim),
        ];
        let problem = self.over_spans(spans, dims);
        self.launch("attention_bwd_q", problem, &args);
        self.launch("attention_bwd_kv", problem, &args);
    }

    fn attention_cached_fwd(
        &self,
        y: &mut Buffer,
        keys: &mut Buffer,
        values: &mut Buffer,
        qkv: &Buffer,
        tokens: &Buffer,
        rows: &CacheRows<Cuda>,
        dims: AttentionDims,
    ) {
        let spans = &rows.spans;
        let problem = Problem { keys: rows.capacity, ..self.over_spans(spans, dims) };
        let (slots, positions) = (first(&rows.slots, spans.rows), positions(tokens, spans.end));
        let sizes = [int(rows.capacity), int(dims.heads), int(dims.head_dim)];
        let (keys, values, qkv, bounds) = (whole(keys), whole(values), whole(qkv), bounds(spans));
        let [capacity, heads, head_dim] = sizes;
        if spans.longest > 1 {
            self.launch(
                "cache_append",
                problem,
                &[keys, values, qkv, bounds, slots, positions, capacity, heads, head_dim],
            );
            let args = [whole(y), keys, values, qkv, bounds, slots, positions, capacity, heads, head_dim];
            return self.launch("attention_cached", problem, &args);
        }
        let Some(parts) = self.scratch(registry::parts_len(&problem), 4) else { return };
        let (parts, counters) = (whole(&parts), whole(&self.counters));
        let args = [whole(y), keys, values, qkv, bounds, slots, positions, parts, counters, capacity, heads, head_dim];
        self.launch("attention_decode", problem, &args);
    }
}

impl Cuda {
    fn over_spans(&self, spans: &Spans<Cuda>, dims: AttentionDims) -> Problem {
        let types = self.act_types();
        Problem { depth: dims.heads, batch: spans.rows, ..Problem::matrix(types, spans.longest, dims.head_dim) }
    }
}
