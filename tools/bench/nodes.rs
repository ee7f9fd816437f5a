//! `hermes-bench nodes`: where a pass's time goes, by kind of op and by node.
//!
//! Everything is pinned, so that nothing waits for the disk. It is the fastest pass that is told,
//! so that all times add up and whatever else the machine did is in none of them.

use super::setup::Subject;
use anyhow::{Context, Result, ensure};
use clap::Args;
use hermes::engine::{Cancel, Config, Engine, Request};
use hermes::graph::sample_of_shapes;
use hermes::store::Store;
use hermes::store::manifest::Dim;
use hermes::stream::{Event, Trace, What};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `hermes-bench nodes`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Size of every open dimension of the inputs that --dim does not name
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Size of an open dimension of the inputs, as NAME=SIZE; may be given several times
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = parse_dim)]
    dims: Vec<(String, usize)>,
    /// Compute threads
    #[arg(long)]
    threads: Option<usize>,
    /// Passes, of which the fastest is told
    #[arg(long, default_value_t = 9)]
    repeat: usize,
    /// Nodes to print, those that take longest
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// File to write all nodes to, in the order of the pass
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

fn parse_dim(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.rsplit_once('=').ok_or("write it as NAME=SIZE")?;
    let size = size.parse().map_err(|_| format!("{size} is no size"))?;
    Ok((name.to_owned(), size))
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.repeat > 0, "--repeat takes at least 1");
    let request = request(arguments)?;
    let engine = Engine::start(Config {
        pin_bytes: u64::MAX,
        threads: arguments.threads,
        variant: arguments.subject.variant.clone(),
        ..Config::new(&arguments.subject.store, u64::MAX / 4)
    })?;
    engine.infer(request.clone())?;
    let mut passes = vec![];
    for _ in 0..arguments.repeat {
        let trace = Arc::new(Trace::begin());
        let traced = Request { trace: Some(Arc::clone(&trace)), ..request.clone() };
        let latency_us = engine.infer(traced)?.stats.latency_us;
        passes.push((latency_us, trace.events()));
    }
    engine.shutdown();
    let fastest = passes.into_iter().min_by_key(|(latency_us, _)| *latency_us);
    let (latency_us, events) = fastest.context("there was a pass")?;
    let spent = Spent::of(&events);
    if let Some(path) = &arguments.csv {
        std::fs::write(path, spent.csv()).with_context(|| format!("writing {}", path.display()))?;
    }
    hermes::say!("{}", spent.table(&arguments.subject.model, latency_us, arguments.top));
    Ok(())
}

fn request(arguments: &Arguments) -> Result<Request> {
    let Subject { store, model, .. } = &arguments.subject;
    let dir = Store::open(store)?.current(model)?;
    let ports = &dir.manifest.inputs;
    let names = ports.iter().flat_map(|port| &port.shape).filter_map(|dim| match dim {
        Dim::Symbol(name) => Some(name.as_str()),
        Dim::Fixed(_) => None,
    });
    let names: Vec<&str> = names.collect();
    for (name, _) in &arguments.dims {
        let found = names.contains(&name.as_str());
        ensure!(found, "no input has an open dimension {name}: there are {}", names.join(", "));
    }
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => usize::try_from(*size).unwrap_or(usize::MAX),
        Dim::Symbol(name) => arguments
            .dims
            .iter()
            .find(|(given, _)| given == name)
            .map_or(arguments.tokens, |(_, size)| *size),
    };
    let shapes = ports.iter().map(|port| port.shape.iter().map(size).collect()).collect();
    let (inputs, model) = (sample_of_shapes(ports, shapes, &[])?, model.clone());
    Ok(Request { model, inputs, outputs: vec![], cancel: Cancel::new(), target: None, trace: None })
}

/// What was spent on a node, or on several.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cost {
    nodes: usize,
    time_us: u64,
    processors_us: u64,
    multiplications: u64,
}

impl Cost {
    fn add(&mut self, other: &Cost) {
        self.nodes += other.nodes;
        self.time_us += other.time_us;
        self.processors_us += other.processors_us;
        self.multiplications += other.multiplications;
    }

    /// Compute threads that ran meanwhile, in the mean.
    fn threads(&self) -> f64 {
        self.processors_us as f64 / self.time_us.max(1) as f64
    }

    /// Of what a linear multiplies and adds; `None` of other ops.
    fn gflop_s(&self) -> Option<f64> {
        let flops = 2.0 * self.multiplications as f64;
        (self.multiplications > 0).then(|| flops / self.time_us.max(1) as f64 / 1e3)
    }

    fn cells(&self, whole_us: u64) -> String {
        let ms = self.time_us as f64 / 1e3;
        let share = 100.0 * self.time_us as f64 / whole_us.max(1) as f64;
        let speed = self.gflop_s().map_or_else(String::new, |speed| format!("{speed:.2}"));
        format!("{ms:9.3} {share:6.1} {speed:>9} {:8.2}", self.threads())
    }
}

/// What a pass spends on each node.
#[derive(Debug)]
struct Spent {
    /// Name, op and cost, in the order of evaluation.
    nodes: Vec<(String, String, Cost)>,
}

impl Spent {
    /// By the events of a pass.
    fn of(events: &[Event]) -> Spent {
        let nodes = events.iter().filter_map(|event| {
            let What::Node(node) = &event.what else { return None };
            let cost = Cost {
                nodes: 1,
                time_us: event.length_us,
                processors_us: node.processors_us,
                multiplications: node.multiplications,
            };
            Some((node.name.clone(), node.op.clone(), cost))
        });
        Spent { nodes: nodes.collect() }
    }

    /// Kinds of op, what costs most first.
    fn kinds(&self) -> Vec<(&str, Cost)> {
        let mut kinds: BTreeMap<&str, Cost> = BTreeMap::new();
        for (_, op, cost) in &self.nodes {
            kinds.entry(op).or_default().add(cost);
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.time_us));
        kinds
    }

    fn table(&self, model: &str, latency_us: u64, top: usize) -> String {
        let mut all = Cost::default();
        self.nodes.iter().for_each(|(_, _, cost)| all.add(cost));
        let between_us = latency_us.saturating_sub(all.time_us);
        let between = Cost { time_us: between_us, ..Cost::default() };
        let mut text = format!("{model}: {} nodes, {:.1} ms\n", all.nodes, latency_us as f64 / 1e3);
        let head = format!("{:>9} {:>6} {:>9} {:>8}", "ms", "%", "GFLOP/s", "threads");
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{:<24} {:>6} {head}", "op", "nodes");
        for (op, cost) in self.kinds() {
            let _ = writeln!(text, "{op:<24} {:>6} {}", cost.nodes, cost.cells(latency_us));
        }
        let _ = writeln!(text, "{:<24} {:>6} {}", "between nodes", "", between.cells(latency_us));
        let mut longest: Vec<_> = self.nodes.iter().collect();
        longest.sort_by_key(|(_, _, cost)| std::cmp::Reverse(cost.time_us));
        let _ = writeln!(text, "\n{head} node");
        for (name, op, cost) in longest.into_iter().take(top) {
            let _ = writeln!(text, "{} {name} ({op})", cost.cells(latency_us));
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn csv(&self) -> String {
        let mut text = "node,op,us,gflop_s,threads\n".to_owned();
        for (name, op, cost) in &self.nodes {
            let name = name.replace('"', "\"\"");
            let speed = cost.gflop_s().map_or_else(String::new, |speed| format!("{speed:.3}"));
            let (us, threads) = (cost.time_us, cost.threads());
            let _ = writeln!(text, "\"{name}\",\"{op}\",{us},{speed},{threads:.3}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hermes::stream::Node;

    fn node(name: &str, op: &str, multiplications: u64, length_us: u64) -> Event {
        let (name, op) = (name.to_owned(), op.to_owned());
        let node = Node { name, op, multiplications, processors_us: 2 * length_us };
        let thread = "compute-0".to_owned();
        Event { thread, what: What::Node(node), start_us: 0, length_us }
    }

    #[test]
    fn kinds_have_the_sums_of_their_nodes() {
        let wait = What::Wait { block: 0 };
        let wait = Event { thread: "engine".to_owned(), what: wait, start_us: 0, length_us: 9 };
        let (a, b) = (node("a", "Linear", 1000, 4), node("b", "Add", 0, 3));
        let spent = Spent::of(&[a, wait, b, node("c", "Add", 0, 1)]);
        let kinds = spent.kinds();
        assert_eq!(kinds.iter().map(|(op, _)| *op).collect::<Vec<_>>(), ["Add", "Linear"]);
        let linear = Cost { nodes: 1, time_us: 4, processors_us: 8, multiplications: 1000 };
        assert_eq!(kinds[1].1, linear);
        assert_eq!((kinds[0].1.nodes, kinds[0].1.time_us), (2, 4));
        let lines: Vec<String> = spent.csv().lines().map(str::to_owned).collect();
        assert_eq!(lines[1], r#""a","Linear",4,0.500,2.000"#);
        assert_eq!(lines.len(), 4);
        let table = spent.table("mine", 10, 1);
        let longest = "    0.004   40.0      0.50     2.00 a (Linear)";
        assert!(
            table.starts_with("mine: 3 nodes, 0.0 ms\n") && table.ends_with(longest),
            "{table}"
        );
        assert!(table.contains("between nodes                       0.002   20.0"), "{table}");
    }

    #[test]
    fn dimensions_are_given_by_name() {
        assert_eq!(parse_dim("past=64"), Ok(("past".to_owned(), 64)));
        assert_eq!(parse_dim("a = b=1"), Ok(("a = b".to_owned(), 1)));
        assert!(parse_dim("past").is_err() && parse_dim("past=x").is_err());
    }
}
