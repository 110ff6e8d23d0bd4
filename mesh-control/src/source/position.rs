//! Turns the path of a field into its line and column, by reading the document once more with positions.

use std::cell::OnceCell;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Finds fields in one document of a file.
#[derive(Debug)]
pub struct Locator<'a> {
    text: &'a str,
    lines_before: u32,
    tree: OnceCell<Option<Spanned<Node>>>,
}

/// A YAML node with the positions of its children.
#[derive(Debug)]
enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    Seq(Vec<Spanned<Node>>),
    Scalar,
}

impl<'a> Locator<'a> {
    /// For a document that starts after `lines_before` lines of its file.
    pub fn new(text: &'a str, lines_before: u32) -> Self {
        Self { text, lines_before, tree: OnceCell::new() }
    }

    /// Line and column of a field such as `spec.http[0].route`; of the deepest part of it that is there.
    pub fn find(&self, path: &str) -> Option<(u32, u32)> {
        let root = self.tree.get_or_init(|| serde_saphyr::from_str(self.text).ok()).as_ref()?;
        let mut node = root;
        let mut place = (root.referenced.line(), root.referenced.column());
        let mut rest = path;
        while !rest.is_empty() {
            match &node.value {
                Node::Map(members) => {
                    // Keys may hold dots (labels, header names): take the longest member that fits.
                    let fits =
                        |name: &str| rest.strip_prefix(name).filter(|r| r.is_empty() || r.starts_with(['.', '[']));
                    let fitting = members.iter().filter_map(|(name, child)| Some((name, child, fits(&name.value)?)));
                    let Some((name, child, after)) = fitting.max_by_key(|(name, ..)| name.value.len()) else { break };
                    place = (name.referenced.line(), name.referenced.column());
                    (node, rest) = (child, after.strip_prefix('.').unwrap_or(after));
                }
                Node::Seq(items) => {
                    let Some((index, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) else { break };
                    let Some(child) = index.parse().ok().and_then(|i: usize| items.get(i)) else { break };
                    place = (child.referenced.line(), child.referenced.column());
                    (node, rest) = (child, after.strip_prefix('.').unwrap_or(after));
                }
                Node::Scalar => return Some(self.within_block(place, path).unwrap_or(self.in_file(place))),
            }
        }
        Some(self.in_file(place))
    }

    fn in_file(&self, place: (u64, u64)) -> (u32, u32) {
        let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        (self.lines_before.saturating_add(clamp(place.0)), clamp(place.1))
    }

    /// A literal block (`key: |`) whose content is YAML itself: the place of what is left of the path in it. `place` is
    /// that of the key.
    fn within_block(&self, place: (u64, u64), path: &str) -> Option<(u32, u32)> {
        let mut lines = self.text.lines().skip(usize::try_from(place.0).ok()?.checked_sub(1)?);
        let (key, rest) = lines.next()?.split_once(':')?;
        if !rest.trim_start().starts_with('|') {
            return None;
        }
        // Keys of the block itself may hold dots, but those that this is for (`mesh`) do not.
        let key = key.trim().trim_start_matches("- ").trim_matches(['"', '\'']);
        let (_, inner) = path.split_once(&format!("{key}."))?;
        let indent = |line: &str| line.len() - line.trim_start_matches(' ').len();
        let first = lines.clone().find(|l| !l.trim().is_empty())?;
        let (outer, own) = (usize::try_from(place.1).ok()?.saturating_sub(1), indent(first));
        if own <= outer {
            return None;
        }
        let block = lines.take_while(|l| l.trim().is_empty() || indent(l) > outer);
        let text: String = block.flat_map(|l| [l.get(own..).unwrap_or_default(), "\n"]).collect();
        let before = self.in_file(place).0;
        let (line, column) = Locator::new(&text, before).find(inner)?;
        Some((line, column.saturating_add(u32::try_from(own).ok()?)))
    }

    /// First line of what is at `path`, in the file.
    pub fn line(&self, path: &str) -> Option<u32> {
        if path.is_empty() {
            let blank = |l: &&str| l.trim().is_empty() || l.trim_start().starts_with('#');
            let skipped = self.text.lines().take_while(blank).count();
            return u32::try_from(skipped + 1).ok().map(|l| l + self.lines_before);
        }
        self.find(path).map(|(line, _)| line)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("any YAML node")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Node::Map(members))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::Seq(items))
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_none<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Scalar)
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
                Node::deserialize(d)
            }
        }
        d.deserialize_any(NodeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_and_the_nearest_parent() {
        let text = "kind: A\nspec:\n  http:\n  - name: x\n    route:\n    - weight: 1\n";
        let locator = Locator::new(text, 10);
        assert_eq!(locator.find("spec.http[0].route[0].weight"), Some((16, 7)));
        assert_eq!(locator.find("spec.http[0].timeout").map(|p| p.0), Some(14));
        assert_eq!(locator.find("kind"), Some((11, 1)));
        assert_eq!(Locator::new("\n# c\nkind: A\n", 0).line(""), Some(3));
        let dotted = Locator::new("labels:\n  a: 1\n  a.b: 2\n  a.b/c: [x,\n y]\n", 0);
        let lines = ["labels.a", "labels.a.b", "labels.a.b/c", "labels.a.b/c[1]", "labels.a.x"].map(|p| dotted.line(p));
        assert_eq!(lines, [2, 3, 4, 5, 2].map(Some));
    }
}
