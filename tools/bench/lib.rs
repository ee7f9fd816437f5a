//! `hermes-bench`: models to measure with, and the measurements.
//!
//! Each subcommand is one file or folder beside this one; none of them is linked into the daemon.

mod boards;
// What hermesctl has for itself is not used here.
#[allow(dead_code)]
#[path = "../ctl/client.rs"]
mod client;
mod daemon;
mod embed;
mod forecast;
mod generate;
mod mixed;
mod nodes;
mod paper;
mod pass;
mod profile;
mod reading;
#[allow(dead_code)]
#[path = "../ctl/scrape.rs"]
mod scrape;
mod setup;
mod smallest;
mod soak;
mod socket;
mod sti;
mod switch;
mod synth;
mod together;
mod wrong;

use clap::{Parser, Subcommand};
use hermes::sys::heap;

/// Make models of the papers' sizes and measure passes over them.
#[derive(Parser)]
#[command(name = "hermes-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write an ONNX model of a known architecture with random weights.
    Synth(synth::Arguments),
    /// Measure streamed passes against their limit
    Pass(pass::Arguments),
    /// Measure what reading and computing take on this board, and write the model's profile
    Profile(profile::Arguments),
    /// Compare what the forecast says of a grid of plans with passes
    Forecast(forecast::Arguments),
    /// Forecast passes on boards by their published figures and a profile measured here
    Boards(boards::Arguments),
    /// Tell where a resident pass's time goes, by kind of op and by node
    Nodes(nodes::Arguments),
    /// Find the smallest budget within which a model answers
    Smallest(smallest::Arguments),
    /// Measure requests that share a pass against one alone
    Together(together::Arguments),
    /// Measure what it costs to turn from one model to another
    Switch(switch::Arguments),
    /// Measure many documents by rate and peak memory, beside ONNX Runtime
    Embed(embed::Arguments),
    /// Measure what the socket adds to a pass, and what idle clients hold
    Socket(socket::Arguments),
    /// Send a great many requests, some given up, and watch the daemon's memory
    Soak(soak::Arguments),
    /// Compare the papers' policies with each other, by time and by memory, on several disks
    Paper(paper::Arguments),
    /// Measure what a pass costs within budgets from the smallest that works
    Sweep(paper::sweep::Arguments),
    /// Compare choices of precisions by accuracy, time and memory, on several disks
    Sti(sti::Arguments),
    /// Measure how fast a language model writes within budgets, on several disks
    Generate(generate::Arguments),
    /// One job of `generate`
    #[command(hide = true)]
    GeneratePass(generate::pass::Arguments),
    /// One job of `sti`
    #[command(hide = true)]
    StiPass(sti::pass::Arguments),
    /// One measurement of `paper` or `sweep`
    #[command(hide = true)]
    PaperPass(paper::measure::Arguments),
}

/// The `main` of hermes-bench, for programs whose allocator is [`heap::CountingAllocator`].
///
/// # Errors
/// Whatever the subcommand could not do.
pub fn main() -> anyhow::Result<()> {
    heap::limit_arenas();
    env_logger::init();
    match Arguments::parse().command {
        Command::Synth(arguments) => synth::run(&arguments),
        Command::Pass(arguments) => pass::run(&arguments),
        Command::Profile(arguments) => profile::run(&arguments),
        Command::Forecast(arguments) => forecast::run(&arguments),
        Command::Boards(arguments) => boards::run(&arguments),
        Command::Nodes(arguments) => nodes::run(&arguments),
        Command::Smallest(arguments) => smallest::run(&arguments),
        Command::Together(arguments) => together::run(&arguments),
        Command::Switch(arguments) => switch::run(&arguments),
        Command::Embed(arguments) => embed::run(&arguments),
        Command::Socket(arguments) => socket::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Paper(arguments) => paper::run(&arguments),
        Command::Sweep(arguments) => paper::sweep::run(&arguments),
        Command::Sti(arguments) => sti::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::GeneratePass(arguments) => generate::pass::run(&arguments),
        Command::StiPass(arguments) => sti::pass::run(&arguments),
        Command::PaperPass(arguments) => paper::measure::run(&arguments),
    }
}
