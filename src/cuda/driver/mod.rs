//! What the backend asks of a device: memory, programs, launches, recorded graphs. Two implementations: [`nvidia`] through
//! the CUDA driver, and [`emulator`], which runs the same sources on the CPU.
#![allow(unsafe_code)]

pub mod emulator;
pub mod nvidia;

use std::ffi::c_void;
use std::fmt;

use super::source::Program;
use crate::error::Result;

/// An address in the device's memory.
pub type Address = u64;

/// A compute capability, `sm_90a` for instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Ten times the capability: 90.
    pub number: u32,
    /// Has the instructions of exactly this architecture (`sm_90a`).
    pub specific: bool,
}

impl Arch {
    /// An architecture without what it alone has.
    pub const fn from_number(number: u32) -> Self {
        Arch { number, specific: false }
    }

    /// Whether it runs what was written for `needed`: later architectures run what earlier ones do, but only the same
    /// one runs what is specific.
    pub fn runs(self, needed: Arch) -> bool {
        match needed.specific {
            true => self == needed,
            false => self.number >= needed.number,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.number, if self.specific { "a" } else { "" })
    }
}

/// A kernel that was loaded; the driver that loaded it knows what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub(super) usize);

/// Blocks of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// All blocks run at the same time, and may wait for each other: as many of those along x as there is room for.
    pub cooperative: bool,
    /// It may begin before the kernel in front of it is done, for which it waits by itself.
    pub overlaps: bool,
}

/// A two-dimensional tile of memory as the tensor memory accelerator reads it (`CUtensorMap`).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// What a [`TensorMap`] describes: a row-major bf16 matrix, read in boxes with the 128-byte swizzle.
#[derive(Clone, Copy, Debug)]
pub struct Tiling {
    /// The matrix.
    pub base: Address,
    /// Elements of a row, and rows.
    pub dims: [u64; 2],
    /// Elements from row to row.
    pub stride: u64,
    /// Elements along a row, and rows, of a box.
    pub tile: [u32; 2],
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A pointer; 0 is null.
    Address(Address),
    /// `int`
    Int(i32),
    /// `u32`
    Word(u32),
    /// `float`
    Float(f32),
    /// `TensorMap` by value.
    Map(TensorMap),
}

impl Arg {
    /// Where its value lies.
    fn value(&self) -> *const c_void {
        match self {
            Arg::Address(x) => (&raw const *x).cast(),
            Arg::Int(x) => (&raw const *x).cast(),
            Arg::Word(x) => (&raw const *x).cast(),
            Arg::Float(x) => (&raw const *x).cast(),
            Arg::Map(x) => (&raw const *x).cast(),
        }
    }
}

/// Arguments of a kernel at most.
const MAX_ARGS: usize = 24;

/// Pointers to the values of `args`, as `cuLaunchKernel` wants them. Valid as long as `args`.
fn pointers(args: &[Arg]) -> [*mut c_void; MAX_ARGS] {
    let mut pointers = [std::ptr::null_mut(); MAX_ARGS];
    for (pointer, arg) in pointers[..args.len()].iter_mut().zip(args) {
        *pointer = arg.value().cast_mut();
    }
    pointers
}

/// A recorded sequence of launches.
pub trait Graph: Send + Sync {
    /// Launches the sequence again, with the arguments that it was recorded with.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Safety
    /// The memory that the arguments point to is still there.
    unsafe fn launch(&self) -> Result<()>;
}

/// A device. Everything that is asked of it happens in the order in which it was asked.
pub trait Driver: Send + Sync {
    /// What it is, for people.
    fn describe(&self) -> String;

    /// What its kernels may use.
    fn arch(&self) -> Arch;

    /// The unit in which memory is worth keeping: blocks whose sizes differ by less can stand in for each other.
    fn granularity(&self) -> usize;

    /// `bytes` of memory, at least one, with any content.
    ///
    /// # Errors
    /// There is no memory.
    fn alloc(&self, bytes: usize) -> Result<Address>;

    /// Gives memory back.
    ///
    /// # Safety
    /// It came from [`alloc`](Self::alloc) with `bytes`, and nothing uses it any more.
    unsafe fn free(&self, address: Address, bytes: usize);

    /// Copies from the host, which may change `src` afterwards.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Safety
    /// `dst` has room for `src`.
    unsafe fn write(&self, dst: Address, src: &[u8]) -> Result<()>;

    /// Copies to the host, after everything that was asked before.
    ///
    /// # Errors
    /// The device failed, now or in what was asked before.
    ///
    /// # Safety
    /// `src` has as many bytes as `dst`.
    unsafe fn read(&self, dst: &mut [u8], src: Address) -> Result<()>;

    /// Copies within the device.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Safety
    /// Both have `bytes`, and do not overlap.
    unsafe fn copy(&self, dst: Address, src: Address, bytes: usize) -> Result<()>;

    /// Zeroes memory.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Safety
    /// `dst` has `bytes`.
    unsafe fn zero(&self, dst: Address, bytes: usize) -> Result<()>;

    /// Compiles, if it has to, and loads a program.
    ///
    /// # Errors
    /// There is no compiler; the program is wrong.
    fn load(&self, program: &Program<'_>) -> Result<Function>;

    /// Launches a kernel.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and its accesses stay within the memory that they point to. If it overlaps, it
    /// waits for the kernel before it touches what that may have written or read.
    unsafe fn launch(&self, function: Function, geometry: &Geometry, args: &[Arg]) -> Result<()>;

    /// Describes a matrix to the tensor memory accelerator.
    ///
    /// # Errors
    /// The device has none, or it cannot read such a matrix.
    fn tensor_map(&self, tiling: &Tiling) -> Result<TensorMap>;

    /// From now on, launches by this thread are recorded instead of done.
    ///
    /// # Errors
    /// The device failed.
    fn begin_recording(&self) -> Result<()>;

    /// What was recorded since [`begin_recording`](Self::begin_recording).
    ///
    /// # Errors
    /// Something was asked that cannot be recorded, or the device failed.
    fn end_recording(&self) -> Result<Box<dyn Graph>>;

    /// Milliseconds that the device takes for what `work` asks.
    ///
    /// # Errors
    /// The device failed.
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
}

/// [`Driver::zero`] of a part of a buffer.
///
/// # Errors
/// As there.
pub(super) fn zero(driver: &dyn Driver, dst: Address, bytes: usize) -> Result<()> {
    // SAFETY: addresses come from `Buffer::range`, which checks that so much lies behind them.
    unsafe { driver.zero(dst, bytes) }
}

/// [`Driver::copy`] between buffers.
///
/// # Errors
/// As there.
pub(super) fn copy(driver: &dyn Driver, dst: Address, src: Address, bytes: usize) -> Result<()> {
    // SAFETY: as in `zero`; different buffers do not overlap.
    unsafe { driver.copy(dst, src, bytes) }
}

/// [`Driver::write`] to a part of a buffer.
///
/// # Errors
/// As there.
pub(super) fn write(driver: &dyn Driver, dst: Address, src: &[u8]) -> Result<()> {
    // SAFETY: as in `zero`.
    unsafe { driver.write(dst, src) }
}

/// [`Driver::read`] of a part of a buffer.
///
/// # Errors
/// As there.
pub(super) fn read(driver: &dyn Driver, dst: &mut [u8], src: Address) -> Result<()> {
    // SAFETY: as in `zero`.
    unsafe { driver.read(dst, src) }
}
