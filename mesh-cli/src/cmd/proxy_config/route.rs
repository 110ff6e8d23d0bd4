//! Routes: a line for each route of each virtual host.

use serde_json::Value;

use super::{Dump, cause, list_at, str_at};
use crate::args::PartArgs;
use crate::output::Table;

/// NAME, VHOST NAME, DOMAINS, MATCH, VIRTUAL SERVICE; without such an object, the service that the route leads to.
pub fn view(dump: &Dump, args: &PartArgs) -> (Table, Vec<Value>) {
    let mut all = dump.routes();
    all.sort_by_key(|r| str_at(r, "/name"));
    all.retain(|r| args.name.as_deref().is_none_or(|n| n == str_at(r, "/name")));
    let mut table = Table::new(&["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"]);
    let services = dump.services();
    for config in &all {
        for host in list_at(config, "/virtual_hosts") {
            let domains: Vec<&str> = list_at(host, "/domains").filter_map(Value::as_str).collect();
            let shown = domains_shown(&domains);
            let routes: Vec<&Value> = list_at(host, "/routes").collect();
            for route in &routes {
                let service = || services.get(str_at(route, "/route/cluster")).cloned();
                let cause = Some(cause(route, "VirtualService")).filter(|c| c != "-").or_else(service);
                let cause = cause.unwrap_or_else(|| "-".to_owned());
                let name = str_at(config, "/name").to_owned();
                table.row([name, str_at(host, "/name").to_owned(), shown.clone(), matching(route), cause]);
            }
        }
    }
    (table, all.into_iter().cloned().collect())
}

/// The first domain and the one after those that only add a port, as istioctl shows them; the rest is counted.
fn domains_shown(domains: &[&str]) -> String {
    match domains {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first, second] => format!("{first}, {second}"),
        [first, second, rest @ ..] => format!("{first}, {second} + {} more...", rest.len()),
    }
}

/// Paths, as istioctl shows them.
pub fn matching(route: &Value) -> String {
    let m = route.get("match").unwrap_or(&Value::Null);
    let forms = [("/path", ""), ("/prefix", "*"), ("/path_separated_prefix", "/*"), ("/safe_regex/regex", "")];
    let found = forms.iter().find_map(|(pointer, suffix)| Some(format!("{}{suffix}", m.pointer(pointer)?.as_str()?)));
    found.unwrap_or_else(|| "/*".to_owned())
}
