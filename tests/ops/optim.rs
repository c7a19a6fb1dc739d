//! The optimiser, the norm, dropout, and weights that take over new values.

use della::backend::{AdamW, Backend, Matrix, OptimOps, Parameter, Role};
use della::cpu::Cpu;
use della::dtype::Dtype;
use della::rng::Mask;

use crate::util::close::Tolerance;
use crate::util::normal;
use crate::util::op::{Op, Outputs, act, check, ids, machines, products, read, read_act, real, stale, stale_act};

/// Two steps along the same gradient.
struct Steps(usize);

impl Op for Steps {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let len = self.0;
        let mut p = real(b, &normal(1, len));
        let (mut m, mut v) = (b.real(len).unwrap(), b.real(len).unwrap());
        for step in [1, 2] {
            let step = AdamW { lr: 0.02, betas: (0.9, 0.95), epsilon: 1e-8, decay: 0.1, factor: 0.7, step };
            let mut gradient = real(b, &normal(2, len + 1));
            b.adamw(&mut p, &mut m, &mut v, &mut gradient, &step, len);
            let left = read(b, &gradient, len + 1);
            assert!(
                left[..len].iter().all(|g| *g == 0.0) && left[len] != 0.0,
                "the gradient is zero, and nothing else"
            );
        }
        vec![("p", read(b, &p, len)), ("m", read(b, &m, len)), ("v", read(b, &v, len))]
    }
}

#[test]
fn adamw() {
    for len in [0, 1, 15, 16, 17, 1000, 40_000] {
        check(&format!("adamw {len}"), &Steps(len), Tolerance { factor: 32.0, terms: 1 }, &machines());
    }
}

/// Parameters of different lengths at once, each with its decay; of the second, a matrix of as many columns is made, and
/// multiplied.
struct StepOfAll(usize);

impl Op for StepOfAll {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let lens = [3, self.0, 1, 2 * self.0 + 5];
        let of_each =
            |seed: usize| -> Vec<_> { (0..4).map(|i| real(b, &normal((seed + i) as u64, lens[i]))).collect() };
        let [mut values, mut means, mut squares, mut gradients] = [10, 20, 30, 40].map(of_each);
        for (square, len) in squares.iter_mut().zip(lens) {
            b.zero_real(square, len);
        }
        let stale = vec![9.0f32; self.0];
        let mut matrix = b.weight(Matrix { data: &stale, rows: 1, cols: self.0 }, Role::Latent).unwrap();
        let each = values.iter_mut().zip(&mut means).zip(&mut squares).zip(&mut gradients).zip(lens).enumerate();
        let mut of_second = Some((&mut matrix, Role::Latent));
        let mut parameters: Vec<_> = each
            .map(|(i, ((((values, mean), square), gradient), len))| {
                let (matrix, decay) = (if i == 1 { of_second.take() } else { None }, 0.1 * i as f64);
                Parameter { values, matrix, mean, square, gradient, decay, len }
            })
            .collect();
        let step = AdamW { lr: 0.02, betas: (0.9, 0.95), epsilon: 1e-8, decay: 0.0, factor: 0.7, step: 3 };
        b.adamw_all(&mut parameters, &step);
        let mut product = b.real(1).unwrap();
        b.latent_linear_fwd(&mut product, &real(b, &normal(50, self.0)), &matrix, 1, false);
        let mut outputs: Outputs = vec![("product", read(b, &product, 1))];
        for i in 0..4 {
            outputs.push(("p", read(b, &values[i], lens[i])));
            outputs.push(("m", read(b, &means[i], lens[i])));
            outputs.push(("v", read(b, &squares[i], lens[i])));
            outputs.push(("gradient", read(b, &gradients[i], lens[i])));
        }
        outputs
    }
}

#[test]
fn adamw_of_all() {
    for len in [1, 16, 1027, 20_000] {
        check(&format!("adamw of all {len}"), &StepOfAll(len), Tolerance { factor: 32.0, terms: len }, &machines());
    }
}

/// By hand: the first step moves by the learning rate, whatever the gradient's size, after decay.
#[test]
fn the_first_step_is_the_learning_rate() {
    let b = della::reference::Reference;
    let (mut p, mut m, mut v) = (real(&b, &[2.0f32, 2.0]), real(&b, &[0.0f32; 2]), real(&b, &[0.0f32; 2]));
    let step = AdamW { lr: 0.5, betas: (0.9, 0.95), epsilon: 0.0, decay: 0.5, factor: 1.0, step: 1 };
    b.adamw(&mut p, &mut m, &mut v, &mut real(&b, &[3.0f32, -0.001]), &step, 2);
    assert!((p[0] - 1.0).abs() < 1e-12 && (p[1] - 2.0).abs() < 1e-12, "{p:?}");
}

/// Sum of squares of more than a thread's share.
struct Squares(usize);

impl Op for Squares {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let (x, y) = (real(b, &normal(3, self.0 + 3)), real(b, &normal(4, self.0 + 1)));
        vec![("sum", vec![b.sum_squares(&[(&x, self.0), (&y, self.0 / 2)])]), ("nothing", vec![b.sum_squares(&[])])]
    }
}

#[test]
fn sums_of_squares() {
    for len in [0, 1, 63, 64, 65, 16_384, 100_001] {
        check(&format!("sum of squares {len}"), &Squares(len), Tolerance { factor: 16.0, terms: 1 }, &machines());
    }
}

/// Dropout in its three forms.
struct Dropout(usize, usize);

impl Op for Dropout {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Dropout(tokens, width) = *self;
        let (mask, len) = (Mask::new(0.4, 3, 4, 5), tokens * width);
        let x = normal(4, len);
        let (mut same, mut other, mut added) = (act(b, &x), stale_act(b, len), act(b, &x));
        b.dropout(&mut same, mask, tokens, width);
        b.dropout_fwd(&mut other, &act(b, &x), mask, tokens, width);
        b.dropout_residual_fwd(&mut added, &act(b, &normal(5, len)), mask, tokens, width);
        let read = |x| read_act(b, x, len);
        vec![("in place", read(&same)), ("copied", read(&other)), ("added", read(&added))]
    }
}

#[test]
fn dropout() {
    for (tokens, width) in [(1, 1), (3, 7), (5, 64), (300, 130)] {
        check(&format!("dropout {tokens}x{width}"), &Dropout(tokens, width), Tolerance::sum(1), &machines());
    }
}

/// Rows added where they were picked, at indices that are all different, all the same, or something in between.
struct Scatter(usize, usize, fn(usize) -> usize);

impl Op for Scatter {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Scatter(rows, width, index) = *self;
        let picked: Vec<u32> = (0..rows).map(|r| index(r) as u32).collect();
        let len = (picked.iter().max().map_or(0, |most| *most as usize) + 1) * width;
        let (x, twice) = (normal(9, rows * width), ids(b, &[&picked[..], &picked].concat()));
        let picked = ids(b, &picked);
        let mut sums = act(b, &normal(8, len));
        b.gather_rows_bwd(&mut sums, &act(b, &x), &picked, rows, width);
        // also where sums are f32 whatever the rows are
        let (mut tokens, mut positions) = (real(b, &normal(7, len)), real(b, &normal(6, len)));
        b.embed_bwd(&mut tokens, &mut positions, &act(b, &x), &twice, rows, width);
        vec![("sums", read_act(b, &sums, len)), ("tokens", read(b, &tokens, len))]
    }
}

#[test]
fn rows_are_added_up() {
    let some = |r: usize| if r.is_multiple_of(3) { 7 } else { r * r % 301 };
    let cases = [
        (Scatter(0, 4, |r| r), 1),
        (Scatter(1, 132, |_| 3), 2),
        (Scatter(7, 3, |_| 0), 8),
        (Scatter(37, 132, |r| 36 - r), 2),
        (Scatter(37, 260, |_| 0), 38),
        (Scatter(16, 4, |_| 0), 17),
        (Scatter(17, 4, |_| 0), 18),
        (Scatter(401, 20, some), 200),
        (Scatter(300, 8, |r| r * 64), 2),
        (Scatter(90, 8, |r| r % 3 * 64), 31),
        // more than are looked through at a time
        (Scatter(8500, 4, |r| if r.is_multiple_of(40) { 9 } else { r % 4000 }), 250),
    ];
    for (op, terms) in cases {
        let what = format!("{} rows of {} added up", op.0, op.1);
        // a few sums are far from the rest, and rounded at their own size
        check(&what, &op, Tolerance { factor: 16.0, terms }, &machines());
    }
}

/// Masks of latents, rows added where they were picked, zeroes.
struct Small(usize);

impl Op for Small {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let width = self.0;
        let mut masked = stale(b, 3 * width);
        b.mask_fwd(&mut masked, &real(b, &normal(6, 3 * width)), &real(b, &normal(7, 3 * width)), 3 * width);
        let mut sums = act(b, &normal(8, 5 * width));
        b.gather_rows_bwd(&mut sums, &act(b, &normal(9, 3 * width)), &ids(b, &[4, 0, 4]), 3, width);
        let (mut a, mut r) = (stale_act(b, 2 * width), stale(b, 2 * width));
        b.zero_act(&mut a, 2 * width);
        b.zero_real(&mut r, 2 * width);
        vec![
            ("masked", read(b, &masked, 3 * width)),
            ("sums", read_act(b, &sums, 5 * width)),
            ("zeros", read_act(b, &a, 2 * width)),
            ("zeros", read(b, &r, 2 * width)),
        ]
    }
}

#[test]
fn small_ops_of_training() {
    for width in [1, 16, 33, 700] {
        check(&format!("width {width}"), &Small(width), Tolerance::sum(2), &machines());
    }
}

/// A weight that takes over new values gives what one made of them gives.
struct Refreshed(Role, usize, usize);

impl Op for Refreshed {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Refreshed(role, rows, cols) = *self;
        let (old, new) = (normal(10, rows * cols), normal(11, rows * cols));
        let weight = |data: &[f32]| b.weight(Matrix { data, rows, cols }, role).unwrap();
        let mut refreshed = weight(&old);
        b.refresh(&mut refreshed, &real(b, &new), role);
        let run = |w: &B::Weight| {
            if role == Role::Linear {
                let (x, mut y) = (act(b, &normal(12, 2 * rows)), stale_act(b, 2 * cols));
                b.linear_fwd(&mut y, &x, w, &real(b, &vec![0.0f32; cols]), 2);
                read_act(b, &y, 2 * cols)
            } else if role == Role::Table {
                let mut y = stale_act(b, cols);
                b.embed_fwd(&mut y, &ids(b, &[rows as u32 - 1, 0]), w, w, 1);
                read_act(b, &y, cols)
            } else if role == Role::TiedTable {
                let (x, mut y) = (act(b, &normal(12, 2 * cols)), stale(b, 2 * rows));
                b.head_fwd(&mut y, &x, w, 2);
                read(b, &y, 2 * rows)
            } else {
                let (x, mut y) = (real(b, &normal(12, 2 * cols)), stale(b, 2 * rows));
                b.latent_linear_fwd(&mut y, &x, w, 2, false);
                read(b, &y, 2 * rows)
            }
        };
        let (found, wanted) = (run(&refreshed), run(&weight(&new)));
        assert_eq!(found, wanted, "{role:?} {rows}x{cols}");
        vec![("y", found)]
    }
}

#[test]
fn weights_take_over_new_values() {
    let all: Vec<Cpu> = machines().into_iter().chain(products(Dtype::F32)).collect();
    for role in [Role::Linear, Role::Latent, Role::Table, Role::TiedTable] {
        for (rows, cols) in [(1, 1), (5, 3), (33, 70)] {
            check("refreshed", &Refreshed(role, rows, cols), Tolerance::sum(rows.max(cols)), &all);
        }
    }
}
