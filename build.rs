//! Builds machine code of the kernels in, if `DELLA_CUBINS` names a file that `della kernels --output` wrote. Needs no
//! compiler: without the file, kernels are compiled where they run.

fn main() {
    println!("cargo::rerun-if-env-changed=DELLA_CUBINS");
    let Some(path) = std::env::var_os("DELLA_CUBINS").filter(|path| !path.is_empty()) else { return };
    match std::path::absolute(&path).and_then(|path| path.canonicalize()) {
        Ok(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            println!("cargo::rustc-env=DELLA_CUBINS={}", path.display());
            println!("cargo::rustc-cfg=cubins");
        }
        Err(e) => println!("cargo::warning=DELLA_CUBINS: {}: {e}; no machine code is built in", path.display()),
    }
}
