//! What the applications have to show.

/// The page: fetches the journey of a request twice a second and draws it.
pub const PAGE: &str = include_str!("page.html");

/// What a service contributes.
pub fn data(service: &str, version: &str) -> Vec<String> {
    let items: &[&str] = match (service, version) {
        ("catalog", "v1") => &["tent", "lantern", "rope"],
        ("catalog", _) => &["tent (with picture)", "lantern (with picture)", "rope (with picture)"],
        ("forum", _) => &["Which rope for the north face?", "Lantern burns since May"],
        _ => &[],
    };
    items.iter().map(|i| (*i).to_owned()).collect()
}
