//! Conditions of the conditional model: named entities with their types, as `name <ENT> type <ENS> … <BOS>`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// An entity that a text should mention. In JSON `{"name": …, "type": …}`, on the command line `name:type`.
///
/// ```
/// use della::text::Entity;
/// let entity: Entity = "碟中谍4:幽灵协议：作品/电影".parse()?;
/// assert_eq!((entity.name.as_str(), entity.kind.as_str()), ("碟中谍4:幽灵协议", "作品/电影"));
/// # Ok::<(), della::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entity {
    /// What it is called, e.g. `深圳`.
    pub name: String,
    /// What it is, e.g. `地点/地理位置`.
    #[serde(rename = "type")]
    pub kind: String,
}

impl FromStr for Entity {
    type Err = Error;

    /// Reads `name:type`, with `:` or `：`. The last colon separates, so a name may hold colons and a type may not.
    fn from_str(text: &str) -> Result<Self> {
        let Some((name, kind)) = text.rsplit_once([':', '：']) else {
            return Err(Error::input(
                "entity",
                format!("{text:?} has no colon; write name:type, e.g. 深圳:地点/地理位置"),
            ));
        };
        let entity = Entity { name: name.trim().to_owned(), kind: kind.trim().to_owned() };
        for (part, text_of_part) in [("name", &entity.name), ("type", &entity.kind)] {
            if text_of_part.is_empty() {
                let message = format!("{text:?} has an empty {part}; write name:type, e.g. 深圳:地点/地理位置");
                return Err(Error::input("entity", message));
            }
        }
        Ok(entity)
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.kind)
    }
}

/// The ids of `name <ENT> type <ENS>` for every entity, then one `<BOS>`: what the conditional model's encoder reads and
/// its decoder starts from.
///
/// # Errors
/// No entity; a name or type without a token or with a special token in it; a tokenizer without `<ENT>` and `<ENS>`.
pub fn condition_ids(tokenizer: &Tokenizer, entities: &[Entity]) -> Result<Vec<u32>> {
    ended_by(tokenizer, entities, tokenizer.specials().bos)
}

/// As [`condition_ids`], but ended by `[SEP]`: what stood before `<BOS> sentence <EOS>` when the model was trained.
///
/// # Errors
/// As [`condition_ids`]; a tokenizer without `[SEP]`.
pub fn training_condition_ids(tokenizer: &Tokenizer, entities: &[Entity]) -> Result<Vec<u32>> {
    let sep = tokenizer.specials().sep.ok_or_else(|| {
        Error::Unsupported(
            "a conditional model needs a [SEP] in its vocabulary to encode a sentence; there is none".into(),
        )
    })?;
    ended_by(tokenizer, entities, sep)
}

fn ended_by(tokenizer: &Tokenizer, entities: &[Entity], last: u32) -> Result<Vec<u32>> {
    let specials = tokenizer.specials();
    let (Some(ent), Some(ens)) = (specials.ent, specials.ens) else {
        let message = "entities need a conditional model: this tokenizer has no <ENT> and <ENS>";
        return Err(Error::Unsupported(message.into()));
    };
    if entities.is_empty() {
        return Err(Error::input("entities", "there is none; a condition has at least one"));
    }
    let mut ids = Vec::new();
    for entity in entities {
        for (part, text, end) in [("name", &entity.name, ent), ("type", &entity.kind, ens)] {
            let part_ids = tokenizer.encode(text)?.ids;
            if part_ids.is_empty() {
                return Err(Error::input("entities", format!("the {part} of {entity:?} has no visible character")));
            }
            // [UNK] is what an unknown word becomes; any other special token would break the structure.
            if let Some(&id) = part_ids.iter().find(|&&id| id != specials.unk && tokenizer.is_special(id)) {
                let token = tokenizer.token(id).unwrap_or_default();
                let message = format!("the {part} of {entity:?} contains the special token {token}; remove it");
                return Err(Error::input("entities", message));
            }
            ids.extend(part_ids);
            ids.push(end);
        }
    }
    ids.push(last);
    Ok(ids)
}

/// Whether `text` mentions every entity by name, as the tokenizer sees both (usually in lower case without accents) and
/// whatever their spaces are.
pub fn contains_all(tokenizer: &Tokenizer, text: &str, entities: &[Entity]) -> bool {
    let comparable = |text: &str| tokenizer.normalize(text).split_whitespace().collect::<String>();
    let text = comparable(text);
    entities.iter().all(|entity| text.contains(&comparable(&entity.name)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::files::Source;
    use super::*;

    fn tokenizer(conditional: bool) -> Tokenizer {
        let vocab = "[PAD]\n[UNK]\n[SEP]\n深\n圳\n地\n点\n/\nnew\nyork\n".as_bytes();
        let source = Source { dir: Path::new("test"), vocab, special_tokens_map: None, tokenizer_config: None };
        Tokenizer::from_bytes(source, conditional).unwrap()
    }

    fn entity(name: &str, kind: &str) -> Entity {
        Entity { name: name.into(), kind: kind.into() }
    }

    #[test]
    fn the_last_colon_separates() {
        for (text, name, kind) in [
            ("深圳:地点/地理位置", "深圳", "地点/地理位置"),
            (" 深圳 ：地点 ", "深圳", "地点"),
            ("CSI：犯罪现场:作品", "CSI：犯罪现场", "作品"),
            ("a:b：c", "a:b", "c"),
        ] {
            let parsed: Entity = text.parse().unwrap();
            assert_eq!(parsed, entity(name, kind));
            assert_eq!(parsed.to_string().parse::<Entity>().unwrap(), parsed);
        }
        for (text, part) in [("深圳", "colon"), ("", "colon"), (":地点", "name"), ("深圳: ", "type"), ("：", "name")]
        {
            let error = text.parse::<Entity>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("name:type"), "{error}");
        }
    }

    #[test]
    fn a_condition_ends_in_one_bos() {
        let tokenizer = tokenizer(true);
        let entities = [entity("深圳", "地点"), entity("New York", "地点/x")];
        // <BOS> 10, <EOS> 11, <ENT> 12, <ENS> 13.
        let ids = [3, 4, 12, 5, 6, 13, 8, 9, 12, 5, 6, 7, 1, 13, 10];
        assert_eq!(condition_ids(&tokenizer, &entities).unwrap(), ids);
    }

    #[test]
    fn bad_conditions_are_refused() {
        let conditional = tokenizer(true);
        for (entities, part) in [
            (&[][..], "at least one"),
            (&[entity("\u{200b}", "地点")], "visible"),
            (&[entity("深圳", " ")], "type"),
            (&[entity("深<ENT>圳", "地点")], "<ENT>"),
            (&[entity("深圳", "地点[SEP]")], "[SEP]"),
        ] {
            let error = condition_ids(&conditional, entities).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = condition_ids(&tokenizer(false), &[entity("深圳", "地点")]).unwrap_err().to_string();
        assert!(error.contains("conditional model"), "{error}");
    }

    #[test]
    fn mentions_are_found_after_normalisation() {
        let tokenizer = tokenizer(true);
        let both = [entity("New York", "地点"), entity("深圳", "地点")];
        assert!(contains_all(&tokenizer, "从深圳到néw york。", &both));
        assert!(!contains_all(&tokenizer, "从深川到new york。", &both));
        assert!(contains_all(&tokenizer, "", &[]));
    }
}
