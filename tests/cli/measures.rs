use super::*;

const LINES: [(&str, &str); 4] =
    [("daily", "我们需要帮助。"), ("law", "我不是你的家人"), ("daily", "有人在家吗"), ("daily", "他们都是我的家人")];

fn tsv() -> String {
    LINES.map(|(label, text)| format!("{label}\t{text}\n")).concat()
}

#[test]
fn a_model_is_measured_on_files() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let file = dir.write("valid.tsv", tsv());
    let args = ["eval", "--model", &model, &file, "--samples", "3", "--prior-samples", "5", "--max-length", "8"];
    let table = run(&args).ok();
    for part in [
        "latents drawn, 3 of each sentence",
        "nats/sentence",
        "perplexity, importance-weighted",
        "token accuracy",
        "exact reconstructions",
        "nats, of log 4 = 1.3863 at most",
        "texts from the prior, 5",
        "active of 12   I(x; z_1 … z_l)",
    ] {
        assert!(table.contains(part), "{part:?} is missing in {table}");
    }
    assert_eq!(table.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(), ["sentences", "4"]);
    assert_eq!(table.lines().rev().take(4).map(|line| &line[..1]).collect::<Vec<_>>(), ["4", "3", "2", "1"]);

    let json = |more: &[&str]| -> Value {
        let [object] = &objects(&run(&[&args[..], &["--json"], more].concat()).ok())[..] else { panic!("one object") };
        object.clone()
    };
    let all = json(&[]);
    assert_eq!(
        (&all["sentences"], &all["data"]["lines"], &all["likelihood"]["samples"]),
        (&json!(4), &json!(4), &json!(3))
    );
    assert_eq!(all["layers"].as_array().unwrap().len(), 4);
    assert!(table.contains(&format!("{:.3}", all["likelihood"]["elbo"]["mean"].as_f64().unwrap())), "{all} {table}");
    assert_eq!(json(&["--threads", "1"]), all, "threads make no difference");
    assert_ne!(json(&["--seed", "1"])["likelihood"], all["likelihood"]);
    let daily = json(&["--labels", "daily"]);
    assert_eq!((&daily["sentences"], &daily["data"]["other_labels"]), (&json!(3), &json!(1)));
    assert_eq!(json(&["--labels", "daily", "--max-chars", "7"])["sentences"], json!(2));
    assert_eq!(json(&["--limit", "2"])["sentences"], json!(2));
    let narrow = json(&["--dtype", "bf16", "--against", "f32"]);
    let agreement = &narrow["agreement"];
    assert_eq!((&agreement["sentences"], &all["agreement"]), (&json!(4), &Value::Null));
    assert!((1e-4..0.1).contains(&agreement["logits_error"].as_f64().unwrap()), "{agreement}");
    let said = run(&[&args[..], &["--dtype", "int8", "--against", "int8"]].concat()).ok();
    assert!(said.contains("0.00e0  relative rms error") && said.contains("1.00000  of tokens"), "{said}");
    let quick = json(&["--quick"]);
    for (name, wanted) in [("reconstructions", &Value::Null), ("information", &Value::Null), ("means", &all["means"])] {
        assert_eq!(&quick[name], wanted, "{name}");
    }
    assert_eq!(quick["prior_samples"], all["prior_samples"], "asked for by name");
}

#[test]
fn a_conditional_model_is_measured_given_its_entities() {
    let dir = Dir::new();
    let model = dir.model("cvae");
    let line = |text: &str| json!({ "text": text, "entities": [{ "type": "人", "text": "家人" }] }).to_string() + "\n";
    let file = dir.write("valid.jsonl", ["我不是你的家人", "他的家人", "我们家人"].map(line).concat());
    let args = ["eval", "--model", &model, "--samples", "2", "--prior-samples", "4", "--max-length", "8"];
    let found = run(&[&args[..], &[&file, "--json"]].concat()).ok();
    let found = &objects(&found)[0];
    assert_eq!((&found["sentences"], &found["prior_samples"]["samples"]), (&json!(3), &json!(4)));
    // 7, 4 and 4 characters, each with <EOS>
    assert_eq!(found["tokens"], json!(18));
    let bare = dir.write("bare.txt", "我\n你\n");
    assert!(run(&[&args[..], &[&bare]].concat()).fails(1).contains("JSONL"));
}

#[test]
fn charts_are_drawn_into_new_files() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let (file, chart) = (dir.write("valid.txt", "我不是\n你的家人\n有人\n"), dir.path("layers.svg"));
    let args = ["eval", "--model", &model, &file, "--quick", "--chart", &chart];
    run(&args).ok();
    let svg = dir.read("layers.svg");
    for text in ["KL of posterior from prior", "Active units of 12", "nats a sentence", "layer"] {
        assert!(svg.contains(text), "{text:?} is missing in {svg}");
    }
    assert!(run(&args).fails(1).contains("layers.svg exists already"));
}

#[test]
fn what_cannot_be_measured_is_said() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let file = dir.write("valid.tsv", tsv());
    let eval = |more: &[&str]| run(&[&["eval", "--model", &model, &file][..], more].concat());
    for (args, code, part) in [
        (&["--samples", "0"][..], 2, "--samples"),
        (&["--delta=-1"], 2, "--delta: -1 is not a variance"),
        (&["--labels", "novel"], 1, "novel"),
        (&["absent.tsv"], 1, "absent.tsv"),
    ] {
        let error = eval(args).fails(code);
        assert!(error.contains(part), "{part:?} is missing in {error}");
    }
    let long = dir.write("long.txt", format!("我\n{}\n你\n", "我".repeat(50)));
    let found = run(&["eval", "--model", &model, "--quick", &long, "--json"]);
    assert!(found.err.contains("left out"), "{}", found.err);
    assert_eq!(objects(&found.ok())[0]["sentences"], json!(2));
    let whole = run(&["eval", "--model", &model, "--quick", &long, "--json", "--truncate"]).ok();
    assert_eq!(objects(&whole)[0]["sentences"], json!(3));
}

/// The built-in model, of which the share is known: see `golden`.
#[cfg(feature = "builtin-model")]
#[test]
fn the_built_in_model_is_good() {
    let dir = Dir::new();
    let cases = fs::read_to_string(fixture("mini-zh/greedy.jsonl")).unwrap();
    let text = |case: &Value| format!("{}\n", case["text"].as_str().unwrap());
    let file = dir.write("valid.txt", objects(&cases).iter().take(40).map(text).collect::<String>());
    let found = run(&["eval", &file, "--json", "--samples", "2", "--prior-samples", "20"]).ok();
    let found = &objects(&found)[0];
    let number = |group: &str, name: &str| found[group][name].as_f64().unwrap();
    assert!((0.6..0.95).contains(&number("means", "token_accuracy")), "{found}");
    assert!((60.0..100.0).contains(&number("means", "kl")), "{found}");
    assert!((0.3..0.9).contains(&number("reconstructions", "bleu_4")), "{found}");
}
