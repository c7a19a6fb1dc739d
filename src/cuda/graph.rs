//! Launches that are recorded once and then launched together: a decoding step is a hundred small kernels, whose launches
//! one by one take longer than they do.
#![allow(unsafe_code)]

use super::Cuda;
use super::buffer::Buffer;
use super::driver::Graph;
use crate::error::Result;

/// A recorded graph.
pub struct Recorded {
    graph: Box<dyn Graph>,
    /// What the work needed only while it ran.
    _scratch: Vec<Buffer>,
}

impl Recorded {
    /// Does the work again.
    ///
    /// # Errors
    /// The device failed.
    pub fn launch(&self) -> Result<()> {
        // SAFETY: the scratch buffers are kept here; the others belong to whoever owns the recordings, who promises to
        // repeat the work on the same buffers (`Storage::repeat`).
        unsafe { self.graph.launch() }
    }
}

/// Records what `work` asks of the device, without doing it.
///
/// # Errors
/// The device failed, or cannot record what was asked.
pub fn record(cuda: &Cuda, work: &mut dyn FnMut()) -> Result<Recorded> {
    cuda.driver.begin_recording()?;
    cuda.memory.begin_recording();
    work();
    let scratch = cuda.memory.end_recording();
    let graph = cuda.driver.end_recording();
    Ok(Recorded { graph: graph?, _scratch: scratch })
}
