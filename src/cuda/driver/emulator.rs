//! The same kernels on the CPU: each is compiled as C++ with a header that stands for CUDA, and its threads run as fibers.
//!
//! Slow, but it sees what a GPU hides: barriers that some threads miss, copies that are read before they arrived, accesses
//! beyond a buffer (with the address sanitizer). The runtime is `kernels/emulator`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_ulonglong, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, ThreadId};
use std::time::Instant;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW, Symbol};

use super::{Address, Arch, Arg, Driver, Function, Geometry, Graph, TensorMap, Tiling, pointers};
use crate::cuda::cache::Cache;
use crate::cuda::source::{Program, Sources};
use crate::env::variable;
use crate::error::{Error, Result};

/// The variable that adds flags of the C++ compiler, `-fsanitize=address` for instance.
pub const FLAGS_VAR: &str = "DELLA_EMULATOR_FLAGS";

/// In which order threads run, and when asynchronous copies arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Schedule {
    order: c_int,
    eager: c_int,
    seed: c_ulonglong,
}

impl Schedule {
    /// Every order of threads with both extremes of asynchrony: what one hides, another shows.
    pub const ALL: [Schedule; 6] = [
        Schedule { order: 0, eager: 0, seed: 1 },
        Schedule { order: 0, eager: 1, seed: 1 },
        Schedule { order: 1, eager: 0, seed: 1 },
        Schedule { order: 1, eager: 1, seed: 1 },
        Schedule { order: 2, eager: 0, seed: 1 },
        Schedule { order: 2, eager: 1, seed: 1 },
    ];
}

type Entry = unsafe extern "C" fn(*mut *mut c_void);
type Launch = unsafe extern "C" fn(
    Entry,
    *const c_uint,
    *const c_uint,
    c_uint,
    *mut *mut c_void,
    c_int,
    c_int,
    *const Schedule,
    *mut c_char,
    c_ulong,
) -> c_int;
type MapTensor =
    unsafe extern "C" fn(*mut c_void, *const c_void, *const c_ulonglong, c_ulonglong, *const c_uint, c_uint, c_int);

/// A kernel's library. It stays loaded: other threads may hold its thread-local memory, which is shared memory here.
struct Loaded {
    entry: Entry,
    name: String,
}

/// Shared with the graphs that were recorded on it.
struct Runtime {
    launch: Launch,
    map_tensor: MapTensor,
    functions: RwLock<Vec<Loaded>>,
    /// Held by a launch: kernels run one after the other, whoever launches them.
    turn: Mutex<()>,
    threads: usize,
    schedule: Schedule,
}

struct Recorded {
    function: Function,
    geometry: Geometry,
    args: Vec<Arg>,
}

/// Launches that were recorded and not done; on the CPU a graph is a list.
struct Recording {
    runtime: std::sync::Arc<Runtime>,
    launches: Vec<Step>,
}

enum Step {
    Launch(Recorded),
    Zero(Address, usize),
    Copy(Address, Address, usize),
}

/// The CPU as a CUDA device.
pub struct Emulator {
    runtime: std::sync::Arc<Runtime>,
    compiler: Compiler,
    recording: Mutex<Option<(ThreadId, Vec<Step>)>>,
}

impl Emulator {
    /// Compiles and loads the runtime. Blocks are spread over `threads` threads.
    ///
    /// # Errors
    /// There is no C++ compiler, or it cannot compile the runtime.
    pub fn new(sources: &Sources, threads: usize, schedule: Schedule) -> Result<Self> {
        let compiler = Compiler::find()?;
        let path = compiler.build("emulator", &sources.flatten("emulator/emulator.cpp")?)?;
        // SAFETY: the library is the runtime that was compiled above; it has no initialisers but those of C++.
        let library =
            unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| unloadable(&path, &e))?;
        let launch = symbol::<Launch>(&library, &path, b"emulator_launch\0")?;
        let map_tensor = symbol::<MapTensor>(&library, &path, b"emulator_tensor_map\0")?;
        // its threads outlive the device, so it stays loaded
        std::mem::forget(library);
        let (functions, turn) = (RwLock::default(), Mutex::default());
        let runtime = Runtime { launch, map_tensor, functions, turn, threads, schedule };
        Ok(Emulator { runtime: std::sync::Arc::new(runtime), compiler, recording: Mutex::default() })
    }

    /// Adds a step to what this thread records; gives it back if it records nothing.
    fn record(&self, step: impl FnOnce() -> Step) -> bool {
        match &mut *lock(&self.recording) {
            Some((thread, steps)) if *thread == thread::current().id() => {
                steps.push(step());
                true
            }
            _ => false,
        }
    }

    fn refuse_to_record(&self, what: &str) -> Result<()> {
        match &*lock(&self.recording) {
            Some((thread, _)) if *thread == thread::current().id() => {
                Err(Error::Unsupported(format!("{what} cannot be part of a recorded graph")))
            }
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn symbol<T: Copy>(library: &Library, path: &Path, name: &[u8]) -> Result<T> {
    // SAFETY: `T` is the type of that symbol, which `kernels/emulator` or the wrapper of a kernel declares so.
    let symbol: Symbol<T> = unsafe { library.get(name) }.map_err(|e| unloadable(path, &e))?;
    Ok(*symbol)
}

fn unloadable(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::format(path, format!("cannot be loaded: {reason}; remove it, so that it is compiled again"))
}

impl Runtime {
    fn launch(&self, function: Function, geometry: &Geometry, args: &[Arg]) -> Result<()> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        let Loaded { entry, name, .. } = &functions[function.0];
        let (entry, name) = (*entry, name.clone());
        drop(functions);
        let (mut grid, block) = (geometry.grid, [geometry.block, 1, 1]);
        if geometry.cooperative {
            grid[0] = grid[0].min(COOPERATIVE_BLOCKS);
        }
        let mut message = [0u8; 1024];
        let mut values = pointers(args);
        let _turn = lock(&self.turn);
        // SAFETY: the entry belongs to a library that is never unloaded; sizes and the message's room are as given; what the
        // arguments point to is the caller's promise.
        let failed = unsafe {
            (self.launch)(
                entry,
                grid.as_ptr(),
                block.as_ptr(),
                geometry.shared,
                values.as_mut_ptr(),
                geometry.cooperative.into(),
                self.threads as c_int,
                &self.schedule,
                message.as_mut_ptr().cast(),
                message.len() as c_ulong,
            )
        };
        if failed == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&message).map(|text| text.to_string_lossy().into_owned());
        Err(Error::Wrong { what: format!("{name} on the emulator"), message: text.unwrap_or_default() })
    }
}

impl Graph for Recording {
    unsafe fn launch(&self) -> Result<()> {
        for step in &self.launches {
            match step {
                Step::Launch(Recorded { function, geometry, args }) => {
                    self.runtime.launch(*function, geometry, args)?
                }
                // SAFETY: as when it was recorded, the memory is still there.
                Step::Zero(dst, bytes) => unsafe { zero(*dst, *bytes) },
                // SAFETY: as above.
                Step::Copy(dst, src, bytes) => unsafe { copy(*dst, *src, *bytes) },
            }
        }
        Ok(())
    }
}

/// # Safety
/// `dst` has `bytes`.
unsafe fn zero(dst: Address, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::write_bytes(dst as *mut u8, 0, bytes) };
}

/// # Safety
/// Both have `bytes`, and do not overlap.
unsafe fn copy(dst: Address, src: Address, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst as *mut u8, bytes) };
}

/// Alignment of the device's memory, as CUDA has it.
const ALIGN: usize = 256;
/// Blocks of a cooperative launch, of which each has a thread: `MAX_COOPERATIVE_BLOCKS` in `kernels/emulator/emulator.cpp`.
const COOPERATIVE_BLOCKS: u32 = 64;

fn layout(bytes: usize) -> Result<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(bytes.max(1), ALIGN)
        .map_err(|_| Error::Unsupported(format!("{bytes} bytes are more than memory has")))
}

impl Driver for Emulator {
    fn describe(&self) -> String {
        format!("emulated on the CPU, kernels compiled by {}", self.compiler.version)
    }

    fn arch(&self) -> Arch {
        Arch { number: 90, specific: true }
    }

    /// Blocks are as large as what they hold, so that the address sanitizer sees what lies beyond.
    fn granularity(&self) -> usize {
        1
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        self.refuse_to_record("allocating")?;
        // SAFETY: the layout has at least one byte.
        let block = unsafe { std::alloc::alloc(layout(bytes)?) };
        match block.is_null() {
            true => Err(Error::Unsupported(format!("there is no memory for {bytes} bytes"))),
            false => Ok(block as Address),
        }
    }

    unsafe fn free(&self, address: Address, bytes: usize) {
        if let Ok(layout) = layout(bytes) {
            // SAFETY: the block came from `alloc` with these bytes, as the caller promises.
            unsafe { std::alloc::dealloc(address as *mut u8, layout) };
        }
    }

    unsafe fn write(&self, dst: Address, src: &[u8]) -> Result<()> {
        self.refuse_to_record("a copy from the host")?;
        // SAFETY: the caller promises room.
        unsafe { copy(dst, src.as_ptr() as Address, src.len()) };
        Ok(())
    }

    unsafe fn read(&self, dst: &mut [u8], src: Address) -> Result<()> {
        self.refuse_to_record("a copy to the host")?;
        // SAFETY: the caller promises that many bytes.
        unsafe { copy(dst.as_mut_ptr() as Address, src, dst.len()) };
        Ok(())
    }

    unsafe fn copy(&self, dst: Address, src: Address, bytes: usize) -> Result<()> {
        if !self.record(|| Step::Copy(dst, src, bytes)) {
            // SAFETY: the caller's promise.
            unsafe { copy(dst, src, bytes) };
        }
        Ok(())
    }

    unsafe fn zero(&self, dst: Address, bytes: usize) -> Result<()> {
        if !self.record(|| Step::Zero(dst, bytes)) {
            // SAFETY: the caller's promise.
            unsafe { zero(dst, bytes) };
        }
        Ok(())
    }

    fn load(&self, program: &Program<'_>) -> Result<Function> {
        let mut text = String::new();
        for (name, value) in program.defines {
            text.push_str(&format!("#define {name} {value}\n"));
        }
        text.push_str(program.text);
        text.push_str(&format!(
            "\nextern \"C\" void emulator_entry(void** args) {{ emulator::call({}, args); }}\n",
            program.name
        ));
        let path = self.compiler.build(program.name, &text)?;
        // SAFETY: the library is a kernel that was compiled above, without initialisers.
        let library =
            unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| unloadable(&path, &e))?;
        let entry = symbol::<Entry>(&library, &path, b"emulator_entry\0")?;
        let mut functions = self.runtime.functions.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::forget(library);
        functions.push(Loaded { entry, name: program.path.to_owned() });
        Ok(Function(functions.len() - 1))
    }

    unsafe fn launch(&self, function: Function, geometry: &Geometry, args: &[Arg]) -> Result<()> {
        let recorded = || Step::Launch(Recorded { function, geometry: *geometry, args: args.to_vec() });
        match self.record(recorded) {
            true => Ok(()),
            false => self.runtime.launch(function, geometry, args),
        }
    }

    fn tensor_map(&self, tiling: &Tiling) -> Result<TensorMap> {
        let mut map = TensorMap([0; 16]);
        let &Tiling { base, dims, stride, tile } = tiling;
        // SAFETY: the map has 128 bytes, the arrays the two elements that the runtime reads; the base is only kept.
        unsafe {
            let (dims_at, tile_at) = (dims.as_ptr().cast(), tile.as_ptr());
            (self.runtime.map_tensor)((&raw mut map).cast(), base as *const c_void, dims_at, stride * 2, tile_at, 2, 1);
        }
        Ok(map)
    }

    fn begin_recording(&self) -> Result<()> {
        *lock(&self.recording) = Some((thread::current().id(), Vec::new()));
        Ok(())
    }

    fn end_recording(&self) -> Result<Box<dyn Graph>> {
        let (_, launches) = lock(&self.recording).take().unwrap_or((thread::current().id(), Vec::new()));
        Ok(Box::new(Recording { runtime: self.runtime.clone(), launches }))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// The C++ compiler that the emulator uses, as it describes itself.
///
/// # Errors
/// There is none; a variable is not UTF-8.
pub fn compiler() -> Result<String> {
    Compiler::find().map(|compiler| compiler.version)
}

/// A C++ compiler of this machine.
struct Compiler {
    command: String,
    version: String,
    flags: Vec<String>,
    cache: Cache,
}

impl Compiler {
    /// `$CXX`, or the first of the usual names.
    ///
    /// # Errors
    /// There is none; a variable is not UTF-8.
    fn find() -> Result<Self> {
        let named = variable("CXX")?;
        let candidates: Vec<String> = named.into_iter().chain(["c++", "g++", "clang++"].map(String::from)).collect();
        let flags = variable(FLAGS_VAR)?.unwrap_or_default();
        let flags = flags.split_whitespace().map(String::from).collect();
        for command in &candidates {
            let Ok(output) = Command::new(command).arg("--version").output() else { continue };
            if let (true, Some(line)) =
                (output.status.success(), String::from_utf8_lossy(&output.stdout).lines().next())
            {
                return Ok(Compiler { command: command.clone(), version: line.into(), flags, cache: Cache::open()? });
            }
        }
        Err(Error::Unsupported(format!(
            "the emulator compiles kernels with a C++ compiler, and found none: tried {}; install one (g++), or name it in CXX",
            candidates.join(", ")
        )))
    }

    /// The library made of a source text.
    fn build(&self, name: &str, text: &str) -> Result<PathBuf> {
        const FLAGS: [&str; 6] = ["-std=c++17", "-O2", "-fPIC", "-shared", "-DDELLA_EMULATOR", "-w"];
        let key = format!("{}\n{}\n{}\n{text}", self.version, FLAGS.join(" "), self.flags.join(" "));
        self.cache.get_or_make(name, "so", &key, |path| {
            let source = path.with_extension("cpp");
            std::fs::write(&source, text).map_err(|e| Error::io(&source, e))?;
            let mut command = Command::new(&self.command);
            command.args(FLAGS).args(&self.flags).arg("-o").arg(path).arg(&source);
            let output = command.output().map_err(|e| Error::io(&self.command, e))?;
            let _ = std::fs::remove_file(&source);
            if !output.status.success() {
                let log = String::from_utf8_lossy(&output.stderr);
                let first: Vec<_> = log.lines().take(12).collect();
                return Err(Error::input(format!("kernel {name}"), format!("does not compile:\n{}", first.join("\n"))));
            }
            Ok(())
        })
    }
}
