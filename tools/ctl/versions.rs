//! hermesctl's commands for versions: install, versions, use, rollback, rm, gc.

use super::client::{Client, ClientError, EXIT_CODES, parse, segment};
use super::embed::Print;
use clap::Subcommand;
use hermes_base::store::{Package, manifest::is_name};
use hermes_base::values::size::Size;
use hermes_base::wire::table;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::{Request, header};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Bytes sent at once.
const PIECE_BYTES: usize = 64 << 10;

/// Commands that say which versions there are and which is served.
#[derive(Clone, Debug, Subcommand)]
pub enum VersionsCommand {
    /// Send a version to the daemon, which verifies, installs and serves it.
    #[command(after_help = EXIT_CODES)]
    Install {
        /// Folder of a version, or a tar of one with manifest.json first.
        #[arg(value_name = "DIR|TAR")]
        source: PathBuf,
        /// Replace a version of the same name.
        #[arg(long)]
        force: bool,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the versions of a model, the newest first.
    #[command(after_help = EXIT_CODES)]
    Versions {
        /// Name of the model.
        #[arg(value_parser = model_name)]
        model: String,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serve another version of a model.
    #[command(after_help = EXIT_CODES)]
    Use {
        /// Name of the model.
        #[arg(value_parser = model_name)]
        model: String,
        /// Name of the version.
        version: String,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serve the version that was served before.
    #[command(after_help = EXIT_CODES)]
    Rollback {
        /// Name of the model.
        #[arg(value_parser = model_name)]
        model: String,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a model with all its versions, or one version that is not served.
    ///
    /// It is not asked whether you are sure. A model that is loaded is unloaded; a pass that runs
    /// ends with the files that it has open.
    #[command(after_help = EXIT_CODES)]
    Rm {
        /// Name of the model, or of the model and one of its versions.
        #[arg(value_name = "MODEL[/VERSION]")]
        what: String,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove versions that are neither served nor were before, and what broken builds left.
    #[command(after_help = EXIT_CODES)]
    Gc {
        /// Keep the N newest versions of each model too.
        #[arg(long, value_name = "N", default_value_t = 0)]
        keep: usize,
        /// Print the daemon's JSON.
        #[arg(long)]
        json: bool,
    },
}

impl VersionsCommand {
    /// Runs the command; what it returns is to be printed.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn run(&self, client: &Client) -> Result<String, ClientError> {
        let path =
            |model: &str, rest: &str| format!("/v2/repository/models/{}/{rest}", segment(model));
        match self {
            VersionsCommand::Install { source, force, json } => {
                print(&client.install(source, *force)?, *json, |reply| {
                    let (model, version) = (text(&reply["model"]), text(&reply["version"]));
                    let bytes = Size(reply["bytes"].as_u64().unwrap_or(0));
                    format!("{model} serves version {version}, just installed ({bytes})")
                })
            }
            VersionsCommand::Versions { model, json } => {
                print(&client.get(&path(model, "versions"))?, *json, list)
            }
            VersionsCommand::Use { model, version, json } => {
                let body = json!({ "version": version }).to_string().into_bytes();
                print(&parse(&client.post(&path(model, "use"), body)?)?, *json, served)
            }
            VersionsCommand::Rollback { model, json } => {
                let reply = client.post(&path(model, "rollback"), Vec::new())?;
                print(&parse(&reply)?, *json, served)
            }
            VersionsCommand::Rm { what, json } => {
                let path = match model_and_version(what) {
                    (model, None) => format!("/v2/repository/models/{}", segment(model)),
                    (model, Some(version)) => version_path(model, version),
                };
                let (_, reply) = client.call(Request::delete(path), Vec::new())?;
                print(&parse(&reply)?, *json, removed)
            }
            VersionsCommand::Gc { keep, json } => {
                let body = json!({ "keep": keep }).to_string().into_bytes();
                print(&parse(&client.post("/v2/repository/gc", body)?)?, *json, collected)
            }
        }
    }
}

fn print(
    reply: &Value,
    json: bool,
    human: impl FnOnce(&Value) -> String,
) -> Result<String, ClientError> {
    match if json { Print::Json } else { Print::Human } {
        Print::Json => Ok(reply.to_string()),
        Print::Human => Ok(human(reply)),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn served(reply: &Value) -> String {
    format!("{} serves version {}", text(&reply["model"]), text(&reply["version"]))
}

fn list(reply: &Value) -> String {
    let mut rows = vec![["VERSION", "SERVED", "SIZE", "BUILT (UTC)"].map(str::to_owned)];
    for version in reply["versions"].as_array().into_iter().flatten() {
        let role = match text(&version["role"]) {
            "spare" => "",
            role => role,
        };
        let built = version["created_s"].as_u64().map_or("broken manifest".to_owned(), date);
        let bytes = Size(version["bytes"].as_u64().unwrap_or(0)).to_string();
        rows.push([text(&version["version"]).to_owned(), role.to_owned(), bytes, built]);
    }
    table::lines(&rows)
}

/// A model's name where no version is taken: all but `show` and `rm` are about what is served.
///
/// # Errors
///
/// For `MODEL/VERSION`, with the way to that version.
pub fn model_name(text: &str) -> Result<String, String> {
    match model_and_version(text) {
        (model, Some(version)) if is_name(model) && is_name(version) => Err(format!(
            "the served version is meant here: give {model:?} alone; hermesctl use {model} \
             {version} serves another"
        )),
        // What is no name either way is the daemon's to refuse.
        _ => Ok(text.to_owned()),
    }
}

/// The parts of `MODEL[/VERSION]`.
pub fn model_and_version(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((model, version)) => (model, Some(version)),
        None => (text, None),
    }
}

/// Where a version is, served or not.
pub fn version_path(model: &str, version: &str) -> String {
    format!("/v2/repository/models/{}/versions/{}", segment(model), segment(version))
}

fn removed(reply: &Value) -> String {
    let (model, bytes) = (text(&reply["model"]), Size(reply["bytes"].as_u64().unwrap_or(0)));
    let versions = reply["versions"].as_array().into_iter().flatten().map(text);
    match reply["version"].as_str() {
        Some(version) => format!("removed {model} version {version} ({bytes})"),
        None => {
            let versions = versions.collect::<Vec<_>>().join(", ");
            format!("removed {model} with its versions: {versions} ({bytes})")
        }
    }
}

fn collected(reply: &Value) -> String {
    let size = |value: &Value| Size(value["bytes"].as_u64().unwrap_or(0));
    let mut lines = Vec::new();
    for removed in reply["removed"].as_array().into_iter().flatten() {
        let (model, version) = (text(&removed["model"]), text(&removed["version"]));
        lines.push(format!("removed {model} version {version} ({})", size(removed)));
    }
    let abandoned = reply["abandoned"].as_u64().unwrap_or(0);
    if abandoned > 0 {
        lines.push(format!("removed what {abandoned} broken builds left"));
    }
    lines.push(match lines.is_empty() {
        true => "nothing to remove".to_owned(),
        false => format!("{} are free again", size(reply)),
    });
    lines.join("\n")
}

/// The day and minute of a time in seconds since the epoch, in the calendar of the last 400 years.
pub fn date(seconds: u64) -> String {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let (days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut day) = (1970 + days / DAYS_IN_400_YEARS * 400, days % DAYS_IN_400_YEARS);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let months = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= months[month] {
        day -= months[month];
        month += 1;
    }
    let (hour, minute) = (minutes / 60, minutes % 60);
    format!("{year:04}-{:02}-{:02} {hour:02}:{minute:02}", month + 1, day + 1)
}

impl Client {
    /// Sends a version's folder or tar, packing a folder on the way; a bar on standard error shows
    /// how it goes, where that is a terminal.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; nothing has changed in the store then.
    pub fn install(&self, source: &Path, force: bool) -> Result<Value, ClientError> {
        let package =
            Package::open(source).map_err(|error| ClientError::Usage(error.to_string()))?;
        let query = if force { "?force=true" } else { "" };
        let request = Request::post(format!("/v2/repository/install{query}"))
            .header(header::CONTENT_TYPE, "application/x-tar");
        let bar = bar(package.length());
        let body = PackageBody { package, bar: bar.clone(), is_end: false };
        let reply = self.send(request, body.boxed_unsync());
        bar.finish_and_clear();
        parse(&reply?.1)
    }
}

/// A bar that shows itself on terminals alone.
fn bar(bytes: Option<u64>) -> ProgressBar {
    let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {msg}";
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    match bytes {
        Some(bytes) => ProgressBar::new(bytes).with_style(style),
        None => ProgressBar::no_length(),
    }
}

/// A package as a request's body, read as the connection takes it.
struct PackageBody {
    package: Package,
    bar: ProgressBar,
    is_end: bool,
}

impl Body for PackageBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // Nothing else runs beside it that a wait for the disk could hold up.
        let mut piece = vec![0; PIECE_BYTES];
        let read = self.package.read(&mut piece);
        Poll::Ready(match read {
            Ok(0) => {
                self.is_end = true;
                self.bar.set_message("the daemon verifies it");
                None
            }
            Ok(count) => {
                self.bar.inc(count as u64);
                piece.truncate(count);
                Some(Ok(Frame::data(Bytes::from(piece))))
            }
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_end
    }

    fn size_hint(&self) -> SizeHint {
        self.package.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_where_it_belongs() {
        assert_eq!(model_name("m").as_deref(), Ok("m"));
        let said = model_name("m/2").unwrap_err();
        assert!(said.contains("give \"m\" alone; hermesctl use m 2 serves"), "{said}");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |seconds, expected| assert_eq!(date(seconds), expected);
        check(0, "1970-01-01 00:00");
        check(951_827_640, "2000-02-29 12:34");
        check(1_709_251_199, "2024-02-29 23:59");
        check(1_735_689_600, "2025-01-01 00:00");
        check(4_107_542_400, "2100-03-01 00:00");
    }
}
