//! Every op on every instruction set, matrix product and number of threads, against the oracle; and bit for bit against
//! itself where only the company or the way of computing differs.

mod attention;
mod latent;
mod latent_bwd;
mod linear;
mod optim;

use della::backend::{Backend, Matrix, Role};
use della::cpu::{Cpu, Isa, Options, gemm};
use della::dtype::Dtype;

use crate::util::close::Tolerance;
use crate::util::gradient::{Grad, Gradient, check_backward, check_formula};
use crate::util::normal;
use crate::util::op::{Op, Outputs, act, check, ids, machines, products, read, read_act, real, stale, stale_act};

/// Rows looked up in either layout, and picked again.
struct Embed {
    role: Role,
    width: usize,
}

impl Op for Embed {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let (vocab, positions, width) = (37, 9, self.width);
        let (wte, wpe) = (normal(8, vocab * width), normal(9, positions * width));
        let wte = b.weight(Matrix { data: &wte, rows: vocab, cols: width }, self.role).unwrap();
        let wpe = b.weight(Matrix { data: &wpe, rows: positions, cols: width }, Role::Table).unwrap();
        let mut y = stale_act(b, 6 * width);
        b.embed_fwd(&mut y, &ids(b, &[36, 0, 5, 5, 31, 32, 0, 1, 2, 8, 4, 0]), &wte, &wpe, 6);
        let mut picked = stale_act(b, 2 * width);
        b.gather_rows_fwd(&mut picked, &y, &ids(b, &[4, 1]), 2, width);
        vec![("y", read_act(b, &y, 6 * width)), ("picked", read_act(b, &picked, 2 * width))]
    }
}

#[test]
fn embedding() {
    let all: Vec<Cpu> = machines().into_iter().chain(products(Dtype::F32)).collect();
    for width in [1, 3, 16, 50] {
        for role in [Role::Table, Role::TiedTable] {
            check(&format!("{role:?} {width}"), &Embed { role, width }, Tolerance::sum(1), &all);
        }
    }
}

/// Six looked-up rows, some of them the same.
struct EmbedGradient {
    width: usize,
}

const IDS: [u32; 6] = [36, 0, 5, 5, 31, 5];
const POSITIONS: [u32; 6] = [0, 1, 2, 8, 1, 0];

impl Gradient for EmbedGradient {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        vec![("wte", normal(8, 37 * self.width)), ("wpe", normal(9, 9 * self.width))]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        let table = |x: &[f32]| {
            b.weight(Matrix { data: x, rows: x.len() / self.width, cols: self.width }, Role::Table).unwrap()
        };
        let mut y = stale_act(b, 6 * self.width);
        b.embed_fwd(&mut y, &ids(b, &[IDS, POSITIONS].concat()), &table(&inputs[0]), &table(&inputs[1]), 6);
        read_act(b, &y, 6 * self.width)
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let (mut dwte, mut dwpe) = (Grad::sums(b, inputs[0].len()), Grad::sums(b, inputs[1].len()));
        b.embed_bwd(&mut dwte, &mut dwpe, &act(b, dy), &ids(b, &[IDS, POSITIONS].concat()), 6, self.width);
        vec![Grad::added(b, &dwte, inputs[0].len()), Grad::added(b, &dwpe, inputs[1].len())]
    }
}

#[test]
fn backward_embedding() {
    check_formula("embedding", &EmbedGradient { width: 2 });
    for width in [1, 3, 16, 50, 6000] {
        // a few sums are far from the rest, and rounded at their own size
        let tolerance = Tolerance { factor: 16.0, terms: 1 };
        check_backward(&format!("embedding {width}"), &EmbedGradient { width }, tolerance, &machines());
    }
}

/// Layer norm of rows around `offset`.
struct LayerNorm {
    tokens: usize,
    width: usize,
    offset: f32,
}

impl Op for LayerNorm {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let LayerNorm { tokens, width, offset } = *self;
        let x: Vec<f32> = normal(10, tokens * width).iter().map(|x| x * 2.0 + offset).collect();
        let (gain, bias) = (real(b, &normal(11, width)), real(b, &normal(12, width)));
        let (mut y, mut mean, mut rstd) = (stale_act(b, tokens * width), stale(b, tokens), stale(b, tokens));
        b.layernorm_fwd(&mut y, &mut mean, &mut rstd, &act(b, &x), &gain, &bias, 1e-5, tokens, width);
        let saved = |x| read(b, x, tokens);
        vec![("y", read_act(b, &y, tokens * width)), ("mean", saved(&mean)), ("rstd", saved(&rstd))]
    }
}

#[test]
fn layer_norm() {
    for (tokens, width) in [(0, 4), (1, 1), (3, 7), (2, 16), (5, 33), (70, 768)] {
        let op = LayerNorm { tokens, width, offset: 0.5 };
        check(&format!("layer norm {tokens}x{width}"), &op, Tolerance::sum(width), &machines());
    }
}

/// The mean is rounded at 1000; a variance from a difference of squares would be off by a tenth.
#[test]
fn layer_norm_keeps_its_digits_far_from_zero() {
    let op = LayerNorm { tokens: 1, width: 100, offset: 1000.0 };
    check("layer norm far from zero", &op, Tolerance { factor: 1000.0, terms: 1 }, &machines());
}

/// Layer norm by its input and its parameters.
struct LayerNormGradient {
    tokens: usize,
    width: usize,
}

impl LayerNormGradient {
    /// Output, mean and reciprocal deviation.
    fn normalise<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> (B::Act, B::Real, B::Real) {
        let LayerNormGradient { tokens, width } = *self;
        let (gain, bias) = (real(b, &inputs[1]), real(b, &inputs[2]));
        let (mut y, mut mean, mut rstd) = (stale_act(b, tokens * width), stale(b, tokens), stale(b, tokens));
        b.layernorm_fwd(&mut y, &mut mean, &mut rstd, &act(b, &inputs[0]), &gain, &bias, 1e-2, tokens, width);
        (y, mean, rstd)
    }
}

impl Gradient for LayerNormGradient {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        let x = normal(10, self.tokens * self.width).iter().map(|x| x * 2.0 + 0.5).collect();
        vec![("x", x), ("gain", normal(11, self.width)), ("bias", normal(12, self.width))]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        read_act(b, &self.normalise(b, inputs).0, self.tokens * self.width)
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let LayerNormGradient { tokens, width } = *self;
        let (_, mean, rstd) = self.normalise(b, inputs);
        let mut dx = Grad::sums_act(b, tokens * width);
        let (mut dgain, mut dbias) = (Grad::sums(b, width), Grad::sums(b, width));
        let (dy, x, gain) = (act(b, dy), act(b, &inputs[0]), real(b, &inputs[1]));
        b.layernorm_bwd(&mut dx, &mut dgain, &mut dbias, &dy, &x, &mean, &rstd, &gain, tokens, width);
        let params = [Grad::added(b, &dgain, width), Grad::added(b, &dbias, width)];
        [Grad::added_act(b, &dx, tokens * width)].into_iter().chain(params).collect()
    }
}

#[test]
fn backward_layer_norm() {
    check_formula("layer norm", &LayerNormGradient { tokens: 3, width: 5 });
    for (tokens, width) in [(0, 4), (1, 1), (3, 7), (2, 16), (5, 33), (70, 768), (33, 1024), (300, 130)] {
        let op = LayerNormGradient { tokens, width };
        check_backward(&format!("layer norm {tokens}x{width}"), &op, Tolerance::sum(width.max(tokens)), &machines());
    }
}

/// Cross-entropy of logits with a spread of 3.
struct CrossEntropy {
    tokens: usize,
    vocab: usize,
}

impl Op for CrossEntropy {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let CrossEntropy { tokens, vocab } = *self;
        let logits: Vec<f32> = normal(24, tokens * vocab).iter().map(|x| 3.0 * x).collect();
        let targets: Vec<u32> = (0..tokens).map(|n| (n * 31 % vocab) as u32).collect();
        let mut loss = stale(b, tokens);
        b.cross_entropy_fwd(&mut loss, &real(b, &logits), &ids(b, &targets), tokens, vocab);
        vec![("loss", read(b, &loss, tokens))]
    }
}

#[test]
fn cross_entropy() {
    for (tokens, vocab) in [(1, 1), (3, 7), (2, 16), (5, 33), (4, 21130)] {
        let op = CrossEntropy { tokens, vocab };
        check(&format!("cross-entropy {tokens}x{vocab}"), &op, Tolerance::sum(vocab), &machines());
    }
}

/// Cross-entropy by the logits; the weights of tokens are the gradient by their losses.
struct CrossEntropyGradient(CrossEntropy);

impl CrossEntropyGradient {
    fn targets<B: Backend>(&self, b: &B) -> B::Ids {
        ids(b, &(0..self.0.tokens).map(|n| (n * 31 % self.0.vocab) as u32).collect::<Vec<_>>())
    }
}

impl Gradient for CrossEntropyGradient {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        vec![("logits", normal(24, self.0.tokens * self.0.vocab).iter().map(|x| 3.0 * x).collect())]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        let CrossEntropy { tokens, vocab } = self.0;
        let mut loss = stale(b, tokens);
        b.cross_entropy_fwd(&mut loss, &real(b, &inputs[0]), &self.targets(b), tokens, vocab);
        read(b, &loss, tokens)
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let CrossEntropy { tokens, vocab } = self.0;
        let mut logits = real(b, &inputs[0]);
        b.cross_entropy_bwd(&mut logits, &self.targets(b), &real(b, dy), tokens, vocab);
        vec![Grad::Assigned(read(b, &logits, inputs[0].len()))]
    }
}

#[test]
fn backward_cross_entropy() {
    check_formula("cross-entropy", &CrossEntropyGradient(CrossEntropy { tokens: 3, vocab: 5 }));
    for (tokens, vocab) in [(1, 1), (3, 7), (2, 16), (5, 33), (70, 2113)] {
        let op = CrossEntropyGradient(CrossEntropy { tokens, vocab });
        // the target's gradient is far from the rest, and rounded at its own size
        let tolerance = Tolerance { factor: 16.0, terms: vocab };
        check_backward(&format!("cross-entropy {tokens}x{vocab}"), &op, tolerance, &machines());
    }
}

#[test]
fn cpu_options_are_checked() {
    let message = |options| Cpu::new(options).err().unwrap().to_string();
    let unknown = message(Options { gemm: Some("fast".into()), ..Options::default() });
    assert!(unknown.contains("fast") && unknown.contains("portable-f32-panel"), "{unknown}");
    assert!(message(Options { threads: Some(0), ..Options::default() }).contains("at least 1"));
    let best = Cpu::new(Options::default()).unwrap();
    assert_eq!((best.isa(), best.gemm()), (Isa::best(), gemm::best(Isa::best(), Dtype::F32).unwrap().name));
}
