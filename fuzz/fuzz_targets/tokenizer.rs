//! Any text encodes, decodes and encodes to the same ids; a stream gives what `decode` gives; any bytes as tokenizer
//! files are read or refused.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use della::text::{DecodeOptions, Entity, Source, StreamDecoder, Tokenizer, Unknown, condition_ids, contains_all};
use libfuzzer_sys::fuzz_target;

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let vocab = include_bytes!("../../tests/fixtures/tokenizer/vocab.txt");
        Tokenizer::from_bytes(source(vocab, None, None), true).unwrap()
    })
}

fn source<'a>(vocab: &'a [u8], special_tokens_map: Option<&'a [u8]>, config: Option<&'a [u8]>) -> Source<'a> {
    Source { dir: Path::new("fuzz"), vocab, special_tokens_map, tokenizer_config: config }
}

/// Encodes and decodes; the text of ids that `encode` gave must encode to them again.
fn round_trip(tokenizer: &Tokenizer, text: &str) {
    let ids = tokenizer.encode(text).unwrap().ids;
    let all = DecodeOptions { skip_special: false, unk: Unknown::Show };
    let decoded = stream(tokenizer, &ids, all);
    assert_eq!(tokenizer.encode(&decoded).unwrap().ids, ids, "{text:?} → {decoded:?}");
}

fn stream(tokenizer: &Tokenizer, ids: &[u32], options: DecodeOptions) -> String {
    let mut stream = StreamDecoder::new(tokenizer, options);
    let text: String = ids.iter().map(|&id| stream.push(id).unwrap().to_owned()).collect();
    assert_eq!(text, tokenizer.decode(ids, options).unwrap());
    text
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(data);
    match kind % 4 {
        0 => round_trip(tokenizer(), &text),
        1 => {
            let ids: Vec<u32> = data.chunks(2).map(|c| c.iter().fold(0, |id, &b| id << 8 | u32::from(b))).collect();
            let known: Vec<u32> = ids.iter().map(|id| id % tokenizer().vocab_len() as u32).collect();
            for (skip_special, unk) in [(true, Unknown::Show), (false, Unknown::Drop)] {
                stream(tokenizer(), &known, DecodeOptions { skip_special, unk });
                let _ = tokenizer().decode(&ids, DecodeOptions { skip_special, unk });
            }
        }
        2 => {
            if let Ok(entity) = text.parse::<Entity>() {
                let _ = condition_ids(tokenizer(), std::slice::from_ref(&entity));
                assert!(contains_all(tokenizer(), &entity.name, std::slice::from_ref(&entity)));
            }
        }
        _ => {
            // Up to three files, and a text for the tokenizer they make.
            let mut parts = data.split(|&b| b == 0);
            let (vocab, config, map) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
            let base = [b"[PAD]\n[UNK]\n", vocab].concat();
            for vocab in [vocab, &base] {
                if let Ok(tokenizer) = Tokenizer::from_bytes(source(vocab, map, config), false) {
                    let ids = tokenizer.encode(&text).unwrap().ids;
                    stream(&tokenizer, &ids, DecodeOptions::default());
                }
            }
        }
    }
});
