//! An NVIDIA GPU through its driver, which is loaded when a device is asked for.

use std::ffi::{CString, c_void};
use std::fmt::Display;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, ThreadId};

use cudarc::driver::{DriverError, result, sys};

use super::{Address, Arch, Arg, Driver, Function, Geometry, Graph, TensorMap, Tiling, pointers};
use crate::cuda::archive::Target;
use crate::cuda::compile::Compiler;
use crate::cuda::source::Program;
use crate::error::{Error, Result};

/// Bytes of a slot of pinned memory.
const SLOT: usize = 1 << 20;
/// Slots: so many copies to the device are on their way before the host waits for one.
const SLOTS: usize = 16;

/// How many devices the driver has.
///
/// # Errors
/// There is no driver, or it finds no device; the message says what was tried.
pub fn count() -> Result<usize> {
    // SAFETY: loading libcuda runs its initialisers, as every program that uses CUDA does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Unsupported(
            "no NVIDIA driver: libcuda.so is in none of the places where the system looks for libraries; install the \
             driver, or set LD_LIBRARY_PATH to its directory (in a container, start it with the GPU). `--device emulator` \
             runs the same kernels on the CPU"
                .into(),
        ));
    }
    let devices = result::init().and_then(|()| result::device::get_count());
    match devices {
        Ok(count) if count > 0 => Ok(count as usize),
        Ok(_) => Err(Error::Unsupported("the NVIDIA driver finds no device".into())),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(Error::Unsupported(
            "the NVIDIA driver finds no device: there is none, it is not visible here (CUDA_VISIBLE_DEVICES), or its \
             kernel module is not loaded (`nvidia-smi` tells)"
                .into(),
        )),
        Err(e) => Err(Error::Unsupported(format!("the NVIDIA driver does not start: {e:?}; `nvidia-smi` tells more"))),
    }
}

fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| Error::Device(format!("{what}: {e:?}"))
}

struct Loaded {
    module: sys::CUmodule,
    function: sys::CUfunction,
    /// It was compiled for architectures on which a kernel can wait for the one before.
    waits: bool,
}

/// Memory of the host that the device copies by itself.
struct Pinned {
    base: *mut u8,
    /// Recorded behind the last copy from each slot.
    events: Vec<sys::CUevent>,
    /// The slot that is being filled, and its bytes that were.
    slot: usize,
    filled: usize,
}

impl Pinned {
    /// Room for `bytes`, at most a slot: in the slot that is being filled, or in the next, once the copies from it are done.
    ///
    /// # Safety
    /// The context is current; `stream` is the one that copies.
    unsafe fn room(&mut self, bytes: usize, stream: sys::CUstream) -> std::result::Result<*mut u8, DriverError> {
        if self.filled + bytes > SLOT {
            // SAFETY: events and stream are the context's.
            unsafe {
                result::event::record(self.events[self.slot], stream)?;
                self.slot = (self.slot + 1) % SLOTS;
                result::event::synchronize(self.events[self.slot])?;
            }
            self.filled = 0;
        }
        let at = self.slot * SLOT + self.filled;
        self.filled = (self.filled + bytes).next_multiple_of(64);
        // SAFETY: within the slots.
        Ok(unsafe { self.base.add(at) })
    }

    /// Where a slot's worth of bytes comes back from the device.
    fn answer(&self) -> *mut u8 {
        // SAFETY: one slot more was allocated.
        unsafe { self.base.add(SLOT * SLOTS) }
    }
}

/// A GPU.
pub struct Nvidia {
    ordinal: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    arch: Arch,
    name: String,
    compiler: Compiler,
    functions: RwLock<Vec<Loaded>>,
    pinned: Mutex<Pinned>,
    turns: Arc<Turns>,
}

/// Who may ask the device: while a thread records, what others asked would be recorded too.
#[derive(Default)]
struct Turns {
    recorder: Mutex<Option<ThreadId>>,
    free: Condvar,
}

impl Turns {
    /// Waits while another thread records. As long as the turn is held, none begins to.
    fn take(&self) -> MutexGuard<'_, Option<ThreadId>> {
        let turn = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let other = |recorder: &mut Option<ThreadId>| recorder.is_some_and(|thread| thread != thread::current().id());
        self.free.wait_while(turn, other).unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: a context's handles may be used by any thread that has made the context current, as every method does first; the
// pinned memory is behind its mutex.
unsafe impl Send for Nvidia {}
// SAFETY: as above; the driver's functions may be called by several threads at once.
unsafe impl Sync for Nvidia {}

impl Nvidia {
    /// The device `ordinal`.
    ///
    /// # Errors
    /// As [`count`]; there are fewer devices.
    pub fn new(ordinal: usize) -> Result<Self> {
        let count = count()?;
        if ordinal >= count {
            let message = format!("cuda:{ordinal} is not there: the driver has {count} device(s), numbered from 0");
            return Err(Error::Unsupported(message));
        }
        let opening = failed("opening the device");
        let device = result::device::get(ordinal as i32).map_err(&opening)?;
        let name = result::device::get_name(device).map_err(&opening)?;
        let attribute = |which| {
            // SAFETY: the device is one that the driver gave.
            unsafe { result::device::get_attribute(device, which) }.map_err(&opening)
        };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let number = (10 * major + minor) as u32;
        let arch = Arch { number, specific: number >= 90 };
        // SAFETY: as above; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(&opening)?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(&opening)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(&opening)?;
        // SAFETY: the context is current; freed when this is dropped.
        let base = unsafe { result::malloc_host(SLOT * (SLOTS + 1), 0) }.map_err(&opening)?;
        let events = (0..SLOTS).map(|_| result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING));
        let events = events.collect::<Result<_, _>>().map_err(&opening)?;
        Ok(Nvidia {
            ordinal,
            device,
            context,
            stream,
            arch,
            name,
            compiler: Compiler::new()?,
            functions: RwLock::default(),
            pinned: Mutex::new(Pinned { base: base.cast(), events, slot: 0, filled: 0 }),
            turns: Arc::default(),
        })
    }

    /// Makes the context that of this thread, and takes its turn.
    fn bind(&self) -> Result<MutexGuard<'_, Option<ThreadId>>> {
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("choosing the device"))?;
        Ok(self.turns.take())
    }

    fn pinned(&self) -> MutexGuard<'_, Pinned> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A function, and whether it waits for the kernel before if it is written to.
    fn function(&self, function: Function) -> (sys::CUfunction, bool) {
        let loaded = &self.functions.read().unwrap_or_else(PoisonError::into_inner)[function.0];
        (loaded.function, loaded.waits)
    }

    /// Blocks of a function that run at the same time.
    fn at_once(&self, function: sys::CUfunction, geometry: &Geometry) -> Result<u32> {
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as COUNT;
        // SAFETY: the device is this one, the function was loaded by it.
        let (count, of_each) = unsafe {
            let shared = geometry.shared as usize;
            let each =
                || result::occupancy::max_active_block_per_multiprocessor(function, geometry.block as i32, shared);
            result::device::get_attribute(self.device, COUNT).and_then(|count| Ok((count, each()?)))
        }
        .map_err(failed("asking how many blocks run at the same time"))?;
        Ok(count as u32 * of_each as u32)
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        let pinned = self.pinned.get_mut().unwrap_or_else(PoisonError::into_inner);
        let functions = self.functions.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: everything was made by `new` or `load` and is used by nothing any more. What fails here is lost with
        // the process.
        unsafe {
            if result::ctx::set_current(self.context).is_err() {
                return;
            }
            let _ = result::stream::synchronize(self.stream);
            for event in &pinned.events {
                let _ = result::event::destroy(*event);
            }
            let _ = result::free_host(pinned.base.cast());
            for loaded in functions.iter() {
                let _ = result::module::unload(loaded.module);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl Driver for Nvidia {
    fn describe(&self) -> String {
        let memory = self.bind().ok().and_then(|_turn| result::mem_get_info().ok());
        let memory = memory.map_or_else(String::new, |(free, total)| {
            let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
            format!(", {:.1} GiB, {:.1} free", gib(total), gib(free))
        });
        format!("cuda:{} {} ({}{memory}); {}", self.ordinal, self.name, self.arch, self.compiler.describe())
    }

    fn arch(&self) -> Arch {
        self.arch
    }

    fn granularity(&self) -> usize {
        1 << 16
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        let _turn = self.bind()?;
        // SAFETY: the context is current; memory of any content is what is promised.
        unsafe { result::malloc_sync(bytes.max(1)) }.map_err(failed("allocating"))
    }

    unsafe fn free(&self, address: Address, _bytes: usize) {
        if self.bind().is_ok() {
            // SAFETY: the caller's promise. That it cannot be freed is no loss beyond the memory itself.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    unsafe fn write(&self, dst: Address, src: &[u8]) -> Result<()> {
        let turn = self.bind()?;
        if turn.is_some() {
            return Err(Error::Unsupported("a copy from the host cannot be part of a recorded graph".into()));
        }
        let copying = failed("copying to the device");
        let mut pinned = self.pinned();
        for (i, chunk) in src.chunks(SLOT).enumerate() {
            // SAFETY: there is room for the chunk, which nothing else uses; the destination has room by the caller's promise.
            unsafe {
                let room = pinned.room(chunk.len(), self.stream).map_err(&copying)?;
                let staged = std::slice::from_raw_parts_mut(room, chunk.len());
                staged.copy_from_slice(chunk);
                result::memcpy_htod_async(dst + (i * SLOT) as u64, staged, self.stream).map_err(&copying)?;
            }
        }
        Ok(())
    }

    unsafe fn read(&self, dst: &mut [u8], src: Address) -> Result<()> {
        let _turn = self.bind()?;
        let copying = failed("copying from the device");
        let pinned = self.pinned();
        // what is little need not wait for the copies to the device
        let (room, most) = if dst.len() <= SLOT { (pinned.answer(), SLOT) } else { (pinned.base, SLOT * SLOTS) };
        for (i, part) in dst.chunks_mut(most).enumerate() {
            // SAFETY: the mutex keeps other copies away, and those before, of which these take the slots, are done once the
            // stream is; the source has the bytes by the caller's promise.
            unsafe {
                if room == pinned.base {
                    result::stream::synchronize(self.stream).map_err(&copying)?;
                }
                let staged = std::slice::from_raw_parts_mut(room, part.len());
                let from = src + (i * most) as u64;
                result::memcpy_dtoh_async(staged, from, self.stream).map_err(&copying)?;
                result::stream::synchronize(self.stream).map_err(&copying)?;
                part.copy_from_slice(staged);
            }
        }
        Ok(())
    }

    unsafe fn copy(&self, dst: Address, src: Address, bytes: usize) -> Result<()> {
        let _turn = self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(dst, src, bytes, self.stream) }.map_err(failed("copying on the device"))
    }

    unsafe fn zero(&self, dst: Address, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let _turn = self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(dst, 0, bytes, self.stream) }.map_err(failed("zeroing"))
    }

    fn load(&self, program: &Program<'_>) -> Result<Function> {
        let loading = |e: &dyn Display| Error::Device(format!("loading {}: {e}", program.path));
        // many kernels at the same time
        let image = self.compiler.image(program, self.arch)?;
        let _turn = self.bind()?;
        let name = CString::new(program.name).map_err(|e| loading(&e))?;
        // SAFETY: the image is a whole cubin, or PTX with a zero behind it; the module stays loaded as long as this.
        let loaded = unsafe {
            let module =
                result::module::load_data(image.bytes.as_ptr().cast()).map_err(|e| loading(&format!("{e:?}")))?;
            let function = result::module::get_function(module, name).map_err(|e| loading(&format!("{e:?}")))?;
            let (Target::Cubin(arch) | Target::Ptx(arch)) = image.target;
            Loaded { module, function, waits: arch.number >= 90 }
        };
        let most = {
            use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST;
            use sys::CUfunction_attribute::{
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
                CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
            };
            // SAFETY: device and function are those above.
            unsafe {
                let most = result::device::get_attribute(self.device, MOST);
                let taken = result::function::get_function_attribute(loaded.function, STATIC);
                most.and_then(|most| Ok(most - taken?))
                    .and_then(|most| result::function::set_function_attribute(loaded.function, DYNAMIC, most))
            }
        };
        most.map_err(|e| loading(&format!("{e:?}")))?;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.push(loaded);
        Ok(Function(functions.len() - 1))
    }

    unsafe fn launch(&self, function: Function, geometry: &Geometry, args: &[Arg]) -> Result<()> {
        let _turn = self.bind()?;
        let mut values = pointers(args);
        let values = &mut values[..args.len()];
        let [mut x, y, z] = geometry.grid;
        let (function, waits) = self.function(function);
        if geometry.cooperative {
            x = x.min(self.at_once(function, geometry)?.max(1));
        }
        let (grid, block) = ((x, y, z), (geometry.block, 1, 1));
        // SAFETY: the driver copies the values at once; the rest is the caller's promise.
        let launched = unsafe {
            match (geometry.cooperative, geometry.overlaps && waits) {
                (true, _) => {
                    result::launch_cooperative_kernel(function, grid, block, geometry.shared, self.stream, values)
                }
                (false, true) => launch_overlapping(function, geometry, self.stream, values),
                (false, false) => result::launch_kernel(function, grid, block, geometry.shared, self.stream, values),
            }
        };
        launched.map_err(failed("launching"))
    }

    fn tensor_map(&self, tiling: &Tiling) -> Result<TensorMap> {
        let _turn = self.bind()?;
        let &Tiling { base, dims, stride, tile } = tiling;
        let (strides, steps) = ([2 * stride], [1u32, 1]);
        let mut map = MaybeUninit::<sys::CUtensorMap>::zeroed();
        // SAFETY: the arrays have the two (strides: one) elements that a map of two dimensions takes; the driver fills the
        // map, whose type is 128 bytes of integers.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                ptr::with_exposed_provenance_mut::<c_void>(base as usize),
                dims.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .map_err(failed("describing a matrix to the tensor memory accelerator"))?;
            Ok(TensorMap(map.assume_init().opaque))
        }
    }

    fn begin_recording(&self) -> Result<()> {
        let mut turn = self.bind()?;
        // SAFETY: the stream is not the legacy default one, which cannot be captured.
        unsafe {
            result::stream::begin_capture(self.stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        }
        .map_err(failed("recording"))?;
        *turn = Some(thread::current().id());
        Ok(())
    }

    fn end_recording(&self) -> Result<Box<dyn Graph>> {
        let mut turn = self.bind()?;
        *turn = None;
        self.turns.free.notify_all();
        let recording = failed("recording");
        // SAFETY: the stream records since `begin_recording`; the graph is destroyed once it is instantiated.
        unsafe {
            let graph = result::stream::end_capture(self.stream).map_err(&recording)?;
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            let exec = exec.map_err(&recording)?;
            Ok(Box::new(Recorded { exec, stream: self.stream, context: self.context, turns: self.turns.clone() }))
        }
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        drop(self.bind()?);
        let timing = failed("timing");
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(&timing);
        let (start, end) = (event()?, event()?);
        // SAFETY: events and stream were made by this context; the events are destroyed once, at the end.
        unsafe {
            let time = || {
                result::event::record(start, self.stream).map_err(&timing)?;
                work()?;
                result::event::record(end, self.stream).map_err(&timing)?;
                result::event::synchronize(end).map_err(&timing)?;
                result::event::elapsed(start, end).map_err(&timing)
            };
            let time = { time }();
            let _ = (result::event::destroy(start), result::event::destroy(end));
            time.map(f64::from)
        }
    }
}

/// Launches a kernel that may begin before the one in front of it is done (programmatic dependent launch).
///
/// # Safety
/// As for `cuLaunchKernel`; the kernel waits by itself before it touches what others do.
unsafe fn launch_overlapping(
    function: sys::CUfunction,
    geometry: &Geometry,
    stream: sys::CUstream,
    values: &mut [*mut c_void],
) -> std::result::Result<(), DriverError> {
    let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
    let [x, y, z] = geometry.grid;
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: geometry.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: geometry.shared,
        hStream: stream,
        attrs: &mut attribute,
        numAttrs: 1,
    };
    // SAFETY: the driver copies configuration, attribute and values at once; the rest is the caller's promise.
    unsafe { sys::cuLaunchKernelEx(&config, function, values.as_mut_ptr(), ptr::null_mut()) }.result()
}

/// A graph of the driver.
struct Recorded {
    exec: sys::CUgraphExec,
    stream: sys::CUstream,
    context: sys::CUcontext,
    turns: Arc<Turns>,
}

// SAFETY: as for `Nvidia`.
unsafe impl Send for Recorded {}
// SAFETY: as for `Nvidia`; launches of one graph are ordered by its stream.
unsafe impl Sync for Recorded {}

impl Graph for Recorded {
    unsafe fn launch(&self) -> Result<()> {
        let _turn = self.turns.take();
        // SAFETY: whoever holds a graph holds the device that recorded it; the memory is the caller's promise.
        unsafe {
            result::ctx::set_current(self.context)
                .and_then(|()| result::graph::launch(self.exec, self.stream))
                .map_err(failed("launching a graph"))
        }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: nothing uses it any more.
        unsafe {
            if result::ctx::set_current(self.context).is_ok() {
                let _ = result::graph::exec_destroy(self.exec);
            }
        }
    }
}
