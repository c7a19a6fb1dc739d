//! Writing a model directory.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use half::{bf16, f16};

use super::Config;
use super::params::Spec;
use crate::error::{Error, Result};
use crate::io::ElementType;
use crate::io::safetensors::{self, Header};

/// The files that [`save`] writes.
pub const FILES: [&str; 2] = ["config.json", "model.safetensors"];

/// Writes `config.json` and `model.safetensors` into `dir`, which is made if need be; `read(i, spec)` is asked for one
/// parameter after the other. Nothing is overwritten, and the weights appear whole or not at all.
///
/// # Errors
/// One of the files exists; `dtype` is not a float of at most 32 bits; a finite value is infinite in `dtype`; `read`
/// fails; the disk is full.
pub fn save(
    dir: &Path,
    config: &Config,
    dtype: ElementType,
    read: &mut dyn FnMut(usize, &Spec) -> Result<Vec<f32>>,
) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let [config_path, weights_path] = FILES.map(|file| dir.join(file));
    for path in [&config_path, &weights_path] {
        if path.symlink_metadata().is_ok() {
            return Err(Error::Exists(path.clone()));
        }
    }
    let specs = config.specs();
    let specs = specs.list();
    let header = |spec: &&Spec| Header { name: spec.name.clone(), dtype, shape: spec.shape.clone() };
    let headers: Vec<Header> = specs.iter().map(header).collect();
    safetensors::write(&weights_path, &[("format", "pt")], &headers, |i| {
        let values = read(i, specs[i])?;
        to_bytes(&values, dtype)
            .map(Cow::Owned)
            .map_err(|message| Error::format(&weights_path, format!("{}: {message}", specs[i].name)))
    })?;
    let mut file = std::fs::File::create_new(&config_path).map_err(|e| Error::io(&config_path, e))?;
    file.write_all(config.to_json().as_bytes()).map_err(|e| Error::io(&config_path, e))
}

/// Little-endian bytes of `values` in `dtype`, rounded to nearest even.
fn to_bytes(values: &[f32], dtype: ElementType) -> Result<Vec<u8>, String> {
    match dtype {
        ElementType::F32 => Ok(values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        ElementType::Bf16 => match values.iter().find(|x| x.is_finite() && bf16::from_f32(**x).is_infinite()) {
            Some(x) => Err(format!("{x} is too large for BF16; use F32")),
            None => Ok(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()),
        },
        ElementType::F16 => match values.iter().find(|x| x.is_finite() && f16::from_f32(**x).is_infinite()) {
            Some(x) => Err(format!("{x} is too large for F16; use BF16")),
            None => Ok(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
        },
        other => Err(format!("models are not written in {other}; choose F32, F16 or BF16")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_narrow_type_cannot_hold_is_an_error() {
        for (dtype, largest) in [(ElementType::Bf16, f32::MAX), (ElementType::F16, 65520.0)] {
            let message = to_bytes(&[1.0, largest], dtype).unwrap_err();
            assert!(message.contains("too large"), "{message}");
            assert_eq!(to_bytes(&[1.0], dtype).unwrap().len(), 2);
        }
    }
}
