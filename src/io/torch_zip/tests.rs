//! Archives and pickles made by hand: what torch.save may write, and what an attacker may.

use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::{SimpleFileOptions, ZipWriter};

use super::unpickle::{MAX_LEN, Pickle, Value};
use super::{Archive, parse};
use crate::Result;
use crate::io::ElementType;

/// A pickle in the making: raw instructions, and the few groups of them that weights need.
#[derive(Clone)]
struct Asm(Vec<u8>);

impl Asm {
    fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    fn op(mut self, code: &[u8]) -> Self {
        self.0.extend(code);
        self
    }

    fn str(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    /// A `LONG1` of eight bytes.
    fn int(self, value: i64) -> Self {
        self.op(b"\x8a\x08").op(&value.to_le_bytes())
    }

    fn ints(self, values: &[i64]) -> Self {
        values.iter().fold(self.op(b"("), |asm, &value| asm.int(value)).op(b"t")
    }

    fn storage(self, class: &str, key: &str, elements: i64) -> Self {
        let class = format!("ctorch\n{class}\n");
        self.op(b"(").str("storage").op(class.as_bytes()).str(key).str("cpu").int(elements).op(b"tQ")
    }

    /// A tensor over storage `0` of `elements` float32.
    fn tensor(self, elements: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Self {
        self.op(b"ctorch._utils\n_rebuild_tensor_v2\n(")
            .storage("FloatStorage", "0", elements)
            .int(offset)
            .ints(shape)
            .ints(strides)
            .op(b"\x89ccollections\nOrderedDict\n)RtR")
    }

    /// The dictionary `{"w": …}` around what `value` pushes.
    fn dict(value: impl FnOnce(Self) -> Self) -> Vec<u8> {
        value(Self::new().op(b"}(").str("w")).op(b"u.").0
    }
}

/// An archive `any/…` with the given entries, stored.
fn archive_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(format!("any/{name}"), options).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Six float32, 0 to 5, beside the pickle.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    archive_of(&[("data.pkl", pickle), ("byteorder", b"little"), ("data/0", &numbers)])
}

fn open(archive: &[u8]) -> Result<Archive> {
    parse(Path::new("weights.bin"), archive)
}

fn refused(archive: &[u8], expected: &[&str]) {
    let error = open(archive).unwrap_err().to_string();
    for part in ["weights.bin: "].iter().chain(expected) {
        assert!(error.contains(part), "{part:?} is missing in: {error}");
    }
    assert!(error.len() < 1000, "a message of {} bytes", error.len());
}

fn refused_pickle(pickle: &[u8], expected: &str) {
    let error = Pickle::read(pickle).unwrap_err();
    assert!(error.contains(expected), "{expected:?} is missing in: {error}");
    assert!(error.len() < 1000, "a message of {} bytes", error.len());
}

#[test]
fn a_strided_view_reads_its_elements() {
    let archive = archive(&Asm::dict(|asm| asm.tensor(6, 0, &[3, 2], &[1, 3])));
    let found = open(&archive).unwrap();
    assert!(!found.deepspeed);
    let [tensor] = &found.tensors[..] else { panic!("{found:?}") };
    assert_eq!((tensor.name.as_str(), &tensor.shape[..], tensor.dtype), ("w", &[3, 2][..], ElementType::F32));
    let mut elements: Vec<f32> = Vec::new();
    tensor.read(&archive, 0..6, &mut elements).unwrap();
    assert_eq!(elements, [0., 3., 1., 4., 2., 5.]);
}

#[test]
fn every_storage_class_has_its_type() {
    for (class, dtype) in [
        ("DoubleStorage", ElementType::F64),
        ("FloatStorage", ElementType::F32),
        ("HalfStorage", ElementType::F16),
        ("BFloat16Storage", ElementType::Bf16),
        ("LongStorage", ElementType::I64),
        ("IntStorage", ElementType::I32),
        ("ShortStorage", ElementType::I16),
        ("CharStorage", ElementType::I8),
        ("ByteStorage", ElementType::U8),
        ("BoolStorage", ElementType::Bool),
    ] {
        let pickle = Asm::new().storage(class, "7", 5).op(b".").0;
        let pickle = Pickle::read(&pickle).unwrap();
        assert_eq!(pickle.root(), Value::Storage(0));
        assert_eq!((pickle.storages[0].dtype, pickle.storages[0].key, pickle.storages[0].elements), (dtype, "7", 5));
    }
}

#[test]
fn what_surrounds_the_weights_is_passed_over() {
    // Attributes of the state dictionary, a parameter, a list, numbers, a nested dictionary, a key that is no string.
    let pickle = Asm::new()
        .op(b"ccollections\nOrderedDict\n)R(")
        .str("w")
        .op(b"ctorch._utils\n_rebuild_parameter\n(")
        .tensor(6, 2, &[4], &[1])
        .op(b"\x88}tR")
        .str("epochs")
        .op(b"](K\x01G\x3f\xf0\0\0\0\0\0\0\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00Ne")
        .str("nested")
        .op(b"}K\x05K\x06s")
        .int(-3)
        .op(b"]\x88a")
        .op(b"u}(")
        .str("_metadata")
        .op(b"}ub.")
        .0;
    let found = open(&archive(&pickle)).unwrap();
    assert_eq!(found.tensors.len(), 1);
    assert_eq!(found.tensors[0].shape, [4]);
}

#[test]
fn protocol_4_reads_as_protocol_2_does() {
    let frame = b"\x8c\x05torch\x8c\x0cFloatStorage\x93\x94\x85\x94.";
    let mut pickle = b"\x80\x04\x95".to_vec();
    pickle.extend((frame.len() as u64).to_le_bytes());
    pickle.extend(frame);
    assert_eq!(Pickle::read(&pickle).unwrap().root(), Value::Tuple(0, 1));
    pickle.pop();
    refused_pickle(&pickle, "a frame of");
    refused_pickle(b"\x80\x01N.", "protocol 1");
    refused_pickle(b"\x80\x06N.", "protocol 6");
    refused_pickle(b"N.", "starts with its protocol");
}

#[test]
fn deepspeed_keeps_its_weights_under_module() {
    let pickle = Asm::new()
        .op(b"}(")
        .str("global_steps")
        .op(b"K\x07")
        .str("module")
        .op(b"}(")
        .str("w")
        .tensor(6, 0, &[6], &[1])
        .op(b"uu.")
        .0;
    let found = open(&archive(&pickle)).unwrap();
    assert!(found.deepspeed);
    assert_eq!(found.tensors[0].name, "w");
}

#[test]
fn code_is_refused_by_name() {
    let pickle = Asm::new().op(b"cos\nsystem\n").str("echo broken into > /tmp/proof").op(b"\x85R.").0;
    refused(&archive(&pickle), &["\"os.system\"", "never run", "byte 2"]);
    let pickle = Asm::dict(|asm| asm.op(b"\x8c\x08builtins\x8c\x04eval\x93").str("1").op(b"\x85R"));
    refused(&archive(&pickle), &["\"builtins.eval\""]);
    let pickle = Asm::dict(|asm| asm.storage("QInt8Storage", "0", 1));
    refused(&archive(&pickle), &["\"torch.QInt8Storage\""]);
    let long = format!("c{}\nx\n", "m".repeat(5000));
    refused(&archive(&Asm::new().op(long.as_bytes()).0), &["mmm", "…"]);
    for (code, name) in
        [(b'i', "'i'"), (b'o', "'o'"), (b'\x81', "0x81"), (b'\x82', "0x82"), (b'P', "'P'"), (b'2', "'2'")]
    {
        refused_pickle(&[0x80, 2, code, 1, b'\n', b'.'], name);
    }
}

#[test]
fn tensors_that_leave_their_storage_are_refused() {
    let most = i64::MAX;
    for (elements, offset, shape, strides, expected) in [
        (7, 0, vec![7], vec![1], "needs storage \"0\" with 7 elements of F32, but the archive has 24 bytes"),
        (most, 0, vec![1], vec![1], "needs storage"),
        (6, 0, vec![7], vec![1], "its storage holds 6"),
        (6, 1, vec![6], vec![1], "outside its storage"),
        (6, 6, vec![1], vec![1], "outside its storage"),
        (6, most, vec![1], vec![1], "outside its storage"),
        (6, 0, vec![2, 2], vec![4, 2], "outside its storage"),
        (6, 0, vec![3], vec![most], "outside its storage"),
        (6, 0, vec![1 << 40], vec![0], "its storage holds 6"),
        (6, 0, vec![most, most, most], vec![1, 1, 1], "too large"),
        (6, 0, vec![2], vec![1, 1], "has 1 dimensions but 2 strides"),
        (6, -1, vec![1], vec![1], "offset is -1"),
        (6, 0, vec![-1], vec![1], "shape is -1"),
        (6, 0, vec![2], vec![-1], "strides is -1"),
        (-6, 0, vec![1], vec![1], "size is -6"),
        (6, 0, vec![1; 9], vec![1; 9], "9 dimensions"),
    ] {
        let pickle = Asm::dict(|asm| asm.tensor(elements, offset, &shape, &strides));
        refused(&archive(&pickle), &[expected]);
    }
}

#[test]
fn the_stack_machine_is_never_left_in_the_lurch() {
    for (code, expected) in [
        (&b""[..], "ends in the middle"),
        (b".", "the stack is empty"),
        (b"NN.", "leaves 1 values"),
        (b"N(", "ends in the middle"),
        (b"t.", "no mark is set"),
        (b"u.", "no mark is set"),
        (b"(u.", "the stack is empty"),
        (b"}(Nu.", "a key without a value"),
        (b"N(NNu.", "only a dictionary"),
        (b"NNNs.", "only a dictionary"),
        (b"NNa.", "no list"),
        (b"N(Ne.", "no list"),
        (b"N(R.", "the stack is empty"),
        (b"N(\x85.", "the stack is empty"),
        (b"(q\x00.", "the stack is empty"),
        (b"h\x00.", "value 0 is used before"),
        (b"j\xff\xff\xff\xff.", "value 4294967295"),
        (b"N)R.", "is no function"),
        (b"NQ.", "should be a tuple"),
        (b")Q.", "a persistent id should be"),
        (b"NNb.", "sets the state"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "unexpected arguments"),
        (b"ccollections\nOrderedDict\n]\x85R.", "unexpected arguments"),
        (b"X\xff\xff\xff\xffabc.", "4294967295 bytes are needed and 4 are left"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.", "bytes are needed"),
        (b"B\xff\xff\xff\x7fabc.", "bytes are needed"),
        (b"\x8a\x05abc", "bytes are needed"),
        (b"\x8c\x01\xff.", "not UTF-8"),
        (b"c\xff\n\n.", "not UTF-8"),
        (b"cos", "a line without an end"),
    ] {
        let pickle = [b"\x80\x02", code].concat();
        let error = Pickle::read(&pickle).unwrap_err();
        assert!(error.contains(expected), "{:?}: {error}", String::from_utf8_lossy(code));
    }
}

#[test]
fn depth_cycles_and_repetition_cost_nothing() {
    // A dictionary that contains itself, as its own module too.
    let cycle = Asm::new().op(b"}q\x00(").str("module").op(b"h\x00").str("w").op(b"h\x00u.").0;
    refused(&archive(&cycle), &["holds no tensors"]);

    // The longest chains of marks, nested tuples, dictionaries and memo entries that fit.
    for unit in [&b"("[..], b"\x85", b"}", b"]", b"\x94", b")", b"h\x00h\x00\x86", b"h\x00(h\x00t", b"}h\x00N"] {
        let mut pickle = Asm::new().op(b")q\x00").0;
        pickle.extend(unit.iter().cycle().take(MAX_LEN - pickle.len() - 1));
        pickle.push(b'.');
        let memory = allocation_counter::measure(|| drop(Pickle::read(&pickle)));
        let limit = 256 * MAX_LEN as u64;
        assert!(memory.bytes_max < limit, "{unit:?}: {} bytes for a pickle of {MAX_LEN}", memory.bytes_max);
    }
    refused_pickle(&vec![b'('; MAX_LEN + 1], "longer than");

    // A tuple of tuples, each twice the one before: 2⁶⁰ leaves for whoever walks it.
    let mut bomb = Asm::new().op(b")q\x00");
    for _ in 0..60 {
        bomb = bomb.op(b"h\x00h\x00\x86q\x00");
    }
    refused_pickle(&bomb.clone().op(b".").0, "leaves 60 values");
    refused(
        &archive(&Asm::dict(|asm| bomb.0[2..].iter().fold(asm, |asm, &byte| asm.op(&[byte])))),
        &["holds no tensors"],
    );

    // One shape of many dimensions, used again and again.
    let mut repeated = Asm::new().op(b"ctorch._utils\n_rebuild_tensor_v2\nq\x01(");
    repeated = repeated.storage("FloatStorage", "0", 6).int(0).ints(&[1; 9]).ints(&[1; 9]).op(b"NNtq\x02");
    refused_pickle(&repeated.op(b"h\x01h\x02R.").0, "9 dimensions");
}

#[test]
fn the_archive_is_checked() {
    let pickle = Asm::dict(|asm| asm.tensor(6, 0, &[6], &[1]));
    let good = archive(&pickle);
    for end in (0..good.len()).step_by(7).chain(good.len() - 22..good.len()) {
        assert!(open(&good[..end]).is_err(), "cut off at {end}");
    }
    refused(b"", &["does not start with `PK`"]);
    refused(b"not a zip file", &["does not start with `PK`"]);
    refused(&good[..good.len() - 1], &["cut off"]);
    refused(&archive_of(&[("data/0", &[0; 24])]), &["no entry \"data.pkl\""]);
    refused(&archive_of(&[("data.pkl", &pickle)]), &["no entry \"data/0\""]);
    refused(&archive_of(&[("data.pkl", &pickle), ("data/0", &[0; 23])]), &["tensor \"w\"", "has 23 bytes"]);
    refused(&archive_of(&[("data.pkl", &pickle), ("byteorder", b"big"), ("data/0", &[0; 24])]), &["is \"big\""]);
    refused(&archive_of(&[("data.pkl", &Asm::new().op(b"N.").0)]), &["not a dictionary"]);
    refused(&archive_of(&[("data.pkl", &vec![b'('; MAX_LEN + 1])]), &["longer than"]);

    // The compression method in the directory's first entry (offset 10) and in the local header (offset 8).
    let directory = good.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    let mut compressed = good.clone();
    (compressed[directory + 10], compressed[8]) = (8, 8);
    refused(&compressed, &["\"any/data.pkl\" is compressed"]);

    // The sizes in the directory's first entry: far beyond the file.
    let mut oversized = good.clone();
    oversized[directory + 20..directory + 28].fill(0xf0);
    refused(&oversized, &["reaches beyond the end"]);

    // The number of entries at the end (offsets 8 and 10 from its start).
    let mut many = good;
    let end = many.len() - 22;
    many[end + 8..end + 12].fill(0xf0);
    refused(&many, &["zip directory"]);
}

#[test]
fn names_are_unique_and_entries_share_a_folder() {
    let twice = Asm::dict(|asm| asm.tensor(6, 0, &[6], &[1]).str("w").tensor(6, 0, &[6], &[1]));
    refused(&archive(&twice), &["tensor \"w\" occurs twice"]);
    let mut zip = archive(&Asm::dict(|asm| asm.tensor(6, 0, &[6], &[1])));
    let at = zip.windows(10).rposition(|window| window == b"any/data/0").unwrap();
    zip[at] = b'A';
    refused(&zip, &["\"Any/data/0\"", "second top folder"]);
    zip[at + 3] = b'_';
    refused(&zip, &["\"Any_data/0\" is in a second"]);
}
