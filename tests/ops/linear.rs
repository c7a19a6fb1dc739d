//! Matrix products with every epilogue.

use della::backend::{Backend, LinearOps, Matrix, Norm, NormScratch, Role, Storage};
use della::cpu::Buffer;
use della::dtype::Dtype;

use crate::util::close::{Tolerance, assert_same_bits};
use crate::util::gradient::{Grad, Gradient, check_backward, check_formula};
use crate::util::normal;
use crate::util::op::{Op, Outputs, act, check, machines, name, products, read, read_act, real, stale, stale_act};

/// Rows, inputs, outputs: around the vectors' and panels' widths, the register tiles, the depth of a pass and the blocks
/// of rows; the sum of the last is so long that blocks of a GPU share it.
const SHAPES: [(usize, usize, usize); 22] = [
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
    (20, 2056, 8),
];

const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Int4];

/// Magnitudes that weights of four bits have on the side of the largest, and those on the other, which are negative.
const CODES: [f32; 15] =
    [127.0, 100.0, 79.0, 62.0, 47.0, 34.0, 21.0, 10.0, -123.0, -92.0, -72.0, -55.0, -40.0, -26.0, -13.0];

/// Activations `(rows, inputs)` that a product in `dtype` takes as they are. Of integers, every row has all 256 between its
/// extremes.
fn activations(dtype: Dtype, seed: u64, (rows, inputs): (usize, usize)) -> Vec<f32> {
    let mut x = normal(seed, rows * inputs);
    for (i, x) in x.iter_mut().enumerate() {
        match dtype {
            Dtype::Bf16 => *x = f32::from_bits(x.to_bits() & 0xffff_0000),
            Dtype::Int8 | Dtype::Int4 => {
                *x = match (i / inputs + i % inputs) % inputs {
                    0 if inputs == 1 => 63.75,
                    0 => 127.0,
                    1 => -128.0,
                    _ => (*x * 64.0).round().clamp(-128.0, 127.0),
                } / 64.0;
            }
            _ => {}
        }
    }
    x
}

/// Weights `(inputs, outputs)` that a product in `dtype` takes as they are. Of integers, each output has two magnitudes at
/// most, and each input the same ones, so that none has to be balanced.
fn weights(dtype: Dtype, seed: u64, (inputs, outputs): (usize, usize)) -> Vec<f32> {
    let mut w = normal(seed, inputs * outputs);
    for (i, w) in w.iter_mut().enumerate() {
        match dtype {
            Dtype::Bf16 => *w = f32::from_bits(w.to_bits() & 0xffff_0000),
            Dtype::Int8 => {
                let (k, n) = (i / outputs, i % outputs);
                let is_large = n == outputs / 2 * 2 || (k % 3 == 0) == (n % 2 == 0);
                let magnitude = if is_large { 127 } else { 1 + n / 2 * 37 % 126 } as f32;
                *w = (magnitude / 64.0).copysign(*w);
            }
            Dtype::Int4 => {
                let (k, n) = (i / outputs, i % outputs);
                let is_large = n == outputs / 2 * 2 || (k % 3 == 0) == (n % 2 == 0);
                let code = if is_large { 127.0 } else { CODES[n / 2 % CODES.len()] };
                let side = if (k / 32 + n / 2).is_multiple_of(2) { -127.0 } else { 127.0 };
                *w = code * side / 8192.0;
            }
            _ => {}
        }
    }
    w
}

/// Multiplications of a product that the emulated GPU does in a moment.
const EMULATED: usize = 1 << 19;

/// All products of one shape; of the rows, only those from `first` on.
struct Products {
    dtype: Dtype,
    first: usize,
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Op for Products {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Products { dtype, first, rows, inputs, outputs } = *self;
        let len = rows * outputs;
        let x = activations(dtype, 1, (first + rows, inputs))[first * inputs..].to_vec();
        let other = normal(4, (first + rows) * outputs)[first * outputs..].to_vec();
        let w = weights(dtype, 2, (inputs, outputs));
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

    fn emulated(&self) -> bool {
        self.dtype == Dtype::F32 && self.rows * self.inputs * self.outputs <= EMULATED
    }
}

#[test]
fn every_matrix_product() {
    for dtype in DTYPES {
        let mut all = products(dtype);
        if dtype == Dtype::F32 {
            all.extend(machines());
        }
        for (rows, inputs, outputs) in SHAPES {
            let op = Products { dtype, first: 0, rows, inputs, outputs };
            let mut tolerance = Tolerance::sum(inputs);
            if dtype == Dtype::Int4 {
                // The integer that stands for zero is taken off f32: so many times the sum of weights, which is large here.
                tolerance.factor *= 2.0;
            }
            check(&format!("{dtype} {rows}x{inputs}x{outputs}"), &op, tolerance, &all);
        }
    }
}

#[test]
fn a_row_alone_has_the_bits_of_the_row_in_a_batch() {
    // The first are so many that one thread's block has its weights widened once.
    for (all, inputs, outputs) in [(112, 70, 50), (32, 768, 2304), (32, 3072, 96)] {
        for cpu in DTYPES.into_iter().flat_map(products) {
            let run = |first, rows| Products { dtype: cpu.dtype(), first, rows, inputs, outputs }.run(&cpu);
            let batch = run(0, all);
            for (first, rows) in [(0, 1), (31, 1), (3, 2), (5, 5), (7, 12), (1, 13), (0, 17)] {
                for ((op, part), (_, whole)) in run(first, rows).iter().zip(&batch) {
                    let what = format!("{op}: {rows} rows of {inputs}x{outputs} on {}", name(&cpu));
                    assert_same_bits(&what, part, &whole[first * outputs..][..rows * outputs]);
                }
            }
        }
    }
}

#[test]
fn gelu_keeps_what_its_backward_pass_needs() {
    for cpu in machines() {
        for (rows, inputs, outputs) in [(3, 5, 7), (40, 30, 600)] {
            let (x, bias) = (act(&cpu, &normal(1, rows * inputs)), real(&cpu, &normal(3, outputs)));
            let w = normal(2, inputs * outputs);
            let w = cpu.weight(Matrix { data: &w, rows: inputs, cols: outputs }, Role::Linear).unwrap();
            let run = |f: &dyn Fn(&mut Buffer<f32>)| {
                let mut y = stale_act(&cpu, rows * outputs);
                f(&mut y);
                read_act(&cpu, &y, rows * outputs)
            };
            let mut u = stale_act(&cpu, rows * outputs);
            let fused = run(&|y| cpu.linear_gelu_fwd(y, None, &x, &w, &bias, rows));
            let mut kept = stale_act(&cpu, rows * outputs);
            cpu.linear_gelu_fwd(&mut kept, Some(&mut u), &x, &w, &bias, rows);
            assert_same_bits("gelu", &read_act(&cpu, &kept, rows * outputs), &fused);
            let plain = run(&|y| cpu.linear_fwd(y, &x, &w, &bias, rows));
            assert_same_bits("u", &read_act(&cpu, &u, rows * outputs), &plain);
        }
    }
}

/// Products behind a layer norm, which a device may fuse.
struct NormedProducts {
    rows: usize,
    width: usize,
    inner: usize,
}

impl Op for NormedProducts {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let NormedProducts { rows, width, inner } = *self;
        let len = rows * width;
        let mut x = b.stream(len).unwrap();
        b.write_act(&mut x, &normal(1, len));
        let (gain, shift) = (real(b, &normal(2, width)), real(b, &normal(3, width)));
        let weight = |seed, rows: usize, cols| {
            let data: Vec<f32> = normal(seed, rows * cols).iter().map(|w| w / (rows as f32).sqrt()).collect();
            b.weight(Matrix { data: &data, rows, cols }, Role::Linear).unwrap()
        };
        let (w_1, w_2) = (weight(4, width, inner), weight(5, inner, width));
        let (b_1, b_2) = (real(b, &normal(6, inner)), real(b, &normal(7, width)));
        let norm = || Norm { gain: &gain, bias: &shift, epsilon: 1e-5, width };
        let (mut y, mut mean, mut rstd) = (stale_act(b, len), stale(b, rows), stale(b, rows));
        let (mut linear, mut hidden, mut mlp) =
            (stale_act(b, rows * inner), stale_act(b, rows * inner), b.stream(len).unwrap());
        let scratch = NormScratch { y: &mut y, mean: &mut mean, rstd: &mut rstd };
        b.norm_linear_fwd(&mut linear, scratch, &x, norm(), (&w_1, &b_1), rows);
        let scratch = NormScratch { y: &mut y, mean: &mut mean, rstd: &mut rstd };
        b.mlp_fwd(&mut mlp, &mut hidden, scratch, &x, norm(), [(&w_1, &b_1), (&w_2, &b_2)], rows);
        vec![("linear", read_act(b, &linear, rows * inner)), ("mlp", read_act(b, &mlp, len))]
    }
}

#[test]
fn products_behind_a_norm() {
    let mut all = products(Dtype::F32);
    all.extend(machines());
    for (rows, width, inner) in [(1, 64, 48), (3, 96, 70), (8, 128, 64), (13, 130, 40), (16, 768, 24), (17, 64, 96)] {
        let op = NormedProducts { rows, width, inner };
        check(&format!("{rows}x{width}x{inner}"), &op, Tolerance::sum(4 * (width + inner)), &all);
    }
}

/// The products of one shape that have a backward pass.
#[derive(Clone, Copy, Debug)]
enum Product {
    Linear,
    LinearGelu,
    Head,
    Latent,
}

const PRODUCTS: [Product; 4] = [Product::Linear, Product::LinearGelu, Product::Head, Product::Latent];

struct ProductGradient {
    dtype: Dtype,
    product: Product,
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl ProductGradient {
    fn weight<B: Backend>(&self, b: &B, w: &[f32]) -> B::Weight {
        let (rows, cols, role) = match self.product {
            Product::Linear | Product::LinearGelu => (self.inputs, self.outputs, Role::Linear),
            Product::Head => (self.outputs, self.inputs, Role::TiedTable),
            Product::Latent => (self.outputs, self.inputs, Role::Latent),
        };
        b.weight(Matrix { data: w, rows, cols }, role).unwrap()
    }
}

impl Gradient for ProductGradient {
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)> {
        let weights = weights(self.dtype, 2, (self.inputs, self.outputs));
        // about 1 / √inputs, and exact
        let scale = (-(self.inputs.max(1) as f32).log2() / 2.0).round().exp2();
        let mut list = vec![
            ("x", activations(self.dtype, 1, (self.rows, self.inputs))),
            ("w", weights.iter().map(|w| w * scale).collect()),
        ];
        if let Product::Linear | Product::LinearGelu = self.product {
            list.push(("b", normal(3, self.outputs)));
        }
        list
    }

    fn fwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>]) -> Vec<f64> {
        let (rows, len) = (self.rows, self.rows * self.outputs);
        let (x, real_x, w) = (act(b, &inputs[0]), real(b, &inputs[0]), self.weight(b, &inputs[1]));
        let (mut y, mut real_y) = (stale_act(b, len), stale(b, len));
        match self.product {
            Product::Linear => b.linear_fwd(&mut y, &x, &w, &real(b, &inputs[2]), rows),
            Product::LinearGelu => b.linear_gelu_fwd(&mut y, None, &x, &w, &real(b, &inputs[2]), rows),
            Product::Head => b.head_fwd(&mut real_y, &x, &w, rows),
            Product::Latent => b.latent_linear_fwd(&mut real_y, &real_x, &w, rows, false),
        }
        match self.product {
            Product::Linear | Product::LinearGelu => read_act(b, &y, len),
            Product::Head | Product::Latent => read(b, &real_y, len),
        }
    }

    fn bwd<B: Backend>(&self, b: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad> {
        let (rows, x_len, w_len, y_len) = (self.rows, inputs[0].len(), inputs[1].len(), dy.len());
        let dy = &(if self.dtype == Dtype::F32 {
            dy.to_vec()
        } else {
            activations(self.dtype, 5, (rows, self.outputs))
        })[..];
        let (x, real_x, w) = (act(b, &inputs[0]), real(b, &inputs[0]), self.weight(b, &inputs[1]));
        let (mut dy, real_dy) = (act(b, dy), real(b, dy));
        let (mut dw, mut db) = (Grad::sums(b, w_len), Grad::sums(b, self.outputs));
        let dx = match self.product {
            Product::Linear | Product::LinearGelu => {
                if let Product::LinearGelu = self.product {
                    let (mut y, mut u, mut du) = (stale_act(b, y_len), stale_act(b, y_len), stale_act(b, y_len));
                    b.linear_gelu_fwd(&mut y, Some(&mut u), &x, &w, &real(b, &inputs[2]), rows);
                    b.gelu_bwd(&mut du, &dy, &u, y_len);
                    dy = du;
                }
                Grad::assigned_act(b, x_len, |dx| b.linear_bwd(dx, &mut dw, &mut db, &dy, &x, &w, rows))
            }
            Product::Head => Grad::assigned_act(b, x_len, |dx| b.head_bwd(dx, &mut dw, &real_dy, &x, &w, rows)),
            Product::Latent => {
                let mut dx = Grad::sums(b, x_len);
                b.latent_linear_bwd(&mut dx, &mut dw, &real_dy, &real_x, &w, rows);
                Grad::added(b, &dx, x_len)
            }
        };
        let mut grads = vec![dx, Grad::added(b, &dw, w_len)];
        if inputs.len() == 3 {
            grads.push(Grad::added(b, &db, self.outputs));
        }
        grads
    }

    fn emulated(&self) -> bool {
        self.dtype == Dtype::F32 && self.rows * self.inputs * self.outputs <= EMULATED
    }
}

#[test]
fn every_backward_product() {
    let machines = machines();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let products = products(dtype);
        // beside the shapes of the forward products some that are longer than the pieces that are packed at a time
        for (rows, inputs, outputs) in
            SHAPES.into_iter().chain([(2049, 9, 5), (2050, 16, 8), (3, 40, 2100), (1025, 65, 1030)])
        {
            for product in PRODUCTS {
                // the slope of gelu is a matter of instructions, all else of the matrix product
                let cpus = match (product, dtype) {
                    (Product::LinearGelu, Dtype::F32) => &machines,
                    (Product::LinearGelu, _) => continue,
                    _ => &products,
                };
                let op = ProductGradient { dtype, product, rows, inputs, outputs };
                let tolerance = Tolerance::sum(outputs.max(rows).max(inputs));
                check_backward(&format!("{dtype} {product:?} {rows}x{inputs}x{outputs}"), &op, tolerance, cpus);
            }
        }
    }
}

#[test]
fn formulas_of_products() {
    for product in PRODUCTS {
        let op = ProductGradient { dtype: Dtype::F32, product, rows: 3, inputs: 5, outputs: 4 };
        check_formula(&format!("{product:?}"), &op);
    }
}

#[test]
fn backward_products_allocate_only_once() {
    let (rows, inputs, outputs) = (70, 90, 130);
    let cpus = [Dtype::F32, Dtype::Bf16].into_iter().flat_map(products);
    for cpu in &cpus.filter(|cpu| cpu.threads() == 1).collect::<Vec<_>>() {
        let w = normal(2, inputs * outputs);
        let w = cpu.weight(Matrix { data: &w, rows: inputs, cols: outputs }, Role::Linear).unwrap();
        let (x, dy) = (act(cpu, &normal(1, rows * inputs)), act(cpu, &normal(4, rows * outputs)));
        let (mut dx, mut dw, mut db) =
            (stale_act(cpu, rows * inputs), real(cpu, &[0.0; 11700]), real(cpu, &[0.0; 130]));
        let mut run = || cpu.linear_bwd(&mut dx, &mut dw, &mut db, &dy, &x, &w, rows);
        run();
        // `matrixmultiply` has its own memory
        if cpu.gemm() != "matrixmultiply-f32" {
            assert_eq!(allocation_counter::measure(run).count_total, 0, "{}", name(cpu));
        }
    }
}
