use std::fs;
use std::path::PathBuf;

use della::text::{BulkEncoder, DecodeOptions, Source, StreamDecoder, Tokenizer, Unknown};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    text: String,
    tokens: Vec<String>,
    ids: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/tokenizer", name].iter().collect()
}

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_vocab(fixture("vocab.txt"), false).unwrap())
}

fn cases() -> Vec<Case> {
    let lines = fs::read_to_string(fixture("cases.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const ALL: DecodeOptions = DecodeOptions { skip_special: false, unk: Unknown::Show };

#[test]
fn encodes_as_hugging_face() {
    let cases = cases();
    assert_eq!(cases.len(), 135);
    for case in cases {
        let found = tokenizer().encode(&case.text).unwrap();
        assert_eq!(found.tokens, case.tokens, "{:?}", case.text);
        assert_eq!(found.ids, case.ids, "{:?}", case.text);
    }
}

/// What the tokenizer knows all words of comes back from its text.
#[test]
fn decoding_then_encoding_gives_the_same_ids() {
    let unk = tokenizer().specials().unk;
    let known = cases().into_iter().filter(|case| !case.ids.contains(&unk)).inspect(|case| {
        let text = tokenizer().decode(&case.ids, ALL).unwrap();
        assert_eq!(tokenizer().encode(&text).unwrap().ids, case.ids, "{:?} from {:?}", text, case.text);
    });
    assert!(known.count() > 90);
}

/// Chinese sentences of the cases come back as they were.
#[test]
fn chinese_comes_back_as_it_was() {
    let known = cases().into_iter().skip(75).filter(|case| !case.tokens.iter().any(|t| t == "[UNK]"));
    let same = known.inspect(|case| {
        let text = tokenizer().decode(&case.ids, ALL).unwrap();
        assert_eq!(text, case.text.replace(' ', "").replace("React", "react"));
    });
    assert!(same.count() > 50);
}

fn bulk() -> &'static BulkEncoder<'static> {
    static BULK: std::sync::OnceLock<BulkEncoder<'static>> = std::sync::OnceLock::new();
    BULK.get_or_init(|| BulkEncoder::new(tokenizer()))
}

#[test]
fn bulk_encoding_gives_the_same_ids() {
    for case in cases() {
        assert_eq!(bulk().encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
    }
}

/// Added tokens of Chinese characters, and a model that leaves Chinese words whole.
#[test]
fn bulk_encoding_minds_the_settings() {
    let vocab = "[PAD]\n[UNK]\n你\n好\n你好\n##好\n，\n吗\n".as_bytes();
    for config in [
        r#"{"added_tokens_decoder": {"4": {"content": "你好"}}}"#,
        r#"{"additional_special_tokens": ["好，"]}"#,
        r#"{"tokenize_chinese_chars": false}"#,
        r#"{"strip_accents": false}"#,
    ] {
        let dir = std::path::Path::new("test");
        let source = Source { dir, vocab, special_tokens_map: None, tokenizer_config: Some(config.as_bytes()) };
        let tokenizer = Tokenizer::from_bytes(source, false).unwrap();
        let bulk = BulkEncoder::new(&tokenizer);
        for text in ["你好", "你好，你吗", "好你好，好，吗x你\u{301}好", "，\u{301}吗 好"] {
            assert_eq!(bulk.encode(text).unwrap(), tokenizer.encode(text).unwrap().ids, "{config} {text}");
        }
    }
}

proptest! {
    #[test]
    fn bulk_encoding_of_any_text_gives_the_same_ids(
        text in "([a-z0-9]{1,3}|[A-ZÀ-ÿΣ\u{300}-\u{330}\u{3000}\u{200d}　]| |[\"'.,:()%$#-]|[。，！？「」⋯]|[一-十]|[가-깋か-ん]|\\PC|<BOS>|\\[MASK\\]|\\[UNK\\]){0,40}"
    ) {
        prop_assert_eq!(bulk().encode(&text).unwrap(), tokenizer().encode(&text).unwrap().ids);
    }

    #[test]
    fn any_text_encodes_and_survives_decoding(
        text in "([a-z0-9]{1,3}|[ \"'.,:()%$#-]| |[一-十]|\\PC|<BOS>|\\[MASK\\]|\\[UNK\\]){0,60}"
    ) {
        let ids = tokenizer().encode(&text).unwrap().ids;
        let decoded = tokenizer().decode(&ids, ALL).unwrap();
        prop_assert_eq!(tokenizer().encode(&decoded).unwrap().ids, ids, "{:?} → {:?}", text, decoded);
    }

    #[test]
    fn a_stream_gives_what_decode_gives(ids in prop::collection::vec(0..4889u32, 0..80), skip_special: bool, drop: bool) {
        let options = DecodeOptions { skip_special, unk: if drop { Unknown::Drop } else { Unknown::Show } };
        let mut stream = StreamDecoder::new(tokenizer(), options);
        let mut text = String::new();
        for &id in &ids {
            text.push_str(stream.push(id).unwrap());
        }
        prop_assert_eq!(text, tokenizer().decode(&ids, options).unwrap());
    }
}

#[test]
fn an_id_out_of_range_is_named() {
    let error = tokenizer().decode(&[98, 4889], ALL).unwrap_err().to_string();
    assert!(error.contains("4889") && error.contains("0 to 4888"), "{error}");
}

/// One tokenizer serves all threads.
#[test]
fn a_tokenizer_is_shared() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(tokenizer());
}

#[test]
fn vocab_size_is_compared() {
    assert_eq!(tokenizer().vocab_size_problem(4889), None);
    let error = tokenizer().vocab_size_problem(21130).unwrap();
    for part in ["4889", "21130", "<BOS> <EOS>"] {
        assert!(error.contains(part), "{error}");
    }
    let error = tokenizer().vocab_size_problem(4891).unwrap();
    assert!(error.contains("CVAE"), "{error}");
}

/// Writes the files into a directory and opens it.
fn open(files: &[(&str, &str)], conditional: bool) -> della::Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    Tokenizer::from_dir(dir.path(), conditional)
}

const VOCAB: &str = "[PAD]\n[UNK]\n[SEP]\nAb\nab\né\ne\n你好\n你\n";

#[test]
fn special_tokens_are_appended_in_order() {
    let plain = open(&[("vocab.txt", VOCAB)], false).unwrap();
    assert_eq!((plain.specials().bos, plain.specials().eos, plain.specials().ent), (9, 10, None));
    let conditional = open(&[("vocab.txt", &VOCAB.replace("é", "<EOS>"))], true).unwrap();
    let specials = conditional.specials();
    assert_eq!((specials.bos, specials.eos, specials.ent, specials.ens), (9, 5, Some(10), Some(11)));
    assert_eq!(conditional.encode("ab<ENT>你<ENS>").unwrap().ids, [4, 10, 8, 11]);
}

#[test]
fn configuration_files_are_honoured() {
    let cased = r#"{"do_lower_case": false, "tokenize_chinese_chars": false, "bos_token": {"content": "[BOS]"}}"#;
    let map = r#"{"unk_token": "e", "additional_special_tokens": ["你"]}"#;
    let t = open(&[("vocab.txt", VOCAB), ("tokenizer_config.json", cased), ("special_tokens_map.json", map)], false);
    let t = t.unwrap();
    assert_eq!(t.encode("Ab é x").unwrap().tokens, ["Ab", "é", "e"]);
    assert_eq!((t.token(t.specials().bos), t.specials().unk), (Some("[BOS]"), 6));
    assert!(t.is_special(8) && !t.is_special(7));

    let words = open(&[("vocab.txt", VOCAB), ("tokenizer_config.json", r#"{"tokenize_chinese_chars": false}"#)], false);
    assert_eq!(words.unwrap().encode("你好").unwrap().tokens, ["你好"]);
    let accents = open(&[("vocab.txt", VOCAB), ("tokenizer_config.json", r#"{"strip_accents": false}"#)], false);
    assert_eq!(accents.unwrap().encode("É").unwrap().tokens, ["é"]);

    let added = r#"{"added_tokens_decoder": {"9": {"content": "<X>"}, "10": {"content": "<EOS>"}}}"#;
    let added = open(&[("vocab.txt", VOCAB), ("tokenizer_config.json", added)], false).unwrap();
    assert_eq!((added.specials().eos, added.specials().bos, added.id("<X>")), (10, 11, Some(9)));
}

/// A token that is merely added is one in text, but is text: it is not left out of a decoded one.
#[test]
fn added_tokens_stay_whole() {
    let t =
        open(&[("vocab.txt", VOCAB), ("added_tokens.json", r#"{"<X>": 9, "你们": 10, "<BOS>": 11}"#)], false).unwrap();
    let ids = t.encode("ab<X>你们你ab<x><BOS>").unwrap().ids;
    assert_eq!(ids, [4, 9, 10, 8, 4, 1, 1, 1, 11]);
    assert!(!t.is_special(9) && t.is_special(11));
    assert_eq!(t.decode(&ids[..5], DecodeOptions::default()).unwrap(), "ab<X>你们你ab");
}

#[test]
fn tokenizer_json_is_read_like_vocab_txt() {
    let vocab: serde_json::Map<_, _> = VOCAB.lines().zip(0..).map(|(t, id)| (t.to_owned(), id.into())).collect();
    let mut file = serde_json::json!({
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab},
        "normalizer": {"type": "BertNormalizer", "lowercase": false, "handle_chinese_chars": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "added_tokens": [{"id": 0, "content": "[PAD]"}, {"id": 9, "content": "<BOS>"}],
        "truncation": {"max_length": 1},
    });
    let t = open(&[("tokenizer.json", &file.to_string())], false).unwrap();
    assert_eq!(t.encode("Ab你好").unwrap().ids, [3, 8, 1]);
    assert_eq!((t.specials().bos, t.specials().eos), (9, 10));
    for (pointer, value, part) in [
        ("/added_tokens/1/id", 12.into(), "<BOS>"),
        ("/model/vocab/ab", 5.into(), "id 5"),
        ("/model/type", "BPE".into(), "WordPiece"),
    ] {
        let good = std::mem::replace(file.pointer_mut(pointer).unwrap(), value);
        let error = open(&[("tokenizer.json", &file.to_string())], false).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains(part), "{error}");
        *file.pointer_mut(pointer).unwrap() = good;
    }
}

#[test]
fn bad_files_are_refused_by_name_and_line() {
    for (files, parts) in [
        (&[][..], ["vocab.txt", "bert-base-chinese"]),
        (&[("vocab.txt", "")], ["vocab.txt", "empty"]),
        (&[("vocab.txt", "[PAD]\n[UNK]\na\n\nb\n")], ["vocab.txt", "line 4 is empty"]),
        (&[("vocab.txt", "[PAD]\n[UNK]\na\nb\na\n")], ["vocab.txt", "lines 3 and 5"]),
        (&[("vocab.txt", "[PAD]\na\n")], ["vocab.txt", "[UNK]"]),
        (&[("vocab.txt", "[UNK]\na\n")], ["vocab.txt", "[PAD]"]),
        (&[("vocab.txt", VOCAB), ("special_tokens_map.json", "{")], ["special_tokens_map.json", "line 1"]),
        (&[("vocab.txt", VOCAB), ("tokenizer_config.json", r#"{"strip_accents": 3}"#)], ["tokenizer_config.json", "3"]),
        (&[("vocab.txt", VOCAB), ("tokenizer_config.json", r#"{"do_basic_tokenize": false}"#)], ["config", "basic"]),
        (&[("vocab.txt", VOCAB), ("added_tokens.json", r#"{"<BOS>": 21128}"#)], ["added_tokens.json", "21128"]),
        (&[("vocab.txt", VOCAB), ("added_tokens.json", r#"{"ab": 3}"#)], ["added_tokens.json", "has the id 4"]),
    ] {
        let error = open(files, false).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} in {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vocab.txt");
    fs::write(&path, b"[PAD]\n[UNK]\n\xe4\xbd\n").unwrap();
    let error = Tokenizer::from_vocab(&path, false).unwrap_err().to_string();
    assert!(error.contains("line 3 is not UTF-8"), "{error}");
}

#[test]
fn windows_line_ends_and_byte_order_marks_do_not_matter() {
    let t = open(&[("vocab.txt", &format!("\u{feff}{}", VOCAB.replace('\n', "\r\n")))], false).unwrap();
    assert_eq!((t.vocab_len(), t.token(0), t.token(8)), (11, Some("[PAD]"), Some("你")));
}
