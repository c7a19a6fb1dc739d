use super::*;

fn bench(args: &[&str]) -> Run {
    run(&[&["bench", "-t", "1", "-r", "3"], args].concat())
}

/// The fields of llama-bench, ours, and nothing that is no number where one has to be.
#[track_caller]
fn check_row(row: &Value) {
    for name in ["build_commit", "cpu_info", "gpu_info", "model", "dtype", "kind", "op", "shape", "kernel", "limit"] {
        assert!(row[name].is_string(), "{name} of {row}");
    }
    for name in ["avg_ns", "median_ns", "avg_ts", "flops", "bytes", "limit_share", "limit_gflops_per_s"] {
        assert!(row[name].as_f64().is_some_and(|x| x > 0.0), "{name} of {row}");
    }
    for name in ["stddev_ns", "mad_ns", "stddev_ts"] {
        assert!(row[name].as_f64().is_some_and(|x| x >= 0.0), "{name} of {row}");
    }
    assert!(!cfg!(unix) || row["cpu_ns"].as_f64().is_some_and(|x| x > 0.0), "{row}");
    assert_eq!((row["samples_ns"].as_array().unwrap().len(), &row["n_threads"]), (3, &json!(1)));
    let time = row["test_time"].as_str().unwrap();
    assert!(time.len() == 20 && time.starts_with("20") && time.ends_with('Z'), "{time}");
}

#[test]
fn models_are_timed() {
    for fixture in ["vae", "cvae"] {
        let dir = Dir::new();
        let model = dir.model(fixture);
        let out =
            bench(&["--model", &model, "-e", "3-6*2", "-p", "5", "-n", "4", "--train", "5", "-b", "1,3", "-o", "json"]);
        let rows: Vec<Value> = serde_json::from_str(&out.ok()).unwrap();
        rows.iter().for_each(check_row);
        let cases: Vec<_> = rows
            .iter()
            .map(|row| {
                assert_eq!(row["model"], model.as_str());
                let number = |name: &str| row[name].as_u64().unwrap();
                (row["kind"].as_str().unwrap(), number("n_prompt"), number("n_gen"), number("batch"))
            })
            .collect();
        let wanted = [("encode", 3, 0), ("encode", 6, 0), ("prefill", 5, 0), ("decode", 0, 4), ("train", 5, 0)];
        let wanted = wanted.iter().flat_map(|(kind, p, n)| [1, 3].map(|batch| (*kind, *p, *n, batch)));
        assert_eq!(cases, wanted.collect::<Vec<_>>());
    }
}

#[test]
fn kernels_are_timed_side_by_side_and_compared() {
    let dir = Dir::new();
    let (roof, throughput) = (dir.path("roof.svg"), dir.path("throughput.svg"));
    let args = ["--op", "gemm", "--shapes", "24x48,3x8x9", "-b", "1,5", "--all"];
    let out = bench(&[&args[..], &["-o", "jsonl", "--chart", &roof, "--chart-throughput", &throughput]].concat());
    assert!(out.err.contains("GB/s") && out.err.contains("f32 multiply-add"), "{}", out.err);
    let text = out.ok();
    let rows = objects(&text);
    rows.iter().for_each(check_row);
    let of = |shape: &str| -> Vec<&str> {
        rows.iter().filter(|row| row["shape"] == shape).map(|row| row["kernel"].as_str().unwrap()).collect()
    };
    let kernels = of("1x24x48");
    assert!(kernels.contains(&"portable-f32-panel") && kernels.contains(&"matrixmultiply-f32"), "{kernels:?}");
    assert_eq!((of("5x24x48"), of("3x8x9"), rows.len()), (kernels.clone(), kernels.clone(), 3 * kernels.len()));
    for kernel in &kernels {
        assert!(dir.read("roof.svg").contains(kernel) && dir.read("throughput.svg").contains(kernel), "{kernel}");
    }
    assert!(bench(&[&args[..], &["--chart", &roof]].concat()).fails(1).contains("exists already"));

    let baseline = dir.write("baseline.jsonl", &text);
    let table = bench(&[&args[..], &["--compare", &baseline]].concat()).ok();
    let lines: Vec<&str> = table.lines().filter(|line| line.contains("gemm ")).collect();
    assert_eq!(lines.len(), rows.len());
    assert!(lines.iter().all(|line| line.contains(" ± ") && !line.contains("not in the baseline")), "{table}");
    let bad = dir.write("bad.json", text.lines().next().unwrap().replace("\"shape\"", "\"form\""));
    let error = bench(&[&args[..], &["--compare", &bad]].concat()).fails(1);
    assert!(error.contains("bad.json") && error.contains("shape is missing"), "{error}");
}

#[test]
fn other_ops_are_timed_on_every_instruction_set() {
    let dir = Dir::new();
    let model = dir.model("vae");
    let ops = "attention,layernorm,gelu_bwd,cross_entropy";
    let out = bench(&["--model", &model, "--op", ops, "-p", "7", "-b", "2", "--kernel", "portable", "-o", "csv"]).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 5, "{out}");
    for (line, op) in lines[1..].iter().zip(ops.split(',')) {
        assert!(line.contains(&format!("\"op\",\"{op}\",")) && line.contains("\"portable\""), "{line}");
    }
}

#[test]
fn usage() {
    let dir = Dir::new();
    let model = dir.model("vae");
    for (args, part) in [
        (&["-b", "0"][..], "is not a number from 1"),
        (&["-p", "8-4"], "is empty"),
        (&["-t", "0"], "1,16,512"),
        (&["-r", "0"], "1.."),
        (&["--op", "conv"], "gemm, attention, layernorm"),
        (&["--op", "gemm", "--shapes", "3x"], "MxKxN"),
        (&["--op", "gemm", "--kernel", "fast"], "portable-f32-panel"),
        (&["--op", "layernorm", "--kernel", "sse9"], "portable"),
        (&["--dtype", "f8"], "f32"),
        (&["-o", "yaml"], "jsonl"),
        (&["--preset", "small"], "randeng-226m"),
        (&["--preset", "randeng-226m", "--model", "x"], "give one of them"),
        (&["--model", &model, "-e", "100000"], "reads at most"),
    ] {
        let error = run(&[&["bench"], args].concat()).fails(2);
        assert!(error.contains(part), "{args:?}: {error}");
    }
}
