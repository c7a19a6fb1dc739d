//! From a kernel's source to machine code: what was built in, or NVRTC, NVIDIA's compiler as a library, kept on disk.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::ffi::{CString, c_char};

use cudarc::nvrtc::{result, sys};

use super::archive::{Archive, Target};
use super::cache::Cache;
use super::driver::Arch;
use super::source::Program;
use crate::error::{Error, Result};

/// Where machine code comes from.
pub struct Compiler {
    /// NVRTC's version.
    version: Option<(i32, i32)>,
    built_in: &'static Archive,
    cache: Cache,
}

/// Why nothing can be compiled, and what would mend it.
const NO_NVRTC: &str = "NVRTC (libnvrtc.so) is in none of the places where the system looks for libraries; install it (the \
                        CUDA toolkit, or the PyPI package nvidia-cuda-nvrtc-cu12) and set LD_LIBRARY_PATH to its \
                        directory";

/// The architecture whose assembly any later one can run.
pub const PTX: Target = Target::Ptx(Arch::from_number(80));

impl Compiler {
    /// Looks for NVRTC.
    ///
    /// # Errors
    /// There is no directory for compiled kernels; what was built in is damaged.
    pub fn new() -> Result<Self> {
        Ok(Compiler { version: nvrtc_version(), built_in: Archive::built_in()?, cache: Cache::open()? })
    }

    /// Which compiler there is, for people.
    pub fn describe(&self) -> String {
        let built_in = self.built_in.len();
        match self.version {
            Some((major, minor)) => format!("NVRTC {major}.{minor}, {built_in} kernels built in"),
            None => format!("no NVRTC, {built_in} kernels built in"),
        }
    }

    /// What the driver can load of `program` on `arch`: machine code that was built in, of this architecture or of one
    /// before it in its family; machine code by NVRTC; built-in assembly.
    ///
    /// # Errors
    /// There is none of them; the program does not compile. The message names what was tried.
    pub fn image(&self, program: &Program<'_>, arch: Arch) -> Result<Image> {
        let built_in = self.built_in;
        // newest first; `sm_90` after `sm_90a`
        let family = (arch.number / 10 * 10..=arch.number).rev().map(Arch::from_number);
        let mut targets = [arch].into_iter().chain(family).map(Target::Cubin);
        let of = |target| built_in.get(program, target).map(|bytes| Image { bytes: Cow::Borrowed(bytes), target });
        if let Some(image) = targets.find_map(of) {
            return Ok(image);
        }
        if self.version.is_some() {
            let target = Target::Cubin(arch);
            return self.build(program, target).map(|built| Image { bytes: Cow::Owned(built.image), target });
        }
        of(PTX).ok_or_else(|| {
            Error::Unsupported(format!(
                "no machine code of {} for {arch}: none is built into this program ({} kernels are), and {NO_NVRTC}",
                program.path,
                built_in.len(),
            ))
        })
    }

    /// Compiles `program` by NVRTC, if the disk does not have it.
    ///
    /// # Errors
    /// There is no NVRTC; the program does not compile.
    pub fn build(&self, program: &Program<'_>, target: Target) -> Result<Built> {
        let Some(version) = self.version else {
            return Err(Error::Unsupported(NO_NVRTC.into()));
        };
        let options = options(program, target);
        let key = format!("nvrtc {version:?}\n{}\n{}", options.join(" "), program.text);
        let path = self.cache.get_or_make(program.name, "image", &key, |path| {
            let Built { image, log } = compile(program, target, &options)?;
            let file = [&(log.len() as u32).to_le_bytes(), log.as_bytes(), &image].concat();
            std::fs::write(path, file).map_err(|e| Error::io(path, e))
        })?;
        let file = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let parts = file
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize));
        let (log, image) = parts.ok_or_else(|| Error::format(&path, "is cut off; remove it"))?;
        Ok(Built { image: image.into(), log: String::from_utf8_lossy(log).into_owned() })
    }
}

/// What the driver can load.
pub struct Image {
    /// A cubin, or PTX with a zero behind it.
    pub bytes: Cow<'static, [u8]>,
    /// What it was compiled for.
    pub target: Target,
}

/// A compiled program.
pub struct Built {
    /// A cubin, or PTX with a zero behind it.
    pub image: Vec<u8>,
    /// What the compiler said: registers, spills, warnings.
    pub log: String,
}

/// NVRTC's version, if it can be loaded.
fn nvrtc_version() -> Option<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: loading NVRTC runs its initialisers; the version is written to two integers.
    unsafe {
        if !sys::is_culib_present() {
            return None;
        }
        sys::nvrtcVersion(&mut major, &mut minor).result().ok()?;
    }
    Some((major, minor))
}

fn options(program: &Program<'_>, target: Target) -> Vec<String> {
    let mut options = vec!["--std=c++17".into(), format!("--gpu-architecture={}", target.name())];
    if let Target::Cubin(_) = target {
        options.push("--ptxas-options=-v".into());
    }
    options.extend(program.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

/// Compiles `program`.
///
/// # Errors
/// It does not compile.
fn compile(program: &Program<'_>, target: Target, options: &[String]) -> Result<Built> {
    let wrong = |message: String| Error::input(format!("kernel {}", program.path), message);
    let text = CString::new(program.text).map_err(|e| wrong(e.to_string()))?;
    let name = CString::new(program.path).map_err(|e| wrong(e.to_string()))?;
    let handle = result::create_program(&text, Some(&name)).map_err(|e| wrong(e.to_string()))?;
    // SAFETY: the program lives until it is destroyed below; the image's room is as large as NVRTC says.
    unsafe {
        let compiled = result::compile_program(handle, options);
        let log = result::get_program_log(handle).map(|log| text_of(&log)).unwrap_or_default();
        let image = compiled.and_then(|()| {
            let mut bytes = 0;
            let mut image;
            match target {
                Target::Cubin(_) => {
                    sys::nvrtcGetCUBINSize(handle, &mut bytes).result()?;
                    image = vec![0u8; bytes];
                    sys::nvrtcGetCUBIN(handle, image.as_mut_ptr().cast()).result()?;
                }
                Target::Ptx(_) => {
                    sys::nvrtcGetPTXSize(handle, &mut bytes).result()?;
                    image = vec![0u8; bytes];
                    sys::nvrtcGetPTX(handle, image.as_mut_ptr().cast()).result()?;
                }
            }
            Ok(image)
        });
        let _ = result::destroy_program(handle);
        match image {
            Ok(image) => Ok(Built { image, log }),
            Err(e) => {
                let lines: Vec<_> = log.lines().take(12).collect();
                Err(wrong(format!("does not compile for {} ({e}):\n{}", target.name(), lines.join("\n"))))
            }
        }
    }
}

/// A log, which ends with a zero.
fn text_of(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|&c| c as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
