//! Matrix products with parameters: the chosen [`Gemm`](crate::cpu::gemm::Gemm) with the epilogue of the op.

use crate::backend::LinearOps;
use crate::cpu::gemm::{Epilogue, Weight};
use crate::cpu::{Buffer, Cpu};

impl LinearOps for Cpu {
    fn linear_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, w: &Weight, b: &Buffer<f32>, tokens: usize) {
        self.gemm.multiply(&self.pool, y, x, w, tokens, Epilogue::Bias(b));
    }

    fn linear_gelu_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, w: &Weight, b: &Buffer<f32>, tokens: usize) {
        self.gemm.multiply(&self.pool, y, x, w, tokens, Epilogue::BiasGelu(b));
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

    fn head_fwd(&self, logits: &mut Buffer<f32>, x: &Buffer<f32>, wte: &Weight, tokens: usize) {
        self.gemm.multiply(&self.pool, logits, x, wte, tokens, Epilogue::Store);
    }

    fn latent_linear_fwd(&self, y: &mut Buffer<f32>, x: &Buffer<f32>, w: &Weight, rows: usize, accumulate: bool) {
        let epilogue = if accumulate { Epilogue::Accumulate } else { Epilogue::Store };
        self.gemm.multiply(&self.pool, y, x, w, rows, epilogue);
    }
}
