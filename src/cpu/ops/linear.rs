//! Matrix products with parameters: the chosen [`Gemm`](crate::cpu::gemm::Gemm) with the epilogue of the op.

use super::GRAIN;
use crate::backend::{LinearOps, Norm, NormScratch};
use crate::cpu::gemm::{Epilogue, Mlp, Weight};
use crate::cpu::simd::{Kernel, Simd, gelu, gelu_slope};
use crate::cpu::{Buffer, Cpu};

impl LinearOps for Cpu {
    fn linear_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, w: &Weight, b: &Buffer<f32>, tokens: usize) {
        self.gemm.multiply(&self.pool, y, x, w, tokens, Epilogue::Bias(b));
    }

    fn linear_bwd(
        &self,
        dx: &mut Buffer<f32>,
        dw: &mut Buffer<f32>,
        db: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        x: &Buffer<f32>,
        w: &Weight,
        tokens: usize,
    ) {
        let (inputs, outputs) = (w.inputs(), w.outputs());
        self.gemm.multiply_by_transpose(&self.pool, dx, dy, w, tokens, false);
        self.gemm.add_outer(&self.pool, dw, x, dy, tokens, (inputs, outputs));
        self.add_columns(&mut db[..outputs], &dy[..tokens * outputs]);
    }

    fn linear_gelu_fwd(
        &self,
        y: &mut Buffer<f32>,
        u: Option<&mut Buffer<f32>>,
        x: &Buffer<f32>,
        w: &Weight,
        b: &Buffer<f32>,
        tokens: usize,
    ) {
        let Some(u) = u else {
            return self.gemm.multiply(&self.pool, y, x, w, tokens, Epilogue::BiasGelu(b));
        };
        self.linear_fwd(u, x, w, b, tokens);
        self.pool.rows(tokens * w.outputs(), GRAIN, [(y, 1)], |first, [y]| {
            self.run(Gelu { u: &u[first..][..y.len()], y });
        });
    }

    fn gelu_bwd(&self, du: &mut Buffer<f32>, dy: &Buffer<f32>, u: &Buffer<f32>, len: usize) {
        self.pool.rows(len, GRAIN, [(du, 1)], |first, [du]| {
            let part = first..first + du.len();
            self.run(GeluBwd { du, dy: &dy[part.clone()], u: &u[part] });
        });
    }

    fn linear_residual_fwd(
        &self,
        y: &mut Buffer<f32>,
        residual: &Buffer<f32>,
        x: &Buffer<f32>,
        w: &Weight,
        b: &Buffer<f32>,
        tokens: usize,
    ) {
        self.gemm.multiply(&self.pool, y, x, w, tokens, Epilogue::BiasResidual(b, residual));
    }

    fn mlp_fwd(
        &self,
        y: &mut Buffer<f32>,
        inner: &mut Buffer<f32>,
        normed: NormScratch<'_, Cpu>,
        x: &Buffer<f32>,
        norm: Norm<'_, Cpu>,
        [(w_1, b_1), (w_2, b_2)]: [(&Weight, &Buffer<f32>); 2],
        tokens: usize,
    ) {
        let x_normed = normed.fill(self, x, &norm, tokens);
        let mlp = Mlp { first: w_1, bias: b_1, second: w_2, epilogue: Epilogue::BiasResidual(b_2, x) };
        if !self.gemm.multiply_twice(&self.pool, y, x_normed, mlp, tokens) {
            self.linear_gelu_fwd(inner, None, x_normed, w_1, b_1, tokens);
            self.linear_residual_fwd(y, x, inner, w_2, b_2, tokens);
        }
    }

    fn head_fwd(&self, logits: &mut Buffer<f32>, x: &Buffer<f32>, wte: &Weight, tokens: usize) {
        self.tied().multiply(&self.pool, logits, x, wte, tokens, Epilogue::Store);
    }

    fn head_bwd(
        &self,
        dx: &mut Buffer<f32>,
        dwte: &mut Buffer<f32>,
        dlogits: &Buffer<f32>,
        x: &Buffer<f32>,
        wte: &Weight,
        tokens: usize,
    ) {
        self.tied().multiply_by_transpose(&self.pool, dx, dlogits, wte, tokens, false);
        self.tied().add_outer(&self.pool, dwte, dlogits, x, tokens, (wte.outputs(), wte.inputs()));
    }

    fn latent_linear_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, w: &Weight, rows: usize, accumulate: bool) {
        self.exact().multiply(&self.pool, y, x, w, rows, Epilogue::sums(accumulate));
    }

    fn latent_linear_bwd(
        &self,
        dx_acc: &mut Buffer<f32>,
        dw: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        x: &Buffer<f32>,
        w: &Weight,
        rows: usize,
    ) {
        self.exact().multiply_by_transpose(&self.pool, dx_acc, dy, w, rows, true);
        self.exact().add_outer(&self.pool, dw, dy, x, rows, (w.outputs(), w.inputs()));
    }
}

/// `y = gelu_new(u)`.
struct Gelu<'a> {
    y: &'a mut [f32],
    u: &'a [f32],
}

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.y.len()).step_by(S::LANES) {
            let v = gelu(s, s.load(&self.u[i..]));
            s.store(&mut self.y[i..], v);
        }
    }
}

/// `du = dy · gelu_new'(u)`.
struct GeluBwd<'a> {
    du: &'a mut [f32],
    dy: &'a [f32],
    u: &'a [f32],
}

impl Kernel for GeluBwd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.du.len()).step_by(S::LANES) {
            let v = s.mul(s.load(&self.dy[i..]), gelu_slope(s, s.load(&self.u[i..])));
            s.store(&mut self.du[i..], v);
        }
    }
}
