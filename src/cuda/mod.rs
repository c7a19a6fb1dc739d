//! The CUDA backend: our kernels (`kernels/`), on an NVIDIA GPU or emulated on the CPU.
//!
//! Layers, each using those before it: [`driver`] (a GPU through its driver, or the emulator), [`source`] and [`registry`]
//! (which kernels there are), `buffer` (memory), `launch` (choosing, compiling, launching), `ops` (the groups of operations of
//! [`backend`](crate::backend)). Activations and weights are f32 or bf16; statistics, latents, losses and the optimiser's
//! values are f32. Sums run in an order given by their own length, without atomics: a kernel's results do not depend
//! on the batch. Which kernel takes a product does, by its number of rows, and which one attends over a cache: one for
//! steps of one token a row, another where a row has several.
//!
//! Ops return at once; a device's failure shows later. It is kept, everything after it is skipped, and
//! [`Storage::status`] tells.

pub mod ahead;
pub mod archive;
mod buffer;
mod cache;
pub mod choice;
mod compile;
pub mod driver;
mod graph;
mod launch;
mod ops;
pub mod problem;
pub mod registry;
pub mod source;
pub mod trial;

pub use buffer::{Buffer, Memory};
pub use launch::{Choice, Kernels};

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use half::bf16;

use crate::backend::{HostFloat, Matrix, Recordings, Role, Storage};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use choice::Forced;
use driver::{Address, Arg, Driver, Tiling};
use graph::Recorded;
use problem::{Layout, Problem, Types};
use registry::{Kernel, Tail};
use source::Sources;

/// A GPU, or the CPU in its place.
pub struct Cuda {
    driver: Arc<dyn Driver>,
    memory: Arc<Memory>,
    kernels: Kernels,
    dtype: Dtype,
    failure: OnceLock<String>,
    /// [`registry::COUNTERS`] of them, 0 between kernels.
    counters: Arc<Buffer>,
    /// Bytes on their way to or from the device.
    staging: Mutex<Vec<u8>>,
    /// How the last tokens were drawn, and where the device has that.
    settings: Mutex<Option<(Vec<u32>, Buffer)>>,
}

/// A matrix of parameters.
pub struct Weight {
    buffer: Buffer,
    rows: usize,
    cols: usize,
    /// As it is stored.
    bf16: bool,
}

impl Cuda {
    /// Prepares a device: compiles the kernels that it needs for `dtype`.
    ///
    /// # Errors
    /// `dtype` is neither f32 nor bf16; a kernel cannot be compiled; a variable of the environment is wrong.
    pub fn new(driver: Arc<dyn Driver>, sources: &Sources, forced: Forced, dtype: Dtype) -> Result<Self> {
        if !registry::computes(dtype) {
            return Err(Error::Unsupported(format!("the cuda device computes in f32 and bf16, not in {dtype}")));
        }
        let kernels = Kernels::load(driver.as_ref(), sources, forced, dtype == Dtype::Bf16)?;
        let memory = Memory::new(driver.clone());
        let counters = memory.buffer(registry::COUNTERS, 4)?;
        driver::zero(driver.as_ref(), counters.first(registry::COUNTERS), 4 * registry::COUNTERS)?;
        let counters = Arc::new(counters);
        Ok(Cuda {
            driver,
            memory,
            kernels,
            dtype,
            failure: OnceLock::new(),
            counters,
            staging: Mutex::default(),
            settings: Mutex::default(),
        })
    }

    /// The same device and memory, on which `kernel` is taken wherever it computes what is asked.
    fn trying(&self, kernel: &'static Kernel) -> Self {
        Cuda {
            driver: self.driver.clone(),
            memory: self.memory.clone(),
            kernels: self.kernels.trying(kernel),
            dtype: self.dtype,
            failure: OnceLock::new(),
            counters: self.counters.clone(),
            staging: Mutex::default(),
            settings: Mutex::default(),
        }
    }

    /// What activations and weights are.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The device.
    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_ref()
    }

    /// The kernels that were compiled for it.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    fn is_bf16(&self) -> bool {
        self.dtype == Dtype::Bf16
    }

    /// The types of a pass over activations.
    fn act_types(&self) -> Types {
        Types::act(self.is_bf16())
    }

    /// The types of a pass over a buffer's elements.
    fn types_of(x: &Buffer) -> Types {
        Types::act(x.width() == 2)
    }

    /// The types of a pass from `x` to `y`.
    fn types_from(x: &Buffer, y: &Buffer) -> Types {
        Types::convert(x.width() == 2, y.width() == 2)
    }

    /// Keeps the first failure; afterwards nothing is asked of the device any more.
    fn attempt<T>(&self, work: impl FnOnce() -> Result<T>) -> Option<T> {
        if self.failure.get().is_some() {
            return None;
        }
        work().map_err(|e| self.failure.set(e.to_string())).ok()
    }

    /// Launches the kernel of `op` for `problem`.
    fn launch(&self, op: &'static str, problem: Problem, args: &[Arg]) {
        self.attempt(|| self.kernels.launch(self.driver.as_ref(), op, &problem, args));
    }

    /// `y (m, n) = a b`; see [`Product`].
    fn product(&self, layout: Layout, [m, n, k]: [usize; 3], product: &Product<'_>) {
        let &Product { y, a, b, a_stride, bias, residual, save, gelu, accumulate } = product;
        debug_assert!(
            !(gelu || save.is_some()) || !(residual.is_some() || accumulate),
            "tiles begin with what is added"
        );
        let (y_at, y_bf16) = y;
        let [(a_at, a_bf16), (b_at, b_bf16)] = [a, b];
        let stride = a_stride.unwrap_or(if layout == Layout::Tn { m } else { k });
        let types = Types::product(layout, a_bf16, b_bf16, y_bf16);
        let problem = Problem { depth: k, stride, ..Problem::matrix(types, m, n) };
        let finish = [or_null(bias, n), or_null(residual, m * n), or_null(save, m * n)];
        let [none, sizes] = [[Arg::Address(0); 3], [int(m), int(n), int(k)]];
        self.attempt(|| {
            let choice = self.kernels.choose("gemm", &problem)?;
            let splits = choice.kernel.splits();
            // sums that several blocks share are finished by another kernel
            let parts = (splits > 1).then(|| self.memory.buffer(splits * m * n, 4)).transpose()?;
            let (to, follows, gelu_here, accumulate_here) = match &parts {
                Some(parts) => (parts.first(splits * m * n), none, false, false),
                None => (y_at, finish, gelu, accumulate),
            };
            let mut args = vec![Arg::Address(to), Arg::Address(a_at), Arg::Address(b_at)];
            args.extend(follows);
            args.extend([Arg::Int(gelu_here.into()), Arg::Int(accumulate_here.into())]);
            args.extend(sizes);
            args.push(int(stride));
            if let Some(boxes) = choice.kernel.tiles {
                args.extend(self.maps(layout, [m, n, k], [a_at, b_at], stride, boxes)?);
            }
            let tail = choice.kernel.has_tail().then(|| Tail::of(&problem));
            if let Some(tail) = tail {
                return self.product_with_tail(&choice, args, tail, (y_at, accumulate), [m, n]);
            }
            self.kernels.run(self.driver.as_ref(), &choice, &args)?;
            let Some(parts) = parts else { return Ok(()) };
            let mut args = vec![Arg::Address(y_at), Arg::Address(parts.first(splits * m * n))];
            args.extend(finish);
            args.extend([Arg::Int(gelu.into()), Arg::Int(accumulate.into()), int(m), int(n), int(splits)]);
            let problem = Problem::matrix(Types::finish(y_bf16), m, n);
            self.kernels.launch(self.driver.as_ref(), "gemm_finish", &problem, &args)
        });
    }

    /// A product whose last tiles several blocks share; another kernel adds up their parts.
    fn product_with_tail(
        &self,
        choice: &Choice,
        mut args: Vec<Arg>,
        tail: Tail,
        (y, accumulate): (Address, bool),
        [m, n]: [usize; 2],
    ) -> Result<()> {
        let parts = self.memory.buffer(tail.parts_len(), 4)?;
        let (parts_at, counts) = (Arg::Address(parts.first(tail.parts_len())), [int(tail.tiles), int(tail.sharers)]);
        args.push(parts_at);
        args.extend(counts);
        self.kernels.run(self.driver.as_ref(), choice, &args)?;
        let mut args = vec![Arg::Address(y), parts_at, Arg::Int(accumulate.into()), int(m), int(n)];
        args.extend(counts);
        let problem = Problem::matrix(Types::F32, tail.tiles, 128 * 128);
        self.kernels.launch(self.driver.as_ref(), "gemm_tail", &problem, &args)
    }

    /// A product's operands for the tensor memory accelerator: of a transposed one it reads boxes of 64 rows, of the others
    /// boxes of 64 columns.
    fn maps(
        &self,
        layout: Layout,
        [m, n, k]: [usize; 3],
        [a, b]: [Address; 2],
        stride: usize,
        [a_box, b_box]: [u32; 2],
    ) -> Result<[Arg; 2]> {
        let map = |base, [cols, rows]: [usize; 2], stride, tile| {
            let dims = [cols as u64, rows as u64];
            self.driver.tensor_map(&Tiling { base, dims, stride: stride as u64, tile }).map(Arg::Map)
        };
        Ok([
            match layout {
                Layout::Tn => map(a, [m, k], stride, [64, 64])?,
                _ => map(a, [k, m], stride, [64, a_box])?,
            },
            match layout {
                Layout::Nt => map(b, [k, n], k, [64, b_box])?,
                _ => map(b, [n, k], n, [64, 64])?,
            },
        ])
    }

    /// Rounds rows of f32 to bf16; they grow to `stride` elements by zeros.
    fn narrow(&self, dst: Address, src: Address, [rows, cols]: [usize; 2], stride: usize) {
        let args = [Arg::Address(dst), Arg::Address(src), int(cols), int(stride)];
        let problem = Problem::matrix(Types::convert(false, true), rows, stride);
        self.launch("cast", Problem { depth: cols, ..problem }, &args);
    }

    /// Memory that an op needs only while it runs, with any content.
    fn scratch(&self, len: usize, width: usize) -> Option<Buffer> {
        self.attempt(|| self.memory.buffer(len, width))
    }

    fn zeroed(&self, len: usize, width: usize) -> Result<Buffer> {
        let buffer = self.memory.buffer(len, width)?;
        self.zero(&buffer, len);
        Ok(buffer)
    }

    fn zero(&self, buffer: &Buffer, len: usize) {
        let dst = buffer.first(len);
        self.attempt(|| driver::zero(self.driver.as_ref(), dst, len * buffer.width()));
    }

    fn copy(&self, dst: Address, src: Address, bytes: usize) {
        self.attempt(|| driver::copy(self.driver.as_ref(), dst, src, bytes));
    }

    /// Writes `bytes` for each of `len` elements to the start of `dst`.
    fn write<const W: usize>(&self, dst: &Buffer, values: impl ExactSizeIterator<Item = [u8; W]>) {
        debug_assert_eq!(dst.width(), W);
        let address = dst.first(values.len());
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.clear();
        staging.extend(values.flatten());
        self.attempt(|| driver::write(self.driver.as_ref(), address, &staging));
    }

    /// Reads `count` elements of `W` bytes from `start` on. After a failure they are zeros.
    fn read<const W: usize>(&self, src: &Buffer, start: usize, count: usize, mut each: impl FnMut(usize, [u8; W])) {
        debug_assert_eq!(src.width(), W);
        let address = src.range(start, count);
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.clear();
        staging.resize(count * W, 0);
        self.attempt(|| driver::read(self.driver.as_ref(), &mut staging, address));
        for (i, bytes) in staging.as_chunks::<W>().0.iter().enumerate() {
            each(i, *bytes);
        }
    }

    fn write_floats<F: HostFloat>(&self, dst: &Buffer, src: &[F]) {
        match dst.width() {
            2 => self.write(dst, src.iter().map(|x| bf16::from_f32(x.to_f32()).to_ne_bytes())),
            _ => self.write(dst, src.iter().map(|x| x.to_f32().to_ne_bytes())),
        }
    }

    fn read_floats<F: HostFloat>(&self, dst: &mut [F], src: &Buffer, start: usize) {
        let count = dst.len();
        match src.width() {
            2 => self.read(src, start, count, |i, x| dst[i] = F::from_f32(bf16::from_ne_bytes(x).to_f32())),
            _ => self.read(src, start, count, |i, x| dst[i] = F::from_f32(f32::from_ne_bytes(x))),
        }
    }
}

/// A product with what is fused behind it: `v = a b + bias`, `save = v`, `v = gelu(v)` if wanted, `y = v + residual`, or
/// `y += …`. Operands are addresses with whether they are bf16.
struct Product<'a> {
    y: (Address, bool),
    a: (Address, bool),
    b: (Address, bool),
    /// Elements from row to row of `a`, if it has more than its columns; between them are zeros.
    a_stride: Option<usize>,
    bias: Option<&'a Buffer>,
    residual: Option<&'a Buffer>,
    save: Option<&'a Buffer>,
    gelu: bool,
    accumulate: bool,
}

impl Product<'_> {
    /// `y = a b`
    fn plain(y: (Address, bool), a: (Address, bool), b: (Address, bool)) -> Self {
        Product { y, a, b, a_stride: None, bias: None, residual: None, save: None, gelu: false, accumulate: false }
    }
}

/// The first `len` elements of a buffer, if there is one.
fn or_null(buffer: Option<&Buffer>, len: usize) -> Arg {
    Arg::Address(buffer.map_or(0, |buffer| buffer.first(len)))
}

/// A size as kernels take it.
///
/// # Panics
/// If it is beyond an `int`, which no buffer of a step is.
fn int(size: usize) -> Arg {
    Arg::Int(i32::try_from(size).expect("a size of a kernel fits in an int"))
}

impl Storage for Cuda {
    type Act = Buffer;
    type Real = Buffer;
    type Ids = Buffer;
    type Weight = Weight;

    /// Few enough that a model of 21,000 words takes half a GiB for them.
    const HEAD_TOKENS: usize = 4096;

    fn act(&self, len: usize) -> Result<Buffer> {
        self.zeroed(len, if self.is_bf16() { 2 } else { 4 })
    }

    fn stream(&self, len: usize) -> Result<Buffer> {
        self.zeroed(len, 4)
    }

    fn real(&self, len: usize) -> Result<Buffer> {
        self.zeroed(len, 4)
    }

    fn ids(&self, len: usize) -> Result<Buffer> {
        self.zeroed(len, 4)
    }

    fn weight(&self, matrix: Matrix<'_>, role: Role) -> Result<Weight> {
        matrix.check()?;
        // tables that are only looked up take no part in products
        let bf16 = self.is_bf16() && matches!(role, Role::Linear | Role::TiedTable);
        let buffer = self.memory.buffer(matrix.data.len(), if bf16 { 2 } else { 4 })?;
        self.write_floats(&buffer, matrix.data);
        Ok(Weight { buffer, rows: matrix.rows, cols: matrix.cols, bf16 })
    }

    fn refresh(&self, weight: &mut Weight, values: &Buffer, _role: Role) {
        let len = weight.rows * weight.cols;
        let (dst, src) = (weight.buffer.first(len), values.first(len));
        match weight.bf16 {
            true => self.narrow(dst, src, [1, len], len),
            false => self.copy(dst, src, 4 * len),
        }
    }

    fn write_act<F: HostFloat>(&self, dst: &mut Buffer, src: &[F]) {
        self.write_floats(dst, src);
    }

    fn write_real<F: HostFloat>(&self, dst: &mut Buffer, src: &[F]) {
        self.write_floats(dst, src);
    }

    fn write_ids(&self, dst: &mut Buffer, src: &[u32]) {
        self.write(dst, src.iter().map(|id| id.to_ne_bytes()));
    }

    fn read_act<F: HostFloat>(&self, dst: &mut [F], src: &Buffer) {
        self.read_floats(dst, src, 0);
    }

    fn read_real_at<F: HostFloat>(&self, dst: &mut [F], src: &Buffer, start: usize) {
        self.read_floats(dst, src, start);
    }

    /// The first time the work is done, which also brings the memory that it needs into the pool; the second time it is
    /// recorded; from then on the recorded graph is launched.
    fn repeat(&self, recordings: &mut Recordings, shape: &[usize], work: &mut dyn FnMut()) {
        let Some(recorded) = recordings.0.get_mut(shape) else {
            recordings.0.insert(shape.to_vec(), Box::new(None::<Recorded>));
            return work();
        };
        let recorded: &mut Option<Recorded> = recorded.downcast_mut().expect("recordings of one device");
        if recorded.is_none() && self.failure.get().is_none() {
            *recorded = graph::record(self, work).map_err(|e| self.failure.set(e.to_string())).ok();
        }
        if let Some(recorded) = recorded {
            self.attempt(|| recorded.launch());
        }
    }

    fn status(&self) -> Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some(message) => Err(Error::Device(message.clone())),
        }
    }
}
