//! `della train`: from its flags to its exit code, and what happens to a run that is stopped from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{fixture, objects, run};

fn corpus(dir: &Path) -> PathBuf {
    let path = dir.join("corpus.tsv");
    let line = |i: usize| {
        format!(
            "{}\t{}{}。\n",
            ["daily", "law"][i % 2],
            ["我喜欢", "你不看", "他们去"][i % 3],
            ["水果", "书", "公园", "天气"][i % 4]
        )
    };
    fs::write(&path, (0..40).map(line).collect::<String>()).unwrap();
    path
}

/// The flags of a run of a tiny model.
fn flags(dir: &Path, more: &[&str]) -> Vec<String> {
    let (vocab, corpus) = (fixture("tokenizer/vocab.txt"), corpus(dir));
    let mut flags: Vec<String> = ["train", "--layers=2", "--hidden=8", "--heads=2", "--latent=4", "--positions=32"]
        .iter()
        .map(|flag| flag.to_string())
        .collect();
    flags.extend([
        format!("--vocab={}", vocab.display()),
        format!("--output={}", dir.join("run").display()),
        "--batch-rows=4".into(),
        "--log-every=1".into(),
    ]);
    if !more.iter().any(|flag| flag.starts_with("--train")) {
        flags.push(format!("--train={}", corpus.display()));
    }
    flags.extend(more.iter().map(|flag| flag.to_string()));
    flags
}

fn train(dir: &Path, more: &[&str]) -> super::Run {
    let flags = flags(dir, more);
    run(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

fn resume(dir: &Path, more: &[&str]) -> super::Run {
    let path = dir.join("run").display().to_string();
    run(&[&["train", "--resume", &path], more].concat())
}

fn steps(dir: &Path) -> Vec<u64> {
    let log = fs::read_to_string(dir.join("run/log.jsonl")).unwrap_or_default();
    let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
    objects(whole).iter().map(|record| record["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_run_makes_a_model() {
    let dir = TempDir::new().unwrap();
    let err = train(dir.path(), &["--steps=3", "--labels=daily", "--valid", &corpus(dir.path()).display().to_string()]);
    assert!(err.err.contains("20 of another label") && err.err.contains("finished: "), "{}", err.err);
    err.ok();
    assert_eq!(steps(dir.path()), [1, 2, 3]);
    let model = dir.path().join("run/best").display().to_string();
    run(&["reconstruct", "--model", &model, "我喜欢书。"]).ok();
    let settings = fs::read_to_string(dir.path().join("run/settings.toml")).unwrap();
    assert!(settings.contains("labels = [\"daily\"]") && settings.contains("steps = 3"), "{settings}");
    let events = fs::read_dir(dir.path().join("run")).unwrap().flatten();
    assert!(events.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("events.out.tfevents")));
    // more steps than before
    let more = resume(dir.path(), &["--steps=5"]);
    assert!(more.err.contains("continues at step 3 of 5"), "{}", more.err);
    more.ok();
    assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5]);
}

#[test]
fn usage() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().display().to_string();
    assert!(run(&["train"]).fails(2).contains("--output"));
    assert!(run(&["train", "--resume", &path]).fails(1).contains("holds no run"));
    assert!(run(&["train", "--output", &path]).fails(1).contains("model.vocab"));
    assert!(train(dir.path(), &["--lr=-1"]).fails(1).contains("optim.lr"));
    assert!(train(dir.path(), &["--beta-schedule=sometimes"]).fails(2).contains("cyclic"));
    let config = dir.path().join("run.toml");
    fs::write(&config, "[optim]\nlearning_rate = 1").unwrap();
    let message = train(dir.path(), &["--config", &config.display().to_string()]).fails(1);
    assert!(message.contains("run.toml") && message.contains("learning_rate"), "{message}");
}

#[test]
fn bad_corpora_are_refused_or_counted() {
    let dir = TempDir::new().unwrap();
    let corpus = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        format!("--train={}", path.display())
    };
    for text in ["", "\n\n", "我喜欢书。\n"] {
        let message = train(dir.path(), &[&corpus("short.txt", text), "--steps=1"]).fails(1);
        assert!(message.contains("short.txt") || message.contains("sentences"), "{message}");
    }
    let message = train(dir.path(), &["--labels=weather", "--steps=1"]).fails(1);
    assert!(message.contains("weather") && message.contains("daily 20"), "{message}");
    let broken = "daily\t我喜欢书。\nno tab\ndaily\t你不看书。\ndaily\t\n";
    let message = train(dir.path(), &[&corpus("broken.tsv", broken), "--steps=1", "--strict"]).fails(1);
    assert!(message.contains("broken.tsv") && message.contains('2'), "{message}");
    let done = train(dir.path(), &[&corpus("broken.tsv", broken), "--steps=1"]);
    assert!(done.err.contains("2 sentences"), "{}", done.err);
    done.ok();
    let dir = TempDir::new().unwrap();
    let long = dir.path().join("long.txt");
    fs::write(&long, format!("我喜欢书。\n你不看书。\n{}\n", "书".repeat(31))).unwrap();
    let done = train(dir.path(), &[&format!("--train={}", long.display()), "--steps=1"]);
    assert!(done.err.contains("1 of more tokens than the model has positions"), "{}", done.err);
    done.ok();
}

/// A run in the background with more steps than it will take, once it has logged `logged` of them.
#[cfg(unix)]
fn background(dir: &Path, logged: usize, more: &[&str]) -> Child {
    let flags = flags(dir, &[&["--steps=100000", "--save-every=5"], more].concat());
    let mut command = Command::new(env!("CARGO_BIN_EXE_della"));
    let child = command.env_clear().args(flags).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while steps(dir).len() < logged {
        assert!(began.elapsed() < Duration::from_secs(60), "the run does not get on");
        sleep(Duration::from_millis(5));
    }
    child
}

#[cfg(unix)]
fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// An interrupt saves what was learnt; the run goes on from there.
#[cfg(unix)]
#[test]
fn an_interrupted_run_says_how_to_go_on() {
    let dir = TempDir::new().unwrap();
    let child = background(dir.path(), 7, &[]);
    // while it runs, nobody else may
    let message = resume(dir.path(), &[]).fails(1);
    assert!(message.contains(&child.id().to_string()), "{message}");
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && err.contains("continue with: della train --resume"), "{err}");
    let last = *steps(dir.path()).last().unwrap();
    assert!(last >= 7 && dir.path().join(format!("run/checkpoints/step-{last:08}")).is_dir(), "{last}");
    resume(dir.path(), &[&format!("--steps={}", last + 3)]).ok();
    assert_eq!(steps(dir.path()), (1..=last + 3).collect::<Vec<_>>());
}

/// Killed at any moment, a run goes on from its last checkpoint, with a log that has each step once.
#[cfg(unix)]
#[test]
fn a_killed_run_goes_on() {
    let dir = TempDir::new().unwrap();
    for moment in [1, 6, 13] {
        let mut child = match moment {
            1 => background(dir.path(), 1, &[]),
            _ => {
                let path = dir.path().join("run").display().to_string();
                let mut command = Command::new(env!("CARGO_BIN_EXE_della"));
                let child =
                    command.env_clear().args(["train", "--resume", &path]).stderr(Stdio::null()).spawn().unwrap();
                sleep(Duration::from_millis(60 * moment));
                child
            }
        };
        signal(&child, "-KILL");
        child.wait().unwrap();
    }
    let saved = fs::read_dir(dir.path().join("run/checkpoints")).unwrap().flatten();
    let latest =
        saved.filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok()).max().unwrap_or(0);
    resume(dir.path(), &[&format!("--steps={}", latest + 4)]).ok();
    assert_eq!(steps(dir.path()), (1..=latest + 4).collect::<Vec<_>>());
}

/// What does not fit on the disk is said; the checkpoint before stays, and no half of one.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let dir = TempDir::new().unwrap();
    train(dir.path(), &["--steps=2"]).ok();
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} train --resume {} --steps 4",
        env!("CARGO_BIN_EXE_della"),
        dir.path().join("run").display()
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("model.safetensors") || err.contains(".partial-4"), "{err}");
    let names: Vec<String> = fs::read_dir(dir.path().join("run/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["step-00000002"]);
    resume(dir.path(), &["--steps=4"]).ok();
    assert_eq!(steps(dir.path()), [1, 2, 3, 4]);
}
