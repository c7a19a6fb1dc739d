//! Device memory: buffers, and a pool that keeps what was given back, so that a step allocates nothing.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use super::driver::{Address, Driver};
use crate::error::{Error, Result};

/// Blocks of memory that nobody uses, by size.
#[derive(Default)]
struct Idle {
    blocks: Blocks,
    /// While a thread records a graph, what its buffers gave back: the graph may use it again, but nobody else.
    recorded: Option<(ThreadId, Blocks)>,
}

type Blocks = BTreeMap<usize, Vec<Address>>;

impl Idle {
    /// What the graph that this thread records has.
    fn of_graph(&mut self) -> Option<&mut Blocks> {
        let (thread, blocks) = self.recorded.as_mut()?;
        (*thread == thread::current().id()).then_some(blocks)
    }

    /// A block that is to be used.
    fn take(&mut self, bytes: usize) -> Option<Address> {
        let of_graph = self.of_graph().and_then(|blocks| blocks.get_mut(&bytes)?.pop());
        of_graph.or_else(|| self.blocks.get_mut(&bytes)?.pop())
    }

    /// A block that was used.
    fn give(&mut self, bytes: usize, address: Address) {
        match self.of_graph() {
            Some(blocks) => blocks.entry(bytes).or_default().push(address),
            None => self.blocks.entry(bytes).or_default().push(address),
        }
    }
}

/// A device's memory.
pub struct Memory {
    driver: Arc<dyn Driver>,
    idle: Mutex<Idle>,
}

impl Memory {
    /// Nothing is allocated yet.
    pub fn new(driver: Arc<dyn Driver>) -> Arc<Self> {
        Arc::new(Memory { driver, idle: Mutex::default() })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `len` elements of `width` bytes, with any content.
    ///
    /// # Errors
    /// There is no memory.
    pub fn buffer(self: &Arc<Self>, len: usize, width: usize) -> Result<Buffer> {
        let unit = self.driver.granularity();
        let bytes = len.checked_mul(width).and_then(|bytes| bytes.max(1).checked_next_multiple_of(unit));
        let bytes = bytes.ok_or_else(|| no_memory(usize::MAX, &"more bytes than there are numbers for"))?;
        let reused = self.idle().take(bytes);
        let address = match reused {
            Some(address) => address,
            None => self.driver.alloc(bytes).or_else(|_| {
                self.trim();
                self.driver.alloc(bytes).map_err(|e| no_memory(bytes, &e))
            })?,
        };
        Ok(Buffer { memory: self.clone(), address, bytes, len, width })
    }

    /// Gives what nobody uses back to the device.
    fn trim(&self) {
        for (bytes, addresses) in std::mem::take(&mut self.idle().blocks) {
            for address in addresses {
                // SAFETY: idle blocks came from `alloc` with this size; their buffers are gone.
                unsafe { self.driver.free(address, bytes) };
            }
        }
    }

    /// Zeros what nobody uses, so that nothing is found there that an op left.
    ///
    /// # Errors
    /// The device failed.
    pub fn zero_idle(&self) -> Result<()> {
        let idle = self.idle();
        let mut blocks = idle.blocks.iter().flat_map(|(bytes, addresses)| addresses.iter().map(|at| (*at, *bytes)));
        // SAFETY: as in `trim`, and nobody takes them meanwhile.
        blocks.try_for_each(|(at, bytes)| unsafe { self.driver.zero(at, bytes) })
    }

    /// From now on, what this thread's buffers give back is kept for a graph.
    pub fn begin_recording(&self) {
        self.idle().recorded = Some((thread::current().id(), Blocks::new()));
    }

    /// What buffers gave back since [`begin_recording`](Self::begin_recording), as long as the result lives.
    pub fn end_recording(self: &Arc<Self>) -> Vec<Buffer> {
        let blocks = self.idle().recorded.take().map(|(_, blocks)| blocks).unwrap_or_default();
        let buffer = |bytes, address| Buffer { memory: self.clone(), address, bytes, len: bytes, width: 1 };
        let of_size =
            |(bytes, addresses): (usize, Vec<Address>)| addresses.into_iter().map(move |at| buffer(bytes, at));
        blocks.into_iter().flat_map(of_size).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.trim();
    }
}

fn no_memory(bytes: usize, cause: &dyn Display) -> Error {
    Error::Unsupported(format!(
        "the device has no memory for {:.3} GiB in one piece ({cause}): take fewer rows at a time, a smaller maximal \
         length, or a device with more",
        bytes as f64 / (1u64 << 30) as f64
    ))
}

/// Elements in the device's memory.
pub struct Buffer {
    memory: Arc<Memory>,
    address: Address,
    /// Of the block.
    bytes: usize,
    len: usize,
    width: usize,
}

impl Buffer {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of an element.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Where the element `start` lies, of which there are `len` more.
    ///
    /// # Panics
    /// If there are not.
    pub fn range(&self, start: usize, len: usize) -> Address {
        let fits = start.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(fits, "elements {start}..{start}+{len} of a buffer of {}", self.len);
        self.address + (start * self.width) as u64
    }

    /// Where its elements lie, of which an op uses the first `len`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first(&self, len: usize) -> Address {
        self.range(0, len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.idle().give(self.bytes, self.address);
    }
}
