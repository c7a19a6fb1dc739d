//! Running one operation on every device and comparing it with the oracle.

use della::backend::{Backend, Spans};
use della::cpu::{Cpu, Isa, Options, gemm};
use della::dtype::Dtype;
use della::reference::Reference;

use super::close::{Tolerance, assert_close, assert_same_bits};

/// Outputs and what is saved, by name.
pub type Outputs = Vec<(&'static str, Vec<f64>)>;

/// An operation with its arguments.
pub trait Op {
    /// Runs it.
    fn run<B: Backend>(&self, backend: &B) -> Outputs;
    /// Whether the emulated GPU, which is slow, runs it too.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    fn emulated(&self) -> bool {
        true
    }
}

/// A CPU for each instruction set and each number of threads.
pub fn machines() -> Vec<Cpu> {
    machines_of(Dtype::F32)
}

/// The same with weights of `dtype`.
pub fn machines_of(dtype: Dtype) -> Vec<Cpu> {
    let dtype = Some(dtype);
    let machine = |isa_cap, threads| Cpu::new(Options { threads, dtype, isa_cap, ..Options::default() }).unwrap();
    vectors().flat_map(|isa| [1, 3].map(|threads| machine(Some(isa), Some(threads)))).collect()
}

/// The instruction sets of this processor that differ in their vectors.
fn vectors() -> impl Iterator<Item = Isa> {
    Isa::available().filter(|isa| Isa::VECTORS.contains(isa))
}

/// A CPU for each matrix product of `dtype` that can run here, with 1 and with 3 threads.
pub fn products(dtype: Dtype) -> Vec<Cpu> {
    let product = |threads, name: &str| {
        let gemm = Some(name.into());
        Cpu::new(Options { threads: Some(threads), dtype: Some(dtype), gemm, ..Options::default() }).unwrap()
    };
    gemm::allowed(Isa::best(), dtype).flat_map(|entry| [1, 3].map(|threads| product(threads, entry.name))).collect()
}

/// A CPU with `threads` threads for each instruction set and each f32 matrix product that it allows.
pub fn cpus(threads: usize) -> impl Iterator<Item = Cpu> {
    vectors().flat_map(move |isa| {
        gemm::allowed(isa, Dtype::F32).map(move |entry| {
            let gemm = Some(entry.name.into());
            Cpu::new(Options { threads: Some(threads), isa_cap: Some(isa), gemm, ..Options::default() }).unwrap()
        })
    })
}

/// What a failure calls a machine.
pub fn name(cpu: &Cpu) -> String {
    format!("{} {} x{}", cpu.isa(), cpu.gemm(), cpu.threads())
}

/// Runs `op` on the oracle and on `machines`: every output must be within `tolerance`, and must have the same bits as on
/// the machine before, where only the number of threads differs. Then on the emulated GPU.
pub fn check(what: &str, op: &impl Op, tolerance: Tolerance, machines: &[Cpu]) {
    let wanted = op.run(&Reference);
    let mut before: Option<(&Cpu, Outputs)> = None;
    for cpu in machines {
        let found = op.run(cpu);
        for ((output, found), (_, wanted)) in found.iter().zip(&wanted) {
            assert_close(&format!("{what}: {output} on {}", name(cpu)), found, wanted, tolerance);
        }
        if let Some((other, results)) =
            before.filter(|(other, _)| (other.isa(), other.gemm()) == (cpu.isa(), cpu.gemm()))
        {
            for ((output, a), (_, b)) in found.iter().zip(&results) {
                assert_same_bits(&format!("{what}: {output} on {} and {}", name(cpu), name(other)), a, b);
            }
        }
        before = Some((cpu, found));
    }
    #[cfg(feature = "cuda")]
    if op.emulated() {
        super::emulator::check(what, op, &wanted, tolerance);
    }
}

/// An activation buffer with these values.
pub fn act<B: Backend>(backend: &B, x: &[f32]) -> B::Act {
    backend.act_from(x).unwrap()
}

/// A buffer with these values.
pub fn real<B: Backend>(backend: &B, x: &[f32]) -> B::Real {
    backend.real_from(x).unwrap()
}

/// Ids on the device.
pub fn ids<B: Backend>(backend: &B, x: &[u32]) -> B::Ids {
    backend.ids_from(x).unwrap()
}

/// Spans on the device.
pub fn spans<B: Backend>(backend: &B, bounds: &[(usize, usize)]) -> Spans<B> {
    Spans::new(backend, bounds).unwrap()
}

/// An activation buffer full of what no op may let through.
pub fn stale_act<B: Backend>(backend: &B, len: usize) -> B::Act {
    act(backend, &vec![f32::NAN; len])
}

/// A buffer full of what no op may let through.
pub fn stale<B: Backend>(backend: &B, len: usize) -> B::Real {
    real(backend, &vec![f32::NAN; len])
}

/// The first `len` values.
pub fn read_act<B: Backend>(backend: &B, x: &B::Act, len: usize) -> Vec<f64> {
    let mut host = vec![0.0; len];
    backend.read_act(&mut host, x);
    host
}

/// The first `len` values.
pub fn read<B: Backend>(backend: &B, x: &B::Real, len: usize) -> Vec<f64> {
    let mut host = vec![0.0; len];
    backend.read_real(&mut host, x);
    host
}
