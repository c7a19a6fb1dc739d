use std::io::Write;

use della::Error;
use della::text::training_condition_ids;
use della::train::data::{BatchOptions, Batches, Format, Long, Position};

use super::*;

const COMPRESSIONS: [&str; 4] = ["", ".xz", ".zst", ".gz"];

/// Every file has two streams, frames or members.
#[test]
fn every_format_reads_the_same_however_compressed() {
    let (dir, model) = (Dir::new(), Model::vae());
    let wanted = SENTENCES.map(|text| model.row(text));
    for format in ["txt", "tsv", "jsonl"] {
        for compression in COMPRESSIONS {
            let name = format!("data/lines.{format}{compression}");
            let corpus = dir.open(&model, &[fixture(&name)], &DataOptions::default()).unwrap();
            assert_eq!(rows(&corpus), wanted, "{name}");
            assert_eq!(*corpus.origin(), Origin::Built);
            let report = corpus.report();
            assert_eq!((report.lines, report.rows, report.broken_lines(), report.unknown), (4, 4, 0, 0));
            let labels: Vec<_> = report.labels.iter().map(|(label, n)| (label.as_str(), *n)).collect();
            let wanted: &[(&str, u64)] =
                if format == "txt" { &[] } else { &[("daily", 2), ("dialog", 1), ("tech", 1)] };
            assert_eq!(labels, wanted);
        }
    }
}

/// A name says nothing about compression, and a format can be stated.
#[test]
fn first_bytes_tell_the_compression() {
    let (dir, model) = (Dir::new(), Model::vae());
    let wanted = SENTENCES.map(|text| model.row(text));
    for compression in COMPRESSIONS {
        let path = dir.path("corpus");
        std::fs::copy(fixture(&format!("data/lines.tsv{compression}")), &path).unwrap();
        let options = DataOptions { format: Format::Tsv, ..DataOptions::default() };
        assert_eq!(rows(&dir.open(&model, &[path], &options).unwrap()), wanted);
    }
    for (start, part) in [(&b"BZh91AY"[..], "extract it"), (b"PK\x03\x04", "extract it"), (b"\xff\xfea\0", "UTF-16")] {
        let error = dir_refused(&model, &dir.write("packed.txt", start));
        assert!(error.contains("packed.txt: ") && error.contains(part), "{error}");
    }
}

fn dir_refused(model: &Model, path: &Path) -> String {
    Dir::new().refused(model, path, &DataOptions::default())
}

#[test]
fn files_follow_one_another() {
    let (dir, model) = (Dir::new(), Model::vae());
    let windows = dir.write("windows.txt", "\u{feff}你好。\r\n  你好吗？\t \r\n最后一行");
    let sources = [fixture("data/lines.tsv.xz"), windows, fixture("data/lines.jsonl.gz")];
    let corpus = dir.open(&model, &sources, &DataOptions::default()).unwrap();
    let texts = [&SENTENCES[..], &["你好。", "你好吗？", "最后一行"], &SENTENCES[..]].concat();
    assert_eq!(rows(&corpus), texts.into_iter().map(|text| model.row(text)).collect::<Vec<_>>());
    let sources = &corpus.report().sources;
    assert_eq!(sources.iter().map(|source| source.lines).collect::<Vec<_>>(), [4, 3, 4]);
    assert_eq!(
        sources.iter().map(|source| source.format).collect::<Vec<_>>(),
        [Format::Tsv, Format::Text, Format::Jsonl]
    );
    for limit in 2..12 {
        let paths: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
        let options = DataOptions { limit: Some(limit), ..DataOptions::default() };
        let first = dir.open(&model, &paths, &options).unwrap();
        assert_eq!(rows(&first), rows(&corpus)[..limit.min(11) as usize]);
    }
}

/// A mark that some editors put before everything is no part of the first label, nor of the JSON.
#[test]
fn byte_order_marks_are_skipped() {
    let (dir, model) = (Dir::new(), Model::vae());
    for name in ["lines.tsv", "lines.jsonl"] {
        let marked = [b"\xef\xbb\xbf", &fs::read(fixture("data").join(name)).unwrap()[..]].concat();
        let corpus = dir.open(&model, &[dir.write(name, marked)], &DataOptions::default()).unwrap();
        assert_eq!((corpus.len(), corpus.report().labels["daily"]), (4, 2));
    }
}

/// Many more lines than are worked on together come out in order.
#[test]
fn large_files_keep_their_order() {
    let (dir, model) = (Dir::new(), Model::vae());
    let texts: Vec<String> = (0..30_000).map(|i| format!("第{i}句，{}", "好".repeat(i % 40))).collect();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(texts.join("\n").as_bytes()).unwrap();
    let plain = dir.write("all.txt", texts.join("\n"));
    let zst =
        ruzstd::encoding::compress_to_vec(texts.join("\n").as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    let packed = [dir.write("all.gz", gz.finish().unwrap()), dir.write("all.zst", zst)];
    let corpus = dir.open(&model, &[plain], &DataOptions::default()).unwrap();
    assert_eq!(corpus.len(), 30_000);
    for i in (0..30_000).step_by(97) {
        assert_eq!(corpus.row(i as u64), model.row(&texts[i]), "{i}");
    }
    for packed in packed {
        assert_eq!(rows(&dir.open(&model, &[packed], &DataOptions::default()).unwrap()), rows(&corpus));
    }
    let options = BatchOptions { tokens: 2048, rows: None, bucket: 1024, seed: 1 };
    let mut batches = Batches::new(&corpus, options, Position::default()).unwrap();
    let mut all: Vec<u64> = Vec::new();
    while batches.position().epoch == 0 {
        let batch = batches.next();
        let tokens: usize = batch.rows.iter().map(|&row| corpus.row_len(row)).sum();
        assert!(tokens as u64 == batch.tokens && tokens <= 2048);
        all.extend(batch.rows);
    }
    all.sort_unstable();
    assert_eq!(all, (0..30_000).collect::<Vec<_>>());
}

#[test]
fn conditional_rows_are_condition_then_sentence() {
    let (dir, model) = (Dir::new(), Model::cvae());
    let corpus = dir.open(&model, &[fixture("data/lines.jsonl.xz")], &DataOptions::default()).unwrap();
    let found = rows(&corpus);
    let id = |token: &str| model.tokenizer.id(token).unwrap();
    let tokens = ["我", "们", "<ENT>", "人", "<ENS>", "帮", "助", "<ENT>", "事", "<ENS>", "[SEP]"];
    assert_eq!(found[1].condition, tokens.map(id));
    let tokens = ["<BOS>", "我", "们", "需", "要", "帮", "助", "。", "<EOS>"];
    assert_eq!(found[1].sentence, tokens.map(id));
    let condition = training_condition_ids(&model.tokenizer, &[entity("水果", "食物")]).unwrap();
    assert_eq!(found[0], RowIds { condition, sentence: model.sentence(SENTENCES[0]) });
    assert_eq!(found.len(), 4);

    for name in ["data/lines.tsv", "data/lines.txt.gz"] {
        let error = Dir::new().refused(&model, &fixture(name), &DataOptions::default());
        assert!(error.contains("JSONL with \"text\" and \"entities\""), "{error}");
    }
}

#[test]
fn conditions_must_fit_their_sentences() {
    let dir = Dir::new();
    let mention = |start: i64, end: i64| {
        format!(
            r#"{{"text": "我在深圳吃水果", "entities": [{{"type": "地点", "text": "深圳", "start": {start}, "end": {end}}}]}}"#
        )
    };
    let lines = [
        mention(2, 4),
        mention(2, 5),
        mention(3, 5),
        mention(4, 2),
        mention(-1, 2),
        mention(900, 902),
        r#"{"text": "我在深圳", "entities": []}"#.into(),
        r#"{"text": "我在深圳"}"#.into(),
        r#"{"text": "我在深圳", "entities": [{"type": "地点", "text": "深圳", "start": 2}]}"#.into(),
        r#"{"text": "我在深圳", "entities": [{"text": "深圳", "start": 2, "end": 4}]}"#.into(),
        r#"{"text": "我 <ENT> 深圳", "entities": [{"type": "地点", "text": "<ENT>", "start": 2, "end": 7}]}"#.into(),
        // offsets count characters, not bytes; without offsets, a name is taken as it is
        r#"{"text": "😀深圳", "entities": [{"type": "地点", "text": "深圳", "start": 1, "end": 3}]}"#.into(),
        r#"{"text": "我在深圳", "entities": [{"type": "城市", "name": "广州"}]}"#.into(),
    ];
    let path = dir.write("ner.jsonl", lines.join("\n"));
    let model = Model::cvae();
    let corpus = dir.open(&model, std::slice::from_ref(&path), &DataOptions::default()).unwrap();
    let report = corpus.report();
    assert_eq!(
        report.first_broken.iter().map(|broken| broken.line).collect::<Vec<_>>(),
        [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    );
    let reason = |i: usize| report.place(&report.first_broken[i]);
    assert!(reason(0).contains("ner.jsonl:2: entity 1 is \"深圳\", but characters 2 to 5 of the text are \"深圳吃\""));
    assert!(reason(5).contains("has no entities") && reason(7).contains("needs both"), "{}", reason(7));
    assert!(reason(8).contains("missing field `type`") && reason(9).contains("<ENT>"), "{}", reason(8));
    let conditions = [entity("深圳", "地点"), entity("深圳", "地点"), entity("广州", "城市")];
    for (row, condition) in rows(&corpus).iter().zip(conditions) {
        assert_eq!(row.condition, training_condition_ids(&model.tokenizer, &[condition]).unwrap());
    }
    // a VAE takes the sentences and leaves the entities alone
    let corpus = dir.open(&Model::vae(), &[path], &DataOptions::default()).unwrap();
    assert_eq!((corpus.len(), corpus.report().broken_lines()), (13, 0));
    assert!(rows(&corpus).iter().all(|row| row.condition.is_empty()));
}

#[test]
fn broken_lines_are_counted_and_placed() {
    let (dir, model) = (Dir::new(), Model::vae());
    let tsv: [&[u8]; 9] = [
        b"a\t\xe4\xbd\xa0\xe5\xa5\xbd",
        b"no tab",
        b"a\tb\tc",
        b"a\t\xff\xfe",
        b"a\t",
        b"a\t \xe2\x80\x8b ",
        b"",
        "a\t你<EOS>好".as_bytes(),
        b"\t\xe4\xbd\xa0",
    ];
    let path = dir.write("lines.tsv", tsv.join(&b'\n'));
    let corpus = dir.open(&model, std::slice::from_ref(&path), &DataOptions::default()).unwrap();
    assert_eq!(rows(&corpus), ["你好", "你"].map(|text| model.row(text)));
    let report = corpus.report();
    let found: Vec<String> = report.first_broken.iter().map(|broken| report.place(broken)).collect();
    let place = |line: usize| format!("{}:{line}: ", path.display());
    for (broken, (line, part)) in found.iter().zip([
        (2, "has no tab"),
        (3, "has 3 columns"),
        (4, "is not UTF-8 at byte 3"),
        (5, "has no sentence"),
        (6, "has no sentence"),
        (7, "has no tab"),
        (8, "the special token <EOS>"),
    ]) {
        assert!(broken.starts_with(&place(line)) && broken.contains(part), "{broken}");
    }
    assert_eq!((found.len(), report.broken_lines(), report.lines, report.rows), (7, 7, 9, 2));
    assert_eq!((report.broken["without a tab"], report.broken["without a sentence"]), (2, 2));
    let shown = report.to_string();
    assert!(shown.contains("left out: ") && shown.contains("2 without a tab") && shown.contains(&found[0]), "{shown}");

    // also where the cache is there already
    let strict = DataOptions { strict: true, ..DataOptions::default() };
    for dir in [&Dir::new(), &dir] {
        let error = dir.open(&model, std::slice::from_ref(&path), &strict).unwrap_err().to_string();
        assert!(error.contains("lines.tsv: line 2: has no tab"), "{error}");
    }

    let jsonl = [
        r#"{"text": "你好"}"#,
        r#"{"text": "你好""#,
        r#"{"txt": "你好"}"#,
        r#"{"text": 3}"#,
        r#"["你好"]"#,
        r#"{"text": "你好", "label": []}"#,
        r#"{"text": "", "label": "a"}"#,
        r#"{"text": "你们好", "label": 3, "more": {}}"#,
    ];
    let corpus = dir.open(&model, &[dir.write("lines.jsonl", jsonl.join("\n"))], &DataOptions::default()).unwrap();
    assert_eq!(rows(&corpus), ["你好", "你们好"].map(|text| model.row(text)));
    let lines: Vec<u64> = corpus.report().first_broken.iter().map(|broken| broken.line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 6, 7]);
    assert!(corpus.report().first_broken[1].reason.contains("missing field `text`"));
    assert_eq!(corpus.report().labels["3"], 1);
}

#[test]
fn only_the_first_broken_lines_are_kept() {
    let (dir, model) = (Dir::new(), Model::vae());
    let mut lines = vec!["x\t你好"; 3000];
    (0..100).for_each(|i| lines[29 * i + 7] = "no tab");
    let corpus = dir.open(&model, &[dir.write("a.tsv", lines.join("\n"))], &DataOptions::default()).unwrap();
    let report = corpus.report();
    assert_eq!((report.broken_lines(), report.rows, report.first_broken.len()), (100, 2900, 20));
    let wanted: Vec<u64> = (0..20).map(|i| 29 * i + 8).collect();
    assert_eq!(report.first_broken.iter().map(|broken| broken.line).collect::<Vec<_>>(), wanted);
    assert!(report.to_string().ends_with("and 80 broken lines more"));
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let (dir, model) = (Dir::new(), Model::vae());
    let path = dir.write("long.txt", ["你好", &"好".repeat(1 << 20), "你好吗"].join("\n"));
    let corpus = dir.open(&model, &[path], &DataOptions::default()).unwrap();
    assert_eq!(rows(&corpus), ["你好", "你好吗"].map(|text| model.row(text)));
    let broken = &corpus.report().first_broken[0];
    assert!(broken.line == 2 && broken.reason.contains("longer than 1048576 bytes"), "{broken:?}");
}

#[test]
fn labels_choose_lines_and_must_be_there() {
    let (dir, model) = (Dir::new(), Model::vae());
    let labels = |labels: &[&str]| DataOptions {
        labels: labels.iter().map(|label| label.to_string()).collect(),
        ..DataOptions::default()
    };
    for name in ["data/lines.tsv", "data/lines.jsonl.zst"] {
        let corpus = dir.open(&model, &[fixture(name)], &labels(&["dialog", "daily"])).unwrap();
        assert_eq!(rows(&corpus), [0, 1, 2].map(|i| model.row(SENTENCES[i])));
        assert_eq!((corpus.report().other_labels, corpus.report().labels["tech"]), (1, 1));
        let error = Dir::new().refused(&model, &fixture(name), &labels(&["daily", "news"]));
        assert!(error.contains("no line carries \"news\"; the labels are daily 2, dialog 1, tech 1"), "{error}");
    }
    let error = Dir::new().refused(&model, &fixture("data/lines.txt.xz"), &labels(&["daily"]));
    assert!(error.contains("lines.txt.xz: has no labels to choose from: it is read as text"), "{error}");
    let bare = dir.write("bare.jsonl", "{\"text\": \"你好\"}\n{\"text\": \"你好吗\"}\n");
    let error = Dir::new().refused(&model, &bare, &labels(&["daily"]));
    assert!(error.contains("bare.jsonl: has no labels to choose from"), "{error}");
}

#[test]
fn long_sentences_are_left_out_or_shortened() {
    let dir = Dir::new();
    let path = dir.write("a.txt", "一二三\n一二三四五六\n一二三四五六七\nab cd ef gh\n");
    let open = |model: &Model, options: DataOptions| dir.open(model, std::slice::from_ref(&path), &options).unwrap();
    let model = Model::vae();
    let corpus = open(&model, DataOptions { max_chars: Some(6), ..DataOptions::default() });
    assert_eq!(rows(&corpus), ["一二三", "一二三四五六"].map(|text| model.row(text)));
    assert_eq!(corpus.report().too_many_chars, 2);

    // <BOS>, six tokens, <EOS>
    let model = Model::with(&fixture("tokenizer/vocab.txt"), false, 8);
    let corpus = open(&model, DataOptions::default());
    assert!(rows(&corpus).iter().all(|row| row.sentence.len() <= 8));
    assert_eq!((corpus.len() + corpus.report().too_many_tokens, corpus.report().truncated), (4, 0));
    assert!(corpus.report().too_many_tokens >= 1);
    let shortened = open(&model, DataOptions { long: Long::Truncate, ..DataOptions::default() });
    assert_eq!(shortened.report().truncated, corpus.report().too_many_tokens);
    assert_eq!(shortened.row(2), model.row("一二三四五六"));
    assert_eq!(shortened.len(), 4);

    // a condition is never shortened: one that leaves no room for a sentence takes the sentence with it
    let model = Model::with(&fixture("tokenizer/vocab.txt"), true, 9);
    let line = |name: &str| format!(r#"{{"text": "你好吗你好", "entities": [{{"type": "人", "name": "{name}"}}]}}"#);
    let path = dir.write("c.jsonl", [line("你"), line("你好"), line("你好你"), line("你好你好")].join("\n"));
    let options = DataOptions { long: Long::Truncate, ..DataOptions::default() };
    let corpus = dir.open(&model, &[path], &options).unwrap();
    let lens: Vec<_> = rows(&corpus).iter().map(|row| (row.condition.len(), row.sentence.len())).collect();
    assert_eq!(lens, [(5, 4), (6, 3)]);
    assert_eq!((corpus.report().truncated, corpus.report().too_many_tokens), (2, 2));
}

#[test]
fn corpora_of_fewer_than_two_sentences_are_refused() {
    let (dir, model) = (Dir::new(), Model::vae());
    for (content, parts) in [
        ("", &["no line was read"][..]),
        ("你好\n", &["of 1 lines", "1 can be used", "at least 2"]),
        ("\n\n", &["of 2 lines", "0 can be used", "Left out: 2 without a sentence", "few.txt:1: has no sentence"]),
        ("你好\n你好吗你好吗你好吗\n", &["Left out: 1 of too many characters"]),
    ] {
        let options = DataOptions { max_chars: Some(5), ..DataOptions::default() };
        let error = dir.refused(&model, &dir.write("few.txt", content), &options);
        assert!(error.contains("few.txt: ") && parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let error = dir.open(&model, &[], &DataOptions::default()).unwrap_err().to_string();
    assert!(error.contains("name at least one"), "{error}");
    let (chars, limit) = (DataOptions { max_chars: Some(0), ..DataOptions::default() }, Some(0));
    for options in [chars, DataOptions { limit, ..DataOptions::default() }] {
        assert!(matches!(dir.open(&model, &[fixture("data/lines.tsv")], &options), Err(Error::Input { .. })));
    }
}

#[test]
fn damaged_archives_are_errors() {
    let (dir, model) = (Dir::new(), Model::vae());
    let text: String = (0..3000).map(|i| format!("第{i}句\n")).collect();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    let zst = ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    let mut archives = vec![("a.gz", gz.finish().unwrap(), 10), ("a.zst", zst, 4)];
    for (name, start) in [("lines.txt.xz", 6), ("lines.txt.zst", 4), ("lines.txt.gz", 10)] {
        archives.push((name, fs::read(fixture("data").join(name)).unwrap(), start));
    }
    for (name, archive, start) in archives {
        let cuts = (start..archive.len()).step_by((archive.len() / 20).max(1));
        for cut in cuts {
            let path = dir.write(name, &archive[..cut]);
            match dir.open(&model, &[path], &DataOptions::default()) {
                Ok(corpus) => assert!(corpus.len() < 4, "{name} cut at {cut} ends between two streams"),
                Err(e) => assert!(e.to_string().contains(name), "{e}"),
            }
            let mut flipped = archive.clone();
            flipped[cut] ^= 0x10;
            // not every bit matters, and some damage makes broken lines: it may be read, but must not panic
            let _ = dir.open(&model, &[dir.write(name, &flipped)], &DataOptions::default());
        }
    }
    // a letter of a sentence, which is stored as it is, under a checksum
    let mut zst = fs::read(fixture("data/lines.txt.zst")).unwrap();
    let letter = zst.windows(5).position(|bytes| bytes == b"Hello").unwrap();
    zst[letter] = b'J';
    let error = Dir::new().refused(&model, &dir.write("checked.zst", &zst), &DataOptions::default());
    assert!(error.contains("checked.zst: ") && error.contains("a checksum does not match"), "{error}");
    let xz = fs::read(fixture("data/lines.txt.xz")).unwrap();
    let error = Dir::new().refused(&model, &dir.write("cut.xz", &xz[..xz.len() - 9]), &DataOptions::default());
    assert!(error.contains("cut.xz: cannot be decompressed from line ") && error.contains("cut off"), "{error}");
}

#[cfg(unix)]
#[test]
fn what_is_not_a_file_is_refused() {
    let model = Model::vae();
    for (path, part) in [("/dev/zero", "not a regular file"), ("/", "not a regular file"), ("/absent", "/absent: ")] {
        let error = dir_refused(&model, Path::new(path));
        assert!(error.contains(part), "{error}");
    }
}
