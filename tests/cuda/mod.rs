//! The CUDA backend on the emulated device: the whole model against the published code's numbers, forced variants, and
//! what goes wrong.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use della::backend::Storage;
use della::cuda::Cuda;
use della::cuda::choice::Forced;
use della::cuda::driver::emulator::{Emulator, Schedule};
use della::cuda::registry::REGISTRY;
use della::cuda::source::{FILES, Sources};
use della::cuda::trial::{self, Scale};
use della::dtype::Dtype;
use della::engine::Engine;
use della::verify::{verify, verify_training};

use crate::util;
use crate::util::emulator::device;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// Compares every tensor of a case, at least `least` of them.
fn reproduced(engine: &dyn Engine, dtype: Dtype, case: &str, least: usize) {
    let report = verify(engine, &fixture(case), dtype).unwrap();
    assert!(report.passes() && report.tensors.len() >= least, "{case} on the emulator in {dtype}\n{report}");
}

/// Forward, backward and greedy, in the order of threads that is most different from the source's.
#[test]
fn every_case_is_reproduced() {
    for (directory, cases) in [
        ("vae", &[("case_single", 80), ("case_padded", 80), ("case_max_length", 15)][..]),
        ("cvae", &[("case_padded", 80)]),
        ("greedy_vae", &[("case_greedy", 3)]),
        ("greedy_cvae", &[("case_greedy", 3)]),
    ] {
        let model = util::model(&fixture(directory), device(Dtype::F32, 2, Schedule::ALL[4], ""));
        for (case, least) in cases {
            reproduced(&model, Dtype::F32, &format!("{directory}/{case}.safetensors"), *least);
        }
    }
}

#[test]
fn every_case_is_met_in_bf16() {
    for directory in ["vae", "cvae"] {
        let model = util::model(&fixture(directory), device(Dtype::Bf16, 2, Schedule::ALL[0], ""));
        reproduced(&model, Dtype::Bf16, &format!("{directory}/case_padded.safetensors"), 20);
    }
}

#[test]
fn the_recorded_run_is_repeated() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut learner = util::learner(&fixture("train"), device(dtype, 2, Schedule::ALL[0], ""));
        let mut report = verify_training(&mut learner, &fixture("train/case_train.safetensors"), dtype).unwrap();
        assert_eq!(report.tensors.len(), 4 + 96);
        // a softmax does not change with the bias of its keys: the optimiser follows the roundings of a gradient of zero
        report.tensors.retain(|tensor| dtype == Dtype::F32 || !tensor.name.ends_with("attn.c_attn.bias"));
        assert!(report.passes(), "in {dtype}\n{report}");
    }
}

/// Each variant against the plainest of its op, in every schedule.
#[test]
fn every_variant_computes_what_the_plainest_does() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for schedule in Schedule::ALL {
            let mut seen = BTreeSet::new();
            trial::run(&device(dtype, 1, schedule, ""), Scale::Tiny, &|_| true, &mut |trial| {
                assert!(trial.passes, "{} on {} in {dtype}: off by {:e}", trial.kernel, trial.case, trial.error);
                seen.insert(trial.kernel);
                Ok(())
            })
            .unwrap();
            let of_gemm = seen.iter().filter(|kernel| kernel.starts_with("gemm_")).count();
            assert_eq!(of_gemm, if dtype == Dtype::Bf16 { 12 } else { 3 }, "{seen:?}");
        }
    }
}

/// A file of `kernels/` is in the program, and each kernel's file is a row of the registry.
#[test]
fn files_and_rows_belong_together() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    for group in ["common", "emulator", "embed", "norm", "linear", "attention", "latent", "loss", "optim"] {
        for entry in std::fs::read_dir(root.join(group)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = format!("{group}/{name}");
            if !root.join(&path).is_file() {
                continue;
            }
            assert!(FILES.iter().any(|(known, _)| *known == path), "{path} is not in the program");
            let of_kernel = name.ends_with(".cu");
            assert!(!of_kernel || REGISTRY.iter().any(|kernel| kernel.path() == path), "{path} has no row");
        }
    }
    let headers = ["// Idea: ", "// Against: ", "// Bound: ", "// Needs: ", "// Source: "];
    for kernel in REGISTRY {
        let path = kernel.path();
        let text = FILES.iter().find(|(known, _)| *known == path).unwrap_or_else(|| panic!("{path}")).1;
        for header in headers {
            assert!(text.lines().take(12).any(|line| line.starts_with(header)), "{path} does not say {header:?}");
        }
        assert!(text.lines().count() <= 600, "{path}");
        // what else such a kernel reads may be written by the one before, and the compiler must not load it early
        let early = ["b", "bias", "bounds", "gain", "history", "ids", "index", "offset", "positions"];
        let (early, written) = (
            [&early[..], &["settings", "slots", "w", "wpe", "wte"]].concat(),
            ["mean", "rstd", "token", "u", "weights", "y"],
        );
        for name in text.split("__restrict__ ").skip(1).map(|rest| rest.split([',', ')']).next().unwrap_or_default()) {
            let known = early.contains(&name) || written.contains(&name);
            assert!(!kernel.overlaps || known, "{path}: {name} may not be __restrict__");
        }
        for call in ["let_next_begin();", "wait_for_previous();"] {
            assert_eq!(text.contains(call), kernel.overlaps, "{path}: {call}");
        }
    }
}

#[test]
fn variants_are_forced_by_name() {
    let message = |text: &str| Forced::parse(text).unwrap_err().to_string();
    assert!(Forced::parse("gemm=v01_tile, kl_fwd=v01_warp").is_ok() && Forced::parse("").is_ok());
    assert!(message("gemm").contains("op=variant"));
    assert!(message("gem=v01_tile").contains("layernorm_fwd"));
    assert!(message("gemm=fast").contains("v01_tile"));
}

/// Kernels are read from a directory, so that they can be edited; an error in one names the file and the line.
#[test]
fn kernels_of_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in FILES {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let edited = directory.path().join("latent/mask_fwd_v01_flat.cu");
    let text = std::fs::read_to_string(&edited).unwrap();
    std::fs::write(&edited, text.replace("x[i] * mask[i]", "x[i] * mask[i] + 1.0f")).unwrap();
    let sources = Sources::of_directory(directory.path());
    let open = || {
        let driver = Emulator::new(&sources, 1, Schedule::ALL[0]).unwrap();
        Cuda::new(Arc::new(driver), &sources, Forced::default(), Dtype::F32)
    };
    use della::backend::LatentOps;
    let cuda = open().unwrap();
    let mut y = cuda.real(1).unwrap();
    cuda.mask_fwd(&mut y, &cuda.real_from(&[3f32]).unwrap(), &cuda.real_from(&[2f32]).unwrap(), 1);
    let mut host = [0f32];
    cuda.read_real(&mut host, &y);
    assert_eq!(host, [7.0]);
    std::fs::write(&edited, "#include \"device.cuh\"\nKERNEL mask_fwd(float* y) { y[0] = wrong; }\n").unwrap();
    let error = open().err().unwrap().to_string();
    assert!(error.contains("latent/mask_fwd_v01_flat.cu:2") && error.contains("wrong"), "{error}");
}

#[test]
fn what_it_cannot_do_is_an_error() {
    let sources = Sources::from_env();
    let driver = || Arc::new(Emulator::new(&sources, 1, Schedule::ALL[0]).unwrap());
    let error = Cuda::new(driver(), &sources, Forced::default(), Dtype::Int8).err().unwrap().to_string();
    assert!(error.contains("f32 and bf16"), "{error}");
    let cuda = Cuda::new(driver(), &sources, Forced::default(), Dtype::F32).unwrap();
    let error = cuda.real(1 << 48).err().unwrap().to_string();
    assert!(error.contains("memory") && error.contains("fewer rows"), "{error}");
    assert!(cuda.status().is_ok());
}

/// A recorded step over caches that grow takes their lengths from the device, also where that is one more block's work.
#[test]
fn a_recorded_step_reads_a_growing_cache() {
    use della::backend::{AttentionDims, Backend, CacheRows, Recordings, Spans};
    use della::reference::Reference;
    use util::close::{Tolerance, assert_close};
    use util::op::{act, ids, read_act, stale_act};

    fn steps<B: Backend>(b: &B) -> Vec<f64> {
        let (dims, capacity) = (AttentionDims { heads: 2, head_dim: 16 }, 140);
        let cached = |seed| act(b, &util::normal(seed, 2 * capacity * dims.width()));
        let (mut keys, mut values, mut y) = (cached(1), cached(2), stale_act(b, 2 * dims.width()));
        let spans = Spans::of_lengths(b, [1, 1]).unwrap();
        let rows = CacheRows { spans, slots: ids(b, &[1, 0]), capacity };
        let mut tokens = ids(b, &[0; 4]);
        let (mut recordings, mut outputs) = (Recordings::default(), Vec::new());
        let mut qkv = stale_act(b, 6 * dims.width());
        for step in 0..6 {
            b.write_ids(&mut tokens, &[0, 0, 61 + step, 125 + step]);
            b.write_act(&mut qkv, &util::normal(3 + u64::from(step), 6 * dims.width()));
            // twice, as layers do: the memory that the first takes for a while is there for the second
            b.repeat(&mut recordings, &[2], &mut || {
                (0..2).for_each(|_| b.attention_cached_fwd(&mut y, &mut keys, &mut values, &qkv, &tokens, &rows, dims));
            });
            outputs.extend(read_act(b, &y, 2 * dims.width()));
        }
        outputs
    }
    let wanted = steps(&Reference);
    for schedule in [Schedule::ALL[0], Schedule::ALL[4]] {
        let cuda = device(Dtype::F32, 2, schedule, "");
        let found = steps(&cuda);
        cuda.status().unwrap();
        assert_close("attention in recorded steps", &found, &wanted, Tolerance { factor: 8.0, terms: 16 });
    }
}

/// The device draws what the host draws, with every rule.
#[test]
fn tokens_are_drawn_on_the_device() {
    use della::backend::{Draw, LossOps, NO_TOKEN, Rules};
    use della::generate::{Mode, Sampler, Sampling};
    use della::rng::{Rng, Stream};

    let cuda = device(Dtype::F32, 2, Schedule::ALL[4], "");
    let vocab = 300;
    let mut settings = Vec::new();
    for mode in [Mode::Usual, Mode::Reference] {
        for (top_k, top_p, temperature, repetition_penalty) in [
            (0, 0.0, 1.0, 1.0),
            (5, 0.0, 0.7, 1.0),
            (0, 0.5, 0.7, 1.0),
            (40, 0.9, 1.3, 1.2),
            (0, 0.95, 0.1, 0.8),
            (1, 0.0, 1.0, 2.0),
        ] {
            settings.push(Sampling { top_k, top_p, temperature, repetition_penalty, mode });
        }
    }
    let rows = settings.len();
    let mut logits: Vec<f32> = util::normal(5, (rows + 2) * vocab).iter().map(|x| (x * 8.0).round() / 4.0).collect();
    logits[rows * vocab + 7] = f32::NAN;
    let history = [3, 7, 7, 250, 299, 0];
    let device_logits = cuda.real_from(&logits).unwrap();
    for step in 0..6 {
        let draw = |(row, s): (usize, &Sampling)| Draw {
            rules: if s.mode == Mode::Usual { Rules::Usual } else { Rules::Reference },
            top_k: s.top_k,
            top_p: s.top_p,
            temperature: s.temperature,
            repetition_penalty: s.repetition_penalty,
            seed: 1 << 40,
            number: row as u64,
            step,
            history: &history,
        };
        let mut draws: Vec<_> = settings.iter().enumerate().map(draw).collect();
        draws.push(draws[0]);
        draws.push(Draw { rules: Rules::Greedy, ..draws[0] });
        let mut tokens = vec![0; rows + 2];
        cuda.sample(&mut tokens, &device_logits, draws.iter().copied(), vocab);
        cuda.status().unwrap();
        for (row, sampling) in settings.iter().enumerate() {
            let uniform = Rng::new(1 << 40, Stream::Token, row as u64).uniform(step);
            let logits = &logits[row * vocab..][..vocab];
            let wanted = Sampler::new(*sampling).unwrap().draw(logits, &history, uniform).unwrap();
            assert_eq!(tokens[row], wanted, "{sampling:?} at step {step}");
        }
        let last = &logits[(rows + 1) * vocab..];
        let greatest = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(tokens[rows..], [NO_TOKEN, last.iter().position(|x| *x == greatest).unwrap() as u32]);
    }
}
