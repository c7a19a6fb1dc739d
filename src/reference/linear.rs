//! Matrix products with parameters.

use ndarray::Array2;

use super::{Reference, view, view_mut};
use crate::backend::LinearOps;

impl LinearOps for Reference {
    fn linear_fwd(&self, y: &mut Vec<f64>, x: &Vec<f64>, w: &Array2<f64>, b: &Vec<f64>, tokens: usize) {
        let product = view(x, tokens, w.nrows()).dot(w);
        let mut y = view_mut(y, tokens, w.ncols());
        for ((n, o), &value) in product.indexed_iter() {
            y[(n, o)] = value + b[o];
        }
    }

    fn linear_gelu_fwd(&self, y: &mut Vec<f64>, x: &Vec<f64>, w: &Array2<f64>, b: &Vec<f64>, tokens: usize) {
        self.linear_fwd(y, x, w, b, tokens);
        view_mut(y, tokens, w.ncols()).mapv_inplace(gelu_new);
    }

    fn linear_residual_fwd(
        &self,
        y: &mut Vec<f64>,
        residual: &Vec<f64>,
        x: &Vec<f64>,
        w: &Array2<f64>,
        b: &Vec<f64>,
        tokens: usize,
    ) {
        self.linear_fwd(y, x, w, b, tokens);
        let mut y = view_mut(y, tokens, w.ncols());
        y += &view(residual, tokens, w.ncols());
    }

    fn head_fwd(&self, logits: &mut Vec<f64>, x: &Vec<f64>, wte: &Array2<f64>, tokens: usize) {
        self.latent_linear_fwd(logits, x, wte, tokens, false);
    }

    fn latent_linear_fwd(&self, y: &mut Vec<f64>, x: &Vec<f64>, w: &Array2<f64>, rows: usize, accumulate: bool) {
        let product = view(x, rows, w.ncols()).dot(&w.t());
        let mut y = view_mut(y, rows, w.nrows());
        if !accumulate {
            y.fill(0.0);
        }
        y += &product;
    }
}

fn gelu_new(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}
