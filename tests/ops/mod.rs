//! Every op on every instruction set, matrix product and number of threads, against the oracle; and bit for bit against
//! itself where only the company or the way of computing differs.

mod attention;
mod latent;
mod linear;

use della::backend::{Backend, Matrix, Role};
use della::cpu::{Cpu, Isa, Options, gemm};

use crate::util::close::Tolerance;
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
        b.embed_fwd(&mut y, &ids(b, &[36, 0, 5, 5, 31, 32]), &ids(b, &[0, 1, 2, 8, 4, 0]), &wte, &wpe, 6);
        let mut picked = stale_act(b, 2 * width);
        b.gather_rows_fwd(&mut picked, &y, &ids(b, &[4, 1]), 2, width);
        vec![("y", read_act(b, &y, 6 * width)), ("picked", read_act(b, &picked, 2 * width))]
    }
}

#[test]
fn embedding() {
    let all: Vec<Cpu> = machines().into_iter().chain(products()).collect();
    for width in [1, 3, 16, 50] {
        for role in [Role::Table, Role::TiedTable] {
            check(&format!("{role:?} {width}"), &Embed { role, width }, Tolerance::sum(1), &all);
        }
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

#[test]
fn cpu_options_are_checked() {
    let message = |options| Cpu::new(options).err().unwrap().to_string();
    let unknown = message(Options { gemm: Some("fast".into()), ..Options::default() });
    assert!(unknown.contains("fast") && unknown.contains("portable-f32-panel"), "{unknown}");
    assert!(message(Options { threads: Some(0), ..Options::default() }).contains("at least 1"));
    let best = Cpu::new(Options::default()).unwrap();
    assert_eq!((best.isa(), best.gemm()), (Isa::best(), gemm::allowed(Isa::best()).next().unwrap().name));
}
