use della::text::Tokenizer;

use super::*;

const TSV: &str = "daily\t我们需要帮助，我们！\ndialog\tlow lower LOWEST\nno tab\ndaily\t我\n";

#[test]
fn a_vocabulary_is_made_of_a_file_and_loads() {
    let dir = Dir::new();
    let (file, vocab) = (dir.write("a.tsv", TSV), dir.path("vocab.txt"));
    let done = run(&["vocab", &file, "-o", &vocab]);
    assert_eq!(done.out, "");
    for part in ["3 sentences of 4 lines", "left out: 1 without a tab", "a.tsv:3: has no tab", "wrote 20 tokens to "] {
        assert!(done.err.contains(part), "{part}: {}", done.err);
    }
    done.ok();
    let tokens = dir.read("vocab.txt");
    let tokens: Vec<&str> = tokens.lines().collect();
    assert_eq!(tokens[..8], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##o", "##w", "l"]);
    assert_eq!(tokens.len(), 20);
    let tokenizer = Tokenizer::from_vocab(&vocab, false).unwrap();
    let found = tokenizer.encode("Slow 我们！").unwrap().tokens;
    assert_eq!(found, ["[UNK]", "我", "们", "！"], "s has not begun a word");

    let error = run(&["vocab", &file, "-o", &vocab]).fails(1);
    assert!(error.contains("vocab.txt exists already"), "{error}");
    assert_eq!(dir.read("vocab.txt").lines().count(), 20);
}

#[test]
fn sizes_labels_and_subwords_are_chosen() {
    let dir = Dir::new();
    let file = dir.write("a.tsv", TSV);
    let made = |name: &str, more: &[&str]| {
        let path = dir.path(name);
        run(&[&["vocab", &file, "-o", &path][..], more].concat()).ok();
        dir.read(name).lines().skip(5).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(made("a", &["--labels", "daily", "--min-count", "2"]), ["我", "们"]);
    assert_eq!(made("b", &["--labels", "dialog", "--size", "8"]), ["##o", "##w", "l"]);
    let merged = made("c", &["--labels", "dialog", "--merges", "2"]);
    assert_eq!(merged[merged.len() - 2..], ["##ow", "low"]);
    assert_eq!(made("d", &["--labels", "daily,dialog", "--max-chars", "1"]), ["我"]);
    assert_eq!(made("e", &["--format", "text", "--limit", "1", "--min-count", "2"]), ["们", "我"]);
    // the part of a vocabulary that occurs, in its order
    let whole = fixture("tokenizer/vocab.txt");
    let kept = made("f", &["--labels", "daily", "--from", whole.to_str().unwrap()]);
    let ids = Tokenizer::from_vocab(&whole, false).unwrap();
    let ids: Vec<_> = kept.iter().map(|token| ids.id(token).unwrap()).collect();
    assert!(ids.is_sorted() && kept.len() == 8, "{kept:?}");
}

#[test]
fn what_cannot_be_made_leaves_no_file() {
    let dir = Dir::new();
    let (file, vocab) = (dir.write("a.tsv", TSV), dir.path("vocab.txt"));
    for (more, code, part) in [
        (&["--labels", "news"][..], 1, "labels: no line carries \"news\"; the labels are daily 2, dialog 1"),
        (&["--strict"], 1, "a.tsv: line 3: has no tab"),
        (&["--size", "5"], 1, "size: 5 leaves no room"),
        (&["--min-count", "99"], 1, "nothing to make of it"),
        (&["--min-count", "0"], 2, "--min-count: "),
        (&["--max-chars", "0"], 2, "--max-chars: "),
        (&["--merges", "1", "--from", &file], 2, "--from"),
        (&["--from", &file], 1, "[PAD]"),
    ] {
        let error = run(&[&["vocab", &file, "-o", &vocab][..], more].concat()).fails(code);
        assert!(error.contains(part), "{more:?}: {error}");
        assert!(!Path::new(&vocab).exists());
    }
    assert!(run(&["vocab", "-o", &vocab]).fails(2).contains("<FILE>"));
}
