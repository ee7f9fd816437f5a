//! What tract really computes of each operator, and a refusal of everything else.
//!
//! Tract's parser looks an operator up by its type alone and reads the attributes it knows; what
//! it does not read it takes for the default, without a word. The tables say, by domain and
//! operator, which attributes it honours and at which values. They were made by reading the
//! parsers of tract-onnx 0.23.9 beside ONNX's schemas up to [`ONNX_VERSION`], and
//! `tests/python/node_tests.py` holds them to ONNX's own tests. Nothing here changes a graph: that
//! is `repair`.

mod microsoft;
mod ml;
mod onnx;

use super::attention::{DOMAIN, DOMAIN_VERSION, OLD_OPERATOR, OPERATOR};
use super::check::unsupported;
use super::error::GraphError;
use super::repair::attribute;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

/// An operator, and what is honoured of it. Attributes that no rule names are refused.
pub struct Operator {
    pub name: &'static str,
    pub rules: &'static [Rule],
}

/// What is honoured of an attribute, input or output.
pub enum Rule {
    /// These attributes, whatever their value: tract reads them, or the answer is the same.
    Any(&'static [&'static str]),
    /// These attributes before this version, from which on they are inputs.
    Until(i64, &'static [&'static str]),
    /// This attribute at these values, the first of which is its default.
    Only(&'static str, &'static [Value]),
    /// This attribute, which must be there, since tract takes its default for something else.
    Stated(&'static str, &'static [Value]),
    /// Only nodes without this input, which tract does not read.
    NoInput(usize, &'static str),
    /// Only from this version of the domain on: before, it meant something else.
    Since(i64),
    /// Only nodes without this output.
    NoOutput(usize, &'static str),
}

/// A value of an attribute.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Int(i64),
    Float(f32),
    Text(&'static str),
    Texts(&'static [&'static str]),
}

/// Operators of one domain, up to a version of it.
struct Domain {
    name: &'static str,
    oldest: i64,
    newest: i64,
    operators: &'static [Operator],
}

/// The newest version of ONNX's operators that the table was made from.
pub const ONNX_VERSION: i64 = 28;

const DOMAINS: [Domain; 4] = [
    Domain { name: "", oldest: 1, newest: ONNX_VERSION, operators: onnx::OPERATORS },
    Domain { name: "ai.onnx.ml", oldest: 1, newest: 5, operators: ml::OPERATORS },
    Domain { name: "com.microsoft", oldest: 1, newest: 1, operators: microsoft::OPERATORS },
    Domain { name: DOMAIN, oldest: 1, newest: DOMAIN_VERSION, operators: OWN },
];

/// The operators of graphs that are drawn here.
const OWN: &[Operator] = &[
    Operator { name: OLD_OPERATOR, rules: &[Rule::Any(&["scale", "window"])] },
    Operator { name: OPERATOR, rules: &[Rule::Any(&["scale", "window", "interleaved"])] },
];

/// Refuses what tract would compute otherwise than it is meant, by node, operator and attribute.
pub fn vet(model: &ModelProto) -> Result<(), GraphError> {
    let mut versions = Versions::of(model)?;
    match &model.graph {
        Some(graph) => versions.graph(graph),
        None => Ok(()),
    }
}

/// The domains whose version the model states and the table knows.
struct Versions<'a> {
    known: HashMap<&'static str, i64>,
    functions: HashSet<(&'a str, &'a str)>,
}

impl<'a> Versions<'a> {
    fn of(model: &'a ModelProto) -> Result<Versions<'a>, GraphError> {
        let mut known = HashMap::new();
        for import in &model.opset_import {
            let Some(domain) = DOMAINS.iter().find(|d| d.name == plain(&import.domain)) else {
                continue;
            };
            if !(domain.oldest..=domain.newest).contains(&import.version) {
                return Err(GraphError::OperatorSet {
                    domain: if domain.name.is_empty() { "ai.onnx" } else { domain.name },
                    version: import.version,
                    oldest: domain.oldest,
                    newest: domain.newest,
                });
            }
            if known.insert(domain.name, import.version).is_some() {
                let text = format!("it names the operators of \"{}\" twice", import.domain);
                return Err(GraphError::NotOnnx(text));
            }
        }
        let functions = model.functions.iter().map(|f| (plain(f.domain()), f.name()));
        Ok(Versions { known, functions: functions.collect() })
    }

    fn graph(&mut self, graph: &GraphProto) -> Result<(), GraphError> {
        for node in &graph.node {
            self.node(node)?;
            for attribute in &node.attribute {
                for body in attribute.g.iter().chain(&attribute.graphs) {
                    self.graph(body)?;
                }
            }
        }
        Ok(())
    }

    fn node(&self, node: &NodeProto) -> Result<(), GraphError> {
        let domain = plain(&node.domain);
        if self.functions.contains(&(domain, node.op_type.as_str())) {
            return Err(unsupported(node, "it is a function of the model".to_string()));
        }
        let Some(known) = DOMAINS.iter().find(|d| d.name == domain) else {
            let why = format!("operators of the domain \"{domain}\" are not known");
            return Err(unsupported(node, why));
        };
        let Some(version) = self.known.get(known.name) else {
            let why = format!("the model does not say which version of \"{domain}\" it means");
            return Err(unsupported(node, why));
        };
        let operator = known.operators.iter().find(|operator| operator.name == node.op_type);
        let Some(operator) = operator else {
            return Err(unsupported(node, "tract has no such operator".to_string()));
        };
        operator.check(node, *version).map_err(|why| unsupported(node, why))
    }
}

/// ONNX's own domain has two names.
fn plain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

impl Operator {
    fn check(&self, node: &NodeProto, version: i64) -> Result<(), String> {
        let mut seen = HashSet::new();
        for attribute in &node.attribute {
            if !attribute.ref_attr_name.is_empty() {
                return Err(format!("its attribute {} belongs to a function", attribute.name));
            }
            if !seen.insert(attribute.name.as_str()) {
                return Err(format!("its attribute {} is there twice", attribute.name));
            }
            if !self.rules.iter().any(|rule| rule.names(&attribute.name)) {
                return Err(format!("its attribute {} would not be honoured", attribute.name));
            }
        }
        self.rules.iter().try_for_each(|rule| rule.check(node, version))
    }
}

impl Rule {
    fn names(&self, attribute: &str) -> bool {
        match self {
            Rule::Any(names) | Rule::Until(_, names) => names.contains(&attribute),
            Rule::Only(name, _) | Rule::Stated(name, _) => *name == attribute,
            Rule::Since(_) | Rule::NoInput(..) | Rule::NoOutput(..) => false,
        }
    }

    fn check(&self, node: &NodeProto, version: i64) -> Result<(), String> {
        let given = |names: &[String], at: usize| names.get(at).is_some_and(|n| !n.is_empty());
        match self {
            Rule::Only(name, allowed) => match attribute(node, name) {
                Some(found) => is_one_of(found, allowed),
                None => Ok(()),
            },
            Rule::Stated(name, allowed) => match attribute(node, name) {
                Some(found) => is_one_of(found, allowed),
                None => Err(format!("its attribute {name} must be {}", listed(allowed))),
            },
            Rule::Until(first, names) if version >= *first => {
                match names.iter().find(|name| attribute(node, name).is_some()) {
                    Some(name) => Err(format!("its attribute {name} is an input by now")),
                    None => Ok(()),
                }
            }
            Rule::Since(first) if version < *first => {
                Err(format!("before version {first} of the operators it meant something else"))
            }
            Rule::NoInput(at, name) if given(&node.input, *at) => {
                Err(format!("its input {name} would not be honoured"))
            }
            Rule::NoOutput(at, name) if given(&node.output, *at) => {
                Err(format!("its output {name} is not computed"))
            }
            Rule::Any(_)
            | Rule::Since(_)
            | Rule::Until(..)
            | Rule::NoInput(..)
            | Rule::NoOutput(..) => Ok(()),
        }
    }
}

fn is_one_of(found: &AttributeProto, allowed: &[Value]) -> Result<(), String> {
    if allowed.iter().any(|value| value.is(found)) {
        return Ok(());
    }
    let (name, found) = (&found.name, text_of(found));
    Err(format!("its attribute {name} is {found}; only {} is computed", listed(allowed)))
}

fn listed(values: &[Value]) -> String {
    let texts: Vec<String> = values.iter().map(Value::text).collect();
    texts.join(" or ")
}

impl Value {
    fn is(&self, found: &AttributeProto) -> bool {
        match *self {
            Value::Int(value) => found.r#type() == AttributeType::Int && found.i == value,
            Value::Float(value) => found.r#type() == AttributeType::Float && found.f == value,
            Value::Text(text) => {
                found.r#type() == AttributeType::String && found.s == text.as_bytes()
            }
            Value::Texts(texts) => {
                let same =
                    |(found, text): (&Vec<u8>, &&str)| found.eq_ignore_ascii_case(text.as_bytes());
                found.r#type() == AttributeType::Strings
                    && found.strings.len() == texts.len()
                    && found.strings.iter().zip(texts).all(same)
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text(text) => format!("\"{text}\""),
            Value::Texts(texts) => format!("{texts:?}"),
        }
    }
}

/// An attribute's value as a refusal shows it.
fn text_of(found: &AttributeProto) -> String {
    let shown = match found.r#type() {
        AttributeType::Int => found.i.to_string(),
        AttributeType::Float => found.f.to_string(),
        AttributeType::String => format!("\"{}\"", String::from_utf8_lossy(&found.s)),
        AttributeType::Ints => format!("{:?}", found.ints),
        AttributeType::Strings => {
            let texts: Vec<_> = found.strings.iter().map(|s| String::from_utf8_lossy(s)).collect();
            format!("{texts:?}")
        }
        other => format!("of type {}", other.as_str_name()),
    };
    shown.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn tables_are_in_order_and_name_operators_that_tract_parses() {
        // A repair makes other operators of these before tract sees them.
        let repaired: BTreeSet<&str> = super::super::repair::operators().collect();
        let tract = super::super::builders::onnx();
        for domain in &DOMAINS {
            let names: Vec<&str> = domain.operators.iter().map(|o| o.name).collect();
            assert!(names.is_sorted(), "{}: {names:?}", domain.name);
            for name in names {
                let known = tract.op_register.0.contains_key(name) || repaired.contains(name);
                assert!(known, "{}: {name}", domain.name);
            }
        }
    }
}
