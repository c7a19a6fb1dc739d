//! Matrix products with parameters.

use super::{first, whole};
use crate::backend::{LinearOps, Norm, NormScratch, RowLatents};
use crate::cuda::driver::{Address, Arg};
use crate::cuda::problem::{Layout, Problem, Types};
use crate::cuda::registry::PART_ROWS;
use crate::cuda::{Buffer, Cuda, Product, Weight, int, or_null};

/// The first `len` elements as an operand.
fn operand(buffer: &Buffer, len: usize) -> (Address, bool) {
    (buffer.first(len), buffer.width() == 2)
}

impl Weight {
    fn operand(&self) -> (Address, bool) {
        operand(&self.buffer, self.rows * self.cols)
    }
}

impl LinearOps for Cuda {
    fn linear_fwd(&self, y: &mut Buffer, x: &Buffer, w: &Weight, b: &Buffer, tokens: usize) {
        self.linear(y, x, w, tokens, |product| Product { bias: Some(b), ..product });
    }

    fn linear_bwd(
        &self,
        dx: &mut Buffer,
        dw: &mut Buffer,
        db: &mut Buffer,
        dy: &Buffer,
        x: &Buffer,
        w: &Weight,
        tokens: usize,
    ) {
        let (inputs, outputs) = (w.rows, w.cols);
        let narrow = self.add_columns_narrowed(db, dy, tokens, outputs);
        let dy_at = operand(narrow.as_ref().unwrap_or(dy), tokens * outputs);
        let x_at = operand(x, tokens * inputs);
        let by_x = Product::plain(operand(dx, tokens * inputs), dy_at, w.operand());
        self.product(Layout::Nt, [tokens, inputs, outputs], &by_x);
        let by_w = Product { accumulate: true, ..Product::plain(operand(dw, inputs * outputs), x_at, dy_at) };
        self.product(Layout::Tn, [inputs, outputs, tokens], &by_w);
    }

    fn linear_gelu_fwd(
        &self,
        y: &mut Buffer,
        u: Option<&mut Buffer>,
        x: &Buffer,
        w: &Weight,
        b: &Buffer,
        tokens: usize,
    ) {
        self.linear(y, x, w, tokens, |product| Product { bias: Some(b), save: u.as_deref(), gelu: true, ..product });
    }

    fn gelu_bwd(&self, du: &mut Buffer, dy: &Buffer, u: &Buffer, len: usize) {
        let args = [first(du, len), first(dy, len), first(u, len), int(len)];
        self.launch("gelu_bwd", Problem::flat(self.act_types(), len), &args);
    }

    fn linear_residual_fwd(
        &self,
        y: &mut Buffer,
        residual: &Buffer,
        x: &Buffer,
        w: &Weight,
        b: &Buffer,
        tokens: usize,
    ) {
        self.linear(y, x, w, tokens, |product| Product { bias: Some(b), residual: Some(residual), ..product });
    }

    fn norm_linear_fwd(
        &self,
        y: &mut Buffer,
        normed: NormScratch<'_, Cuda>,
        x: &Buffer,
        norm: Norm<'_, Cuda>,
        (w, b): (&Weight, &Buffer),
        tokens: usize,
    ) {
        if !self.norm_product(y, x, None, &norm, (w, b), false, tokens) {
            let x_normed = normed.fill(self, x, &norm, tokens);
            self.linear_fwd(y, x_normed, w, b, tokens);
        }
    }

    fn mlp_fwd(
        &self,
        y: &mut Buffer,
        inner: &mut Buffer,
        normed: NormScratch<'_, Cuda>,
        x: &Buffer,
        norm: Norm<'_, Cuda>,
        [(w_1, b_1), (w_2, b_2)]: [(&Weight, &Buffer); 2],
        tokens: usize,
    ) {
        if !self.norm_product(inner, x, None, &norm, (w_1, b_1), true, tokens) {
            let x_normed = normed.fill(self, x, &norm, tokens);
            self.linear_gelu_fwd(inner, None, x_normed, w_1, b_1, tokens);
        }
        self.linear_residual_fwd(y, x, inner, w_2, b_2, tokens);
    }

    fn head_fwd(&self, logits: &mut Buffer, x: &Buffer, wte: &Weight, tokens: usize) {
        let (vocab, width) = (wte.rows, wte.cols);
        let product = Product::plain(operand(logits, tokens * vocab), operand(x, tokens * width), wte.operand());
        self.product(Layout::Nt, [tokens, vocab, width], &product);
    }

    fn head_bwd(&self, dx: &mut Buffer, dwte: &mut Buffer, dlogits: &Buffer, x: &Buffer, wte: &Weight, tokens: usize) {
        let (vocab, width) = (wte.rows, wte.cols);
        // where they are rounded anyway, rows become whole 16 bytes: others are loaded two elements at a time
        let whole = vocab.next_multiple_of(8);
        let narrow = self.narrowed(dlogits, [tokens, vocab], whole);
        let (dlogits, a_stride) = match &narrow {
            Some(narrow) => (operand(narrow, tokens * whole), Some(whole)),
            None => (operand(dlogits, tokens * vocab), None),
        };
        let x = operand(x, tokens * width);
        let by_x = Product::plain(operand(dx, tokens * width), dlogits, wte.operand());
        self.product(Layout::Nn, [tokens, width, vocab], &Product { a_stride, ..by_x });
        let by_w = Product::plain(operand(dwte, vocab * width), dlogits, x);
        self.product(Layout::Tn, [vocab, width, tokens], &Product { a_stride, accumulate: true, ..by_w });
    }

    fn latent_linear_fwd(&self, y: &mut Buffer, x: &Buffer, w: &Weight, rows: usize, accumulate: bool) {
        let (outputs, inputs) = (w.rows, w.cols);
        let plain = Product::plain(operand(y, rows * outputs), operand(x, rows * inputs), w.operand());
        self.product(Layout::Nt, [rows, outputs, inputs], &Product { accumulate, ..plain });
    }

    fn latent_linear_bwd(
        &self,
        dx_acc: &mut Buffer,
        dw: &mut Buffer,
        dy: &Buffer,
        x: &Buffer,
        w: &Weight,
        rows: usize,
    ) {
        let (outputs, inputs) = (w.rows, w.cols);
        let (dy, x) = (operand(dy, rows * outputs), operand(x, rows * inputs));
        let by_x = Product::plain(operand(dx_acc, rows * inputs), dy, w.operand());
        self.product(Layout::Nn, [rows, inputs, outputs], &Product { accumulate: true, ..by_x });
        let by_w = Product::plain(operand(dw, outputs * inputs), dy, x);
        self.product(Layout::Tn, [outputs, inputs, rows], &Product { accumulate: true, ..by_w });
    }
}

impl Cuda {
    /// Whether products take a matrix as bf16 that is not.
    fn narrows(&self, x: &Buffer) -> bool {
        self.is_bf16() && x.width() != 2
    }

    /// A matrix as bf16, where products take that and it is not, with `stride` elements from row to row.
    fn narrowed(&self, x: &Buffer, [rows, cols]: [usize; 2], stride: usize) -> Option<Buffer> {
        if !self.narrows(x) {
            return None;
        }
        let narrow = self.scratch(rows * stride, 2)?;
        self.narrow(narrow.first(rows * stride), x.first(rows * cols), [rows, cols], stride);
        Some(narrow)
    }

    /// `y_j += sum_i weight_i x_ij`, by parts of the rows.
    pub(super) fn add_weighted_columns(&self, y: &mut Buffer, x: &Buffer, weights: &Buffer, rows: usize, cols: usize) {
        self.add_parts(y, x, [first(weights, rows), Arg::Address(0)], rows, cols);
    }

    /// `y_j += sum_i x_ij`, and `x` as bf16 as [`narrowed`](Self::narrowed) makes it: of many rows, of one read.
    fn add_columns_narrowed(&self, y: &mut Buffer, x: &Buffer, rows: usize, cols: usize) -> Option<Buffer> {
        if rows <= 8 * PART_ROWS {
            self.sum_columns(y, first(x, rows * cols), Cuda::types_of(x), rows, cols);
            return self.narrowed(x, [rows, cols], cols);
        }
        let narrow = if self.narrows(x) { self.scratch(rows * cols, 2) } else { None };
        self.add_parts(y, x, [Arg::Address(0), or_null(narrow.as_ref(), rows * cols)], rows, cols);
        narrow
    }

    /// Sums of parts of the rows, then of those: with weights or null, with a copy as bf16 or null.
    fn add_parts(&self, y: &mut Buffer, x: &Buffer, [weights, copy]: [Arg; 2], rows: usize, cols: usize) {
        let parts = rows.div_ceil(PART_ROWS);
        let Some(sums) = self.scratch(parts * cols, 4) else { return };
        let args = [first(&sums, parts * cols), copy, first(x, rows * cols), weights, int(rows), int(cols)];
        self.launch("column_parts", Problem::matrix(Cuda::types_of(x), rows, cols), &args);
        self.sum_columns(y, first(&sums, parts * cols), Types::F32, parts, cols);
    }

    fn sum_columns(&self, y: &mut Buffer, x: Arg, types: Types, rows: usize, cols: usize) {
        let args = [first(y, cols), x, int(rows), int(cols)];
        self.launch("column_sums", Problem::matrix(types, rows, cols), &args);
    }

    /// `y = norm(x) W + b`, with gelu if wanted, by one kernel; false if none is for so many rows, or rows so long. With
    /// latents, of which token n has that in slot n, x is their sum, which is left in the buffer beside them.
    pub(super) fn norm_product(
        &self,
        y: &mut Buffer,
        x: &Buffer,
        latents: Option<(&RowLatents<'_, Cuda>, &mut Buffer)>,
        norm: &Norm<'_, Cuda>,
        (w, b): (&Weight, &Buffer),
        gelu: bool,
        tokens: usize,
    ) -> bool {
        let (inputs, outputs) = (w.rows, w.cols);
        if x.width() != 4 || (y.width() == 2) != w.bf16 {
            return false;
        }
        let types = Types::product(Layout::Nn, w.bf16, w.bf16, w.bf16);
        let problem = Problem { depth: inputs, ..Problem::matrix(types, tokens, outputs) };
        let Ok(choice) = self.kernels.choose("norm_gemm", &problem) else { return false };
        let [fused, e, slots] = match latents {
            Some((latents, fused)) => [first(fused, tokens * inputs), whole(latents.e), first(latents.slots, tokens)],
            None => [Arg::Address(0); 3],
        };
        let args = [
            first(y, tokens * outputs),
            fused,
            first(x, tokens * inputs),
            e,
            slots,
            first(norm.gain, inputs),
            first(norm.bias, inputs),
            Arg::Float(norm.epsilon),
            first(&w.buffer, inputs * outputs),
            first(b, outputs),
            Arg::Int(gelu.into()),
            int(tokens),
            int(outputs),
            int(inputs),
        ];
        self.attempt(|| self.kernels.run(self.driver.as_ref(), &choice, &args));
        true
    }

    /// `y = x W` with what `fused` adds.
    fn linear<'a>(
        &self,
        y: &mut Buffer,
        x: &Buffer,
        w: &Weight,
        tokens: usize,
        fused: impl FnOnce(Product<'a>) -> Product<'a>,
    ) {
        let (inputs, outputs) = (w.rows, w.cols);
        let plain = Product::plain(operand(y, tokens * outputs), operand(x, tokens * inputs), w.operand());
        self.product(Layout::Nn, [tokens, outputs, inputs], &fused(plain));
    }
}
