//! The pickle reader on arbitrary bytes.
#![no_main]

use della::io::torch_zip::unpickle::Pickle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Pickle::read(bytes);
});
