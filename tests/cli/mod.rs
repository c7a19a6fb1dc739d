/// Usage, variables, exit codes.
mod arguments;
/// Times: bench.
mod bench;
/// Measuring a model: eval.
mod measures;
/// Commands about models: inspect, convert, init, verify, tokenize, doctor.
mod models;
/// Commands on text: reconstruct, encode, decode, sample, generate.
mod sentences;
/// Training: flags, signals, a full disk.
mod train;
/// Building vocabularies.
mod vocab;

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
