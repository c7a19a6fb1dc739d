//! The safetensors reader on arbitrary bytes; what it accepts must lie inside them. An index is read from the same bytes.
#![no_main]

use std::path::Path;

use della::io::safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = safetensors::parse_index(Path::new("fuzz"), bytes);
    let Ok(tensors) = safetensors::parse(Path::new("fuzz"), bytes) else { return };
    for tensor in tensors {
        for chunk in tensor.chunks() {
            let mut elements = Vec::<f32>::new();
            if let Err(problem) = tensor.read(bytes, chunk, &mut elements) {
                assert!(problem.contains("is stored as"), "{problem}");
            }
        }
    }
});
