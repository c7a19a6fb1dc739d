//! The archive reader on arbitrary bytes; what it accepts must lie inside them.
#![no_main]

use std::path::Path;

use della::io::torch_zip;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(archive) = torch_zip::parse(Path::new("fuzz"), bytes) else { return };
    for tensor in archive.tensors {
        for chunk in tensor.chunks() {
            let mut elements = Vec::<f32>::new();
            if let Err(problem) = tensor.read(bytes, chunk, &mut elements) {
                assert!(problem.contains("is stored as"), "{problem}");
            }
        }
    }
});
