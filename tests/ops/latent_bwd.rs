//! Backward passes of pooling, the latent chain and fusion.

use della::backend::Backend;

use crate::util::close::Tolerance;
use crate::util::gradient::{Grad, Gradient, check_backward, check_formula};
use crate::util::normal;
use crate::util::op::{act, ids, machines, read, read_act, real, spans, stale};

/// Pooling over spans, which need not hold all tokens, nor be in order.
struct Pool<'a> {
    tokens: usize,
    width: usize,
    bounds: &'a [(usize, usize)],
}

impl Pool<'_> {
    fn pool<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> (B::Real, B::Real) {
        let (mut y, mut scores) = (stale(b, self.bounds.len() * self.width), b.real(self.tokens).unwrap());
        let (x, w) = (act(b, &inputs[0]), real(b, &inputs[1]));
        b.pool_fwd(&mut y, &mut scores, &x, &w, &spans(b, self.bounds), self.width);
        (y, scores)
    }
}

impl Gradient for Pool<'_> {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        let w = normal(17, self.width).iter().map(|w| w / (self.width as f32).sqrt()).collect();
        vec![("x", normal(16, self.tokens * self.width)), ("w", w)]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        read(b, &self.pool(b, inputs).0, self.bounds.len() * self.width)
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let (_, scores) = self.pool(b, inputs);
        let (mut dx, mut dw) = (Grad::sums_act(b, inputs[0].len()), Grad::sums(b, self.width));
        let (dy, x, w) = (real(b, dy), act(b, &inputs[0]), real(b, &inputs[1]));
        b.pool_bwd(&mut dx, &mut dw, &dy, &scores, &x, &w, &spans(b, self.bounds), self.width);
        vec![Grad::added_act(b, &dx, inputs[0].len()), Grad::added(b, &dw, self.width)]
    }
}

#[test]
fn backward_pooling() {
    check_formula("pooling", &Pool { tokens: 7, width: 3, bounds: &[(4, 7), (0, 3), (3, 3)] });
    for (tokens, width, bounds) in [
        (1, 1, &[(0, 1)][..]),
        (9, 5, &[(6, 9), (4, 4), (0, 4)]),
        (70, 33, &[(0, 1), (1, 70)]),
        (300, 768, &[(2, 40), (41, 300)]),
    ] {
        let op = Pool { tokens, width, bounds };
        check_backward(&format!("pool {tokens}x{width}"), &op, Tolerance::sum(tokens.max(width)), &machines());
    }
}

/// A draw from a Gaussian, through a tanh.
struct Draw {
    noise: bool,
    scale: f32,
    rows: usize,
    latent: usize,
}

impl Draw {
    fn eps<B: Backend>(&self, b: &B) -> Option<B::Real> {
        self.noise.then(|| real(b, &normal(20, self.rows * self.latent)))
    }

    fn tanh<B: Backend>(&self, b: &B, gaussian: &B::Real) -> B::Real {
        let Draw { scale, rows, latent, .. } = *self;
        let (mut z, mut y) = (stale(b, rows * latent), stale(b, rows * latent));
        b.reparameterize_fwd(&mut z, gaussian, self.eps(b).as_ref(), scale, rows, latent);
        b.tanh_fwd(&mut y, &z, rows * latent);
        y
    }
}

impl Gradient for Draw {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        vec![("gaussian", normal(18, 2 * self.rows * self.latent))]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        read(b, &self.tanh(b, &real(b, &inputs[0])), self.rows * self.latent)
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let Draw { scale, rows, latent, .. } = *self;
        let gaussian = real(b, &inputs[0]);
        let mut dz = stale(b, rows * latent);
        b.tanh_bwd(&mut dz, &real(b, dy), &self.tanh(b, &gaussian), rows * latent);
        let mut sums = Grad::sums(b, 2 * rows * latent);
        b.reparameterize_bwd(&mut sums, &dz, &gaussian, self.eps(b).as_ref(), scale, rows, latent);
        vec![Grad::added(b, &sums, 2 * rows * latent)]
    }
}

#[test]
fn backward_draws() {
    for (noise, scale) in [(true, 0.7), (true, 0.0), (false, 1.0)] {
        check_formula("a draw", &Draw { noise, scale, rows: 3, latent: 5 });
        for (rows, latent) in [(1, 1), (3, 7), (2, 16), (5, 33), (32, 256)] {
            let op = Draw { noise, scale, rows, latent };
            let tolerance = Tolerance { factor: 16.0, terms: 1 };
            check_backward(&format!("a draw {rows}x{latent}"), &op, tolerance, &machines());
        }
    }
}

/// The sum of divergences by both Gaussians, which differ by `distance`.
struct Divergence {
    rows: usize,
    latent: usize,
    distance: f32,
}

impl Gradient for Divergence {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        let len = self.rows * 2 * self.latent;
        let p = normal(18, len);
        vec![("posterior", p.iter().zip(normal(19, len)).map(|(p, d)| p + self.distance * d).collect()), ("prior", p)]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        let mut kl = stale(b, self.rows);
        b.kl_fwd(&mut kl, &real(b, &inputs[0]), &real(b, &inputs[1]), self.rows, self.latent);
        vec![read(b, &kl, self.rows).iter().sum()]
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let len = inputs[0].len();
        let (mut dq, mut dp) = (Grad::sums(b, len), Grad::sums(b, len));
        let (q, p) = (real(b, &inputs[0]), real(b, &inputs[1]));
        let weights = real(b, &vec![dy[0]; self.latent]);
        b.kl_bwd(&mut dq, &mut dp, &weights, &q, &p, self.rows, self.latent);
        vec![Grad::added(b, &dq, len), Grad::added(b, &dp, len)]
    }
}

#[test]
fn backward_divergence() {
    for distance in [1.0, 1e-3, 0.0] {
        if distance > 0.0 {
            check_formula("the divergence", &Divergence { rows: 2, latent: 3, distance });
        }
        for (rows, latent) in [(1, 1), (3, 7), (2, 16), (5, 33), (32, 256)] {
            let op = Divergence { rows, latent, distance };
            // a wide posterior beside a narrow prior makes single gradients far larger than the rest
            let tolerance = Tolerance { factor: 32.0, terms: 1 };
            check_backward(&format!("kl {rows}x{latent} at {distance}"), &op, tolerance, &machines());
        }
    }
}

/// Parts side by side, added to the tokens of spans; two spans share a slot.
struct ConcatFuse {
    widths: [usize; 2],
    tokens: usize,
}

impl ConcatFuse {
    fn bounds(&self) -> [(usize, usize); 4] {
        [(0, 2), (2, 3), (3, 3), (4, self.tokens)]
    }
}

const SLOTS: [u32; 4] = [2, 0, 1, 2];

impl Gradient for ConcatFuse {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        vec![("first", normal(21, 3 * self.widths[0])), ("second", normal(22, 3 * self.widths[1]))]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        let [first, second] = self.widths;
        let width = first + second;
        let mut e = stale(b, 3 * width);
        b.concat_fwd(&mut e, &[(&real(b, &inputs[0]), first), (&real(b, &inputs[1]), second)], 3);
        let mut h = act(b, &normal(23, self.tokens * width));
        b.fuse_fwd(&mut h, &e, &ids(b, &SLOTS), &spans(b, &self.bounds()), width);
        read_act(b, &h, self.tokens * width)
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let [first, second] = self.widths;
        let width = first + second;
        let mut de = b.real(3 * width).unwrap();
        b.fuse_bwd(&mut de, &act(b, dy), &ids(b, &SLOTS), &spans(b, &self.bounds()), width);
        let (mut dfirst, mut dsecond) = (Grad::sums(b, inputs[0].len()), Grad::sums(b, inputs[1].len()));
        b.concat_bwd(&mut [(&mut dfirst, first), (&mut dsecond, second)], &de, 3);
        vec![Grad::added(b, &dfirst, inputs[0].len()), Grad::added(b, &dsecond, inputs[1].len())]
    }
}

/// `fuse_bwd` alone: what it adds to.
struct Fuse(ConcatFuse);

impl Gradient for Fuse {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        vec![("e", normal(24, 3 * self.0.widths.iter().sum::<usize>()))]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        let width = self.0.widths.iter().sum::<usize>();
        let mut h = act(b, &normal(23, self.0.tokens * width));
        b.fuse_fwd(&mut h, &real(b, &inputs[0]), &ids(b, &SLOTS), &spans(b, &self.0.bounds()), width);
        read_act(b, &h, self.0.tokens * width)
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let mut de = Grad::sums(b, inputs[0].len());
        let width = inputs[0].len() / 3;
        b.fuse_bwd(&mut de, &act(b, dy), &ids(b, &SLOTS), &spans(b, &self.0.bounds()), width);
        vec![Grad::added(b, &de, inputs[0].len())]
    }
}

#[test]
fn backward_concatenation_and_fusion() {
    let small = || ConcatFuse { widths: [4, 1], tokens: 9 };
    check_formula("concatenation and fusion", &small());
    check_formula("fusion", &Fuse(small()));
    for (widths, tokens) in [([4, 1], 9), ([16, 16], 40), ([130, 3], 300)] {
        let op = ConcatFuse { widths, tokens };
        let what = format!("{tokens}x{widths:?}");
        check_backward(&format!("concatenation and fusion {what}"), &op, Tolerance::sum(tokens), &machines());
        check_backward(&format!("fusion {what}"), &Fuse(op), Tolerance::sum(tokens), &machines());
    }
}
