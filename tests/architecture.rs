//! The invariants of ARCHITECTURE.md that can be seen in the text of the sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A part and the parts it may know.
const PARTS: [(&str, &[&str]); 15] = [
    ("sys", &[]),
    ("codec", &[]),
    ("store", &["codec", "sys"]),
    ("stream", &["sys"]),
    ("plan", &["stream", "sys"]),
    ("text", &["store", "wire"]),
    ("tokens", &["sys", "text"]),
    ("values", &["plan"]),
    ("wire", &["store", "stream"]),
    ("checkpoint", &["sys", "wire"]),
    ("graph", &["checkpoint", "codec", "store", "sys", "wire"]),
    ("shard", &["checkpoint", "codec", "graph", "store", "sys", "text", "tokens", "wire"]),
    ("engine", &["codec", "graph", "plan", "store", "stream", "sys", "wire"]),
    ("daemon", &["codec", "engine", "plan", "sys", "values"]),
    (
        "api",
        &["daemon", "engine", "plan", "store", "stream", "sys", "text", "tokens", "values", "wire"],
    ),
];

/// Those of the base, which the client has too.
const BASE: [&str; 9] =
    ["sys", "codec", "store", "stream", "plan", "text", "values", "wire", "checkpoint"];

#[test]
fn parts_know_only_what_is_below_them() {
    for (part, below) in PARTS {
        let others = PARTS.map(|(other, _)| other);
        let strangers = others.iter().filter(|&&other| other != part && !below.contains(&other));
        for stranger in strangers {
            check_absent(&format!("crate::{stranger}::"), &[part], &[]);
            check_absent(&format!("crate::{stranger};"), &[part], &[]);
            check_absent(&format!("crate::{stranger},"), &[part], &[]);
        }
    }
}

/// Where modules import each other in a circle, none of them can be understood, tested or moved
/// alone. Siblings are compared at each level of the folders; a folder's `mod.rs` is their parent.
#[test]
fn no_part_has_a_circle_of_imports() {
    let mut imports = 0;
    for (part, _) in PARTS {
        let modules = Modules::of(part);
        let mut edges = modules.edges();
        imports += edges.len();
        // Whoever imports nothing that is left is in no circle.
        while let Some(name) =
            edges.keys().find(|name| !edges[*name].keys().any(|to| edges.contains_key(to))).cloned()
        {
            edges.remove(&name);
        }
        assert!(edges.is_empty(), "a circle of imports, and what leads there: {edges:#?}");
    }
    assert!(imports > 100, "only {imports} modules import others");
}

#[test]
fn unsafe_is_in_its_places() {
    for word in ["unsafe {", "unsafe fn", "unsafe impl"] {
        check_absent(word, &["."], &["sys/", "codec/simd/", "graph/kernel.rs"]);
    }
}

#[test]
fn the_traversal_is_pure() {
    for word in ["std::fs", "std::io", "std::time", "std::thread", "std::sync", "crate::sys"] {
        check_absent(word, &["stream/window.rs", "stream/traversal.rs"], &[]);
    }
}

/// What the base drags along, the client has: all of tract was in it.
#[test]
fn the_base_stands_on_nothing_above() {
    for (_, below) in PARTS.iter().filter(|(part, _)| BASE.contains(part)) {
        assert!(below.iter().all(|part| BASE.contains(part)), "{below:?}");
    }
    let manifest = fs::read_to_string(source().join("base/Cargo.toml")).unwrap();
    for stranger in ["tract", "tokenizers", "axum", "tokio", "rayon"] {
        assert!(!manifest.contains(stranger), "the base depends on {stranger}");
    }
}

#[test]
fn only_graph_and_engine_know_tract() {
    for word in ["tract_core::", "tract_linalg::", "tract_onnx::"] {
        check_absent(word, &["."], &["graph/", "engine/"]);
    }
}

#[test]
fn only_api_knows_http_and_only_the_manifest_json_beside_it() {
    for word in ["axum", "hyper::", "hyper_util", "http_body"] {
        check_absent(word, &["."], &["api/"]);
    }
    let store = ["demand", "field", "generation", "manifest", "power_tests", "precision"];
    let store = store.map(|file| format!("store/{file}.rs"));
    let others = [
        "api/",
        "checkpoint/",
        "plan/profile.rs",
        "shard/",
        "text/",
        "tokens/",
        "values/mod.rs",
        "wire/",
    ];
    let allowed = [&others[..], &store.each_ref().map(String::as_str)].concat();
    check_absent("serde_json", &["."], &allowed);
    // Who calls is a program of its own.
    check_absent("hyper::client", &["."], &[]);
}

#[test]
fn binaries_hold_command_lines() {
    check_absent("crate::hermesd", &["."], &[]);
    for file in ["bin", "hermesd.rs"].iter().flat_map(|place| files(&source().join(place))) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 150, "{} has {lines} lines: move logic into the library", file.display());
    }
}

#[test]
fn every_test_that_the_specification_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = ["src", "tests", "tools"].map(|place| files(&root.join(place)));
    let code: String =
        places.iter().flatten().map(|file| fs::read_to_string(file).unwrap()).collect();
    let text = fs::read_to_string(root.join("SPECIFICATION.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let words = quoted.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
    // Names of tests are sentences; names of modules and files are one or two words.
    let tests: Vec<&str> = words.filter(|word| word.matches('_').count() > 2).collect();
    assert!(tests.len() > 10, "the specification names its tests: {tests:?}");
    for test in tests {
        assert!(code.contains(&format!("fn {test}(")), "there is no test {test}");
    }
}

#[test]
fn imports_are_found_however_they_are_written() {
    let code =
        "pub use super::{a::B, c::{self, D as E}};\nuse x::Y;\nlet z = crate::z::z() + super::W;";
    let expected =
        ["super::a::B", "super::c::self", "super::c::D", "x::Y", "crate::z::z", "super::W"];
    assert_eq!(imports(code), expected);
}

/// A module's name, by parts.
type Name = Vec<String>;

/// The modules of a part, and what each imports.
struct Modules(BTreeMap<Name, Vec<String>>);

impl Modules {
    fn of(part: &str) -> Modules {
        let read = |file: PathBuf| {
            let name = file.strip_prefix(source()).unwrap().with_extension("");
            let mut name: Name = name.iter().map(|part| part.to_str().unwrap().into()).collect();
            name.pop_if(|last| last == "mod");
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            (name, imports(&lines.collect::<Vec<_>>().join("\n")))
        };
        let files = files(&source().join(part));
        let files = files.into_iter().filter(|file| !file.to_str().unwrap().ends_with("tests.rs"));
        Modules(files.map(read).collect())
    }

    /// From each module or folder to its siblings that are imported by it, with an import of each.
    fn edges(&self) -> BTreeMap<Name, BTreeMap<Name, String>> {
        let mut edges: BTreeMap<Name, BTreeMap<Name, String>> = BTreeMap::new();
        for (from, imports) in &self.0 {
            for import in imports {
                let Some(to) = self.resolve(from, import, 0) else { continue };
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if common < from.len().min(to.len()) {
                    let of = |name: &Name| name[..=common].to_vec();
                    let says = format!("{}: {import}", from.join("::"));
                    edges.entry(of(from)).or_default().entry(of(&to)).or_insert(says);
                    edges.entry(of(&to)).or_default();
                }
            }
        }
        edges
    }

    /// The module that an import is of, through what others export again.
    fn resolve(&self, from: &Name, import: &str, depth: usize) -> Option<Name> {
        let mut parts = import.split("::").peekable();
        let mut name = match *parts.peek()? {
            "crate" => vec![],
            "super" | "self" => from.clone(),
            child => self.child(from, child).map(|_| from.clone())?,
        };
        while let Some(part) = parts.next_if(|part| ["crate", "super", "self"].contains(part)) {
            name.truncate(name.len() - usize::from(part == "super"));
        }
        while let Some(child) = parts.peek().and_then(|part| self.child(&name, part)) {
            name = child;
            parts.next();
        }
        let item = parts.next().filter(|_| name != *from && depth < 4);
        let exports = self.0.get(&name).into_iter().flatten();
        let mut exports = exports.filter(|export| export.rsplit("::").next() == item);
        let exported = exports.find_map(|export| self.resolve(&name, export, depth + 1));
        exported.or(Some(name)).filter(|name| !name.is_empty())
    }

    fn child(&self, name: &Name, part: &str) -> Option<Name> {
        let child: Name = name.iter().cloned().chain([part.to_owned()]).collect();
        self.0.contains_key(&child).then_some(child)
    }
}

/// The paths that code imports by `use`, and those that it names where they are needed.
fn imports(code: &str) -> Vec<String> {
    let mut imports = Vec::new();
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        let (before, tree) = match statement.rfind("use ") {
            Some(at) if statement[..at].chars().next_back().is_none_or(char::is_whitespace) => {
                statement.split_at(at)
            }
            _ => (statement, ""),
        };
        rest += before;
        let tree: Vec<&str> = tree.trim_start_matches("use ").split_whitespace().collect();
        expand("", tree.join(" ").trim_end_matches(';'), &mut imports);
    }
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = rest.split(|c: char| !is_part(c));
    let named = words.filter(|word| ["super::", "crate::"].iter().any(|at| word.starts_with(at)));
    imports.extend(named.map(|word| word.trim_end_matches(':').to_owned()));
    imports
}

/// The paths of a tree of imports below `prefix`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, branches)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap();
        paths.extend((!path.is_empty()).then(|| format!("{prefix}{path}")));
        return;
    };
    let branches = branches.trim_end().strip_suffix('}').unwrap_or(branches);
    let mut depth = 0;
    let divides = |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    };
    for branch in branches.split(divides) {
        expand(&format!("{prefix}{}", head.trim()), branch, paths);
    }
}

/// Fails where `word` stands in a file below one of `places` and not below one of `allowed`.
fn check_absent(word: &str, places: &[&str], allowed: &[&str]) {
    let source = source();
    let mut seen = 0;
    for file in places.iter().flat_map(|place| files(&source.join(place))) {
        seen += 1;
        let name = file.strip_prefix(&source).unwrap();
        let name = name.strip_prefix(".").unwrap_or(name).to_str().unwrap().to_owned();
        if allowed.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let line = text.lines().position(|line| line.contains(word));
        assert!(
            line.is_none(),
            "src/{name}:{}: \"{word}\" does not belong here",
            line.unwrap() + 1
        );
    }
    assert!(seen > 0, "no file in {places:?}: has the part moved?");
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let entries = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| files(&path))
        .filter(|path| path.extension() == Some("rs".as_ref()))
        .collect()
}
