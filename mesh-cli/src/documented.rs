//! Commands in the documentation, held against the command lines that they are for.

use std::path::{Path, PathBuf};

use clap::Parser as _;

/// Repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Markdown at or below `path`.
fn pages(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            pages(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|e| e == "md") {
        found.push(path.to_owned());
    }
}

/// Simple commands in a page's code blocks: words of each, after variables, without redirections.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut fence: Option<bool> = None;
    let mut held = String::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            fence = match fence {
                Some(_) => None,
                // `sh cluster`: for a cluster.
                None => Some(matches!(language.split(' ').next(), Some("sh" | "bash" | "shell" | "console"))),
            };
            continue;
        }
        if fence != Some(true) {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(part) => held.push_str(part),
            None => {
                held.push_str(line);
                found.extend(simple_commands(&std::mem::take(&mut held)));
            }
        }
    }
    found
}

/// Words by a shell's simplest rules: quotes, `#` to the end, operators that end a command.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = vec![vec![]];
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => all.last_mut().unwrap().extend(word.take()),
            (None, '|' | '&' | ';' | '(' | ')' | '>' | '<') => {
                all.last_mut().unwrap().extend(word.take());
                // What stands behind > or < is a file.
                all.push(if matches!(c, '>' | '<') { vec!["file:".to_owned()] } else { vec![] });
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    all.last_mut().unwrap().extend(word);
    let is_variable =
        |w: &String| w.split_once('=').is_some_and(|(name, _)| !name.is_empty() && !name.contains(['-', '/']));
    for words in &mut all {
        let skip = words.iter().take_while(|w| *w == "$" || is_variable(w)).count();
        words.drain(..skip);
    }
    all.retain(|words| !words.is_empty());
    all
}

/// Which program of ours a command runs, and its words as that program sees them.
fn ours(words: &[String]) -> Option<(&'static str, Vec<String>)> {
    let name = |w: &String| w.rsplit('/').next().unwrap_or_default().to_owned();
    let known = |n: &str| ["meshctl", "mesh-control", "mesh-proxy"].into_iter().find(|k| *k == n);
    if let Some(program) = known(&name(words.first()?)) {
        return Some((program, words.to_vec()));
    }
    if words.first()? == "cargo" {
        let at = words.iter().position(|w| w == "--bin")?;
        let program = known(words.get(at + 1)?)?;
        let rest = words.iter().position(|w| w == "--")?;
        return Some((program, std::iter::once(program.to_owned()).chain(words[rest + 1..].iter().cloned()).collect()));
    }
    None
}

fn parse(program: &str, words: &[String]) -> Result<(), String> {
    match program {
        "meshctl" => crate::args::Args::try_parse_from(words).map(drop),
        "mesh-control" => mesh_control::settings::Cli::try_parse_from(words).map(drop),
        _ => mesh_proxy::settings::Settings::try_parse_from(words).map(drop),
    }
    .map_err(|e| e.to_string())
}

#[test]
fn every_documented_command_line_parses() {
    let mut files = vec![PathBuf::from(ROOT).join("README.md")];
    pages(&Path::new(ROOT).join("docs"), &mut files);
    let mut checked = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (program, words) in commands(&text).iter().filter_map(|c| ours(c)) {
            checked += 1;
            if let Err(why) = parse(program, &words) {
                panic!("{}: {}\n{why}", file.display(), words.join(" "));
            }
        }
    }
    assert!(checked >= 8, "only {checked} commands were found");
}

#[test]
fn commands_are_found_and_judged() {
    let text = "```sh\ncargo run --bin meshctl -- demo  # all\nA=b meshctl ps | grep 'x y' &\nmesh-control token \\\n  --state-dir s > token\n```\n\
                ```yaml\nmeshctl: none\n```\nmeshctl in prose\n";
    let found: Vec<String> = commands(text).iter().filter_map(|c| ours(c)).map(|(_, words)| words.join(" ")).collect();
    assert_eq!(found, ["meshctl demo", "meshctl ps", "mesh-control token --state-dir s"]);
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(parse("meshctl", &words("meshctl ps -o json")).is_ok());
    assert!(parse("meshctl", &words("meshctl ps --gone")).is_err());
    assert!(parse("mesh-control", &words("mesh-control --config-dir c")).is_err());
    assert!(parse("mesh-proxy", &words("mesh-proxy sidecar --no-such-flag")).is_err());
}
