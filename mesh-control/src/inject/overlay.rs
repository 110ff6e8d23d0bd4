//! One object on top of another, as Kubernetes merges them strategically: objects field by field, lists of things that
//! have an identity by that, other lists as a whole. Null takes a field away, `$patch: delete` an item of a list. Pure.

use super::node::Node;

/// `over` on top of `base`.
pub fn merged(base: Node, over: &Node) -> Node {
    match (base, over) {
        (Node::Map(mut base), Node::Map(over)) => {
            for (key, value) in over {
                if *value == Node::Null {
                    base.shift_remove(key);
                    continue;
                }
                let merged = match (base.get_mut(key), value) {
                    (Some(Node::List(items)), Node::List(more)) => by_identity(key, std::mem::take(items), more),
                    (Some(there), value) => merged(std::mem::take(there), value),
                    (None, value) => value.clone(),
                };
                base.insert(key.clone(), merged);
            }
            Node::Map(base)
        }
        (_, over) => over.clone(),
    }
}

/// By which field items of a list are the same.
fn identity(list: &str, item: &Node) -> Option<&'static str> {
    match list {
        "env" | "containers" | "initContainers" | "volumes" | "imagePullSecrets" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "topologySpreadConstraints" => Some("topologyKey"),
        "hostAliases" => Some("ip"),
        // Those of containers, and those of Services.
        "ports" => ["containerPort", "port"].into_iter().find(|field| item.get(field).is_some()),
        _ => None,
    }
}

fn by_identity(list: &str, mut base: Vec<Node>, over: &[Node]) -> Node {
    if over.iter().any(|item| identity(list, item).is_none()) {
        return Node::List(over.to_vec());
    }
    for item in over {
        let Some((field, id)) = identity(list, item).and_then(|field| Some((field, item.get(field)?))) else {
            continue;
        };
        let at = base.iter().position(|b| b.get(field) == Some(id));
        if item.get("$patch").and_then(Node::as_str) == Some("delete") {
            base.retain(|b| b.get(field) != Some(id));
            continue;
        }
        match at.and_then(|at| base.get_mut(at)) {
            // A variable with another kind of value replaces the whole.
            Some(there) if list == "env" => *there = item.clone(),
            Some(there) => *there = merged(std::mem::take(there), item),
            None => base.push(item.clone()),
        }
    }
    Node::List(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Node {
        mesh_api::yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn items_are_known_by_their_identity() {
        let base = "spec: {replicas: 1, containers: [{name: a, image: x, env: [{name: E, value: '1'}], ports: [{containerPort: 1, name: p}]}, {name: b}], args: [q]}";
        let over = "spec: {replicas: null, containers: [{name: a, env: [{name: E, value: '2'}, {name: F}], ports: [{containerPort: 2}]}, {name: b, $patch: delete}, {name: c}], args: [r]}";
        let wanted = "spec: {containers: [{name: a, image: x, env: [{name: E, value: '2'}, {name: F}], ports: [{containerPort: 1, name: p}, {containerPort: 2}]}, {name: c}], args: [r]}";
        assert_eq!(merged(read(base), &read(over)), read(wanted));
    }

    #[test]
    fn ports_of_services_and_plain_lists() {
        let base = "{ports: [{port: 80, name: http}, {port: 443}], tolerations: [{key: a}]}";
        let over = "{ports: [{port: 80, nodePort: 30080}], tolerations: [{key: b}]}";
        let wanted = "{ports: [{port: 80, name: http, nodePort: 30080}, {port: 443}], tolerations: [{key: b}]}";
        assert_eq!(merged(read(base), &read(over)), read(wanted));
    }
}
