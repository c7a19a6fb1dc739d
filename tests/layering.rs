//! Modules import downward only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules each module may use, beside itself. The backends never see each other, the model never sees a backend
/// that computes, and only `engine` names them all; `bench` measures the CPU's kernels one by one.
const MAY_USE: [(&[&str], &[&str]); 12] = [
    (&["error", "dims", "dtype", "tree", "rng", "env"], &["error", "dims", "dtype", "tree", "rng"]),
    (&["backend", "io", "chart"], &["error", "dims", "dtype", "tree", "rng"]),
    (&["text"], &["error", "dims", "dtype", "tree", "rng", "io"]),
    (&["reference", "cpu", "cuda"], &["error", "dims", "dtype", "tree", "rng", "env", "backend", "io", "text"]),
    (&["model"], &["error", "dims", "dtype", "tree", "rng", "backend", "io", "text"]),
    (&["generate", "latent", "learn"], &["error", "dims", "dtype", "tree", "rng", "backend", "io", "text", "model"]),
    (&["builtin"], &["error", "io", "text", "model"]),
    (
        &["engine"],
        &[
            "error",
            "dims",
            "dtype",
            "tree",
            "rng",
            "backend",
            "io",
            "text",
            "model",
            "reference",
            "cpu",
            "cuda",
            "generate",
            "latent",
            "learn",
            "builtin",
        ],
    ),
    (
        &["della", "verify"],
        &["error", "dims", "dtype", "rng", "io", "text", "model", "generate", "latent", "learn", "builtin", "engine"],
    ),
    (
        &["train"],
        &[
            "error", "dims", "dtype", "rng", "io", "text", "model", "generate", "latent", "engine", "della", "eval",
            "learn", "chart",
        ],
    ),
    (
        &["bench"],
        &[
            "error", "dims", "dtype", "rng", "backend", "io", "chart", "model", "cpu", "cuda", "generate", "latent",
            "learn", "builtin", "engine",
        ],
    ),
    (&["eval"], &["error", "dims", "rng", "model", "generate", "latent", "engine", "chart"]),
];

/// What the command line must leave to `engine`.
const HIDDEN_FROM_CLI: [&str; 4] = ["reference", "cpu", "cuda", "backend"];

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(rust_files(&path)),
            false => files.extend(path.extension().is_some_and(|e| e == "rs").then_some(path)),
        }
    }
    files
}

/// The top-level modules that `text` names after `root::`, one by one or in braces.
fn uses(text: &str, root: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for after in code.split(&format!("{root}::")).skip(1) {
        let names: Vec<&str> = match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![after],
        };
        for name in names {
            let name = name.trim_start();
            let end = name.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(name.len());
            found.push(name[..end].to_owned());
        }
    }
    // types and macros are re-exported at the root; modules are written small
    found.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()) && name != "tree");
    found
}

/// The module that a file of `src` belongs to.
fn module_of(path: &Path) -> String {
    let first = path.strip_prefix("src").unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn modules_import_downward_only() {
    let allowed: BTreeMap<&str, &[&str]> =
        MAY_USE.iter().flat_map(|(modules, may)| modules.iter().map(move |module| (*module, *may))).collect();
    let mut seen = 0;
    for path in rust_files(Path::new("src")) {
        let module = module_of(&path);
        let text = fs::read_to_string(&path).unwrap();
        if module == "cli" {
            for used in uses(&text, "della") {
                assert!(!HIDDEN_FROM_CLI.contains(&used.as_str()), "{} uses della::{used}", path.display());
            }
            continue;
        }
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let may = allowed.get(module.as_str()).unwrap_or_else(|| panic!("{module} has no place in the layers"));
        for used in uses(&text, "crate").into_iter().filter(|used| *used != module) {
            seen += 1;
            assert!(may.contains(&used.as_str()), "{}: {module} uses {used}", path.display());
        }
    }
    assert!(seen > 100, "only {seen} imports were found: the search is broken");
}

#[test]
fn unsafe_code_stays_in_its_homes() {
    let homes = [
        "src/cpu/arch",
        "src/cpu/buffer",
        "src/cpu/parallel",
        "src/cpu/gemm",
        "src/io/mmap",
        "src/cuda/driver",
        "src/cuda/buffer",
        "src/cuda/launch",
        "src/cuda/compile",
        "src/cuda/graph",
    ];
    for path in rust_files(Path::new("src")) {
        let text = fs::read_to_string(&path).unwrap();
        let allowed = homes.iter().any(|home| path.to_str().unwrap().starts_with(home));
        assert!(allowed || !text.contains("allow(unsafe_code)"), "{} allows unsafe code", path.display());
    }
}

#[test]
fn files_have_one_subject() {
    for path in ["src", "tests", "benches"].iter().flat_map(|dir| rust_files(Path::new(dir))) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 600, "{} has {lines} lines: divide it", path.display());
    }
}
