//! How much memory opening a model takes. The system keeps the peak of every process.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use della::io::ElementType;
use della::model::Config;
use della::model::save::save;
use serde_json::json;

/// What a process takes beside the weights: the executable, the tokenizer and stacks, 14 MB on two cores, and the few
/// parameters that are being read. A second copy of the weights, about 75 MB, would show.
const REST: usize = 20 << 20;

/// Writes a model of many parameters, each small beside the whole, with a vocabulary; returns the bytes of its weights.
fn write_model(dir: &Path) -> usize {
    let vocab = Path::new("tests/fixtures/tokenizer/vocab.txt");
    let json = json!({
        "vocab_size": 4889, "n_positions": 64, "n_embd": 256, "n_layer": 10, "n_head": 4, "latent_dim": 32, "CVAE": false,
        "bos_token_id": 4887, "eos_token_id": 4888, "pad_token_id": 0,
    });
    let config = Config::parse(Path::new("config.json"), json.to_string().as_bytes(), None).unwrap();
    save(dir, &config, ElementType::F32, &mut |i, spec| Ok(spec.initial(0, i))).unwrap();
    fs::copy(vocab, dir.join("vocab.txt")).unwrap();
    config.specs().list().iter().map(|spec| 4 * spec.len()).sum()
}

/// No second copy of the weights is ever held, neither of the file nor of what was read from it.
#[test]
fn opening_a_model_takes_little_more_than_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let weights = write_model(dir.path());
    // lines that are refused once the model is open; the command then waits for more
    let mut della = Command::new(env!("CARGO_BIN_EXE_della"))
        .env_clear()
        .args(["reconstruct", "--jsonl", "-", "--model"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = della.stdin.take().unwrap();
    input.write_all("{\n".repeat(10_000).as_bytes()).unwrap();
    let mut said = String::new();
    let mut errors = BufReader::new(della.stderr.take().unwrap());
    errors.read_line(&mut said).unwrap();
    assert!(said.contains("not the JSON object"), "{said}");
    let status = fs::read_to_string(format!("/proc/{}/status", della.id())).unwrap();
    drop((input, errors));
    della.wait().unwrap();

    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak = 1024 * peak.unwrap_or_else(|| panic!("no peak in {status}")).trim().parse::<usize>().unwrap();
    let bound = weights + weights * 15 / 100 + REST;
    assert!(weights > 3 * REST, "{weights} bytes of weights are too few to show a second copy");
    assert!((weights..=bound).contains(&peak), "{peak} bytes for {weights} bytes of weights; {bound} are allowed");
}
