//! Man pages, made of the programs' own command lines. `make install` asks each program for its
//! pages, so that they cannot differ from it.

use clap::Command;
use clap_mangen::Man;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The one argument that asks for the pages; the folder for them follows it. It is no argument of
/// clap's, which would want the program's required ones beside it.
const ASKING: &str = "--man-pages";

/// Writes the man pages of `command` where the program was called with `--man-pages FOLDER` and
/// nothing else: one page of `section` for the program, one for each of its subcommands. Returns
/// the program's exit code in that case.
pub fn written(command: Command, section: &str) -> Option<ExitCode> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [asking, folder] = arguments.as_slice() else {
        return None;
    };
    if asking != OsStr::new(ASKING) {
        return None;
    }
    let mut command = command.disable_help_subcommand(true);
    command.build();
    Some(match write(&command, section, folder.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", Path::new(folder).display());
            ExitCode::FAILURE
        }
    })
}

fn write(command: &Command, section: &str, folder: &Path) -> io::Result<()> {
    let page = Man::new(command.clone()).section(section).manual("Hermes");
    page.generate_to(folder)?;
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.into_iter().try_for_each(|command| write(command, section, folder))
}
