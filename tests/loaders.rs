//! Loading weights from files, whole and damaged.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use della::Result;
use della::io::safetensors::{Header, write};
use della::io::torch_zip::unpickle::Pickle;
use della::io::{Checkpoint, ElementType, Format, torch_zip};
use della::model::params::Spec;
use della::model::{Config, Model};
use della::reference::Reference;
use proptest::prelude::*;

const TIED: &str = "model.decoder.lm_head.weight";
const DECODER_WTE: &str = "model.decoder.transformer.wte.weight";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn bin() -> Vec<u8> {
    std::fs::read(fixture("vae_bin/pytorch_model.bin")).unwrap()
}

/// Every tensor, bit for bit.
fn content(checkpoint: &Checkpoint) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let mut all = Vec::new();
    for name in checkpoint.names() {
        let bits = checkpoint.read_f32(name).unwrap().into_iter().map(f32::to_bits).collect();
        all.push((name.to_owned(), checkpoint.get(name).unwrap().shape.clone(), bits));
    }
    all
}

/// Opens `bytes` as a file called `name`, and reads all of it that can be read.
fn open_and_read(name: &str, bytes: &[u8]) -> Result<()> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(&path)?;
    let mut result = Ok(());
    for name in checkpoint.names() {
        result = result.and(checkpoint.read_f32(name).map(drop));
    }
    result
}

/// A safetensors file of float32 vectors.
fn vectors(path: &Path, tensors: &[(&str, &[f32])]) {
    let headers: Vec<_> = tensors
        .iter()
        .map(|(name, data)| Header { name: (*name).into(), dtype: ElementType::F32, shape: vec![data.len()] })
        .collect();
    write(path, &[("format", "pt")], &headers, |i| Ok(Cow::Borrowed(bytemuck::cast_slice(tensors[i].1)))).unwrap();
}

#[test]
fn the_three_forms_of_a_model_are_one() {
    let safetensors = Checkpoint::open(fixture("vae")).unwrap();
    let torch = Checkpoint::open(fixture("vae_bin")).unwrap();
    let deepspeed = Checkpoint::open(fixture("vae_bin/mp_rank_00_model_states.pt")).unwrap();
    assert_eq!(safetensors.format(), Format::Safetensors);
    assert_eq!(torch.format(), Format::Torch);
    assert_eq!(deepspeed.format(), Format::DeepSpeed);
    assert_eq!(torch.path(), fixture("vae_bin/pytorch_model.bin"));

    let expected = content(&safetensors);
    assert!(expected.len() > 100);
    for checkpoint in [torch, deepspeed] {
        let mut found = content(&checkpoint);
        if safetensors.get(TIED).is_none() {
            found.retain(|(name, ..)| name != TIED);
        }
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{}: {}", checkpoint.path().display(), expected.0);
        }
        assert_eq!(found.len(), expected.len());
        // At least one of them is stored transposed.
        assert!(checkpoint.names().any(|name| !checkpoint.get(name).unwrap().is_contiguous()));
    }
}

#[test]
fn tied_weights_are_seen_to_be_equal() {
    let torch = Checkpoint::open(fixture("vae_bin")).unwrap();
    assert!(torch.get(TIED).unwrap().same_location(torch.get(DECODER_WTE).unwrap()));
    assert!(torch.same_values(TIED, DECODER_WTE).unwrap());
    assert!(!torch.same_values(TIED, "model.encoder.transformer.wte.weight").unwrap());

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let mut data = vec![0.5f32; 600_000];
    let equal = data.clone();
    data[599_999] = 0.25;
    vectors(&path, &[("a", &equal), ("b", &equal), ("c", &data), ("d", &data[1..])]);
    let checkpoint = Checkpoint::open_as_is(&path).unwrap();
    for (name, expected) in [("a", true), ("b", true), ("c", false), ("d", false)] {
        assert_eq!(checkpoint.same_values("a", name).unwrap(), expected, "{name}");
    }
}

/// safetensors.torch.save_model keeps one name of tied tensors, and that may be the head's.
#[test]
fn a_head_alone_is_the_embedding() {
    let model = Checkpoint::open(fixture("vae_bin")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let kept: Vec<&str> = model.names().filter(|name| *name != DECODER_WTE).collect();
    let header = |name: &&str| Header {
        name: (*name).into(),
        dtype: ElementType::F32,
        shape: model.get(name).unwrap().shape.clone(),
    };
    let headers: Vec<Header> = kept.iter().map(header).collect();
    write(&path, &[], &headers, |i| Ok(Cow::Owned(bytemuck::cast_slice(&model.read_f32(kept[i])?).to_vec()))).unwrap();
    std::fs::copy(fixture("vae_bin/config.json"), directory.path().join("config.json")).unwrap();

    let found = Checkpoint::open(directory.path()).unwrap();
    Config::read(&found).unwrap();
    assert!(found.get(TIED).is_none());
    assert_eq!(found.get(DECODER_WTE).unwrap().name, DECODER_WTE);
    assert_eq!(found.read_f32(DECODER_WTE).unwrap(), model.read_f32(DECODER_WTE).unwrap());
}

#[test]
fn a_parameter_of_another_size_is_named() {
    let checkpoint = Checkpoint::open(fixture("vae")).unwrap();
    let read = |spec: &Spec, _: Vec<f32>| {
        let mut values = checkpoint.read_f32(&spec.name)?;
        values.truncate(if spec.name == "model.decoder.transformer.ln_f.bias" { 47 } else { usize::MAX });
        Ok(Cow::Owned(values))
    };
    let error = Model::load(Reference, Config::read(&checkpoint).unwrap(), &read).err().unwrap().to_string();
    assert_eq!(error, "model.decoder.transformer.ln_f.bias: 47 values were read, but its shape is [48]");
}

#[test]
fn masks_are_left_out_and_biases_are_not() {
    let plain = Checkpoint::open_as_is(fixture("vae_bin")).unwrap();
    let masks: Vec<_> = plain.names().filter(|name| name.ends_with(".attn.bias")).collect();
    assert!(!masks.is_empty());
    assert_eq!(plain.get(masks[0]).unwrap().dtype, ElementType::U8);
    assert!(plain.read_i64(masks[0]).unwrap().iter().all(|&bit| bit < 2));
    let error = plain.read_f32(masks[0]).unwrap_err().to_string();
    assert!(error.contains("is stored as U8, which cannot be read as floating-point numbers"), "{error}");

    let model = Checkpoint::open(fixture("vae_bin")).unwrap();
    assert!(model.names().all(|name| !name.ends_with(".attn.bias") && !name.ends_with(".masked_bias")));
    assert!(model.get("model.encoder.transformer.h.0.attn.c_attn.bias").is_some());
    assert!(model.names().all(|name| model.get(name).unwrap().name == name));
}

#[test]
fn a_directory_without_weights_says_what_was_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
    for file in
        ["model.safetensors,", "model.safetensors.index.json", "pytorch_model.bin", "mp_rank_00_model_states.pt"]
    {
        assert!(error.contains(file), "{error}");
    }
    let error = Checkpoint::open(directory.path().join("absent")).unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
    let error = Checkpoint::open(fixture("vae")).unwrap().read_f32("model.nothing").unwrap_err().to_string();
    assert!(error.contains("model.safetensors: has no tensor \"model.nothing\""), "{error}");
}

#[test]
fn shards_are_one_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    vectors(&path("two.safetensors"), &[("model.b", &[2., 3.]), ("model.unlisted", &[9.])]);
    vectors(&path("one.safetensors"), &[("model.a", &[1.]), ("model.c", &[4.])]);
    let index = |map: &str| std::fs::write(path("model.safetensors.index.json"), format!(r#"{{"weight_map":{map}}}"#));
    index(r#"{"model.a":"one.safetensors","model.b":"two.safetensors","model.c":"one.safetensors"}"#).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(checkpoint.format(), Format::ShardedSafetensors);
    let found: Vec<_> = checkpoint.names().map(|name| (name, checkpoint.read_f64(name).unwrap())).collect();
    assert_eq!(found, [("model.a", vec![1.]), ("model.b", vec![2., 3.]), ("model.c", vec![4.])]);

    for (map, expected) in [
        (r#"{"model.a":"two.safetensors"}"#, "\"model.a\" is said to be in \"two.safetensors\", which lacks it"),
        (r#"{"model.a":"three.safetensors"}"#, "three.safetensors"),
        (r#"{"model.a":"../one.safetensors"}"#, "not the name of a file in this directory"),
        (r#"["model.a"]"#, "`weight_map`"),
    ] {
        index(map).unwrap();
        let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} is missing in: {error}");
    }
}

#[test]
fn prefixes_become_canonical_and_do_not_mix() {
    let directory = tempfile::tempdir().unwrap();
    let names = |file: &str, tensors: &[&str]| -> Result<Vec<String>> {
        let path = directory.path().join(file);
        let tensors: Vec<_> = tensors.iter().map(|name| (*name, &[1f32][..])).collect();
        vectors(&path, &tensors);
        Ok(Checkpoint::open(&path)?.names().map(String::from).collect())
    };
    let canonical = ["model.decoder.x", "model.encoder.y"];
    assert_eq!(names("1", &["module.model.decoder.x", "module.model.encoder.y"]).unwrap(), canonical);
    assert_eq!(names("2", &["model.decoder.x", "model.encoder.y"]).unwrap(), canonical);
    assert_eq!(names("3", &["decoder.x", "encoder.y", "h.0.attn.bias", "h.0.attn.masked_bias"]).unwrap(), canonical);
    for (file, mixed) in [("4", ["model.decoder.x", "encoder.y"]), ("5", ["model.x", "module.model.x"])] {
        let error = names(file, &mixed).unwrap_err().to_string();
        assert!(mixed.iter().all(|name| error.contains(name)) && error.contains("one prefix"), "{error}");
    }
}

#[test]
fn a_number_that_is_not_finite_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let mut data = vec![0f32; 300_000];
    data[299_998] = f32::NAN;
    vectors(&path, &[("model.a", &[1., f32::INFINITY]), ("model.b", &data)]);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    for (name, index) in [("model.a", 1), ("model.b", 299_998)] {
        for error in [checkpoint.read_f32(name).unwrap_err(), checkpoint.read_f64(name).unwrap_err()] {
            let expected = format!("tensor {name:?} has no finite number at index {index}");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
    assert!(!checkpoint.same_values("model.a", "model.b").unwrap());
}

#[test]
fn files_of_another_kind_say_what_to_do() {
    for (bytes, expected) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"[..], "git lfs pull"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "torch.save"),
        (b"{\"model_type\": \"DellaModel\"}", "not safetensors"),
        (b"", "is empty"),
    ] {
        let error = open_and_read("pytorch_model.bin", bytes).unwrap_err().to_string();
        assert!(error.contains("pytorch_model.bin: ") && error.contains(expected), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_has_been_read_does_not_stay_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resident.safetensors");
    let data = vec![1f32; 4 << 20];
    vectors(&path, &[("model.a", &data), ("model.b", &data)]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    // The kernel's count of the map's pages that are in memory, in kB.
    let resident = || -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let map = maps.split_once("resident.safetensors").unwrap().1;
        map.split_once("Rss:").unwrap().1.split_whitespace().next().unwrap().parse().unwrap()
    };
    assert!(resident() < 256, "{} kB after opening", resident());
    checkpoint.read_f32("model.a").unwrap();
    assert!(resident() < 256, "{} kB after reading", resident());
    assert!(checkpoint.same_values("model.a", "model.b").unwrap());
    assert!(resident() < 256, "{} kB after comparing", resident());
}

#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let archive = bin();
    let safetensors = std::fs::read(fixture("vae/model.safetensors")).unwrap();
    for part in 0..200 {
        for (name, whole) in [("pytorch_model.bin", &archive), ("model.safetensors", &safetensors)] {
            let end = whole.len() * part / 200;
            let error = open_and_read(name, &whole[..end]).expect_err(&format!("{name} cut off at {end}"));
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

/// Places in a file and what to put there.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u8>()), 1..6)
}

/// Most places in an archive are numbers; its first and last 20 kB hold the pickle and the directory.
fn damaged(mut bytes: Vec<u8>, damage: Vec<(prop::sample::Index, u8, u8)>) -> Vec<u8> {
    let len = bytes.len();
    let edge = len.min(20_000);
    for (index, part, value) in damage {
        let at = match part {
            0 => index.index(len),
            1 => len - 1 - index.index(edge),
            _ => index.index(edge),
        };
        bytes[at] = value;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_archive_never_panics_or_hoards(damage in damage()) {
        let bytes = damaged(bin(), damage);
        let memory = allocation_counter::measure(|| {
            let _ = torch_zip::parse(Path::new("damaged"), &bytes);
        });
        prop_assert!(memory.bytes_max < 4 * bytes.len() as u64, "{} bytes", memory.bytes_max);
        let _ = open_and_read("pytorch_model.bin", &bytes);
    }

    #[test]
    fn a_damaged_safetensors_file_never_panics(damage in damage()) {
        let bytes = damaged(std::fs::read(fixture("vae/model.safetensors")).unwrap(), damage);
        let _ = open_and_read("model.safetensors", &bytes);
    }

    #[test]
    fn noise_after_a_header_is_no_pickle(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [b"\x80\x02", &noise[..]].concat();
        let memory = allocation_counter::measure(|| drop(Pickle::read(&bytes)));
        prop_assert!(memory.bytes_max < 256 * 400, "{} bytes", memory.bytes_max);
    }
}
