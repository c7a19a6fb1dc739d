//! What a device stores, and how data gets there and back.

use std::any::Any;
use std::collections::HashMap;

use crate::error::{Error, Result};

/// Buffers of a device. Precision is in the types: [`Act`](Storage::Act) may be narrow, [`Real`](Storage::Real) never is.
pub trait Storage: Send + Sync + Sized + 'static {
    /// Activations of the two stacks, `(N, C)` and the like.
    type Act: Send + Sync;
    /// Statistics, latents, losses, logits, and the vector parameters: at least f32 on every device.
    type Real: Send + Sync;
    /// Token ids, positions, spans, cache slots.
    type Ids: Send + Sync;
    /// A matrix prepared for this device's kernels: packed, quantised, … The model never sees its layout.
    type Weight: Send + Sync;

    /// Tokens that a pass over many sentences should have, about: enough to keep the device busy, and few enough that a
    /// layer finds what the one before wrote in a cache.
    const PASS_TOKENS: usize = 2048;

    /// Tokens whose logits and their gradients a training step holds at the same time.
    const HEAD_TOKENS: usize = 512;

    /// A zeroed activation buffer of `len` elements.
    fn act(&self, len: usize) -> Result<Self::Act>;
    /// A zeroed buffer of `len` elements for a residual stream or its gradient, which every block adds to: never narrow,
    /// so that the roundings of the blocks do not add up.
    fn stream(&self, len: usize) -> Result<Self::Act> {
        self.act(len)
    }
    /// A zeroed buffer of `len` elements.
    fn real(&self, len: usize) -> Result<Self::Real>;
    /// A zeroed id buffer of `len` elements.
    fn ids(&self, len: usize) -> Result<Self::Ids>;
    /// Prepares a matrix of parameters.
    fn weight(&self, matrix: Matrix<'_>, role: Role) -> Result<Self::Weight>;
    /// Prepares other values of the same matrix, laid out as the checkpoint stores them, in the same memory.
    fn refresh(&self, weight: &mut Self::Weight, values: &Self::Real, role: Role);

    /// Copies `src` to the start of `dst`.
    fn write_act<F: HostFloat>(&self, dst: &mut Self::Act, src: &[F]);
    /// Copies `src` to the start of `dst`.
    fn write_real<F: HostFloat>(&self, dst: &mut Self::Real, src: &[F]);
    /// Copies `src` to the start of `dst`.
    fn write_ids(&self, dst: &mut Self::Ids, src: &[u32]);
    /// Copies the first `dst.len()` elements of `src`.
    fn read_act<F: HostFloat>(&self, dst: &mut [F], src: &Self::Act);
    /// Copies `dst.len()` elements of `src` from `start` on.
    fn read_real_at<F: HostFloat>(&self, dst: &mut [F], src: &Self::Real, start: usize);

    /// Why results cannot be trusted: a device works while the host goes on, and so fails later than it was asked.
    ///
    /// # Errors
    /// The device failed in what was asked so far.
    fn status(&self) -> Result<()> {
        Ok(())
    }

    /// Does `work`. Whenever it is called with equal `shape` and the same `recordings`, the work is the same ops with the
    /// same arguments on the same buffers, and neither reads nor writes from the host: so a device may record the work and
    /// launch it as one.
    fn repeat(&self, _recordings: &mut Recordings, _shape: &[usize], work: &mut dyn FnMut()) {
        work();
    }

    /// Calls `task(i, item)` for each item: work of the host, which is divided among the threads that the device computes
    /// with, if it does so on the host.
    fn for_each<T: Send>(&self, items: &mut [T], task: impl Fn(usize, &mut T) + Sync) {
        items.iter_mut().enumerate().for_each(|(i, item)| task(i, item));
    }

    /// Copies the first `dst.len()` elements of `src`.
    fn read_real<F: HostFloat>(&self, dst: &mut [F], src: &Self::Real) {
        self.read_real_at(dst, src, 0);
    }

    /// A buffer that holds `src`.
    fn act_from<F: HostFloat>(&self, src: &[F]) -> Result<Self::Act> {
        let mut buffer = self.act(src.len())?;
        self.write_act(&mut buffer, src);
        Ok(buffer)
    }

    /// A buffer that holds `src`.
    fn real_from<F: HostFloat>(&self, src: &[F]) -> Result<Self::Real> {
        let mut buffer = self.real(src.len())?;
        self.write_real(&mut buffer, src);
        Ok(buffer)
    }

    /// A buffer that holds `src`.
    fn ids_from(&self, src: &[u32]) -> Result<Self::Ids> {
        let mut buffer = self.ids(src.len())?;
        self.write_ids(&mut buffer, src);
        Ok(buffer)
    }
}

/// What a device keeps of work that is done again and again; see [`Storage::repeat`].
#[derive(Default)]
pub struct Recordings(
    /// By the shape of the work.
    pub HashMap<Vec<usize>, Box<dyn Any + Send + Sync>>,
);

/// A float type that the host reads and writes.
pub trait HostFloat: Copy + Send + Sync {
    /// From a single-precision device.
    fn from_f32(x: f32) -> Self;
    /// From a double-precision device.
    fn from_f64(x: f64) -> Self;
    /// To a single-precision device.
    fn to_f32(self) -> f32;
    /// To a double-precision device.
    fn to_f64(self) -> f64;
}

impl HostFloat for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl HostFloat for f64 {
    fn from_f32(x: f32) -> Self {
        f64::from(x)
    }
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// A parameter matrix as a checkpoint stores it: row-major `(rows, cols)`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// `rows · cols` values.
    pub data: &'a [f32],
    /// Rows as stored.
    pub rows: usize,
    /// Columns as stored.
    pub cols: usize,
}

impl Matrix<'_> {
    /// Refuses data that are not `rows · cols` values, as every device does before it reads them.
    ///
    /// # Errors
    /// [`Error::Input`] with both sizes.
    pub fn check(&self) -> Result<()> {
        let found = self.data.len();
        match self.rows.checked_mul(self.cols) == Some(found) {
            true => Ok(()),
            false => Err(Error::input("matrix", format!("{} x {} has {found} values", self.rows, self.cols))),
        }
    }
}

/// What a parameter matrix is for, which decides how a device lays it out and in which precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `y = x W`, stored `(in, out)`: GPT-2's `Conv1D`.
    Linear,
    /// `y = x Wᵀ`, stored `(out, in)`: an `nn.Linear` between latents. Never below f32.
    Latent,
    /// Rows are looked up.
    Table,
    /// Rows are looked up, and `y = x Wᵀ` gives logits: an embedding tied with the head.
    TiedTable,
}

/// For each row of a batch a range of the `N` tokens that lie end to end.
pub struct Spans<B: Storage> {
    /// `(rows, 2)`: first token, and one past the last.
    pub bounds: B::Ids,
    /// Rows of the batch.
    pub rows: usize,
    /// Tokens in all spans.
    pub tokens: usize,
    /// Tokens of the longest span.
    pub longest: usize,
    /// One past the last token of all.
    pub end: usize,
}

impl<B: Storage> Spans<B> {
    /// Uploads `(start, end)` pairs.
    pub fn new(backend: &B, bounds: &[(usize, usize)]) -> Result<Self> {
        let mut spans = Spans { bounds: backend.ids(2 * bounds.len())?, rows: 0, tokens: 0, longest: 0, end: 0 };
        spans.set(backend, bounds);
        Ok(spans)
    }

    /// Spans of sequences with these lengths, one after the other.
    pub fn of_lengths(backend: &B, lengths: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut end = 0;
        let bounds: Vec<_> = lengths
            .into_iter()
            .map(|len| {
                end += len;
                (end - len, end)
            })
            .collect();
        Self::new(backend, &bounds)
    }

    /// Replaces the spans by at most as many, in the same buffer.
    pub fn set(&mut self, backend: &B, bounds: &[(usize, usize)]) {
        let flat: Vec<u32> = bounds.iter().flat_map(|&(start, end)| [start as u32, end as u32]).collect();
        backend.write_ids(&mut self.bounds, &flat);
        self.rows = bounds.len();
        self.tokens = bounds.iter().map(|(start, end)| end - start).sum();
        self.longest = bounds.iter().map(|(start, end)| end - start).max().unwrap_or(0);
        self.end = bounds.iter().map(|(_, end)| *end).max().unwrap_or(0);
    }
}
