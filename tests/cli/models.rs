use super::*;

#[test]
fn tokens_there_and_back() {
    let dir = Dir::new();
    let vocab = dir.write("vocab.txt", vocabulary(155, &[]));
    let tokenize = |more: &[&str], input: &[u8]| piped(&[&["tokenize", "--vocab", &vocab], more].concat(), input);
    let text = "我不是你的家人<EOS>\n\n没有。\n";
    let there = tokenize(&["-"], text.as_bytes()).ok();
    let lines = objects(&there);
    assert_eq!(lines[0]["tokens"], json!(["我", "不", "是", "你", "的", "家", "人", "<EOS>"]));
    assert_eq!(lines[0]["ids"][7], 156);
    assert_eq!(lines[1], json!({ "text": "", "tokens": [], "ids": [] }));
    assert_eq!(tokenize(&["--decode", "-"], there.as_bytes()).ok(), text);
    assert_eq!(tokenize(&["--decode", "76 77", "[76]"], b"").ok().lines().count(), 2);

    let broken = tokenize(&["-"], "我\n\u{b}\n".as_bytes()).ok();
    assert_eq!(broken.lines().count(), 2);
    let broken = tokenize(&["-"], b"\xe6\x88\x91\n\xe6\x88\n\xe6\x88\x91");
    assert!(broken.err.contains("standard input:2: is not UTF-8"), "{}", broken.err);
    assert_eq!(broken.code, 1);
    let broken = objects(&broken.out);
    assert!(broken[1]["error"].is_string());
    assert_eq!(broken[0], broken[2]);

    let wrong = tokenize(&["--decode", "-"], b"5 6\n157\n[1, -1]\n{\"ids\": 3}\nx\n5 6");
    for part in ["input:2: ids: 157 is not in the vocabulary", "input:3: ", "input:4: ", "input:5: \"x\" is not an id"]
    {
        assert!(wrong.err.contains(part), "{part:?} is missing in {}", wrong.err);
    }
    assert_eq!(wrong.code, 1);
    let lines: Vec<&str> = wrong.out.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[1]), (6, lines[5], ""));
}

/// A conditional model has two more tokens, and its directory says so even without weights.
#[test]
fn a_models_tokenizer_needs_no_weights() {
    let dir = Dir::new();
    dir.write("vocab.txt", vocabulary(155, &[]));
    let model = dir.path("");
    let ids = || objects(&run(&["tokenize", "--model", &model, "<ENT>"]).ok())[0]["ids"].clone();
    assert_ne!(ids(), json!([157]));
    dir.write("config.json", r#"{"CVAE": true}"#);
    assert_eq!(ids(), json!([157]));
    dir.write("config.json", "{}");
    assert!(run(&["tokenize", "--model", &model, "<ENT>"]).fails(1).contains("holds none of model.safetensors"));
}

#[test]
fn inspect_shows_what_is_there() {
    let inspect = |path: &Path, more: &[&str]| run(&[&["inspect", "--model", path.to_str().unwrap()], more].concat());
    for (file, format) in
        [("pytorch_model.bin", "PyTorch archive"), ("mp_rank_00_model_states.pt", "DeepSpeed archive"), ("", "PyTorch")]
    {
        let text = inspect(&fixture("vae_bin").join(file), &[]).ok();
        for part in [format, "parameters   255552", "latent_dim", "missing      vocab.txt"] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
        assert!(!text.contains("c_attn"), "{text}");
    }
    let object: Value = serde_json::from_str(&inspect(&fixture("vae"), &["--json", "--tensors"]).ok()).unwrap();
    assert_eq!(object["tensors"].as_array().unwrap().len(), object["tensor_count"]);
    assert_eq!(object["parameters"], 255_552);
    let table = inspect(&fixture("vae"), &["--tensors"]).ok();
    assert!(table.lines().any(|l| l.starts_with("model.pooling.3.attention_weights ") && l.ends_with("F32   [48]")));

    let dir = Dir::new();
    fs::copy(fixture("vae").join(WEIGHTS), dir.path(WEIGHTS)).unwrap();
    let bare = inspect(Path::new(&dir.path(WEIGHTS)), &[]).ok();
    assert!(bare.contains("missing      config.json"), "{bare}");
    let model = dir.model("vae");
    let whole = inspect(Path::new(&model), &[]).ok();
    assert!(
        whole.contains("157 tokens") && whole.contains("<BOS> <EOS>") && whole.contains("all parts fit"),
        "{whole}"
    );
}

#[test]
fn every_disagreement_is_listed() {
    let dir = Dir::new();
    let model = dir.model("vae");
    dir.configure("vae", "n_embd", Some(json!(96)));
    dir.configure("vae", "n_head", None);
    dir.configure("vae", "latent_dim", Some(json!(13)));
    for args in [&["inspect", "--model", &model][..], &["sample", "--model", &model]] {
        let found = run(args);
        let all = format!("{}{}", found.out, found.err);
        for part in ["n_embd is 96, but", "n_head is missing", "latent_dim is 13, but"] {
            assert!(all.contains(part), "{part:?} is missing in {all}");
        }
        found.fails(1);
    }

    let dir = Dir::new();
    let model = dir.model("vae");
    dir.write("vae/vocab.txt", vocabulary(150, &[]));
    for args in [&["inspect", "--model", &model][..], &["sample", "--model", &model]] {
        let found = run(args);
        let all = format!("{}{}", found.out, found.err);
        for part in ["vocab.txt", "makes 152 tokens", "vocab_size is 157", "bos_token_id is 155", "eos_token_id is 156"]
        {
            assert!(all.contains(part), "{part:?} is missing in {all}");
        }
        found.fails(1);
    }
}

/// What is quick to check is checked before the weights are read.
#[test]
fn a_wrong_vocabulary_is_seen_first() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let mut weights = fs::read(Path::new(&model).join(WEIGHTS)).unwrap();
    let at = weights.len() - 4;
    weights[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    dir.write(&format!("vae/{WEIGHTS}"), weights);
    assert!(run(&["sample", "--model", &model]).fails(1).contains("no finite number"));
    dir.write("vae/vocab.txt", vocabulary(150, &[]));
    assert!(run(&["sample", "--model", &model]).fails(1).contains("vocab_size is 157"));
}

/// A pipe is not waited for, and a device without end not read, whichever file of a model they stand for.
#[cfg(unix)]
#[test]
fn side_files_are_regular_and_small() {
    let dir = Dir::new();
    let [pipe, zero] = ["pipe", "zero"].map(|name| dir.path(name));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
    let refused = |args: &[&str], name: &str| {
        let mut command = della(args);
        command.timeout(std::time::Duration::from_secs(20));
        let found = finish(command);
        let all = format!("{}{}", found.out, found.err);
        assert!(all.contains(name) && all.contains("is not a regular file"), "{args:?}: {all}");
        found.fails(1);
    };
    let (model, out) = (dir.model("vae"), dir.path("out"));
    for bad in [&pipe, &zero] {
        refused(&["tokenize", "--vocab", bad, "x"], bad);
        refused(&["init", "--config", bad, "--output", &out], bad);
        for (name, commands) in [
            ("sampling.json", &[&["verify", "--sampling", &model][..]][..]),
            ("config.json", &[&["tokenize", "--model", &model, "x"], &["inspect", "--model", &model]]),
            ("special_tokens_map.json", &[&["inspect", "--model", &model]]),
            ("vocab.txt", &[&["inspect", "--model", &model], &["convert", "--model", &model, "--output", &out]]),
        ] {
            let path = Path::new(&model).join(name);
            let kept = fs::read(&path);
            let _ = fs::remove_file(&path);
            std::os::unix::fs::symlink(bad, &path).unwrap();
            commands.iter().for_each(|args| refused(args, name));
            fs::remove_file(&path).unwrap();
            if let Ok(kept) = kept {
                fs::write(&path, kept).unwrap();
            }
            let _ = fs::remove_dir_all(&out);
        }
    }
}

#[test]
fn conversion_keeps_the_model() {
    let dir = Dir::new();
    let source = dir.path("source");
    fs::create_dir(&source).unwrap();
    for file in ["config.json", "pytorch_model.bin"] {
        fs::copy(fixture("vae_bin").join(file), Path::new(&source).join(file)).unwrap();
    }
    for key in ["vocab_size", "n_embd", "n_layer", "CVAE"] {
        dir.configure("source", key, None);
    }
    let vocab = vocabulary(155, &[]);
    dir.write("source/vocab.txt", &vocab);
    dir.write("source/tokenizer_config.json", r#"{"do_lower_case": true}"#);
    let output = dir.path("out");
    run(&["convert", "--model", &source, "--output", &output]).ok();
    assert_eq!(dir.read("out/vocab.txt"), vocab);
    assert_eq!(dir.read("out/tokenizer_config.json"), dir.read("source/tokenizer_config.json"));
    let config: Value = serde_json::from_str(&dir.read("out/config.json")).unwrap();
    assert_eq!((&config["vocab_size"], &config["n_embd"], &config["CVAE"]), (&json!(157), &json!(48), &json!(false)));
    let case = fixture("vae/case_single.safetensors");
    let verified = run(&["verify", &output, case.to_str().unwrap()]).ok();
    assert!(verified.ends_with("1 of 1 cases ok\n"), "{verified}");

    let half = dir.path("half");
    run(&["convert", "--model", &source, "--output", &half, "--dtype", "bf16"]).ok();
    let inspected: Value = serde_json::from_str(&run(&["inspect", "--model", &half, "--json"]).ok()).unwrap();
    assert_eq!(inspected["dtypes"], json!({ "BF16": inspected["tensor_count"] }));
    run(&["verify", &half, case.to_str().unwrap()]).fails(1);
}

#[test]
fn nothing_is_overwritten() {
    let dir = Dir::new();
    let model = dir.model("vae");
    for existing in ["config.json", WEIGHTS, "vocab.txt", "added_tokens.json"] {
        let output = dir.path("out");
        fs::create_dir(&output).unwrap();
        dir.write(&format!("out/{existing}"), "mine");
        for args in [
            &["convert", "--model", &model, "--output", &output][..],
            &["init", "--preset", "randeng-226m", "--output", &output],
        ] {
            let error = run(args).fails(1);
            assert!(error.contains(&format!("{existing} exists already")), "{error}");
        }
        assert_eq!(dir.read(&format!("out/{existing}")), "mine");
        assert_eq!(fs::read_dir(&output).unwrap().count(), 1);
        fs::remove_dir_all(&output).unwrap();
    }
}

#[test]
fn a_number_that_is_not_finite_is_found() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let mut weights = fs::read(Path::new(&model).join(WEIGHTS)).unwrap();
    let at = weights.len() - 4;
    weights[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    dir.write(&format!("vae/{WEIGHTS}"), weights);
    let output = dir.path("out");
    for args in [&["sample", "--model", &model][..], &["convert", "--model", &model, "--output", &output]] {
        let error = run(args).fails(1);
        assert!(error.contains(WEIGHTS) && error.contains("has no finite number at index"), "{error}");
    }
    assert!(!Path::new(&output).join(WEIGHTS).exists());
}

#[test]
fn a_new_model_works() {
    let dir = Dir::new();
    let vocab = dir.write("words.txt", vocabulary(60, &[]));
    let config = json!({
        "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "latent_dim": 4, "CVAE": false, "pad_token_id": 0,
    });
    let config = dir.write("tiny.json", config.to_string());
    let init = |output: &str, more: &[&str]| run(&[&["init", "--config", &config, "--output", output], more].concat());
    let model = dir.path("model");
    init(&model, &["--vocab", &vocab]).ok();
    assert_eq!(dir.read("model/vocab.txt"), dir.read("words.txt"));
    let inspected: Value = serde_json::from_str(&run(&["inspect", "--model", &model, "--json"]).ok()).unwrap();
    assert_eq!(inspected["config"]["vocab_size"], 62);
    assert_eq!(inspected["config"]["bos_token_id"], 60);
    assert_eq!((&inspected["problems"], &inspected["missing"]), (&json!([]), &json!([])));
    let sample = run(&["sample", "--model", &model, "-n", "2"]);
    assert_eq!(sample.err, "");
    assert_eq!(sample.ok().lines().count(), 2);

    let weights = |model: &str| fs::read(Path::new(model).join(WEIGHTS)).unwrap();
    let (same, other) = (dir.path("same"), dir.path("other"));
    init(&same, &["--vocab", &vocab, "--seed", "0"]).ok();
    init(&other, &["--vocab", &vocab, "--seed", "1"]).ok();
    assert_eq!(weights(&model), weights(&same));
    assert_ne!(weights(&model), weights(&other));

    let without = init(&dir.path("without"), &[]).fails(1);
    for key in ["vocab_size", "bos_token_id", "eos_token_id"] {
        assert!(without.contains(&format!("{key} is missing")), "{without}");
    }
    let preset = dir.path("preset");
    let error = run(&["init", "--preset", "randeng-226m", "--output", &preset, "--vocab", &vocab]).fails(1);
    assert!(error.contains("makes 62 tokens") && error.contains("vocab_size is 21130"), "{error}");
    assert!(!Path::new(&preset).exists());

    fs::remove_file(Path::new(&model).join("vocab.txt")).unwrap();
    let (config, bare) = (dir.path("model/config.json"), dir.path("bare"));
    let said = run(&["init", "--config", &config, "--output", &bare, "--dtype", "f16"]);
    assert!(said.err.contains("vocab.txt"), "{}", said.err);
    said.ok();
    assert!(run(&["sample", "--model", &bare]).fails(1).contains("vocab.txt"));
}

#[test]
fn verification_reports_and_fails() {
    let path = |name: &str| fixture(name).to_str().unwrap().to_owned();
    let (vae, single, padded) = (path("vae"), path("vae/case_single.safetensors"), path("vae/case_padded.safetensors"));
    let both = run(&["verify", &vae, &single, &padded]).ok();
    assert!(both.ends_with("2 of 2 cases ok\n"), "{both}");
    let gradients = both.lines().filter(|line| line.starts_with("grad.") && line.ends_with("  ok")).count();
    assert_eq!(gradients, 2 * 126, "{both}");
    let json = run(&["verify", &vae, &single, "--json", "--device", "reference"]).ok();
    let [object] = &objects(&json)[..] else { panic!("{json}") };
    assert_eq!(object["verdict"], "ok");
    let logits = object["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == "logits").unwrap();
    assert!(logits["relative"].as_f64().unwrap() <= logits["tolerance"].as_f64().unwrap());

    let training = run(&["verify", &path("train"), &path("train/case_train.safetensors")]).ok();
    assert!(training.contains("grad_norm") && training.ends_with("1 of 1 cases ok\n"), "{training}");
    let sampling = run(&["verify", "--sampling", &path("sampling")]).ok();
    assert!(sampling.ends_with("1 of 1 cases ok\n"), "{sampling}");

    let mixed = run(&["verify", &vae, "absent.safetensors", &single]);
    assert!(mixed.out.contains("case_single.safetensors: ok"), "{}", mixed.out);
    let error = mixed.fails(1);
    assert!(error.contains("absent.safetensors: ") && error.contains("1 of 2 cases failed"), "{error}");

    let dir = Dir::new();
    let model = dir.model("vae");
    dir.configure("vae", "layer_norm_epsilon", Some(json!(0.01)));
    let wrong = run(&["verify", &model, &single]);
    assert!(wrong.out.lines().any(|l| l.starts_with("encoder_hidden_states ") && l.ends_with("FAIL")), "{}", wrong.out);
    wrong.fails(1);

    dir.configure("vae", "latent_size", Some(json!(32)));
    assert!(run(&["verify", &model, &single]).fails(1).contains("the paper's DELLA"));
}

#[test]
fn the_doctor_sees_the_machine() {
    let text = run(&["doctor"]).ok();
    for part in ["della 0.", "portable", "chosen", "reference", "emulator", "cuda  ", "layernorm_fwd", "built-in model"]
    {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    let report = |variables: &[(&str, &str)]| -> Value {
        serde_json::from_str(&with_env(&["doctor", "--json"], variables).ok()).unwrap()
    };
    let chosen = |report: &Value, list: &str| -> Vec<Value> {
        let rows = report[list].as_array().unwrap().iter();
        rows.filter(|row| row["chosen"] == true).map(|row| row["name"].clone()).collect()
    };
    let limited = report(&[("DELLA_ISA", "portable"), ("DELLA_GEMM", "matrixmultiply-f32"), ("DELLA_THREADS", "3")]);
    assert_eq!(chosen(&limited, "instruction_sets"), [json!("portable")]);
    let products = ["matrixmultiply-f32", "portable-bf16-widen", "portable-int8-widen", "portable-int4-widen"];
    assert_eq!(chosen(&limited, "matrix_products"), products.map(|name| json!(name)));
    assert_eq!((&limited["threads"], limited["variables"].as_array().unwrap().len()), (&json!(3), 3));
    let misspelt = report(&[("DELLA_MODLE", "x")]);
    assert!(misspelt["notes"].to_string().contains("DELLA_MODLE"), "{misspelt}");
    let wrong = with_env(&["doctor"], &[("DELLA_ISA", "sse9")]);
    assert!(wrong.out.contains("not available: DELLA_ISA: \"sse9\" is unknown"), "{}", wrong.out);
    wrong.fails(1);
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell]).ok().contains("reconstruct"), "{shell}");
    }
}
