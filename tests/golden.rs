use std::path::{Path, PathBuf};

use della::dtype::Dtype;
use della::engine::{self, Device, DeviceOptions, Engine, Learner};
use della::io::{Checkpoint, ElementType};
use della::model::Config;
use della::model::save::save;
use della::reference::Reference;
use della::verify::{Report, Status, is_training, verify, verify_sampling, verify_training};

use crate::util;
use crate::util::op::{cpus, name, products};

/// A model's directory and a case of it.
const CASES: [(&str, &str); 6] = [
    ("vae", "case_single"),
    ("vae", "case_padded"),
    ("vae", "case_max_length"),
    ("cvae", "case_padded"),
    ("greedy_vae", "case_greedy"),
    ("greedy_cvae", "case_greedy"),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The report on a case, by the model in `dir`.
fn report(dir: &Path, case: &Path, device: Device) -> Report {
    let options = DeviceOptions { device, threads: Some(2), ..DeviceOptions::default() };
    let engine = engine::open(dir, &options).unwrap();
    verify(&*engine, case, options.dtype()).unwrap()
}

#[test]
fn every_case_is_reproduced() {
    for (directory, case) in CASES {
        let reproduced = |engine: &dyn Engine, dtype, machine: &str| {
            let path = fixture(directory).join(case).with_extension("safetensors");
            let report = verify(engine, &path, dtype).unwrap();
            assert!(report.passes(), "{directory}/{case} on {machine}\n{report}");
            let compared = |status: &Status| matches!(status, Status::Compared { .. } | Status::Exact(None));
            let compared = report.tensors.iter().filter(|tensor| compared(&tensor.status)).count();
            let least = match case {
                "case_greedy" => 3,
                "case_max_length" => 15,
                _ => 80,
            };
            assert!(compared >= least, "{directory}/{case} on {machine}: {compared} tensors compared\n{report}");
        };
        reproduced(&util::model(&fixture(directory), Reference), Dtype::F64, "the oracle");
        for cpu in cpus(2) {
            let machine = name(&cpu);
            reproduced(&util::model(&fixture(directory), cpu), Dtype::F32, &machine);
        }
    }
}

/// Narrow weights come as close as their digits let them, by every product; integers have no gradients.
#[test]
fn every_case_is_met_by_narrow_weights() {
    for (dtype, cpu) in
        [Dtype::Bf16, Dtype::Int8, Dtype::Int4].into_iter().flat_map(|d| products(d).into_iter().map(move |c| (d, c)))
    {
        let machine = name(&cpu);
        let model = util::model(&fixture("cvae"), cpu);
        let case = fixture("cvae/case_padded.safetensors");
        let report = verify(&model, &case, dtype).unwrap();
        assert!(report.passes() && report.tensors.len() >= 20, "on {machine}\n{report}");
        let gradients = report.tensors.iter().filter(|tensor| tensor.name.starts_with("grad.")).count();
        assert_eq!(gradients > 0, dtype == Dtype::Bf16, "{machine}");
    }
    for cpu in products(Dtype::Bf16) {
        let machine = name(&cpu);
        let path = fixture("train/case_train.safetensors");
        let report = verify_training(&mut util::learner(&fixture("train"), cpu), &path, Dtype::Bf16).unwrap();
        assert!(report.passes(), "on {machine}\n{report}");
    }
}

/// The optimiser's recorded run, on every machine.
#[test]
fn the_recorded_run_is_repeated() {
    let path = fixture("train/case_train.safetensors");
    assert!(is_training(&path).unwrap() && !is_training(&fixture("vae/case_single.safetensors")).unwrap());
    let repeated = |learner: &mut dyn Learner, dtype, machine: &str| {
        let report = verify_training(learner, &path, dtype).unwrap();
        assert!(report.passes() && report.tensors.len() == 4 + 96, "on {machine}\n{report}");
    };
    repeated(&mut util::learner(&fixture("train"), Reference), Dtype::F64, "the oracle");
    for cpu in cpus(2) {
        let machine = name(&cpu);
        repeated(&mut util::learner(&fixture("train"), cpu), Dtype::F32, &machine);
    }
    let engine = util::model(&fixture("train"), Reference);
    assert!(verify(&engine, &path, Dtype::F64).unwrap_err().to_string().contains("verify_training"));
}

#[test]
fn the_sampler_reproduces_its_cases() {
    let report = verify_sampling(&fixture("sampling")).unwrap();
    assert!(report.passes() && report.tensors.len() == 10, "{report}");
}

/// One weight a little off is found, and the report's first failure is the tensor that it makes.
#[test]
fn a_wrong_weight_fails_where_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(fixture("vae")).unwrap();
    let config = Config::read(&checkpoint).unwrap();
    for (weight, first_wrong) in [
        ("model.encoder.transformer.wpe.weight", "encoder_embedding"),
        ("model.encoder.transformer.h.2.mlp.c_fc.weight", "encoder_hidden_states"),
        ("model.pooling.3.attention_weights", "pooled"),
        ("model.prior_nets.3.weight", "prior_output"),
        ("model.posterior_nets.3.weight", "posterior_output"),
        ("model.decoder.transformer.linear_emb_layers.0.weight", "logits"),
    ] {
        let dir = directory.path().join(weight);
        save(&dir, &config, ElementType::F32, &mut |_, spec| {
            let mut values = checkpoint.read_f32(&spec.name)?;
            if spec.name == weight {
                values[0] += 0.01;
            }
            Ok(values)
        })
        .unwrap();
        for device in [Device::Reference, Device::Cpu] {
            let report = report(&dir, &fixture("vae/case_single.safetensors"), device);
            assert!(!report.passes());
            let first = report.tensors.iter().find(|tensor| !tensor.passes()).unwrap();
            assert_eq!(first.name, first_wrong, "{weight} on {device:?}\n{report}");
        }
    }
}

/// Another model's case is an error, not a difference.
#[test]
fn a_case_of_another_model_is_refused() {
    let vae = engine::open(&fixture("vae"), &DeviceOptions::default()).unwrap();
    let error = verify(&*vae, &fixture("cvae/case_padded.safetensors"), Dtype::F32).unwrap_err().to_string();
    assert!(error.contains("cond_inputs"), "{error}");
    let train = engine::open(&fixture("train"), &DeviceOptions::default()).unwrap();
    let error = verify(&*train, &fixture("vae/case_single.safetensors"), Dtype::F32).unwrap_err().to_string();
    assert!(error.contains("vocabulary of 101") || error.contains("eps_prior"), "{error}");
}

/// The built-in model, sentence by sentence: ids, text and greedy reconstructions as an independent implementation in
/// PyTorch (f64, the same bf16 weights) makes them.
#[cfg(feature = "builtin-model")]
#[test]
fn the_built_in_model_reconstructs_id_for_id() {
    use della::{Della, Options};

    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
        ids: Vec<u32>,
        greedy: Vec<u32>,
    }
    let lines = std::fs::read_to_string(fixture("mini-zh/greedy.jsonl")).unwrap();
    let lines: Vec<Line> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    let found = Della::builtin().unwrap().reconstruct(texts, &Options::greedy()).unwrap();
    assert_eq!(found.len(), 100);
    for (found, line) in found.iter().zip(&lines) {
        assert_eq!((&found.ids, &found.new_ids), (&line.ids, &line.greedy), "{}", line.text);
    }
}
