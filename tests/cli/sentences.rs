use super::*;

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

/// What is drawn for a line depends on its number, whatever else is in the file.
#[test]
fn a_line_can_be_drawn_again_alone() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let lines = ["我不是", "你的家人", "我的家", "他们是"];
    let file = dir.write("lines.txt", lines.join("\n"));
    let common = ["--model", &model, "--latent", "sample", "--top-p", "1", "--temperature", "2", "--max-length", "12"];
    let all = run(&[&["reconstruct", "--file", &file], &common[..]].concat()).ok();
    for (i, line) in lines.iter().enumerate() {
        let number = i.to_string();
        let alone = run(&[&["reconstruct", line, "--first-row", &number], &common[..]].concat()).ok();
        assert_eq!(alone.trim_end_matches('\n'), all.lines().nth(i).unwrap(), "line {i}");
    }
    let other = run(&[&["reconstruct", lines[2], "--first-row", "0"], &common[..]].concat()).ok();
    assert_ne!(other.trim_end_matches('\n'), all.lines().nth(2).unwrap(), "nothing was drawn");
}

/// Latents that no decoder can use end their own line only.
#[test]
fn latents_that_overflow_are_a_bad_line() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let layers = |z: f32| json!({ "layers": vec![json!({ "z": vec![z; 12] }); 4] }).to_string();
    let input = [layers(0.1), layers(3e38), layers(0.2)].join("\n");
    let found = piped(&["decode", "-", "--model", &model, "--max-length", "5", "--json"], input);
    let error = found.err.clone();
    let objects = objects(&found.out);
    assert_eq!((found.code, objects.len()), (1, 3), "{error}");
    assert!(error.contains("standard input:2: ") && objects[1]["error"].is_string(), "{error}");
    assert!(objects[0]["text"].is_string() && objects[2]["text"].is_string());
}

#[test]
fn a_command_that_fails_early_leaves_no_file() {
    let dir = Dir::new();
    let model = dir.model("cvae");
    let output = dir.path("out.safetensors");
    let error = run(&["encode", "我", "--model", &model, "--output", &output]).fails(2);
    assert!(error.contains("entities"), "{error}");
    let output = dir.path("out.txt");
    run(&["sample", "--model", &model, "--output", &output]).fails(1);
    assert!(!Path::new(&output).exists());
}

/// A reader who has read enough is no error.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_failure() {
    use std::process::Stdio;
    let dir = Dir::new();
    let model = dir.model("vae");
    let sentences = vec!["我不是你的家人"; 64];
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_della"))
        .args([&["encode", "--model", &model][..], &sentences].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Noise that no number can hold is said, not written.
#[test]
fn latents_that_are_not_finite_are_an_error() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let run = run(&["encode", SENTENCE, "--model", &model, "--latent-noise", "3e38"]);
    assert_eq!(run.out, "");
    let error = run.fails(1);
    assert!(error.contains("latents of sentence 0: are not finite"), "{error}");
}

/// What went wrong is said to nobody, and the others still run.
#[cfg(target_os = "linux")]
#[test]
fn an_unwritable_standard_error_stops_nothing() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let file = dir.write("in.txt", format!("\n{SENTENCE}\n"));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_della"))
        .args(["reconstruct", "--model", &model, "--file", &file, "--max-length", "3"])
        .stderr(fs::OpenOptions::new().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stdout.iter().filter(|&&b| b == b'\n').count()), (Some(1), 2));
}
