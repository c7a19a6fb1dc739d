//! Attention, whole and through a cache.

use della::backend::{AttentionDims, AttentionOps, Backend, CacheRows, Spans};
use della::dtype::Dtype;
use della::rng::Mask;

use crate::util::close::{Tolerance, assert_close, assert_same_bits};
use crate::util::gradient::{Grad, Gradient, check_backward, check_formula};
use crate::util::normal;
use crate::util::op::{
    Op, Outputs, act, check, ids, machines, machines_of, name, read, read_act, spans, stale, stale_act,
};

/// Attention over sequences of these lengths.
struct Attention<'a> {
    lengths: &'a [usize],
    dims: AttentionDims,
    /// Whether queries, keys and values are bf16.
    narrow: bool,
}

impl Attention<'_> {
    fn qkv(&self) -> Vec<f32> {
        let qkv = normal(14, self.lengths.iter().sum::<usize>() * 3 * self.dims.width());
        if self.narrow { qkv.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect() } else { qkv }
    }
}

impl Op for Attention<'_> {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let spans = Spans::of_lengths(b, self.lengths.iter().copied()).unwrap();
        let len = spans.tokens * self.dims.width();
        let mut y = stale_act(b, len);
        let lse_len = spans.tokens * self.dims.heads;
        let mut lse = stale(b, lse_len);
        b.attention_fwd(&mut y, &mut lse, &act(b, &self.qkv()), Mask::NONE, &spans, self.dims);
        vec![("y", read_act(b, &y, len)), ("lse", read(b, &lse, lse_len))]
    }
}

/// The same, in steps: `steps[i][row]` new tokens of each row, in slots out of order.
struct Cached<'a> {
    whole: Attention<'a>,
    steps: &'a [[usize; 2]],
}

impl Op for Cached<'_> {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let (dims, width, qkv) = (self.whole.dims, self.whole.dims.width(), self.whole.qkv());
        let capacity = self.whole.lengths.iter().max().unwrap() + 3;
        let (mut keys, mut values) = (stale_act(b, 3 * capacity * width), stale_act(b, 3 * capacity * width));
        let (mut past, mut outputs) = ([0, 0], [Vec::new(), Vec::new()]);
        for step in self.steps {
            let rows = CacheRows { spans: Spans::of_lengths(b, *step).unwrap(), slots: ids(b, &[2, 0]), capacity };
            let positions = (0..2).flat_map(|row| past[row] as u32..(past[row] + step[row]) as u32);
            let tokens: Vec<u32> = vec![0; step[0] + step[1]].into_iter().chain(positions).collect();
            let part = |row: usize| {
                let first = row * self.whole.lengths[0] + past[row];
                &qkv[first * 3 * width..(first + step[row]) * 3 * width]
            };
            let mut y = stale_act(b, (step[0] + step[1]) * width);
            let new = act(b, &[part(0), part(1)].concat());
            b.attention_cached_fwd(&mut y, &mut keys, &mut values, &new, &ids(b, &tokens), &rows, dims);
            let y = read_act(b, &y, (step[0] + step[1]) * width);
            let (first, second) = y.split_at(step[0] * width);
            outputs[0].extend_from_slice(first);
            outputs[1].extend_from_slice(second);
            past = [past[0] + step[0], past[1] + step[1]];
        }
        assert_eq!(past, self.whole.lengths, "the steps read everything");
        vec![("y", outputs.concat())]
    }
}

#[test]
fn attention_over_spans() {
    for (lengths, heads, head_dim) in [
        (&[1][..], 1, 1),
        (&[3, 1, 2], 2, 5),
        (&[17, 33], 3, 16),
        (&[5, 0, 9], 1, 67),
        (&[40, 130], 2, 64),
        (&[20], 1, 80),
    ] {
        let op = Attention { lengths, dims: AttentionDims { heads, head_dim }, narrow: false };
        let what = format!("attention {lengths:?} {heads}x{head_dim}");
        check(&what, &op, Tolerance { factor: 8.0, terms: head_dim }, &machines());
    }
}

#[test]
fn cached_attention_is_attention() {
    for (heads, head_dim) in [(2, 16), (3, 7), (12, 64)] {
        let whole = Attention { lengths: &[23, 60], dims: AttentionDims { heads, head_dim }, narrow: false };
        let wanted = whole.run(&della::reference::Reference);
        let cached = Cached { whole, steps: &[[10, 1], [1, 40], [1, 1], [0, 1], [11, 17]] };
        let found = cached.run(&della::reference::Reference);
        let exact = Tolerance { factor: 1e-6, terms: 1 };
        assert_close("cached attention on the oracle", &found[0].1, &wanted[0].1, exact);
        for cpu in machines() {
            let what = format!("cached attention {heads}x{head_dim} on {}", name(&cpu));
            assert_same_bits(&what, &cached.run(&cpu)[0].1, &cached.whole.run(&cpu)[0].1);
        }
    }
}

/// With narrow weights the cache is narrow: what fits into it comes out as it was, and other numbers are rounded.
#[test]
fn narrow_caches_hold_bf16() {
    let dtypes = [Dtype::Bf16, Dtype::Int8, Dtype::Int4];
    for (dtype, heads, head_dim) in dtypes.into_iter().flat_map(|dtype| [(dtype, 2, 16), (dtype, 3, 7), (dtype, 2, 80)])
    {
        let steps: &[[usize; 2]] = &[[10, 1], [1, 40], [1, 1], [0, 1], [2, 3], [9, 14]];
        for narrow in [true, false] {
            let whole = Attention { lengths: &[23, 60], dims: AttentionDims { heads, head_dim }, narrow };
            let cached = Cached { whole, steps };
            for cpu in machines_of(dtype) {
                let what = format!("a narrow cache of {heads}x{head_dim} on {}", name(&cpu));
                let (found, wanted) = (cached.run(&cpu), cached.whole.run(&cpu));
                if narrow {
                    assert_same_bits(&what, &found[0].1, &wanted[0].1);
                } else {
                    // half a unit of the last of 8 bits, of values up to sixteen times the rms
                    let rounded = Tolerance { factor: f64::from(16 << 14), terms: 1 };
                    assert_close(&what, &found[0].1, &wanted[0].1, rounded);
                    assert!(found[0].1 != wanted[0].1, "{what}: nothing was rounded");
                }
            }
        }
    }
    for (dtype, len) in [(Dtype::F32, 35), (Dtype::Bf16, 20), (Dtype::Int8, 20), (Dtype::Int4, 20)] {
        let cpu = &machines_of(dtype)[0];
        assert_eq!(cpu.cache(5, 7).unwrap().len(), len, "{dtype}");
    }
}

/// Steps of one token a row at most, on both sides of lengths at which the GPU has one more block for the keys.
#[test]
fn cached_attention_over_long_rows() {
    for (heads, head_dim) in [(2, 16), (1, 64), (3, 8), (1, 7), (2, 80), (1, 256)] {
        let whole = Attention { lengths: &[66, 258], dims: AttentionDims { heads, head_dim }, narrow: false };
        let steps = &[[60, 254], [1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [1, 0]];
        let tolerance = Tolerance { factor: 8.0, terms: head_dim };
        check(&format!("cached attention {heads}x{head_dim}"), &Cached { whole, steps }, tolerance, &machines());
    }
}

/// Drops a third.
fn dropped() -> Mask {
    Mask::new(0.33, 1, 2, 3)
}

/// Attention within spans, which need not hold all tokens.
struct AttentionGradient<'a> {
    tokens: usize,
    bounds: &'a [(usize, usize)],
    dims: AttentionDims,
    mask: Mask,
}

impl AttentionGradient<'_> {
    /// The output and its saved logarithms; zero outside the spans.
    fn attend<B: Backend>(&self, b: &B, qkv: &B::Act) -> (B::Act, B::Real) {
        let (mut y, mut lse) =
            (b.act(self.tokens * self.dims.width()).unwrap(), b.real(self.tokens * self.dims.heads).unwrap());
        b.attention_fwd(&mut y, &mut lse, qkv, self.mask, &spans(b, self.bounds), self.dims);
        (y, lse)
    }
}

impl Gradient for AttentionGradient<'_> {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        vec![("qkv", normal(14, self.tokens * 3 * self.dims.width()))]
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        read_act(b, &self.attend(b, &act(b, &inputs[0])).0, self.tokens * self.dims.width())
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let (dims, qkv) = (self.dims, act(b, &inputs[0]));
        let (y, lse) = self.attend(b, &qkv);
        // Zeros outside the spans must stay.
        let mut old = vec![0.0; inputs[0].len()];
        for (start, end) in self.bounds {
            old[start * 3 * dims.width()..end * 3 * dims.width()].fill(f32::NAN);
        }
        let mut dqkv = act(b, &old);
        b.attention_bwd(&mut dqkv, &act(b, dy), &y, &lse, &qkv, self.mask, &spans(b, self.bounds), dims);
        vec![Grad::Assigned(read_act(b, &dqkv, old.len()))]
    }
}

#[test]
fn backward_attention() {
    for (tokens, bounds, heads, head_dim) in [
        (1, &[(0, 1)][..], 1, 1),
        (9, &[(1, 4), (4, 4), (5, 8)], 2, 5),
        (50, &[(0, 17), (17, 50)], 3, 16),
        (17, &[(0, 16), (16, 17)], 1, 67),
        (180, &[(0, 40), (41, 180)], 2, 64),
        (65, &[(0, 65)], 1, 80),
    ] {
        for mask in [Mask::NONE, dropped()] {
            let op = AttentionGradient { tokens, bounds, dims: AttentionDims { heads, head_dim }, mask };
            let what = format!("attention {bounds:?} {heads}x{head_dim}");
            check_backward(&what, &op, Tolerance { factor: 8.0, terms: head_dim.max(tokens) }, &machines());
        }
    }
}

#[test]
fn formula_of_attention() {
    let dims = AttentionDims { heads: 2, head_dim: 3 };
    for mask in [Mask::NONE, dropped()] {
        check_formula("attention", &AttentionGradient { tokens: 7, bounds: &[(0, 4), (5, 7)], dims, mask });
    }
}
