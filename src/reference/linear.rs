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

    fn linear_bwd(
        &self,
        dx: &mut Vec<f64>,
        dw: &mut Vec<f64>,
        db: &mut Vec<f64>,
        dy: &Vec<f64>,
        x: &Vec<f64>,
        w: &Array2<f64>,
        tokens: usize,
    ) {
        let (inputs, outputs) = w.dim();
        let (dy, x) = (view(dy, tokens, outputs), view(x, tokens, inputs));
        view_mut(dx, tokens, inputs).assign(&dy.dot(&w.t()));
        let mut dw = view_mut(dw, inputs, outputs);
        dw += &x.t().dot(&dy);
        for ((_, o), dy) in dy.indexed_iter() {
            db[o] += dy;
        }
    }

    fn linear_gelu_fwd(
        &self,
        y: &mut Vec<f64>,
        u: Option<&mut Vec<f64>>,
        x: &Vec<f64>,
        w: &Array2<f64>,
        b: &Vec<f64>,
        tokens: usize,
    ) {
        self.linear_fwd(y, x, w, b, tokens);
        let mut y = view_mut(y, tokens, w.ncols());
        if let Some(u) = u {
            view_mut(u, tokens, w.ncols()).assign(&y);
        }
        y.mapv_inplace(gelu_new);
    }

    fn gelu_bwd(&self, du: &mut Vec<f64>, dy: &Vec<f64>, u: &Vec<f64>, len: usize) {
        for i in 0..len {
            du[i] = dy[i] * gelu_new_derivative(u[i]);
        }
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

    fn head_bwd(
        &self,
        dx: &mut Vec<f64>,
        dwte: &mut Vec<f64>,
        dlogits: &Vec<f64>,
        x: &Vec<f64>,
        wte: &Array2<f64>,
        tokens: usize,
    ) {
        dx[..tokens * wte.ncols()].fill(0.0);
        self.latent_linear_bwd(dx, dwte, dlogits, x, wte, tokens);
    }

    fn latent_linear_fwd(&self, y: &mut Vec<f64>, x: &Vec<f64>, w: &Array2<f64>, rows: usize, accumulate: bool) {
        let product = view(x, rows, w.ncols()).dot(&w.t());
        let mut y = view_mut(y, rows, w.nrows());
        if !accumulate {
            y.fill(0.0);
        }
        y += &product;
    }

    fn latent_linear_bwd(
        &self,
        dx_acc: &mut Vec<f64>,
        dw: &mut Vec<f64>,
        dy: &Vec<f64>,
        x: &Vec<f64>,
        w: &Array2<f64>,
        rows: usize,
    ) {
        let (outputs, inputs) = w.dim();
        let (dy, x) = (view(dy, rows, outputs), view(x, rows, inputs));
        let mut dx = view_mut(dx_acc, rows, inputs);
        dx += &dy.dot(w);
        let mut dw = view_mut(dw, outputs, inputs);
        dw += &dy.t().dot(&x);
    }
}

fn gelu_new(x: f64) -> f64 {
    0.5 * x * (1.0 + gelu_inner(x).tanh())
}

fn gelu_new_derivative(x: f64) -> f64 {
    let tanh = gelu_inner(x).tanh();
    let slope = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x.powi(2));
    0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh.powi(2)) * slope
}

fn gelu_inner(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))
}
