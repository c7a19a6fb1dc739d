//! Backward passes: compared with the oracle on every device, and the oracle's with differences of its forward pass.

use della::backend::Backend;
use della::cpu::Cpu;
use della::reference::Reference;

use super::close::{Tolerance, assert_close};
use super::normal;
use super::op::{Op, Outputs, act, check, read, read_act, real, stale_act};

/// An operation with its arguments, and how it is differentiated by some of them.
pub trait Gradient {
    /// The arguments, by name.
    fn inputs(&self) -> Vec<(&'static str, Vec<f32>)>;
    /// The outputs, end to end.
    fn fwd<B: Backend>(&self, backend: &B, inputs: &[Vec<f32>]) -> Vec<f64>;
    /// The gradient by each argument of a loss whose gradient by the outputs is `dy`.
    fn bwd<B: Backend>(&self, backend: &B, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Grad>;
    /// Whether the emulated GPU, which is slow, runs it too.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    fn emulated(&self) -> bool {
        true
    }
}

/// What a backward pass made of a buffer.
pub enum Grad {
    /// It assigned the gradient.
    Assigned(Vec<f64>),
    /// It added the gradient to what [`start`] gives.
    Added(Vec<f64>),
}

/// What sums of gradients start from.
fn start(len: usize) -> Vec<f32> {
    normal(99, len)
}

impl Grad {
    /// Runs `f` on an activation buffer whose old content must not matter.
    pub fn assigned_act<B: Backend>(b: &B, len: usize, f: impl FnOnce(&mut B::Act)) -> Grad {
        let mut buffer = stale_act(b, len);
        f(&mut buffer);
        Grad::Assigned(read_act(b, &buffer, len))
    }

    /// A buffer that an op will add to.
    pub fn sums<B: Backend>(b: &B, len: usize) -> B::Real {
        real(b, &start(len))
    }

    /// A buffer that an op will add to.
    pub fn sums_act<B: Backend>(b: &B, len: usize) -> B::Act {
        act(b, &start(len))
    }

    /// Reads what was [`sums`](Grad::sums).
    pub fn added<B: Backend>(b: &B, sums: &B::Real, len: usize) -> Grad {
        Grad::Added(read(b, sums, len))
    }

    /// Reads what was [`sums_act`](Grad::sums_act).
    pub fn added_act<B: Backend>(b: &B, sums: &B::Act, len: usize) -> Grad {
        Grad::Added(read_act(b, sums, len))
    }
}

fn split<G: Gradient>(gradient: &G) -> (Vec<&'static str>, Vec<Vec<f32>>) {
    gradient.inputs().into_iter().unzip()
}

/// The backward pass as an operation.
struct Backward<'a, G>(&'a G);

impl<G: Gradient> Op for Backward<'_, G> {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let (names, inputs) = split(self.0);
        let dy = normal(98, self.0.fwd(b, &inputs).len());
        let grads = self.0.bwd(b, &inputs, &dy).into_iter().map(|grad| match grad {
            Grad::Assigned(x) | Grad::Added(x) => x,
        });
        names.into_iter().zip(grads).collect()
    }

    fn emulated(&self) -> bool {
        self.0.emulated()
    }
}

/// Compares the backward pass on `machines` with the oracle's.
pub fn check_backward(what: &str, gradient: &impl Gradient, tolerance: Tolerance, machines: &[Cpu]) {
    check(&format!("backward of {what}"), &Backward(gradient), tolerance, machines);
}

/// Compares the oracle's backward pass with differences of its forward pass, of fourth order in their step.
pub fn check_formula(what: &str, gradient: &impl Gradient) {
    /// Steps and inputs are short binary fractions, so that their sums are exact in f32.
    const STEP: f32 = 1.0 / 256.0;
    const UNIT: f32 = 4096.0;
    let (names, mut inputs) = split(gradient);
    inputs.iter_mut().flatten().for_each(|x| *x = (*x * UNIT).round() / UNIT);
    let dy = normal(98, gradient.fwd(&Reference, &inputs).len());
    let grads = gradient.bwd(&Reference, &inputs, &dy);
    assert_eq!(grads.len(), inputs.len(), "{what}: a gradient for each input");
    for (input, (name, grad)) in names.into_iter().zip(grads).enumerate() {
        let grad = match grad {
            Grad::Assigned(grad) => grad,
            Grad::Added(sum) => sum.iter().zip(start(sum.len())).map(|(sum, start)| sum - f64::from(start)).collect(),
        };
        let slope = |i: usize| {
            let mut loss = |steps: f32| {
                let before = inputs[input][i];
                inputs[input][i] += steps * STEP;
                let y = gradient.fwd(&Reference, &inputs);
                inputs[input][i] = before;
                y.iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy)).sum::<f64>()
            };
            let (near, far) = (loss(1.0) - loss(-1.0), loss(2.0) - loss(-2.0));
            (8.0 * near - far) / (12.0 * f64::from(STEP))
        };
        let slopes: Vec<f64> = (0..grad.len()).map(slope).collect();
        // about 1e-6 of the gradient
        assert_close(&format!("{what}: gradient by {name}"), &grad, &slopes, Tolerance { factor: 8.0, terms: 1 });
    }
}
