//! Tells the binary which commit it was built of, for `della bench`.

use std::path::Path;
use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // times of other builds mean little, and those would be made anew after each commit
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    // a repository around the package knows nothing of it
    let here = std::env::current_dir().ok();
    let Some(root) = git(&["rev-parse", "--show-toplevel"]).filter(|root| here.as_deref() == Some(Path::new(root)))
    else {
        return;
    };
    if let (Some(commit), Some(log)) =
        (git(&["rev-parse", "--short=10", "HEAD"]), git(&["rev-parse", "--git-path", "logs/HEAD"]))
    {
        println!("cargo::rerun-if-changed={}", Path::new(&root).join(log).display());
        println!("cargo::rustc-env=DELLA_BUILD_COMMIT={commit}");
    }
}
