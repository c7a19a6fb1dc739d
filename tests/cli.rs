use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const SENTENCE: &str = "我不是你的家人";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// What a run left.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    /// Standard output of a run that succeeded.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.err);
        self.out
    }

    /// Standard error of a run that failed with `code`, and did so without a panic.
    #[track_caller]
    fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self.err
    }
}

/// A command that nothing in the tests' own environment influences.
fn della<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_della"));
    command.env_clear().args(args);
    command
}

fn finish(mut command: Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn run(args: &[&str]) -> Run {
    finish(della(args))
}

/// A run with `input` on standard input.
fn piped(args: &[&str], input: impl Into<Vec<u8>>) -> Run {
    let mut command = della(args);
    command.write_stdin(input);
    finish(command)
}

fn with_env(args: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = della(args);
    command.envs(variables.iter().copied());
    finish(command)
}

fn objects(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A directory for one test.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A copy of a model of the fixtures, with a vocabulary so that it can be given text; its path.
    fn model(&self, fixture_name: &str) -> String {
        let dir = self.path(fixture_name);
        fs::create_dir(&dir).unwrap();
        for file in ["config.json", WEIGHTS] {
            fs::copy(fixture(fixture_name).join(file), Path::new(&dir).join(file)).unwrap();
        }
        // <BOS> and <EOS> are appended; of a conditional model, the two others come before them
        let structural: &[&str] = if fixture_name == "cvae" { &["<ENT>", "<ENS>"] } else { &[] };
        self.write(&format!("{fixture_name}/vocab.txt"), vocabulary(155 - structural.len(), structural));
        dir
    }

    /// Changes one key of a model's configuration, or removes it.
    fn configure(&self, model: &str, key: &str, value: Option<Value>) {
        let name = format!("{model}/config.json");
        let mut config: serde_json::Map<String, Value> = serde_json::from_str(&self.read(&name)).unwrap();
        match value {
            Some(value) => config.insert(key.into(), value),
            None => config.remove(key),
        };
        self.write(&name, Value::Object(config).to_string());
    }
}

/// The first lines of a Chinese vocabulary, and `more`.
fn vocabulary(len: usize, more: &[&str]) -> String {
    let all = fs::read_to_string(fixture("tokenizer/vocab.txt")).unwrap();
    let tokens: Vec<&str> = all.lines().take(len).chain(more.iter().copied()).collect();
    tokens.join("\n") + "\n"
}

/// The built-in model is there and good.
#[cfg(feature = "builtin-model")]
mod builtin {
    use super::*;

    #[test]
    fn sentences_come_back() {
        assert_eq!(run(&["reconstruct", "--greedy", "我们需要帮助。"]).ok(), "我们需要帮助。\n");
        let inspected: Value = serde_json::from_str(&run(&["inspect", "--json"]).ok()).unwrap();
        assert_eq!((&inspected["problems"], &inspected["missing"]), (&json!([]), &json!([])));
        assert_eq!(inspected["vocabulary"]["tokens"], 4889);
        assert!(run(&["inspect"]).ok().contains("all parts fit together"));
    }

    /// As Hugging Face's tokenizer has it, line for line.
    #[test]
    fn tokens_are_those_of_the_published_tokenizer() {
        let cases = fixture("tokenizer/cases.jsonl");
        let out = run(&["tokenize", "--file", cases.to_str().unwrap()]).ok();
        let cases = objects(&fs::read_to_string(&cases).unwrap());
        assert_eq!(out.lines().count(), cases.len());
        for (found, case) in objects(&out).iter().zip(&cases) {
            for key in ["text", "tokens", "ids"] {
                assert_eq!(found[key], case[key], "{}", case["text"]);
            }
        }
    }
}

#[test]
fn reconstruct_is_repeatable_and_indifferent_to_company() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let file = dir.write("in.txt", format!("{SENTENCE}\n大家好，你在北京。\n有人\n"));
    let args = ["reconstruct", "--model", &model, "--max-length", "12", "--latent", "sample"];
    let together = run(&[&args[..], &["--file", &file]].concat());
    assert_eq!(together.err, "", "no bar and no remark where no one watches");
    let together = together.ok();
    assert_eq!(run(&[&args[..], &["--file", &file]].concat()).ok(), together);
    assert_eq!(together.lines().count(), 3);
    let alone = run(&[&args[..], &[SENTENCE]].concat()).ok();
    assert_eq!(together.lines().next(), alone.lines().next());
    assert_eq!(run(&[&args[..], &["--threads", "1", "--batch", "1", "--file", &file]].concat()).ok(), together);
    assert_ne!(run(&[&args[..], &["--seed", "1", "--file", &file]].concat()).ok(), together);
    assert_eq!(piped(&[&args[..], &["-"]].concat(), fs::read(&file).unwrap()).ok(), together);

    let several = run(&[&args[..], &["-n", "2", "--json", SENTENCE]].concat()).ok();
    let [object] = &objects(&several)[..] else { panic!("{several}") };
    assert_eq!(object["reconstructions"].as_array().unwrap().len(), 2);
    assert_eq!(object["reconstructions"][0], alone.trim_end());
    assert_eq!(object["kl"].as_array().unwrap().len(), 4);
}

#[test]
fn latents_decode_to_what_reconstruct_says() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let file = dir.write("in.txt", format!("{SENTENCE}\n有人\n"));
    let drawn = ["--model", &model, "--temperature", "1", "--top-p", "0", "--max-length", "9"];
    let wanted = run(&[&["reconstruct", "--file", &file], &drawn[..]].concat()).ok();

    let jsonl = run(&["encode", "--model", &model, "--file", &file]).ok();
    assert_eq!(objects(&jsonl)[1]["layers"].as_array().unwrap().len(), 4);
    let jsonl = dir.write("latents.jsonl", jsonl);
    let tensors = dir.path("latents.safetensors");
    run(&["encode", "--model", &model, "--file", &file, "--output", &tensors]).ok();
    for latents in [&jsonl, &tensors] {
        assert_eq!(run(&[&["decode", latents], &drawn[..]].concat()).ok(), wanted, "{latents}");
    }
    let before = fs::read(&tensors).unwrap();
    let error = run(&["encode", "--model", &model, "--file", &file, "--output", &tensors]).fails(1);
    assert!(error.contains("latents.safetensors exists already"), "{error}");
    assert_eq!(fs::read(&tensors).unwrap(), before);
}

#[test]
fn sampling_repeats_and_depends_on_the_seed() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let sample = |more: &[&str]| run(&[&["sample", "--model", &model, "--max-length", "8", "-n", "3"], more].concat());
    let first = sample(&[]).ok();
    assert_eq!(first.lines().count(), 3);
    assert_eq!(sample(&[]).ok(), first);
    assert_eq!(sample(&["--seed", "0"]).ok(), first);
    assert_ne!(sample(&["--seed", "1"]).ok(), first);
    let random = sample(&["--seed", "random"]);
    let seed = random.err.strip_prefix("seed: ").unwrap().trim_end().to_owned();
    assert_eq!(sample(&["--seed", &seed]).ok(), random.ok());
    let lines = dir.path("out.txt");
    sample(&["--output", &lines]).ok();
    assert_eq!(dir.read("out.txt"), first);
    assert!(sample(&["--output", &lines]).fails(1).contains("out.txt exists already"));
    assert_eq!(dir.read("out.txt"), first);
}

#[test]
fn a_conditional_model_generates() {
    let dir = Dir::new();
    let model = dir.model("cvae");
    let args = ["generate", "--model", &model, "--max-length", "8", "-n", "3"];
    let wanted = run(&[&args[..], &["--entity", "北京:地方"]].concat()).ok();
    assert_eq!(wanted.lines().count(), 3);
    let line = r#"{"id": "a", "entities": [{"name": "北京", "type": "地方"}]}"#;
    let found = piped(&[&args[..], &["--json", "--file", "-"]].concat(), format!("{line}\n{{}}\n"));
    assert!(found.err.contains("standard input:2: "), "{}", found.err);
    assert_eq!(found.code, 1);
    let found = objects(&found.out);
    assert_eq!(found[0]["sentences"], json!(wanted.lines().collect::<Vec<_>>()));
    assert_eq!((&found[0]["id"], found[1]["error"].is_string()), (&json!("a"), true));
}

#[test]
fn each_kind_of_model_refuses_what_the_other_does() {
    let dir = Dir::new();
    let (vae, cvae) = (dir.model("vae"), dir.model("cvae"));
    assert!(run(&["generate", "--model", &vae, "--entity", "北京:地方"]).fails(2).contains("is a VAE"));
    assert!(run(&["sample", "--model", &cvae]).fails(1).contains("it is a CVAE"));
}

#[test]
fn bad_lines_keep_their_place_and_the_others_run() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let long = "我".repeat(50);
    let input = [SENTENCE.as_bytes(), b"\n\n\xff\xfe\n", long.as_bytes(), "\n有人\r\n".as_bytes()].concat();
    let file = dir.write("in.txt", &input);
    let args = ["reconstruct", "--model", &model, "--greedy", "--max-length", "5", "--file", &file];
    let found = run(&args);
    for part in
        ["in.txt:2: sentence: is empty", "in.txt:3: is not UTF-8 at byte 0", "in.txt:4: sentence: has 50 tokens"]
    {
        assert!(found.err.contains(part), "{part:?} is missing in {}", found.err);
    }
    assert!(found.err.contains("3 of the input's lines"), "{}", found.err);
    assert_eq!(found.code, 1);
    let lines: Vec<&str> = found.out.lines().collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert_eq!(format!("{}\n", lines[0]), run(&[&args[..6], &[SENTENCE]].concat()).ok());
    assert_eq!(&lines[1..4], [""; 3]);
    assert!(!lines[4].is_empty());

    let truncated = run(&[&args[..], &["--truncate"]].concat());
    assert!(!truncated.err.contains(":4:"), "{}", truncated.err);
    assert!(!truncated.out.lines().nth(3).unwrap().is_empty());

    let json = run(&[&args[..], &["--json"]].concat());
    assert_eq!(json.code, 1);
    let json = objects(&json.out);
    assert_eq!(json.iter().map(|o| o["error"].is_string()).collect::<Vec<_>>(), [false, true, true, true, false]);
}

#[test]
fn one_bad_sentence_is_a_failure() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let long = "我".repeat(50);
    let reconstruct = |sentence: &str| run(&["reconstruct", "--model", &model, "--greedy", sentence]);
    assert!(reconstruct("").fails(1).contains("sentence: is empty"));
    assert!(reconstruct(&long).fails(1).contains("reads at most 38"));
    let absent = dir.path("absent.txt");
    assert!(run(&["reconstruct", "--model", &model, "--file", &absent]).fails(1).contains("absent.txt: "));
}

#[test]
fn wrong_usage_exits_with_2() {
    for (args, part) in [
        (&["sample", "--top-p", "1.5"][..], "--top-p: "),
        (&["sample", "--temperature", "0"], "--temperature: "),
        (&["sample", "--temperature", "nan"], "--temperature: "),
        (&["sample", "--threads", "0"], "--threads: "),
        (&["sample", "--latent", "mean", "--latent-noise", "1"], "--latent-noise"),
        (&["sample", "--greedy", "--top-k", "1"], "--greedy"),
        (&["sample", "--device", "gpu"], "[possible values: "),
        (&["reconstruct"], "nothing to read"),
        (&["verify"], "<MODEL>"),
        (&["init", "--output", "x"], "--preset"),
        (&["init", "--output", "x", "--preset", "small"], "randeng-cvae-226m"),
        (&["convert", "--model", "x"], "--output"),
        (&["nothing"], "nothing"),
    ] {
        let error = run(args).fails(2);
        assert!(error.contains(part), "{args:?}: {error}");
    }
}

#[test]
fn variables_are_named_where_they_matter() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let args = ["sample", "--max-length", "4"];
    let found = with_env(&args, &[("DELLA_MODEL", &model), ("DELLA_SEED", "3"), ("DELLA_GEMM", "matrixmultiply-f32")]);
    for line in [format!("DELLA_MODEL={model}\n"), "DELLA_SEED=3\n".into(), "DELLA_GEMM=matrixmultiply-f32\n".into()] {
        assert_eq!(found.err.matches(&line).count(), 1, "{}", found.err);
    }
    let wanted = run(&["sample", "--max-length", "4", "--model", &model, "--seed", "3"]);
    assert_eq!((found.ok(), wanted.err.as_str()), (wanted.out, ""));
    let given = with_env(&["sample", "--max-length", "4", "--model", &model], &[("DELLA_MODEL", "absent")]);
    assert_eq!(given.err, "", "an argument goes before the variable");

    for (variable, value, code) in
        [("DELLA_THREADS", "many", 2), ("DELLA_DEVICE", "gpu", 2), ("DELLA_SEED", "-1", 2), ("DELLA_ISA", "sse9", 1)]
    {
        let error = with_env(&["sample", "--model", &model], &[(variable, value)]).fails(code);
        assert!(error.contains(variable) && error.contains(value), "{error}");
    }
    let error = with_env(&["sample", "--threads", "many"], &[("DELLA_THREADS", "many")]).fails(2);
    assert!(!error.contains("DELLA_THREADS"), "{error}");
}

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
    assert!(both.contains("grad.*") && both.contains("not computed yet"), "{both}");
    let json = run(&["verify", &vae, &single, "--json", "--device", "reference"]).ok();
    let [object] = &objects(&json)[..] else { panic!("{json}") };
    assert_eq!(object["verdict"], "ok");
    let logits = object["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == "logits").unwrap();
    assert!(logits["relative"].as_f64().unwrap() <= logits["tolerance"].as_f64().unwrap());

    let training = run(&["verify", &path("train"), &path("train/case_train.safetensors")]).ok();
    assert!(training.ends_with("0 of 1 cases ok, 1 not computed yet\n"), "{training}");
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
    for part in ["della 0.", "portable", "chosen", "reference", "this build has no CUDA backend", "built-in model"] {
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
    assert_eq!(chosen(&limited, "matrix_products"), [json!("matrixmultiply-f32")]);
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
