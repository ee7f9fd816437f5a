//! The project's programs, as tests run them.

use std::path::PathBuf;
use std::time::SystemTime;
use std::{env, fs};

/// Where the program called `name` is, which is built beside the tests.
///
/// Fails where it is missing or older than the library: a test of one package builds the programs
/// of others only together with their own tests.
pub fn program(name: &str) -> &'static str {
    let test = env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap();
    let path = built.join(name);
    let time = |path: PathBuf| fs::metadata(path).and_then(|about| about.modified()).ok();
    // The client knows no more than the base.
    let library = if name == "hermesctl" { "libhermes_base-" } else { "libhermes-" };
    let libraries = fs::read_dir(built.join("deps")).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.starts_with(library).then_some(name).filter(|name| name.ends_with(".rlib"))
    });
    let newest: Option<SystemTime> =
        libraries.filter_map(|name| time(built.join("deps").join(name))).max();
    assert!(time(path.clone()) >= newest, "{} is not built anew: make programs", path.display());
    Box::leak(path.into_os_string().into_string().unwrap().into_boxed_str())
}
