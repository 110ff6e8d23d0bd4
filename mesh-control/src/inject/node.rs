//! YAML and JSON as people wrote it: every field, in its order. Injection changes what it knows and hands on the rest.

use std::fmt;

use indexmap::IndexMap;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::Number;

/// Members of an object, in order.
pub type Map = IndexMap<String, Node>;

/// A value.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs)]
pub enum Node {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Map),
}

impl Node {
    /// An object of these members; those that are null are left out.
    pub fn map<const N: usize>(members: [(&str, Node); N]) -> Self {
        let members = members.into_iter().filter(|(_, v)| *v != Node::Null);
        Node::Map(members.map(|(k, v)| (k.to_owned(), v)).collect())
    }

    /// A member of an object.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map()?.get(key)
    }

    /// What is at the end of a path of members.
    pub fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// A member of an object, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        match self {
            Node::Map(map) => map.get_mut(key),
            _ => None,
        }
    }

    /// The object at this member, made if it is absent. `None`: something else is there.
    pub fn map_at(&mut self, key: &str) -> Option<&mut Map> {
        let Node::Map(map) = self else { return None };
        let member = map.entry(key.to_owned()).or_default();
        if *member == Node::Null {
            *member = Node::Map(Map::new());
        }
        match member {
            Node::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The list at this member, made if it is absent. `None`: something else is there.
    pub fn list_at(&mut self, key: &str) -> Option<&mut Vec<Node>> {
        let Node::Map(map) = self else { return None };
        let member = map.entry(key.to_owned()).or_default();
        if *member == Node::Null {
            *member = Node::List(Vec::new());
        }
        match member {
            Node::List(list) => Some(list),
            _ => None,
        }
    }

    /// Takes a member away.
    pub fn remove(&mut self, key: &str) -> Option<Node> {
        match self {
            Node::Map(map) => map.shift_remove(key),
            _ => None,
        }
    }

    /// The members, if it is an object.
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Node::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Node::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The whole number, if it is one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Node::Number(n) => n.as_u64(),
            _ => None,
        }
    }

    /// The items of the list at this member; none if there is none.
    pub fn items(&self, key: &str) -> &[Node] {
        match self.get(key) {
            Some(Node::List(items)) => items,
            _ => &[],
        }
    }

    /// The text of the member `name`, by which Kubernetes tells items of lists apart.
    pub fn name(&self) -> &str {
        self.get("name").and_then(Node::as_str).unwrap_or_default()
    }

    /// As typed data.
    ///
    /// # Errors
    /// When it is not of that type.
    pub fn decode<T: de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(self)?)
    }
}

impl From<&str> for Node {
    fn from(text: &str) -> Self {
        Node::Text(text.to_owned())
    }
}

impl From<String> for Node {
    fn from(text: String) -> Self {
        Node::Text(text)
    }
}

impl From<bool> for Node {
    fn from(b: bool) -> Self {
        Node::Bool(b)
    }
}

impl From<u64> for Node {
    fn from(n: u64) -> Self {
        Node::Number(n.into())
    }
}

impl<T: Into<Node>> From<Vec<T>> for Node {
    fn from(items: Vec<T>) -> Self {
        Node::List(items.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<Node>> From<Option<T>> for Node {
    fn from(item: Option<T>) -> Self {
        item.map_or(Node::Null, Into::into)
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Null => s.serialize_unit(),
            Node::Bool(b) => s.serialize_bool(*b),
            Node::Number(n) => n.serialize(s),
            Node::Text(text) => s.serialize_str(text),
            Node::List(items) => items.serialize(s),
            Node::Map(map) => map.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct AnyNode;
        impl<'de> Visitor<'de> for AnyNode {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_none<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
                Node::deserialize(d)
            }

            fn visit_bool<E: de::Error>(self, b: bool) -> Result<Node, E> {
                Ok(Node::Bool(b))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Node, E> {
                Ok(Node::Number(n.into()))
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Node, E> {
                Ok(Node::Number(n.into()))
            }

            fn visit_f64<E: de::Error>(self, n: f64) -> Result<Node, E> {
                Number::from_f64(n).map(Node::Number).ok_or_else(|| E::custom("is not a number of JSON"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Node, E> {
                Ok(Node::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut members = Map::new();
                while let Some((key, value)) = map.next_entry()? {
                    members.insert(key, value);
                }
                Ok(Node::Map(members))
            }
        }
        d.deserialize_any(AnyNode)
    }
}
