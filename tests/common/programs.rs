//! The project's programs, as tests run them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs};

/// Where the program called `name` is, which is built beside the tests.
///
/// Fails where it is missing or older than what the library is made of: a test of one package
/// builds the programs of others only together with their own tests.
pub fn program(name: &str) -> &'static str {
    let test = env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(name);
    // The client knows no more than the base.
    let libraries =
        if name == "hermesctl" { &["hermes_base-"][..] } else { &["hermes_base-", "hermes-"] };
    let newest =
        sources(test.parent().unwrap(), libraries).iter().filter_map(|path| time(path)).max();
    assert!(time(&path) >= newest, "{} is not built anew: make programs", path.display());
    Box::leak(path.into_os_string().into_string().unwrap().into_boxed_str())
}

/// The files that the compiler says the libraries in `folder` were made of.
///
/// Not the libraries themselves: where one package alone was built since, with fewer features of
/// what it depends on, there is a newer one that the programs have nothing to do with.
fn sources(folder: &Path, libraries: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.ancestors().find(|path| path.join("Cargo.lock").exists()).unwrap_or(root);
    let mut sources = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        // Lists beside no library are of its unit tests, which have files of their own.
        let is_library = folder.join(format!("lib{name}")).with_extension("rlib").exists();
        if libraries.iter().any(|library| name.starts_with(library))
            && is_library
            && name.ends_with(".d")
        {
            let list = fs::read_to_string(&path).unwrap();
            let of_library = list.lines().next().unwrap_or_default();
            sources.extend(of_library.split_whitespace().skip(1).map(|source| root.join(source)));
        }
    }
    sources
}

fn time(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|about| about.modified()).ok()
}
