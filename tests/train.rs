//! Runs as the library makes them.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use della::engine::DeviceOptions;
use della::io::safetensors::{self, Header};
use della::io::{Checkpoint, ElementType};
use della::train::log::{Progress, Record, jsonl};
use della::train::run::{End, Run, settings_of};
use della::train::settings::Settings;
use della::train::start::Start;
use della::{Della, Error, Options, Result};
use tempfile::TempDir;

use crate::util::normal;

const VOCAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer/vocab.txt");

/// Some tens of short sentences.
fn corpus(dir: &Path) -> PathBuf {
    let words =
        ["我", "你", "他", "们", "喜欢", "吃", "水果", "今天", "天气", "很", "好", "书", "看", "去", "公园", "不"];
    let sentence = |i: usize| {
        let length = 3 + i * 7 % 5;
        (0..length).map(|t| words[(i * 5 + t * (3 + i % 7)) % words.len()]).collect::<String>() + "。\n"
    };
    let path = dir.join("corpus.txt");
    fs::write(&path, (0..60).map(sentence).collect::<String>()).unwrap();
    path
}

/// A tiny model, with everything on that is drawn.
fn settings(dir: &Path, more: &str) -> Settings {
    let corpus = corpus(dir).display().to_string();
    let text = format!(
        "model = {{ vocab = '{VOCAB}', layers = 2, hidden = 8, heads = 2, latent = 4, positions = 32 }}\n\
         data = {{ train = ['{corpus}'], valid = ['{corpus}'], valid_limit = 7 }}\n\
         batch = {{ tokens = 60, bucket = 16, accumulate = 2 }}\n\
         optim = {{ lr = 0.01, warmup = 2 }}\n\
         objective = {{ word_dropout = 0.2, latent_dropout = 0.2, beta_schedule = 'cyclic' }}\n\
         run = {{ steps = 9, log_every = 1, eval_every = 4, save_every = 3, tensorboard = false }}\n"
    );
    let path = dir.join("run.toml");
    fs::write(&path, text).unwrap();
    Settings::resolve(Some(&path), &more.parse().unwrap()).unwrap()
}

fn threads(threads: usize) -> DeviceOptions {
    DeviceOptions { threads: Some(threads), ..DeviceOptions::default() }
}

fn begin(dir: &Path, settings: Settings) -> Result<Run> {
    Run::new(dir, settings, &threads(1), &mut |_| {})
}

fn resume(dir: &Path, device: &DeviceOptions) -> Result<Run> {
    let settings = Settings::resolve(Some(&settings_of(dir)?), &Default::default())?;
    Run::resume(dir, settings, device, &mut |_| {})
}

/// Goes on to the end, or for one step only.
fn go_on(run: &mut Run, stop: bool) -> Result<End> {
    let mut logger = run.logger(|_, _| Progress::none())?;
    run.train(&AtomicBool::new(stop), &mut logger)
}

/// What was logged, without what the clock says.
fn log(dir: &Path) -> Vec<Record> {
    let records = jsonl::read(&dir.join("log.jsonl")).unwrap();
    records.into_iter().map(|record| Record { seconds: 0.0, tokens_per_s: 0.0, ..record }).collect()
}

fn bytes(dir: &Path, file: &str) -> Vec<u8> {
    fs::read(dir.join("latest").join(file)).unwrap()
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    for file in ["model.safetensors", "optimiser.safetensors", "config.json"] {
        assert!(bytes(a, file) == bytes(b, file), "{file} differs");
    }
    assert_eq!(log(a), log(b));
}

/// Interrupted after every step and resumed with another number of threads, a run gives the bits of one that was let be.
#[test]
fn a_resumed_run_is_the_same_run() {
    let dir = TempDir::new().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let settings = settings(dir.path(), "");
    assert_eq!(go_on(&mut begin(&whole, settings.clone()).unwrap(), false).unwrap(), End::Finished);
    let mut end = go_on(&mut begin(&parts, settings).unwrap(), true).unwrap();
    let mut sessions = 1;
    while end == End::Interrupted {
        end = go_on(&mut resume(&parts, &threads(1 + sessions % 3)).unwrap(), true).unwrap();
        sessions += 1;
    }
    assert_eq!((end, sessions), (End::Finished, 9));
    assert_same(&whole, &parts);
    let records = log(&whole);
    assert_eq!(records.len(), 9);
    assert!(records.iter().all(|record| record.loss.is_finite() && record.kl_layers.len() == 2));
    assert_eq!(records.iter().map(|record| record.valid.is_empty()).filter(|empty| !empty).count(), 3);
    // a finished run has nothing left to do
    assert_eq!(go_on(&mut resume(&parts, &threads(1)).unwrap(), false).unwrap(), End::Finished);
    assert_same(&whole, &parts);
}

/// What was logged after the last checkpoint is done again, whatever state the files are in.
#[test]
fn a_killed_run_loses_the_steps_since_its_checkpoint() {
    let dir = TempDir::new().unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let settings = settings(dir.path(), "");
    go_on(&mut begin(&whole, settings.clone()).unwrap(), false).unwrap();
    go_on(&mut begin(&killed, settings).unwrap(), false).unwrap();
    // as if it had died while it saved step 9, in the middle of a line of its log
    fs::remove_dir_all(killed.join("checkpoints/step-00000009")).unwrap();
    fs::create_dir(killed.join("checkpoints/.partial-9")).unwrap();
    fs::write(killed.join("checkpoints/.partial-9/model.safetensors"), "half").unwrap();
    let log = fs::read_to_string(killed.join("log.jsonl")).unwrap();
    fs::write(killed.join("log.jsonl"), &log[..log.len() - 30]).unwrap();
    let mut run = resume(&killed, &threads(1)).unwrap();
    assert!(run.state().step < 9);
    go_on(&mut run, false).unwrap();
    assert_same(&whole, &killed);
    assert!(!killed.join("checkpoints/.partial-9").exists());
}

#[test]
fn the_last_checkpoints_and_the_best_are_kept() {
    let dir = TempDir::new().unwrap();
    let run = dir.path().join("run");
    go_on(&mut begin(&run, settings(dir.path(), "run = { save_every = 1, keep_last = 2 }")).unwrap(), false).unwrap();
    let mut kept: Vec<String> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    let best = fs::read_link(run.join("best")).unwrap().file_name().unwrap().to_owned().into_string().unwrap();
    let mut wanted = vec!["step-00000008".to_owned(), "step-00000009".to_owned(), best];
    wanted.sort();
    wanted.dedup();
    assert_eq!(kept, wanted);
    // the checkpoint that a session began with is not kept either
    let more = Settings::resolve(Some(&settings_of(&run).unwrap()), &"run = { steps = 14 }".parse().unwrap()).unwrap();
    go_on(&mut Run::resume(&run, more, &threads(1), &mut |_| {}).unwrap(), false).unwrap();
    assert!(run.join("checkpoints/step-00000014").exists() && !run.join("checkpoints/step-00000009").exists());
    // a checkpoint is a model like any other
    let della = Della::open(run.join("best")).unwrap();
    assert_eq!(della.encode(["我喜欢水果。"], &Options::default()).unwrap().z.shape(), [1, 2, 4]);
}

#[test]
fn a_directory_has_one_run() {
    let dir = TempDir::new().unwrap();
    let (run, settings) = (dir.path().join("run"), settings(dir.path(), ""));
    let mut first = begin(&run, settings.clone()).unwrap();
    let error = begin(&run, settings.clone()).err().unwrap().to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    go_on(&mut first, true).unwrap();
    drop(first);
    let error = begin(&run, settings).err().unwrap().to_string();
    assert!(error.contains("--resume"), "{error}");
    let error = resume(dir.path(), &threads(1)).err().unwrap().to_string();
    assert!(error.contains("holds no run"), "{error}");
}

/// A loss that is no number ends the run before it is learnt from. The checkpoint that gave it goes, even if it is the last
/// one that would be kept.
#[test]
fn a_diverged_run_keeps_its_last_good_checkpoint() {
    let dir = TempDir::new().unwrap();
    let run = dir.path().join("run");
    let base = "run = { save_every = 1, keep_last = 1, keep_best = false, eval_every = 0, steps = 3 }";
    go_on(&mut begin(&run, settings(dir.path(), base)).unwrap(), false).unwrap();
    let more = format!("optim = {{ lr = 1e30, warmup = 0, clip = 0.0 }}\n{}", base.replace("steps = 3", "steps = 9"));
    let absurd = settings(dir.path(), &more);
    let mut resumed = Run::resume(&run, absurd, &threads(1), &mut |_| {}).unwrap();
    let error = go_on(&mut resumed, false).unwrap_err().to_string();
    drop(resumed);
    for part in ["diverged at step 5, batch", "epoch 0", "checkpoint of step 3 is kept", "--lr"] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    let steps: Vec<_> = fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(steps, ["step-00000003"]);
    assert_eq!(fs::read_link(run.join("latest")).unwrap(), Path::new("checkpoints/step-00000003"));
    assert_eq!(resume(&run, &threads(1)).unwrap().state().step, 3);
}

#[test]
fn what_a_checkpoint_does_not_fit_is_refused() {
    let dir = TempDir::new().unwrap();
    let (run, other) = (dir.path().join("run"), dir.path().join("other"));
    go_on(&mut begin(&run, settings(dir.path(), "")).unwrap(), true).unwrap();
    go_on(&mut begin(&other, settings(dir.path(), "model = { hidden = 16 }")).unwrap(), true).unwrap();
    let (ours, theirs) = (run.join("checkpoints/step-00000001"), other.join("checkpoints/step-00000001"));
    // the optimiser of another model
    let kept = fs::read(ours.join("optimiser.safetensors")).unwrap();
    fs::copy(theirs.join("optimiser.safetensors"), ours.join("optimiser.safetensors")).unwrap();
    let error = resume(&run, &threads(1)).err().unwrap().to_string();
    assert!(error.contains("optimiser.safetensors") && error.contains("another model"), "{error}");
    fs::write(ours.join("optimiser.safetensors"), kept).unwrap();
    // other data
    let text = fs::read_to_string(dir.path().join("corpus.txt")).unwrap();
    fs::write(dir.path().join("corpus.txt"), text.replacen('我', "你", 1)).unwrap();
    let error = resume(&run, &threads(1)).err().unwrap().to_string();
    assert!(error.contains("other data"), "{error}");
    // a model that is no checkpoint
    fs::remove_file(ours.join("state.json")).unwrap();
    let error = resume(&run, &threads(1)).err().unwrap().to_string();
    assert!(error.contains("state.json"), "{error}");
}

/// What a start makes of a parameter.
fn value(start: &Start, name: &str) -> Vec<f32> {
    let specs = start.config.specs();
    let spec = specs.list().into_iter().find(|spec| spec.name == name).unwrap();
    start.read(spec).unwrap().into_owned()
}

#[test]
fn both_stacks_start_from_a_gpt2() {
    let dir = TempDir::new().unwrap();
    let gpt2 = dir.path().join("gpt2");
    fs::create_dir(&gpt2).unwrap();
    fs::copy(VOCAB, gpt2.join("vocab.txt")).unwrap();
    // as transformers writes a GPT2LMHeadModel: without <BOS> and <EOS>, n_inner null, masks among the weights
    let config = r#"{"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "n_inner": null,
        "vocab_size": 4887, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "bos_token_id": 50256}"#;
    fs::write(gpt2.join("config.json"), config).unwrap();
    let mut tensors =
        vec![("transformer.wte.weight".to_owned(), vec![4887, 8]), ("transformer.wpe.weight".into(), vec![16, 8])];
    for l in 0..2 {
        for (name, shape) in [
            ("ln_1.weight", vec![8]),
            ("ln_1.bias", vec![8]),
            ("attn.bias", vec![1, 1, 16, 16]),
            ("attn.c_attn.weight", vec![8, 24]),
            ("attn.c_attn.bias", vec![24]),
            ("attn.c_proj.weight", vec![8, 8]),
            ("attn.c_proj.bias", vec![8]),
            ("ln_2.weight", vec![8]),
            ("ln_2.bias", vec![8]),
            ("mlp.c_fc.weight", vec![8, 20]),
            ("mlp.c_fc.bias", vec![20]),
            ("mlp.c_proj.weight", vec![20, 8]),
            ("mlp.c_proj.bias", vec![8]),
        ] {
            tensors.push((format!("transformer.h.{l}.{name}"), shape));
        }
    }
    tensors.extend([("transformer.ln_f.weight".to_owned(), vec![8]), ("transformer.ln_f.bias".into(), vec![8])]);
    let headers: Vec<Header> = tensors
        .iter()
        .map(|(name, shape)| Header { name: name.clone(), dtype: ElementType::F32, shape: shape.clone() })
        .collect();
    let values = |i: usize| normal(i as u64, tensors[i].1.iter().product());
    safetensors::write(&gpt2.join("model.safetensors"), &[], &headers, |i| {
        Ok(Cow::Owned(values(i).iter().flat_map(|x| x.to_le_bytes()).collect()))
    })
    .unwrap();

    let settings = settings(dir.path(), &format!("model = {{ gpt2 = '{}', latent = 3 }}", gpt2.display()));
    let mut model = settings.model.clone();
    model.vocab = None;
    let start = Start::new(&model, 0).unwrap();
    let dims = start.config.dims;
    assert_eq!((dims.vocab, dims.inner, dims.latent, dims.positions, dims.layers), (4889, 20, 3, 16, 2));
    for stack in ["encoder", "decoder"] {
        let wte = value(&start, &format!("model.{stack}.transformer.wte.weight"));
        assert_eq!((wte[..4887 * 8] == values(0), wte.len()), (true, 4889 * 8), "{stack}");
        let new = &wte[4887 * 8..];
        assert!(new.iter().all(|x| x.abs() < 0.1) && new.iter().any(|x| *x != 0.0), "{new:?}");
        let place = tensors.iter().position(|(name, _)| name == "transformer.h.1.mlp.c_fc.weight").unwrap();
        assert_eq!(value(&start, &format!("model.{stack}.transformer.h.1.mlp.c_fc.weight")), values(place));
    }
    let notes = start.notes.join("\n");
    assert!(
        notes.contains("grew from 4887 to 4889 rows") && notes.contains("model.posterior_nets.0.weight"),
        "{notes}"
    );
    let both = Start::new(&della::train::settings::ModelSettings { from: Some(gpt2), ..model }, 0);
    assert!(matches!(both, Err(Error::Input { .. })));
}

#[test]
fn a_vae_becomes_a_cvae() {
    let dir = TempDir::new().unwrap();
    let vae = dir.path().join("vae");
    go_on(&mut begin(&vae, settings(dir.path(), "")).unwrap(), true).unwrap();
    let data = dir.path().join("entities.jsonl");
    let line = |text: &str, entity: &str| {
        let start = text.chars().position(|c| entity.starts_with(c)).unwrap();
        let end = start + entity.chars().count();
        format!(
            r#"{{"text": "{text}", "entities": [{{"type": "人", "text": "{entity}", "start": {start}, "end": {end}}}]}}"#
        )
    };
    let lines: Vec<String> = (0..20).map(|i| line(["我看书。", "你去公园。"][i % 2], ["书", "公园"][i % 2])).collect();
    fs::write(&data, lines.join("\n")).unwrap();
    let more = format!(
        "model = {{ from = '{}', conditional = true }}\ndata = {{ train = ['{1}'], valid = ['{1}'] }}\nrun = {{ steps = 2 }}",
        vae.join("latest").display(),
        data.display()
    );
    let mut settings = settings(dir.path(), &more);
    settings.model.vocab = None;
    let start = Start::new(&settings.model, 0).unwrap();
    let name = "model.encoder.transformer.h.0.attn.c_attn.weight";
    let kept = Checkpoint::open(vae.join("latest")).unwrap().read_f32(name).unwrap();
    assert_eq!(value(&start, name), kept);
    let notes = start.notes.join("\n");
    assert!(notes.contains("wte.weight grew from 4889 to 4891 rows"), "{notes}");
    assert!(notes.contains("model.posterior_nets.1.weight ([8, 20] here, [8, 12] there)"), "{notes}");
    let run = dir.path().join("cvae");
    assert_eq!(go_on(&mut begin(&run, settings).unwrap(), false).unwrap(), End::Finished);
    assert!(Della::open(run.join("latest")).unwrap().config().dims.conditional);
}

/// Accumulated batches count by their rows, and a bucket's batches do not change what is drawn.
#[test]
fn training_lowers_the_loss() {
    let dir = TempDir::new().unwrap();
    let run = dir.path().join("run");
    let more = "objective = { word_dropout = 0.0, latent_dropout = 0.0, rec = 'sum', beta = 0.1 }\n\
                model = { embd_dropout = 0.0, attn_dropout = 0.0, resid_dropout = 0.0 }\n\
                run = { steps = 60, save_every = 0, eval_every = 0, log_every = 10 }";
    go_on(&mut begin(&run, settings(dir.path(), more)).unwrap(), false).unwrap();
    let records = log(&run);
    let (first, last) = (&records[0], &records[records.len() - 1]);
    assert!(last.rec < 0.6 * first.rec, "{} → {}", first.rec, last.rec);
    assert!(last.epoch > 1.0 && !last.valid.is_empty());
}
