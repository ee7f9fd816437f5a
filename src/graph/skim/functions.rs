//! The model's own functions, put in the place of the nodes that call them. tract looks operators
//! up by their names alone, so a function called `Relu` would be computed as ONNX's.

use super::tensor::Files;
use super::{SKELETON_LIMIT_BYTES, SkimError, node_error, too_large};
use prost::Message;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

/// `ModelProto`'s functions, with the fields that tract's own types lack.
#[derive(Clone, PartialEq, Message)]
struct Functions {
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

/// `FunctionProto`.
#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "4")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    output: Vec<String>,
    /// Attributes that a call may have.
    #[prost(string, repeated, tag = "6")]
    attribute: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "9")]
    opset_import: Vec<OperatorSetIdProto>,
    #[prost(string, tag = "10")]
    domain: String,
    /// Attributes that have a value where the call has none.
    #[prost(message, repeated, tag = "11")]
    attribute_proto: Vec<AttributeProto>,
}

/// Functions that call functions, at most.
const DEPTH_LIMIT: usize = 32;

/// Puts the bodies of functions, given as encoded fields of the model, in the place of their calls,
/// in the graph and in the graphs of its nodes.
pub fn inline(proto: &mut ModelProto, encoded: &[u8], files: &Files) -> Result<(), SkimError> {
    if encoded.is_empty() {
        return Ok(());
    }
    let malformed =
        |what: String| SkimError::Malformed { path: files.path.clone(), offset: 0, what };
    let found = Functions::decode(encoded).map_err(|error| malformed(error.to_string()))?;
    let mut functions = HashMap::new();
    for function in &found.functions {
        let key = (domain_of(&function.domain), function.name.as_str());
        if functions.insert(key, function).is_some() {
            return Err(malformed(format!("two functions called \"{}\"", function.name)));
        }
    }
    let opsets = std::mem::take(&mut proto.opset_import);
    let mut inliner = Inliner { functions, opsets: &opsets, files, calls: 0, bytes: 0 };
    if let Some(graph) = &mut proto.graph {
        inliner.graph(graph, 0)?;
    }
    proto.opset_import = opsets;
    Ok(())
}

/// The default domain has two names.
fn domain_of(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

struct Inliner<'a> {
    functions: HashMap<(&'a str, &'a str), &'a Function>,
    opsets: &'a [OperatorSetIdProto],
    files: &'a Files,
    /// Calls so far, by whose numbers names inside of functions are told apart.
    calls: usize,
    /// Bytes of all bodies that were put in.
    bytes: u64,
}

impl Inliner<'_> {
    fn graph(&mut self, graph: &mut GraphProto, depth: usize) -> Result<(), SkimError> {
        graph.node = self.nodes(std::mem::take(&mut graph.node), depth)?;
        Ok(())
    }

    fn nodes(&mut self, nodes: Vec<NodeProto>, depth: usize) -> Result<Vec<NodeProto>, SkimError> {
        let mut done = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            let key = (domain_of(&node.domain), node.op_type.as_str());
            if let Some(function) = self.functions.get(&key).copied() {
                if depth == DEPTH_LIMIT {
                    let what = format!("functions call each other more than {DEPTH_LIMIT} deep");
                    return Err(node_error(self.files, &node, what));
                }
                let body = self.body(function, &node)?;
                done.extend(self.nodes(body, depth + 1)?);
                continue;
            }
            for attribute in &mut node.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.graph(graph, depth)?;
                }
            }
            done.push(node);
        }
        Ok(done)
    }

    /// The nodes of `function` as `call` means them.
    fn body(&mut self, function: &Function, call: &NodeProto) -> Result<Vec<NodeProto>, SkimError> {
        self.check_call(function, call)?;
        self.bytes += function.encoded_len() as u64;
        if self.bytes > SKELETON_LIMIT_BYTES {
            return Err(too_large(self.files));
        }
        let label = match (call.name.as_str(), call.output.iter().find(|name| !name.is_empty())) {
            ("", Some(output)) => output,
            (name, _) => name,
        };
        let mut names = HashMap::new();
        let formal = function.input.iter().map(String::as_str);
        let actual = call.input.iter().map(String::as_str).chain(std::iter::repeat(""));
        names.extend(formal.zip(actual));
        // An output that is an input is a value of its own outside.
        let formal = function.output.iter().map(String::as_str);
        let actual = call.output.iter().map(String::as_str);
        let outputs: Vec<(&str, &str)> =
            formal.zip(actual).filter(|(_, name)| !name.is_empty()).collect();
        let mut copies = vec![];
        for (formal, actual) in outputs {
            match names.get(formal) {
                None => drop(names.insert(formal, actual)),
                Some(known) => copies.push((known.to_string(), actual.to_string())),
            }
        }
        let given = call.attribute.iter();
        let defaults = function.attribute_proto.iter();
        let attributes = defaults.chain(given).map(|a| (a.name.as_str(), a)).collect();
        let prefix = format!("{label}/{}/", self.calls);
        self.calls += 1;
        let scope = Scope { prefix: &prefix, label, names: &names, attributes: &attributes };
        let mut body: Vec<NodeProto> = function.node.iter().map(|node| scope.node(node)).collect();
        for (number, (from, to)) in copies.into_iter().enumerate() {
            body.push(NodeProto {
                name: format!("{prefix}output.{number}"),
                op_type: "Identity".to_string(),
                input: vec![from],
                output: vec![to],
                ..NodeProto::default()
            });
        }
        Ok(body)
    }

    /// Refuses a call that cannot be what the function means.
    fn check_call(&self, function: &Function, call: &NodeProto) -> Result<(), SkimError> {
        let refuse = |what: String| Err(node_error(self.files, call, what));
        if call.input.len() > function.input.len() || call.output.len() > function.output.len() {
            return refuse("it has more inputs or outputs than its function".to_string());
        }
        for import in &function.opset_import {
            let domain = domain_of(&import.domain);
            let of_model = self.opsets.iter().find(|known| domain_of(&known.domain) == domain);
            let version = of_model.map(|known| known.version);
            if domain.is_empty() && version.is_some_and(|version| version != import.version) {
                return refuse(format!(
                    "its function is of opset {}, the model of {}",
                    import.version,
                    version.unwrap_or(0)
                ));
            }
        }
        let known: HashSet<&str> = function
            .attribute
            .iter()
            .chain(function.attribute_proto.iter().map(|attribute| &attribute.name))
            .map(String::as_str)
            .collect();
        match call.attribute.iter().find(|attribute| !known.contains(attribute.name.as_str())) {
            Some(attribute) => {
                refuse(format!("its function has no attribute \"{}\"", attribute.name))
            }
            None => Ok(()),
        }
    }
}

/// What names and attributes of a function's nodes mean in one call.
struct Scope<'a> {
    prefix: &'a str,
    /// The call's own name.
    label: &'a str,
    /// Values of the function that are values of the caller; none is called "".
    names: &'a HashMap<&'a str, &'a str>,
    attributes: &'a HashMap<&'a str, &'a AttributeProto>,
}

impl Scope<'_> {
    fn value(&self, name: &str) -> String {
        match self.names.get(name) {
            _ if name.is_empty() => String::new(),
            Some(actual) => actual.to_string(),
            None => format!("{}{name}", self.prefix),
        }
    }

    fn node(&self, node: &NodeProto) -> NodeProto {
        let name = match node.name.as_str() {
            "" => format!("{}{}", self.prefix, node.output.first().map_or("", String::as_str)),
            name => format!("{}/{name}", self.label),
        };
        NodeProto {
            name,
            input: node.input.iter().map(|name| self.value(name)).collect(),
            output: node.output.iter().map(|name| self.value(name)).collect(),
            attribute: node.attribute.iter().filter_map(|a| self.attribute(a)).collect(),
            ..node.clone()
        }
    }

    /// An attribute with its value in this call; none where the call leaves it out.
    fn attribute(&self, attribute: &AttributeProto) -> Option<AttributeProto> {
        let mut attribute = match attribute.ref_attr_name.as_str() {
            "" => attribute.clone(),
            of_function => {
                let given = (*self.attributes.get(of_function)?).clone();
                return Some(AttributeProto { name: attribute.name.clone(), ..given });
            }
        };
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            self.graph(graph);
        }
        Some(attribute)
    }

    /// Names of a graph inside, which sees the function's values.
    fn graph(&self, graph: &mut GraphProto) {
        for node in &mut graph.node {
            *node = self.node(node);
        }
        for info in graph.input.iter_mut().chain(&mut graph.output) {
            info.name = self.value(&info.name);
        }
        graph.value_info.clear();
        for tensor in &mut graph.initializer {
            tensor.name = self.value(&tensor.name);
        }
        for tensor in graph.sparse_initializer.iter_mut().filter_map(|t| t.values.as_mut()) {
            tensor.name = self.value(&tensor.name);
        }
    }
}
