use super::*;

#[test]
fn wrong_usage_exits_with_2() {
    for (args, part) in [
        (&["sample", "--top-p", "1.5"][..], "--top-p: "),
        (&["sample", "--temperature", "0"], "--temperature: "),
        (&["sample", "--temperature", "nan"], "--temperature: "),
        (&["sample", "--threads", "0"], "--threads: "),
        (&["sample", "--latent", "mean", "--latent-noise", "1"], "--latent-noise"),
        (&["sample", "--greedy", "--top-k", "1"], "--greedy"),
        (&["sample", "--device", "gpu"], "none of auto, reference, cpu, emulator, cuda:N"),
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
    #[cfg(all(unix, feature = "cuda"))]
    for (variable, device) in [
        ("DELLA_GEMM", "cpu"),
        ("DELLA_VARIANT", "emulator"),
        ("DELLA_EMULATOR_FLAGS", "emulator"),
        ("CXX", "emulator"),
    ] {
        use std::os::unix::ffi::OsStrExt;

        let mut command = della(&["sample", "--model", &model, "--device", device]);
        command.env(variable, std::ffi::OsStr::from_bytes(b"\xff"));
        let error = finish(command).fails(1);
        assert!(error.contains(variable) && error.contains("unicode"), "{error}");
    }
    let error = with_env(&["sample", "--threads", "many"], &[("DELLA_THREADS", "many")]).fails(2);
    assert!(!error.contains("DELLA_THREADS"), "{error}");
}
