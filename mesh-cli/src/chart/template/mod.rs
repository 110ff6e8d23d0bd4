//! The part of Go's text templates that our charts are written in, so that `meshctl` and Helm render the same files.
//!
//! `parse` makes a tree of a file, `eval` walks it over values, `functions` are those of Go and of Helm that charts of
//! ours use. What is not known is refused when a file is parsed or rendered, never passed over. Values are JSON.
//! `testdata` holds a template with what Helm makes of it.

mod eval;
mod functions;
mod parse;

use std::collections::BTreeMap;

use serde_json::Value;

use self::parse::Node;

/// Files that templates may read: `.Files.Get`, `.Files.Glob`.
pub type Files<'a> = BTreeMap<&'a str, &'a str>;

/// The parsed templates of one chart.
#[derive(Debug, Default)]
pub struct Templates {
    /// Files that yield text, in the order in which they were added.
    files: Vec<(String, Vec<Node>)>,
    /// Named ones, for `include`.
    named: BTreeMap<String, Vec<Node>>,
}

impl Templates {
    /// Adds a file. Files whose names begin with `_` define named templates and yield nothing.
    ///
    /// # Errors
    /// File, line and what is wrong there.
    pub fn add(&mut self, name: &str, text: &str) -> Result<(), String> {
        let parsed = parse::file(text).map_err(|(line, why)| format!("{name}:{line}: {why}"))?;
        self.named.extend(parsed.named);
        if !name.rsplit('/').next().unwrap_or(name).starts_with('_') {
            self.files.push((name.to_owned(), parsed.body));
        }
        Ok(())
    }

    /// What the files yield for a context (`.Values`, `.Release`, `.Chart`).
    ///
    /// # Errors
    /// File and what is wrong with it, or with the values: what templates refuse by `fail` and `required`.
    pub fn render(&self, context: &Value, files: &Files<'_>) -> Result<Vec<(String, String)>, String> {
        let of = |(name, body): &(String, Vec<Node>)| {
            let text = eval::render(body, context, &self.named, files).map_err(|why| format!("{name}: {why}"))?;
            Ok((name.clone(), text))
        };
        self.files.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(text: &str) -> Result<String, String> {
        let mut templates = Templates::default();
        templates.add("_helpers.tpl", "{{- define \"name\" -}}\n{{ .Values.name }}-x\n{{- end -}}")?;
        templates.add("t.yaml", text)?;
        let context = json!({"Values": {
            "name": "a", "on": true, "off": false, "zero": 0, "large": 1_000_000, "none": null, "map": {"b": 1, "a": "x"}, "list": ["p", "q"],
            "deep": {"er": {"z": [1, {"k": "v"}]}}, "empty": {},
        }});
        let files = Files::from([("files/a.yaml", "A"), ("files/b.yaml", "B"), ("other", "C")]);
        Ok(templates.render(&context, &files)?.remove(0).1)
    }

    #[test]
    fn actions() {
        for (template, wanted) in [
            ("a {{- /* gone */ -}} b", "ab"),
            ("x: {{ .Values.name | quote }}", "x: \"a\""),
            ("{{ if .Values.off }}1{{ else if .Values.on }}2{{ else }}3{{ end }}", "2"),
            ("{{ if and .Values.on (not .Values.off) }}y{{ end }}", "y"),
            ("{{ if or .Values.off (eq .Values.name \"b\" \"a\") }}y{{ end }}", "y"),
            ("{{ with .Values.none }}1{{ else }}2{{ end }}", "2"),
            ("{{ with .Values.map }}{{ .a }}{{ $.Values.name }}{{ end }}", "xa"),
            ("{{ range .Values.list }}{{ . }},{{ end }}", "p,q,"),
            ("{{ range $k, $v := .Values.map }}{{ $k }}={{ $v }};{{ end }}", "a=x;b=1;"),
            ("{{ range $i, $v := .Values.list }}{{ $i }}{{ $v }}{{ end }}", "0p1q"),
            ("{{ range .Values.empty }}x{{ else }}none{{ end }}", "none"),
            ("{{ $a := 1 }}{{ if .Values.on }}{{ $a = 2 }}{{ $b := 5 }}{{ end }}{{ $a }}", "2"),
            ("{{ include \"name\" . }}", "a-x"),
            ("{{ .Values.missing }}|{{ .Values.missing | default \"d\" }}", "|d"),
            ("{{ printf \"%s-%d-%v\" .Values.name 3 true }}", "a-3-true"),
            ("{{- range $path, $_ := .Files.Glob \"files/*.yaml\" }}{{ $.Files.Get $path }}{{ end }}", "AB"),
            ("a:{{ toYaml .Values.map | nindent 2 }}", "a:\n  a: x\n  b: 1"),
            ("{{ (dict \"k\" (list 1 2)).k | toJson }}", "[1,2]"),
        ] {
            assert_eq!(render(template).as_deref(), Ok(wanted), "{template}");
        }
    }

    /// What Helm makes of the same files is committed beside them.
    #[test]
    fn helm_makes_the_same() {
        let values: Value = mesh_api::yaml::from_str(include_str!("testdata/values.yaml")).unwrap();
        let context = json!({
            "Values": values,
            "Release": {"Name": "name", "Namespace": "space"},
            "Chart": {"Name": "chart"},
        });
        let files = Files::from([("files/a.txt", "A"), ("files/b.txt", "B"), ("files/c.yaml", "C")]);
        let made = |text: &str| {
            let mut templates = Templates::default();
            templates.add("template.txt", text).unwrap();
            templates.render(&context, &files).unwrap().remove(0).1
        };
        let template = include_str!("testdata/template.txt");
        let unused: Vec<_> = functions::KNOWN.iter().filter(|name| !template.contains(**name)).collect();
        assert_eq!(unused, [&"toYaml"], "every function is held against Helm's");
        same_lines(&made(template), include_str!("testdata/template.helm.txt"));

        // Quotes and the depth of lists may differ, so this is compared as it is read.
        let read = |text: &str| mesh_api::yaml::from_str::<Value>(text).unwrap();
        let whole = |text: &str| {
            let mut whole = read(text);
            whole["block"] = read(whole["block"].as_str().unwrap());
            whole
        };
        let ours = made(include_str!("testdata/yaml.txt"));
        assert_eq!(whole(&ours), whole(include_str!("testdata/yaml.helm.txt")), "{ours}");
    }

    fn same_lines(ours: &str, helms: &str) {
        for (line, (ours, helms)) in ours.lines().zip(helms.lines()).enumerate() {
            assert_eq!(ours, helms, "line {}", line + 1);
        }
        assert_eq!(ours.len(), helms.len());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (template, wanted) in [
            ("\n{{ if .Values.on }}", "t.yaml:2: no end for this if"),
            ("{{ end }}", "t.yaml:1: an end without a beginning"),
            ("{{ if .Values.off }}\n{{ nothing .Values.on }}{{ end }}", "t.yaml:2: no function nothing"),
            ("{{ .Values.none.deeper }}", "t.yaml: there is no deeper in nothing"),
            ("{{ fail \"not so\" }}", "t.yaml: not so"),
            ("{{ eq .Values.zero 0 }}", "t.yaml: float64 and float64 are not compared"),
            ("{{ eq .Values.name true }}", "t.yaml: string and bool are not compared"),
            ("{{ .Values.large }}", "t.yaml: Helm writes the number 1000000 with an exponent: use toJson"),
            ("{{ printf \"%d\" .Values.name }}", "t.yaml: printf \"%d\" does not take string"),
            ("{{ printf \"x\" 1 }}", "t.yaml: printf \"x\" has too many arguments"),
            ("{{ trimSuffix \"a\" .Values.none }}", "t.yaml: trimSuffix does not take (string, invalid)"),
            ("{{ $x }}", "t.yaml: no variable $x"),
            ("{{ .Values.map }}", "t.yaml: a map is no text: use toYaml"),
            ("{{ \"open }}", "t.yaml:1: text without its end"),
            ("{{ .Values.on", "t.yaml:1: no }} for this {{"),
            ("{{ include \"other\" . }}", "t.yaml: no template other"),
        ] {
            assert_eq!(render(template).unwrap_err(), wanted, "{template}");
        }
    }
}
