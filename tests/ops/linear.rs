//! Matrix products with every epilogue.

use della::backend::{Backend, Matrix, Role};
use della::cpu::Cpu;

use crate::util::close::{Tolerance, assert_same_bits};
use crate::util::normal;
use crate::util::op::{Op, Outputs, act, check, machines, name, products, read, read_act, real, stale, stale_act};

/// Rows, inputs, outputs: around the vectors' and panels' widths, the register tiles, the depth of a pass and the blocks
/// of rows.
const SHAPES: [(usize, usize, usize); 21] = [
    (0, 3, 5),
    (1, 1, 1),
    (1, 0, 3),
    (1, 7, 3),
    (2, 3, 8),
    (3, 16, 15),
    (4, 5, 17),
    (5, 64, 33),
    (6, 31, 16),
    (7, 255, 31),
    (11, 256, 32),
    (12, 257, 64),
    (1, 513, 65),
    (13, 513, 65),
    (25, 48, 97),
    (32, 200, 130),
    (145, 260, 70),
    (300, 33, 300),
    (1, 768, 2304),
    (17, 768, 768),
    (2, 3072, 768),
];

/// All products of one shape; of the rows, only those from `first` on.
struct Products {
    first: usize,
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Op for Products {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Products { first, rows, inputs, outputs } = *self;
        let len = rows * outputs;
        let x = normal(1, (first + rows) * inputs)[first * inputs..].to_vec();
        let other = normal(4, (first + rows) * outputs)[first * outputs..].to_vec();
        let w = normal(2, inputs * outputs);
        let w_t: Vec<f32> = (0..w.len()).map(|i| w[i % inputs * outputs + i / inputs]).collect();
        let bias = real(b, &normal(3, outputs));
        let linear = b.weight(Matrix { data: &w, rows: inputs, cols: outputs }, Role::Linear).unwrap();
        let transposed = |role| b.weight(Matrix { data: &w_t, rows: outputs, cols: inputs }, role).unwrap();
        let latent = transposed(Role::Latent);

        let (act_x, real_x) = (act(b, &x), real(b, &x));
        let (mut y, mut gelu, mut residual) = (stale_act(b, len), stale_act(b, len), stale_act(b, len));
        let (mut head, mut plain, mut sum) = (stale(b, len), stale(b, len), real(b, &other));
        b.linear_fwd(&mut y, &act_x, &linear, &bias, rows);
        b.linear_gelu_fwd(&mut gelu, None, &act_x, &linear, &bias, rows);
        b.linear_residual_fwd(&mut residual, &act(b, &other), &act_x, &linear, &bias, rows);
        b.head_fwd(&mut head, &act_x, &transposed(Role::TiedTable), rows);
        b.latent_linear_fwd(&mut plain, &real_x, &latent, rows, false);
        b.latent_linear_fwd(&mut sum, &real_x, &latent, rows, true);
        vec![
            ("linear", read_act(b, &y, len)),
            ("gelu", read_act(b, &gelu, len)),
            ("residual", read_act(b, &residual, len)),
            ("head", read(b, &head, len)),
            ("latent", read(b, &plain, len)),
            ("accumulated", read(b, &sum, len)),
        ]
    }
}

#[test]
fn every_matrix_product() {
    let all: Vec<Cpu> = products().into_iter().chain(machines()).collect();
    for (rows, inputs, outputs) in SHAPES {
        let op = Products { first: 0, rows, inputs, outputs };
        check(&format!("{rows}x{inputs}x{outputs}"), &op, Tolerance::sum(inputs), &all);
    }
}

#[test]
fn a_row_alone_has_the_bits_of_the_row_in_a_batch() {
    const ROWS: usize = 32;
    for (inputs, outputs) in [(70, 50), (768, 2304), (3072, 96)] {
        for cpu in products() {
            let run = |first, rows| Products { first, rows, inputs, outputs }.run(&cpu);
            let batch = run(0, ROWS);
            for (first, rows) in [(0, 1), (31, 1), (3, 2), (5, 5), (7, 12), (1, 13), (0, 17)] {
                for ((op, part), (_, whole)) in run(first, rows).iter().zip(&batch) {
                    let what = format!("{op}: {rows} rows of {inputs}x{outputs} on {}", name(&cpu));
                    assert_same_bits(&what, part, &whole[first * outputs..][..rows * outputs]);
                }
            }
        }
    }
}
