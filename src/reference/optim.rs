//! Optimiser, norm and dropout.

use super::Reference;
use crate::backend::{AdamW, OptimOps};
use crate::rng::Mask;

impl OptimOps for Reference {
    fn adamw(
        &self,
        p: &mut Vec<f64>,
        m: &mut Vec<f64>,
        v: &mut Vec<f64>,
        gradient: &mut Vec<f64>,
        step: &AdamW,
        len: usize,
    ) {
        let (beta_1, beta_2) = step.betas;
        let (left_1, left_2) = step.corrections();
        for i in 0..len {
            let g = gradient[i] * step.factor;
            p[i] *= 1.0 - step.lr * step.decay;
            m[i] = beta_1 * m[i] + (1.0 - beta_1) * g;
            v[i] = beta_2 * v[i] + (1.0 - beta_2) * g * g;
            p[i] -= step.lr * (m[i] / left_1) / ((v[i] / left_2).sqrt() + step.epsilon);
            gradient[i] = 0.0;
        }
    }

    fn sum_squares(&self, parts: &[(&Vec<f64>, usize)]) -> f64 {
        parts.iter().flat_map(|(x, len)| &x[..*len]).map(|x| x * x).sum()
    }

    fn zero_act(&self, x: &mut Vec<f64>, len: usize) {
        x[..len].fill(0.0);
    }

    fn zero_real(&self, x: &mut Vec<f64>, len: usize) {
        x[..len].fill(0.0);
    }

    fn dropout(&self, x: &mut Vec<f64>, mask: Mask, tokens: usize, width: usize) {
        for n in 0..tokens {
            for c in 0..width {
                x[n * width + c] *= mask.factor(n as u64, c);
            }
        }
    }

    fn dropout_fwd(&self, y: &mut Vec<f64>, x: &Vec<f64>, mask: Mask, tokens: usize, width: usize) {
        y[..tokens * width].copy_from_slice(&x[..tokens * width]);
        self.dropout(y, mask, tokens, width);
    }

    fn dropout_residual_fwd(&self, y: &mut Vec<f64>, residual: &Vec<f64>, mask: Mask, tokens: usize, width: usize) {
        self.dropout(y, mask, tokens, width);
        for i in 0..tokens * width {
            y[i] += residual[i];
        }
    }
}
