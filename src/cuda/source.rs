//! Sources of the kernels: compiled into this program, or read from `DELLA_KERNELS`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The variable that names a directory to read kernels from, so that they can be edited without building again.
pub const DIRECTORY_VAR: &str = "DELLA_KERNELS";

/// Something to compile: one kernel with its macros.
#[derive(Clone, Copy)]
pub struct Program<'a> {
    /// The function, `layernorm_fwd` for instance.
    pub name: &'a str,
    /// Its file below `kernels/`.
    pub path: &'a str,
    /// Macros.
    pub defines: &'a [(&'static str, u32)],
    /// The file with everything that it includes.
    pub text: &'a str,
}

macro_rules! files {
    ($($path:literal),* $(,)?) => { &[$(($path, include_str!(concat!("../../kernels/", $path)))),*] };
}

/// The files below `kernels/`.
pub const FILES: &[(&str, &str)] = files![
    "common/act.cuh",
    "common/adamw.cuh",
    "common/attention.cuh",
    "common/chain.cuh",
    "common/chunks.cuh",
    "common/device.cuh",
    "common/flash.cuh",
    "common/gemv.cuh",
    "common/math.cuh",
    "common/philox.cuh",
    "common/product.cuh",
    "common/reduce.cuh",
    "common/softmax.cuh",
    "common/split.cuh",
    "common/values.cuh",
    "common/vector.cuh",
    "emulator/emulator.cpp",
    "emulator/emulator.h",
    "emulator/emulator_fibers.h",
    "emulator/emulator_hopper.h",
    "emulator/emulator_launch.h",
    "emulator/emulator_schedule.h",
    "emulator/emulator_warp.h",
    "embed/embed_fwd_v01_row.cu",
    "embed/gather_rows_fwd_v01_row.cu",
    "embed/scatter_rows_bwd_v01_first.cu",
    "embed/scatter_rows_bwd_v04_rows.cu",
    "norm/layernorm_bwd_v01_columns.cu",
    "norm/layernorm_bwd_v02_ring.cu",
    "norm/layernorm_fwd_v01_row.cu",
    "norm/layernorm_fwd_v03_stream.cu",
    "norm/layernorm_params_bwd_v01_columns.cu",
    "linear/cast_v01_flat.cu",
    "linear/cast_v02_vector.cu",
    "linear/column_parts_v01_columns.cu",
    "linear/column_parts_v02_vector.cu",
    "linear/column_sums_v01_columns.cu",
    "linear/gelu_bwd_v01_flat.cu",
    "linear/gelu_bwd_v02_vector.cu",
    "linear/gemm_finish_v01_flat.cu",
    "linear/gemm_tail_v01_flat.cu",
    "linear/gemm_v01_tile.cu",
    "linear/gemm_v02_mma.cu",
    "linear/gemm_v03_wgmma.cu",
    "linear/gemm_v04_gemv.cu",
    "linear/gemm_v05_ahead.cu",
    "linear/norm_gemm_v01_gemv.cu",
    "attention/attention_bwd_kv_v01_warp.cu",
    "attention/attention_bwd_kv_v02_flash.cu",
    "attention/attention_bwd_q_v01_warp.cu",
    "attention/attention_bwd_q_v02_flash.cu",
    "attention/attention_cached_v01_warp.cu",
    "attention/attention_decode_v01_warp.cu",
    "attention/attention_decode_v02_split.cu",
    "attention/attention_decode_v03_ahead.cu",
    "attention/attention_decode_v04_ring.cu",
    "attention/attention_fwd_v01_warp.cu",
    "attention/attention_fwd_v02_flash.cu",
    "attention/cache_append_v01_row.cu",
    "latent/chain_fwd_v01_rows.cu",
    "latent/chain_fwd_v02_grid.cu",
    "latent/copy_columns_v01_flat.cu",
    "latent/fuse_bwd_v01_slot.cu",
    "latent/fuse_bwd_v02_strips.cu",
    "latent/fuse_fwd_v01_row.cu",
    "latent/fuse_fwd_v02_warp.cu",
    "latent/kl_bwd_v01_flat.cu",
    "latent/kl_fwd_v01_warp.cu",
    "latent/mask_fwd_v01_flat.cu",
    "latent/pool_bwd_v01_row.cu",
    "latent/pool_bwd_v02_vector.cu",
    "latent/pool_fwd_v01_row.cu",
    "latent/reparameterize_bwd_v01_flat.cu",
    "latent/reparameterize_fwd_v01_flat.cu",
    "latent/tanh_bwd_v01_flat.cu",
    "latent/tanh_fwd_v01_flat.cu",
    "loss/cross_entropy_bwd_v01_row.cu",
    "loss/cross_entropy_bwd_v02_vector.cu",
    "loss/cross_entropy_fwd_v01_row.cu",
    "loss/cross_entropy_fwd_v02_online.cu",
    "loss/sample_v01_row.cu",
    "optim/adamw_all_v01_chunks.cu",
    "optim/adamw_v01_flat.cu",
    "optim/adamw_v02_vector.cu",
    "optim/dropout_v01_flat.cu",
    "optim/sum_squares_v01_chunks.cu",
];

/// Where sources come from.
pub struct Sources {
    directory: Option<PathBuf>,
}

impl Sources {
    /// Those of this program, or of the directory that the environment names.
    pub fn from_env() -> Self {
        Sources { directory: std::env::var_os(DIRECTORY_VAR).map(PathBuf::from) }
    }

    /// Those of a directory.
    pub fn of_directory(directory: &Path) -> Self {
        Sources { directory: Some(directory.into()) }
    }

    fn read(&self, path: &str) -> Result<Cow<'static, str>> {
        if let Some(directory) = &self.directory {
            let path = directory.join(path);
            return std::fs::read_to_string(&path).map(Cow::Owned).map_err(|e| Error::io(path, e));
        }
        let found = FILES.iter().find(|(known, _)| *known == path);
        found.map(|(_, text)| Cow::Borrowed(*text)).ok_or_else(|| Error::input("kernel", format!("there is no {path}")))
    }

    /// A file with everything that it includes, each header once, so that a compiler needs no other file of ours.
    ///
    /// # Errors
    /// A file is not there.
    pub fn flatten(&self, path: &str) -> Result<String> {
        let mut text = String::new();
        self.append(&mut text, path, &mut HashSet::new())?;
        Ok(text)
    }

    fn append(&self, text: &mut String, path: &str, seen: &mut HashSet<String>) -> Result<()> {
        if !seen.insert(path.to_owned()) {
            return Ok(());
        }
        text.push_str(&format!("#line 1 \"{path}\"\n"));
        for (number, line) in self.read(path)?.lines().enumerate() {
            match line.strip_prefix("#include \"").and_then(|rest| rest.split_once('"')) {
                Some((header, _)) => {
                    let folder = if header.starts_with("emulator") { "emulator" } else { "common" };
                    self.append(text, &format!("{folder}/{header}"), seen)?;
                    text.push_str(&format!("#line {} \"{path}\"\n", number + 2));
                }
                None if line.trim_end() == "#pragma once" => text.push('\n'),
                None => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        Ok(())
    }
}
