//! `meshctl diff`: what an installation would change, by the word of the API server.

use std::process::ExitCode;

use serde_json::Value;

use super::manifest::{unparsable, wish};
use crate::args::DiffArgs;
use crate::client::cluster::{Cluster, block_on};
use crate::exit::{self, Outcome};
use crate::install::apply::{self, Action, content};
use crate::install::render::{components, unwanted};
use crate::output::print;

/// Lines around a change.
const AROUND: usize = 3;

/// Prints differences; exit code 1 when there are any.
pub fn run(args: &DiffArgs) -> Outcome {
    let wish = wish(&args.wish, args.cluster.istio_namespace.clone(), None)?;
    let components = components(&wish).map_err(unparsable)?;
    block_on(async {
        let cluster = Cluster::connect(&args.cluster.kube).await?;
        let mut different = false;
        let mut all = Vec::new();
        for component in components.into_iter().chain(unwanted(&wish)) {
            for object in &component.objects {
                all.push(apply::object(&cluster, object, true).await?);
            }
            all.extend(apply::prune(&cluster, &component, wish.revision(), true).await?);
        }
        for done in all {
            if matches!(done.action, Action::Same | Action::Kept) {
                continue;
            }
            different = true;
            let yaml = |value: &Value| match value {
                Value::Null => String::new(),
                value => serde_saphyr::to_string(&content(value)).unwrap_or_default(),
            };
            let before = done.before.as_ref().map(yaml).unwrap_or_default();
            print(&format!("--- {0}\n+++ {0}", done.title));
            print(unified(&before, &yaml(&done.after)).trim_end());
        }
        Ok(if different { ExitCode::from(exit::NEGATIVE) } else { ExitCode::SUCCESS })
    })
}

/// Lines that differ, with some around them.
fn unified(before: &str, after: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let end = a[start..].iter().rev().zip(b[start..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (old, new) = (&a[start..a.len() - end], &b[start..b.len() - end]);
    // Longest common subsequence of what is between.
    let mut longest = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i][j] =
                if old[i] == new[j] { longest[i + 1][j + 1] + 1 } else { longest[i + 1][j].max(longest[i][j + 1]) };
        }
    }
    let mut lines: Vec<(char, &str)> = a[..start].iter().map(|l| (' ', *l)).collect();
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || longest[i + 1][j] >= longest[i][j + 1]) {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines.extend(a[a.len() - end..].iter().map(|l| (' ', *l)));
    let near = |at: usize| {
        lines[at.saturating_sub(AROUND)..lines.len().min(at + AROUND + 1)].iter().any(|(mark, _)| *mark != ' ')
    };
    let mut out = String::new();
    let mut shown = 0;
    for (at, (mark, line)) in lines.iter().enumerate().filter(|(at, _)| near(*at)) {
        if at > shown {
            out.push_str("@@\n");
        }
        out.push_str(&format!("{mark}{line}\n"));
        shown = at + 1;
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn differences_with_lines_around_them() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\n";
        let after = "a\nb\nc\nd\nE\nf\ng\nh\ni\n";
        assert_eq!(super::unified(before, after), "@@\n b\n c\n d\n-e\n+E\n f\n g\n h\n+i\n");
        assert_eq!(super::unified("", "x\n"), "+x\n");
        assert_eq!(super::unified("x\n", "x\n"), "");
    }
}
