//! Attention, whole and through a cache.

use della::backend::{AttentionDims, Backend, CacheRows, Spans};

use crate::util::close::{Tolerance, assert_close, assert_same_bits};
use crate::util::normal;
use crate::util::op::{Op, Outputs, act, check, ids, machines, name, read, read_act, stale, stale_act};

/// Attention over sequences of these lengths.
struct Attention<'a> {
    lengths: &'a [usize],
    dims: AttentionDims,
}

impl Attention<'_> {
    fn qkv(&self) -> Vec<f32> {
        normal(14, self.lengths.iter().sum::<usize>() * 3 * self.dims.width())
    }
}

impl Op for Attention<'_> {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let spans = Spans::of_lengths(b, self.lengths.iter().copied()).unwrap();
        let len = spans.tokens * self.dims.width();
        let mut y = stale_act(b, len);
        let lse_len = spans.tokens * self.dims.heads;
        let mut lse = stale(b, lse_len);
        b.attention_fwd(&mut y, &mut lse, &act(b, &self.qkv()), &spans, self.dims);
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
            let rows = CacheRows {
                spans: Spans::of_lengths(b, *step).unwrap(),
                slots: ids(b, &[2, 0]),
                past: ids(b, &past.map(|p| p as u32)),
                capacity,
            };
            let part = |row: usize| {
                let first = row * self.whole.lengths[0] + past[row];
                &qkv[first * 3 * width..(first + step[row]) * 3 * width]
            };
            let mut y = stale_act(b, (step[0] + step[1]) * width);
            let new = act(b, &[part(0), part(1)].concat());
            b.attention_cached_fwd(&mut y, &mut keys, &mut values, &new, &rows, dims);
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
        let op = Attention { lengths, dims: AttentionDims { heads, head_dim } };
        let what = format!("attention {lengths:?} {heads}x{head_dim}");
        check(&what, &op, Tolerance { factor: 8.0, terms: head_dim }, &machines());
    }
}

#[test]
fn cached_attention_is_attention() {
    for (heads, head_dim) in [(2, 16), (3, 7), (12, 64)] {
        let whole = Attention { lengths: &[23, 60], dims: AttentionDims { heads, head_dim } };
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
