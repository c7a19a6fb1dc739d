//! The CPU backend: f32 activations, weights of f32, bf16, int8 or int4 packed for the matrix product, kernels chosen at run time.
//!
//! Layers, each using those before it: `arch` (intrinsics), `simd` (kernels written once), [`gemm`] (matrix products), `ops` (the
//! groups of operations of [`backend`](crate::backend)). A result depends neither on the number of threads nor on the
//! batch that a row is computed in: every sum runs in an order given by its own length.

pub(crate) mod arch;
mod buffer;
pub mod gemm;
mod isa;
mod ops;
mod parallel;
pub mod simd;

pub use buffer::Buffer;
pub use isa::{Features, Isa};

use std::num::NonZero;
use std::sync::Mutex;
use std::thread::available_parallelism;

use crate::backend::{HostFloat, Matrix, Role, Storage};
use crate::dtype::Dtype;
use crate::env::variable;
use crate::error::{Error, Result};
use gemm::{Gemm, Weight};
use parallel::{MAX_THREADS, Pool};
use simd::{Kernel, Token};

/// How to run on the CPU; the default is to use all of it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads that work on an operation together.
    pub threads: Option<usize>,
    /// Use no instruction set beyond this one.
    pub isa_cap: Option<Isa>,
    /// What the weights of the two stacks are: f32, bf16, int8 or int4. Latents are computed in f32.
    pub dtype: Option<Dtype>,
    /// The matrix product of this name in [`gemm::REGISTRY`], instead of the first that the instruction set allows.
    pub gemm: Option<String>,
}

impl Options {
    /// Fills in what is open from `DELLA_THREADS`, `DELLA_ISA` and `DELLA_GEMM`.
    ///
    /// # Errors
    /// A variable whose value is not one of the choices.
    pub fn or_env(self) -> Result<Self> {
        self.or_vars(variable)
    }

    fn or_vars(self, var: impl Fn(&str) -> Result<Option<String>>) -> Result<Self> {
        /// Parses the variable, and names it if that fails.
        fn parse<T>(name: &str, value: Option<String>, parse: impl Fn(&str) -> Result<T>) -> Result<Option<T>> {
            value.map(|value| parse(&value)).transpose().map_err(|e| match e {
                Error::Input { message, .. } => Error::input(name, message),
                e => e,
            })
        }
        let threads = parse("DELLA_THREADS", var("DELLA_THREADS")?, |n| {
            n.parse().map_err(|_| Error::input("threads", format!("{n:?} is not a number of threads")))
        })?;
        let isa = parse("DELLA_ISA", var("DELLA_ISA")?, str::parse)?;
        let gemm = parse("DELLA_GEMM", var("DELLA_GEMM")?, |name| gemm::find(name).map(|entry| entry.name.into()))?;
        Ok(Options {
            threads: self.threads.or(threads),
            isa_cap: self.isa_cap.or(isa),
            dtype: self.dtype,
            gemm: self.gemm.or(gemm),
        })
    }
}

/// The CPU as a backend: an instruction set, a matrix product and a pool of threads.
pub struct Cpu {
    isa: Isa,
    token: Token,
    dtype: Dtype,
    gemm: Box<dyn Gemm>,
    /// For latents, if not the same.
    exact: Option<Box<dyn Gemm>>,
    /// For the tied table, if not the same: with 4 bits tokens could not be told apart well enough.
    tied: Option<Box<dyn Gemm>>,
    pool: Pool,
}

impl Cpu {
    /// Picks the fastest instruction set and matrix product that the options leave.
    ///
    /// # Errors
    /// A matrix product that is unknown, of another dtype, or that needs more than the instruction set; a dtype that none
    /// has; no threads, or too many.
    pub fn new(options: Options) -> Result<Self> {
        let cap = options.isa_cap.unwrap_or(Isa::Amx);
        let dtype = options.dtype.unwrap_or(Dtype::F32);
        let mut allowed = Isa::ALL.into_iter().rev().filter(|isa| *isa <= cap);
        let found = allowed.find_map(|isa| Some((isa, isa.token()?)));
        let (isa, token) = found.expect("every processor has the portable instructions");
        let available = || available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
        Ok(Cpu {
            isa,
            token,
            dtype,
            gemm: gemm::select(options.gemm.as_deref(), isa, dtype)?,
            exact: (dtype != Dtype::F32).then(|| gemm::select(None, isa, Dtype::F32)).transpose()?,
            tied: (dtype == Dtype::Int4).then(|| gemm::select(None, isa, Dtype::Int8)).transpose()?,
            pool: Pool::new(options.threads.unwrap_or_else(available))?,
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What the weights of the two stacks are.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The matrix product for latents.
    fn exact(&self) -> &dyn Gemm {
        self.exact.as_ref().unwrap_or(&self.gemm).as_ref()
    }

    /// The matrix product for the tied table.
    fn tied(&self) -> &dyn Gemm {
        self.tied.as_ref().unwrap_or(&self.gemm).as_ref()
    }

    /// The name of the matrix product in use.
    pub fn gemm(&self) -> &'static str {
        self.gemm.name()
    }

    /// Threads that work on an operation together.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `kernel` with the instruction set in use.
    #[inline]
    fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.token.run(kernel)
    }
}

impl Storage for Cpu {
    type Act = Buffer<f32>;
    type Real = Buffer<f32>;
    type Ids = Buffer<u32>;
    type Weight = Weight;

    const PASS_TOKENS: usize = 1024;

    fn act(&self, len: usize) -> Result<Buffer<f32>> {
        Buffer::try_zeroed(len)
    }

    fn real(&self, len: usize) -> Result<Buffer<f32>> {
        Buffer::try_zeroed(len)
    }

    fn ids(&self, len: usize) -> Result<Buffer<u32>> {
        Buffer::try_zeroed(len)
    }

    fn weight(&self, matrix: Matrix<'_>, role: Role) -> Result<Weight> {
        matrix.check()?;
        match role {
            Role::Table => Weight::table(matrix),
            Role::Linear => self.gemm.prepare(&self.pool, matrix, false),
            Role::TiedTable => self.tied().prepare(&self.pool, matrix, true),
            Role::Latent => self.exact().prepare(&self.pool, matrix, true),
        }
    }

    fn refresh(&self, weight: &mut Weight, values: &Buffer<f32>, role: Role) {
        weight.refresh(&self.pool, self.token, values, role != Role::Linear);
    }

    fn write_act<F: HostFloat>(&self, dst: &mut Buffer<f32>, src: &[F]) {
        self.write_real(dst, src);
    }

    fn write_real<F: HostFloat>(&self, dst: &mut Buffer<f32>, src: &[F]) {
        for (dst, src) in dst[..src.len()].iter_mut().zip(src) {
            *dst = src.to_f32();
        }
    }

    fn write_ids(&self, dst: &mut Buffer<u32>, src: &[u32]) {
        dst[..src.len()].copy_from_slice(src);
    }

    fn read_act<F: HostFloat>(&self, dst: &mut [F], src: &Buffer<f32>) {
        self.read_real(dst, src);
    }

    fn read_real_at<F: HostFloat>(&self, dst: &mut [F], src: &Buffer<f32>, start: usize) {
        // Memory that is new to the process costs more than the copy, and threads divide that too.
        const PART: usize = 1 << 18;
        let src = &src[start..start + dst.len()];
        let mut parts: Vec<_> = dst.chunks_mut(PART).zip(src.chunks(PART)).collect();
        self.for_each(&mut parts, |_, (dst, src)| {
            dst.iter_mut().zip(*src).for_each(|(dst, src)| *dst = F::from_f32(*src));
        });
    }

    fn for_each<T: Send>(&self, items: &mut [T], task: impl Fn(usize, &mut T) + Sync) {
        let items: Vec<_> = items.iter_mut().map(Mutex::new).collect();
        self.pool.run(items.len(), |i| {
            if let Ok(mut item) = items[i].lock() {
                task(i, &mut item);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_memory_cannot_hold_is_an_error() {
        let cpu = Cpu::new(Options { threads: Some(1), ..Options::default() }).unwrap();
        let len = usize::MAX / 8;
        let errors = [cpu.act(len).err(), cpu.real(len).err(), cpu.ids(len).err()];
        assert!(errors.iter().all(|error| matches!(error, Some(Error::Unsupported(_)))), "{errors:?}");
    }

    #[test]
    fn variables_fill_what_is_open() {
        let with = |name: &'static str, value: &'static str, options: Options| {
            options.or_vars(move |n| Ok((n == name).then(|| value.into())))
        };
        assert_eq!(with("DELLA_ISA", "avx2", Options::default()).unwrap().isa_cap, Some(Isa::Avx2));
        assert_eq!(with("DELLA_THREADS", "7", Options::default()).unwrap().threads, Some(7));
        let given = Options { threads: Some(2), ..Options::default() };
        assert_eq!(with("DELLA_THREADS", "7", given).unwrap().threads, Some(2));
        let gemm = with("DELLA_GEMM", "matrixmultiply-f32", Options::default()).unwrap().gemm;
        assert_eq!(Cpu::new(Options { gemm, ..Options::default() }).unwrap().gemm(), "matrixmultiply-f32");
        for (name, value, choice) in [
            ("DELLA_ISA", "sse9", "avx512, avx512-vnni"),
            ("DELLA_GEMM", "fast", "portable-f32-panel"),
            ("DELLA_THREADS", "many", "number"),
        ] {
            let message = with(name, value, Options::default()).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(value) && message.contains(choice), "{message}");
        }
    }
}
