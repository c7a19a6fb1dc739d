use std::cell::Cell;
use std::ops::ControlFlow;

use della::Error;
use della::train::data::{Long, Progress, Stage};

use super::*;

#[test]
fn a_second_start_finds_the_same() {
    let dir = Dir::new();
    for (model, name) in [(Model::vae(), "data/lines.tsv.xz"), (Model::cvae(), "data/lines.jsonl")] {
        let content = fs::read(fixture(name)).unwrap();
        let path = dir.write(name.rsplit('/').next().unwrap(), &content);
        let first = dir.open(&model, std::slice::from_ref(&path), &DataOptions::default()).unwrap();
        let second = dir.open(&model, std::slice::from_ref(&path), &DataOptions::default()).unwrap();
        assert_eq!((first.origin(), second.origin()), (&Origin::Built, &Origin::Cached));
        assert_eq!(rows(&second), rows(&first));
        assert_eq!((second.key(), second.report()), (first.key(), first.report()));
        // the content counts, not where it is
        let copy = dir.write(&format!("copy.{}", path.file_name().unwrap().to_str().unwrap()), &content);
        let third = dir.open(&model, std::slice::from_ref(&copy), &DataOptions::default()).unwrap();
        assert_eq!((third.origin(), third.key()), (&Origin::Cached, first.key()));
        assert_eq!(third.report().sources[0].path, copy);
    }
}

#[test]
fn whatever_changes_rows_makes_another_cache() {
    let (dir, model) = (Dir::new(), Model::vae());
    let path = dir.write("a.tsv", "x\t一二三\nx\t四五六七八\ny\t九\n");
    let options = DataOptions::default();
    let key =
        |model: &Model, options: &DataOptions| dir.open(model, std::slice::from_ref(&path), options).unwrap().key();
    let first = key(&model, &options);
    let mut keys = vec![first];
    for other in [
        DataOptions { labels: vec!["x".into()], ..options.clone() },
        DataOptions { max_chars: Some(4), ..options.clone() },
        DataOptions { long: Long::Truncate, ..options.clone() },
        DataOptions { limit: Some(2), ..options.clone() },
        DataOptions { format: della::train::data::Format::Text, ..options.clone() },
    ] {
        keys.push(key(&model, &other));
    }
    keys.push(key(&Model::with(&fixture("tokenizer/vocab.txt"), false, 63), &options));
    // the same tokens, two of them exchanged; then in a directory that says that case matters
    let vocabulary = fs::read_to_string(fixture("tokenizer/vocab.txt")).unwrap();
    let exchanged = vocabulary.replacen("一\n", "\0\n", 1).replacen("三\n", "一\n", 1).replacen("\0\n", "三\n", 1);
    assert_ne!(exchanged, vocabulary);
    let other = Model::with(&dir.write("vocab.txt", exchanged), false, 64);
    keys.push(key(&other, &options));
    assert_eq!(rows(&dir.open(&other, std::slice::from_ref(&path), &options).unwrap())[0], other.row("一二三"));
    dir.write("vocab.txt", &vocabulary);
    dir.write("tokenizer_config.json", r#"{"do_lower_case": false}"#);
    let cased = Tokenizer::from_dir(dir.0.path(), false).unwrap();
    keys.push(key(&Model { tokenizer: cased, ..Model::vae() }, &options));
    // one character, in a file of the same length
    dir.write("a.tsv", "x\t一二三\nx\t四五六七八\ny\t十\n");
    keys.push(key(&model, &options));
    assert_eq!(rows(&dir.open(&model, std::slice::from_ref(&path), &options).unwrap())[2], model.row("十"));
    dir.write("a.tsv", "x\t一二三\nx\t四五六七八\ny\t九\n");
    assert_eq!(key(&model, &options), first);
    assert_eq!(key(&model, &DataOptions { strict: true, ..options }), first, "the rows are the same");
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!((keys.len(), dir.cached().len()), (count, count));
}

/// Damage anywhere is found, and mended by building the cache again.
#[test]
fn a_damaged_cache_is_built_again() {
    for (model, name) in [(Model::vae(), "data/lines.tsv"), (Model::cvae(), "data/lines.jsonl")] {
        let dir = Dir::new();
        let open = || dir.open(&model, &[fixture(name)], &DataOptions::default()).unwrap();
        let wanted = rows(&open());
        let [path] = &dir.cached()[..] else { panic!("one cache") };
        let whole = fs::read(path).unwrap();
        let step = whole.len() / 60;
        let cut = (0..whole.len()).step_by(step).map(|len| whole[..len].to_vec());
        let flipped = (0..whole.len()).step_by(step).chain(0..88).map(|at| {
            let mut file = whole.clone();
            file[at] ^= 0x80;
            file
        });
        let other = DataOptions { limit: Some(3), ..DataOptions::default() };
        let other = fs::read(Dir::new().open(&model, &[fixture(name)], &other).unwrap().path()).unwrap();
        let longer = [[&whole[..], b"x"].concat(), vec![0; whole.len()], b"something else".to_vec(), other];
        for damaged in cut.chain(flipped).chain(longer) {
            // by renaming, since an open map of the file must keep its content
            fs::rename(dir.write("damaged", &damaged), path).unwrap();
            let corpus = open();
            assert!(matches!(corpus.origin(), Origin::Rebuilt(_)), "{:?}", corpus.origin());
            assert_eq!(rows(&corpus), wanted);
            assert_eq!(fs::read(path).unwrap(), whole, "a build is repeatable");
        }
        assert_eq!(*open().origin(), Origin::Cached);
        fs::write(dir.cache().join("hashes.json"), "nonsense").unwrap();
        assert_eq!(*open().origin(), Origin::Cached);
    }
}

/// A hash is remembered once the file has been left alone for a while, and the file is then not read again.
#[test]
fn unchanged_files_are_not_read_again() {
    let (dir, model) = (Dir::new(), Model::vae());
    let path = dir.write("a.tsv", "x\t一二三\nx\t四五六\n");
    let hashed = || {
        let bytes = Cell::new(0);
        let progress = |progress: Progress<'_>| {
            assert!(progress.done <= progress.total && progress.path == path);
            bytes.set(bytes.get() + if progress.stage == Stage::Hash { progress.done } else { 0 });
            ControlFlow::Continue(())
        };
        let sources = std::slice::from_ref(&path);
        Corpus::open(sources, &model.tokenizer, &model.config, &DataOptions::default(), &dir.cache(), &progress)
            .unwrap();
        bytes.get()
    };
    assert!(hashed() > 0);
    assert!(hashed() > 0, "what was just written may change without its time showing it");
    std::thread::sleep(std::time::Duration::from_millis(3200));
    assert!(hashed() > 0);
    assert_eq!(hashed(), 0);
    dir.write("a.tsv", "x\t一二三\nx\t四五七\n");
    assert!(hashed() > 0);
}

#[test]
fn a_cancelled_build_leaves_nothing() {
    let (dir, model) = (Dir::new(), Model::vae());
    for stage in [Stage::Hash, Stage::Read] {
        let stop = |progress: Progress<'_>| match progress.stage == stage {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let source = [fixture("data/lines.tsv")];
        let error =
            Corpus::open(&source, &model.tokenizer, &model.config, &DataOptions::default(), &dir.cache(), &stop);
        assert!(matches!(error, Err(Error::Cancelled)));
        assert_eq!(dir.cached(), [""; 0].map(PathBuf::from));
    }
}

#[test]
fn builds_at_the_same_time_do_not_disturb_each_other() {
    let (dir, model) = (Dir::new(), Model::vae());
    let lines: String = (0..3000).map(|i| format!("第{i}句\n")).collect();
    let source = [dir.write("a.txt", lines)];
    let all: Vec<_> = std::thread::scope(|scope| {
        let open = || rows(&dir.open(&model, &source, &DataOptions::default()).unwrap());
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|rows| rows.len() == 3000 && *rows == all[0]));
    assert_eq!(dir.cached().len(), 1);
}

/// Ids beyond 65535 take four bytes.
#[test]
fn large_vocabularies_keep_their_ids() {
    let dir = Dir::new();
    for (tokens, bytes) in [((1 << 16) - 4, 2u64), ((1 << 16) - 3, 4), (70_000, 4)] {
        let words = (0..tokens).map(|i| format!("w{i}\n"));
        let vocabulary = ["[PAD]\n".to_owned(), "[UNK]\n".to_owned()].into_iter().chain(words).collect::<String>();
        let model = Model::with(&dir.write("vocab.txt", vocabulary), false, 64);
        let texts = [format!("w0 w{} w7", tokens - 1), "w1 w2".to_owned()];
        let corpus = dir.open(&model, &[dir.write("a.txt", texts.join("\n"))], &DataOptions::default()).unwrap();
        assert_eq!(rows(&corpus), texts.map(|text| model.row(&text)));
        assert_eq!(corpus.row(0).sentence[2], tokens + 1);
        let file = fs::read(corpus.path()).unwrap();
        assert_eq!(u64::from(file[12]), bytes);
    }
}

#[test]
fn a_vocabulary_of_another_model_is_refused() {
    let (dir, mut model) = (Dir::new(), Model::vae());
    model.config.dims.vocab += 1;
    let error = dir.refused(&model, &fixture("data/lines.tsv"), &DataOptions::default());
    assert!(error.contains("vocab_size"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let (dir, model) = (Dir::new(), Model::vae());
    dir.write("cache", "a file");
    let error = dir.open(&model, &[fixture("data/lines.tsv")], &DataOptions::default()).unwrap_err().to_string();
    assert!(error.contains("cache: "), "{error}");
}
