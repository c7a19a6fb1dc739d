//! Pooling, the latent chain and fusion into the decoder.

use super::{bounds, first, whole};
use crate::backend::{ChainLayer, ChainScratch, Drive, LatentOps, LinearOps, Norm, NormScratch, RowLatents, Spans};
use crate::cuda::driver::{Address, Arg};
use crate::cuda::problem::{Problem, Types};
use crate::cuda::{Buffer, Cuda, Weight, int, or_null};
use crate::dims::Dims;

impl LatentOps for Cuda {
    fn pool_fwd(&self, y: &mut Buffer, scores: &mut Buffer, x: &Buffer, w: &Buffer, spans: &Spans<Cuda>, width: usize) {
        let args = [first(y, spans.rows * width), whole(scores), whole(x), first(w, width), bounds(spans), int(width)];
        self.launch("pool_fwd", Problem::matrix(Cuda::types_of(x), spans.rows, width), &args);
    }

    fn pool_bwd(
        &self,
        dx_acc: &mut Buffer,
        dw: &mut Buffer,
        dy: &Buffer,
        scores: &Buffer,
        x: &Buffer,
        w: &Buffer,
        spans: &Spans<Cuda>,
        width: usize,
    ) {
        let tokens = spans.end;
        // a slope for each token, and what else a kernel notes of it
        let Some(g) = self.scratch(2 * tokens, 4) else { return };
        // tokens between spans
        self.zero(&g, tokens);
        let problem = Problem::matrix(Cuda::types_of(x), spans.rows, width);
        let (dy, w) = (first(dy, spans.rows * width), first(w, width));
        let sizes = [int(tokens), int(width)];
        let args = [whole(dx_acc), whole(&g), dy, whole(scores), whole(x), w, bounds(spans), sizes[0], sizes[1]];
        self.launch("pool_bwd", problem, &args);
        self.add_weighted_columns(dw, x, &g, tokens, width);
    }

    fn concat_fwd(&self, y: &mut Buffer, parts: &[(&Buffer, usize)], rows: usize) {
        let stride = parts.iter().map(|(_, width)| width).sum();
        let mut offset = 0;
        for &(part, width) in parts {
            let args = [first(y, rows * stride), first(part, rows * width)];
            self.copy_columns(args, rows, width, [stride, offset, width, 0], false);
            offset += width;
        }
    }

    fn concat_bwd(&self, parts_acc: &mut [(&mut Buffer, usize)], dy: &Buffer, rows: usize) {
        let stride = parts_acc.iter().map(|(_, width)| width).sum();
        let mut offset = 0;
        for (part, width) in parts_acc {
            let args = [first(part, rows * *width), first(dy, rows * stride)];
            self.copy_columns(args, rows, *width, [*width, 0, stride, offset], true);
            offset += *width;
        }
    }

    fn reparameterize_fwd(
        &self,
        z: &mut Buffer,
        gaussian: &Buffer,
        eps: Option<&Buffer>,
        scale: f32,
        rows: usize,
        latent: usize,
    ) {
        let args = [
            first(z, rows * latent),
            first(gaussian, 2 * rows * latent),
            or_null(eps, rows * latent),
            Arg::Float(scale),
            int(rows),
            int(latent),
        ];
        self.launch("reparameterize_fwd", Problem::matrix(Types::F32, rows, latent), &args);
    }

    fn reparameterize_bwd(
        &self,
        dgaussian_acc: &mut Buffer,
        dz: &Buffer,
        gaussian: &Buffer,
        eps: Option<&Buffer>,
        scale: f32,
        rows: usize,
        latent: usize,
    ) {
        let args = [
            first(dgaussian_acc, 2 * rows * latent),
            first(dz, rows * latent),
            first(gaussian, 2 * rows * latent),
            or_null(eps, rows * latent),
            Arg::Float(scale),
            int(rows),
            int(latent),
        ];
        self.launch("reparameterize_bwd", Problem::matrix(Types::F32, rows, latent), &args);
    }

    fn tanh_fwd(&self, y: &mut Buffer, x: &Buffer, len: usize) {
        self.launch("tanh_fwd", Problem::flat(Types::F32, len), &[first(y, len), first(x, len), int(len)]);
    }

    fn tanh_bwd(&self, dx: &mut Buffer, dy: &Buffer, y: &Buffer, len: usize) {
        let args = [first(dx, len), first(dy, len), first(y, len), int(len)];
        self.launch("tanh_bwd", Problem::flat(Types::F32, len), &args);
    }

    fn kl_fwd(&self, kl: &mut Buffer, posterior: &Buffer, prior: &Buffer, rows: usize, latent: usize) {
        let both = 2 * rows * latent;
        let args = [first(kl, rows), first(posterior, both), first(prior, both), int(rows), int(latent)];
        self.launch("kl_fwd", Problem::matrix(Types::F32, rows, latent), &args);
    }

    fn kl_bwd(
        &self,
        dposterior_acc: &mut Buffer,
        dprior_acc: &mut Buffer,
        weights: &Buffer,
        posterior: &Buffer,
        prior: &Buffer,
        rows: usize,
        latent: usize,
    ) {
        let both = 2 * rows * latent;
        let args = [
            first(dposterior_acc, both),
            first(dprior_acc, both),
            first(weights, latent),
            first(posterior, both),
            first(prior, both),
            int(rows),
            int(latent),
        ];
        self.launch("kl_bwd", Problem::matrix(Types::F32, rows, latent), &args);
    }

    fn chain_fwd(
        &self,
        layers: &mut [ChainLayer<'_, Cuda>],
        _scratch: ChainScratch<'_, Cuda>,
        drive: Drive,
        scale: f32,
        dims: &Dims,
        rows: usize,
    ) {
        let steps = layers.iter().take(layers.len().saturating_sub(1)).all(|layer| layer.step.is_some());
        assert!(steps, "every layer but the last leads to the next");
        let len = PLACES * layers.len();
        let Some(table) = self.scratch(len + 1, 8) else { return };
        // behind them a counter, for blocks that wait for each other
        let places: Vec<Address> = layers.iter().flat_map(|layer| places(layer, dims, rows)).chain([0]).collect();
        self.write(&table, places.iter().map(|address| address.to_ne_bytes()));
        let args = [
            whole(&table),
            Arg::Address(table.first(len + 1) + 8 * len as Address),
            int(layers.len()),
            Arg::Int(drive as i32),
            Arg::Float(scale),
            int(rows),
            int(dims.hidden),
            int(dims.latent),
        ];
        let problem = Problem::matrix(Types::F32, rows, dims.latent);
        self.launch("chain_fwd", Problem { depth: dims.posterior_inputs(), batch: layers.len(), ..problem }, &args);
    }

    fn mask_fwd(&self, y: &mut Buffer, x: &Buffer, mask: &Buffer, len: usize) {
        let args = [first(y, len), first(x, len), first(mask, len), int(len)];
        self.launch("mask_fwd", Problem::flat(Types::F32, len), &args);
    }

    fn fuse_fwd(&self, h: &mut Buffer, e: &Buffer, slots: &Buffer, spans: &Spans<Cuda>, width: usize) {
        let args = [whole(h), whole(e), first(slots, spans.rows), bounds(spans), int(width)];
        let problem = Problem::matrix(Cuda::types_of(h), spans.longest, width);
        self.launch("fuse_fwd", Problem { batch: spans.rows, ..problem }, &args);
    }

    fn fuse_norm_linear_fwd<'a>(
        &self,
        y: &mut Buffer,
        normed: NormScratch<'_, Cuda>,
        room: &'a mut Buffer,
        h: &'a mut Buffer,
        latents: &RowLatents<'_, Cuda>,
        norm: Norm<'_, Cuda>,
        linear: (&Weight, &Buffer),
        tokens: usize,
    ) -> &'a Buffer {
        let Spans { rows, longest, end, .. } = *latents.spans;
        let one_each = longest == 1 && rows == tokens && end == tokens;
        if one_each && self.norm_product(y, h, Some((latents, &mut *room)), &norm, linear, false, tokens) {
            return room;
        }
        self.fuse_fwd(h, latents.e, latents.slots, latents.spans, norm.width);
        self.norm_linear_fwd(y, normed, h, norm, linear, tokens);
        h
    }

    fn fuse_bwd(&self, de_acc: &mut Buffer, dh: &Buffer, slots: &Buffer, spans: &Spans<Cuda>, width: usize) {
        let rows = spans.rows;
        let args = [whole(de_acc), whole(dh), first(slots, rows), bounds(spans), int(rows), int(width)];
        self.launch("fuse_bwd", Problem { batch: rows, ..Problem::matrix(Cuda::types_of(dh), 1, width) }, &args);
    }
}

/// Addresses of a layer: `ChainLayer` in `kernels/common/chain.cuh`.
const PLACES: usize = 12;

/// Where a layer of the chain lies; 0 is what it does not have.
fn places(layer: &ChainLayer<'_, Cuda>, dims: &Dims, rows: usize) -> [Address; PLACES] {
    let (hidden, latent) = (rows * dims.hidden, rows * dims.latent);
    let weight = |w: &Weight, outputs: usize, inputs: usize| w.buffer.first(outputs * inputs);
    let optional = |buffer: Option<&Buffer>, len: usize| buffer.map_or(0, |buffer| buffer.first(len));
    let [hh, ih] = layer.step.map_or([0, 0], |step| step.map(|w| weight(w, dims.latent, dims.latent)));
    let prior_inputs = dims.latent + layer.pooled_condition.map_or(0, |_| dims.hidden);
    [
        weight(layer.prior_net, 2 * dims.latent, prior_inputs),
        weight(layer.posterior_net, 2 * dims.latent, prior_inputs + dims.hidden),
        hh,
        ih,
        optional(layer.pooled_condition, hidden),
        layer.pooled.first(hidden),
        optional(layer.eps, latent),
        layer.state.first(latent),
        layer.z.first(latent),
        layer.prior.first(2 * latent),
        layer.posterior.first(2 * latent),
        layer.kl.first(rows),
    ]
}

impl Cuda {
    /// Copies, or adds, `width` columns; `strides` are those of the result, then of what is read, each with the first column.
    fn copy_columns(&self, yx: [Arg; 2], rows: usize, width: usize, strides: [usize; 4], accumulate: bool) {
        let [y, x] = yx;
        let [y_stride, y_offset, x_stride, x_offset] = strides.map(int);
        let args = [y, x, int(rows), int(width), y_stride, y_offset, x_stride, x_offset, Arg::Int(accumulate.into())];
        self.launch("copy_columns", Problem::matrix(Types::F32, rows, width), &args);
    }
}
