//! Chat templates: Jinja as transformers has it, bounded in time and memory.

use super::bounded::{self, Names};
use super::clock::Moment;
use super::sought::{Shielded, Sought};
use super::{dump, python};
use minijinja::machinery::{self, CompiledTemplate, TemplateConfig, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error as ThisError;

/// Longest template that is taken.
pub const MAX_TEMPLATE_BYTES: usize = 256 << 10;

/// Deepest nesting of calls in a template.
const MAX_RECURSION: usize = 64;

/// Bytes of data that one unit of minijinja's fuel pays for, or one instruction.
const BYTES_PER_FUEL: u64 = 64;

/// What a template may take whatever it is given: some hundred thousand instructions.
const LEAST_BYTES: u64 = 8 << 20;

/// What it may take for each byte that it is given.
const BYTES_PER_BYTE: u64 = 128;

/// What is put behind the sign of a product, and the name in it, which is one.
const PRODUCT: &str = " hermes_one *";
const ONE: &str = "hermes_one";

/// Why there is no text.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum TemplateError {
    /// The template's own words, by `raise_exception`.
    #[error("{0}")]
    Raised(String),
    /// It is no template.
    #[error("the chat template cannot be read: {0}")]
    Syntax(String),
    /// It cannot be rendered with what was sent.
    #[error("the chat template cannot be rendered: {0}")]
    Failed(String),
    /// It asked for more steps or bytes than there are for it.
    #[error("the chat template takes too much: more than {limit_bytes} bytes or as many steps")]
    TooMuch {
        /// What there was for it.
        limit_bytes: u64,
    },
}

/// A template, and what it is rendered with.
#[derive(Clone)]
pub struct Rendering<'a> {
    pub source: &'a str,
    /// Its variables, the later ones first.
    pub variables: &'a [(String, Value)],
    /// What strftime_now tells; without it the function is not there.
    pub now: Option<Moment>,
    /// A character that JSON leaves as it is.
    pub mark: Option<char>,
    /// How a part of a text reads in the variables, where that is another way.
    pub shielded: Option<&'a Shielded<'a>>,
    /// What rendering may take: [`most_bytes`].
    pub limit_bytes: u64,
}

/// Most that rendering takes of memory where it is given so many bytes.
pub fn most_bytes(given_bytes: usize) -> u64 {
    LEAST_BYTES + BYTES_PER_BYTE * given_bytes as u64
}

/// Whether `source` is a template.
///
/// # Errors
/// Why it is none.
pub fn check(source: &str) -> Result<(), TemplateError> {
    let source = prepared(source)?;
    compiled(&source).map(drop).map_err(|error| failed(&error, 0))
}

impl Rendering<'_> {
    /// The text that the template makes.
    ///
    /// # Errors
    /// What the template raises, and what it fails by.
    pub fn render(&self) -> Result<String, TemplateError> {
        let source = prepared(self.source)?;
        let mut environment = environment(self.mark);
        environment.set_fuel(Some(self.limit_bytes / BYTES_PER_FUEL));
        let raised = Arc::new(Mutex::new(None));
        let words = Arc::clone(&raised);
        environment.add_function("raise_exception", move |state: &State, what: Value| {
            let mut text = String::new();
            dump::write_text(state, &what, &mut text)?;
            *words.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, "raised"))
        });
        if let Some(now) = self.now {
            environment.add_function("strftime_now", move |state: &State, format: &str| {
                // A directive has two characters, and stands for 32 times that at most.
                bounded::ensure(state, 32 * format.len())?;
                now.format(format).map_err(|what| Error::new(ErrorKind::InvalidOperation, what))
            });
        }
        let template = compiled(&source).map_err(|error| failed(&error, self.limit_bytes))?;
        let names = Names::of(&template);
        names.install(&mut environment, Sought::by(&template, self.shielded));
        let instructions = bounded::bounded(&template, &names);
        let named = self.variables.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let variables = Value::from_pairs(named);
        let mut text = String::new();
        let mut output = machinery::make_string_output(&mut text);
        let escape = AutoEscape::None;
        let blocks = &template.blocks;
        let done =
            machinery::eval(&environment, &instructions, variables, blocks, &mut output, escape);
        let rendered = done.map(drop);
        rendered.map(|()| text).map_err(|error| {
            let raised = raised.lock().unwrap_or_else(PoisonError::into_inner).take();
            match raised {
                Some(what) if error.kind() != ErrorKind::OutOfFuel => TemplateError::Raised(what),
                _ => failed(&error, self.limit_bytes),
            }
        })
    }
}

fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("no delimiter was changed")
}

fn compiled(source: &str) -> Result<CompiledTemplate<'_>, Error> {
    let default_auto_escape: Arc<dyn Fn(&str) -> AutoEscape + Send + Sync> =
        Arc::new(|_| AutoEscape::None);
    let config = TemplateConfig { syntax_config: syntax(), default_auto_escape };
    CompiledTemplate::new("<string>", source, &config)
}

fn environment<'a>(mark: Option<char>) -> Environment<'a> {
    let mut environment = Environment::new();
    environment.set_recursion_limit(MAX_RECURSION);
    environment.add_global(ONE, 1);
    python::install(&mut environment, mark);
    environment
}

fn failed(error: &Error, limit_bytes: u64) -> TemplateError {
    let mut causes = std::iter::successors(Some(error), |error| {
        std::error::Error::source(*error)?.downcast_ref()
    });
    if causes.any(|error| error.kind() == ErrorKind::OutOfFuel) {
        return TemplateError::TooMuch { limit_bytes };
    }
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    let what = format!("{}{detail}{line}", error.kind());
    match error.kind() {
        ErrorKind::SyntaxError => TemplateError::Syntax(what),
        _ => TemplateError::Failed(what),
    }
}

/// The source with its `generation` marks, which print nothing, as blocks that are always entered:
/// so the white space around them goes as around any block.
fn prepared(source: &str) -> Result<String, TemplateError> {
    if source.len() > MAX_TEMPLATE_BYTES {
        let what = format!("it has {} bytes; the limit is {MAX_TEMPLATE_BYTES}", source.len());
        return Err(TemplateError::Syntax(what));
    }
    let mut prepared = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        prepared.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, behind) = tag.split_at(end);
        match tag.trim_matches(|c: char| c.is_whitespace() || "{}%+-".contains(c)) {
            "generation" => prepared.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => prepared.push_str(&tag.replace("endgeneration", "endif")),
            _ => prepared.push_str(tag),
        }
        rest = behind;
    }
    prepared.push_str(rest);
    Ok(unfolded(prepared))
}

/// The source with its products as ones of what is known only when it runs: the engine multiplies
/// lists that it knows when it reads them, and compares and writes what comes of it, without fuel.
fn unfolded(source: String) -> String {
    let mut places = vec![];
    let mut is_operand = false;
    for token in machinery::tokenize(&source, false, syntax()) {
        // What is no template is told when it is compiled.
        let Ok((token, span)) = token else { break };
        if is_operand && matches!(token, Token::Mul) {
            places.push(span.end_offset as usize);
        }
        is_operand = !matches!(token, Token::ParenOpen | Token::Comma);
    }
    let mut unfolded = source;
    for place in places.into_iter().rev() {
        unfolded.insert_str(place, PRODUCT);
    }
    unfolded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What templates are made of, and what breaks them.
    const PARTS: [&str; 33] = [
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{%- ",
        " -%}",
        "{#",
        "#}",
        "for a in ",
        "if ",
        "else",
        "endfor",
        "endif",
        "set x = ",
        "messages",
        "x",
        "[0]",
        "['role']",
        ".content",
        " | tojson",
        " | trim",
        "(",
        ")",
        "1",
        " + ",
        "-",
        "'a'",
        "\u{e9}",
        "\n",
        "generation",
        "range(9)",
        "namespace(x=1)",
        "raise_exception('no')",
    ];

    proptest! {
        /// Whatever a maker's file has for a template.
        #[test]
        fn no_template_panics(
            parts in prop::collection::vec(prop::sample::select(PARTS.as_slice()), 0..16),
        ) {
            let source = parts.concat();
            let is_one = check(&source).is_ok();
            if let Err(error) = render(&source) {
                let is_syntax = matches!(error, TemplateError::Syntax(_));
                prop_assert!(!is_one || !is_syntax, "{source:?}: {error}");
            }
        }
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        let limit_bytes = most_bytes(0);
        Rendering { source, variables: &[], now: None, mark: None, shielded: None, limit_bytes }
            .render()
    }

    /// What is done again and again with a namespace's value, and what then looks at it: each time
    /// doubles what is walked, and not what is held.
    const DOUBLINGS: [(&str, &str); 18] = [
        ("ns.s + ns.s", "ns.s | length"),
        ("(ns.s + ns.s)[1:]", "ns.s | length"),
        ("ns.e + ns.e", "ns.e | length"),
        ("[ns.s, ns.s]", "ns.s | string | length"),
        ("[ns.s, ns.s]", "'x' ~ ns.s"),
        ("[ns.s, ns.s]", "ns.s == ns.t"),
        ("[ns.s, ns.s]", "1 == ns.s == ns.t"),
        ("[ns.s, ns.s]", "[ns.s] | select('eq', ns.t) | list"),
        ("[ns.s, ns.s]", "ns.s in [ns.t]"),
        ("[ns.s, ns.s]", "[ns.s] | map('upper') | list"),
        ("[ns.s, ns.s]", "{}[ns.s]"),
        ("[ns.s, ns.s]", "[ns.s, ns.t] | unique | list"),
        ("[ns.s, ns.s]", "[ns.s, ns.t] | sort"),
        ("[ns.s, ns.s]", "'{} {}'.format(ns.s, 1)"),
        ("[ns.s, ns.s]", "raise_exception(ns.s)"),
        ("(ns.s, ns.s)", "','.join([ns.s])"),
        ("{'a': ns.s, 'b': ns.s}", "ns.s | join(',')"),
        ("dict(a=ns.s, b=ns.s)", "ns.s | tojson | length"),
    ];

    /// Templates come with models, and the event loop of others must not wait for them. A chat's
    /// thread never came back from some of these, and held gigabytes.
    #[test]
    fn hostile_templates_end() {
        for (index, (twice, look)) in DOUBLINGS.into_iter().enumerate() {
            // So often that only what looks at it is too much, and now and then that making it is.
            let few = if twice.contains('+') { 30 } else { 17 };
            for times in [few, 40].into_iter().take(1 + usize::from(index % 6 == 3)) {
                let source = format!(
                    "{{% set ns = namespace(s=['x'], t=['y'], e=[]) %}}\
                     {{% for i in range({times}) %}}{{% set ns.s = {twice} %}}\
                     {{% set ns.e = ns.e + ns.e %}}{{% endfor %}}\
                     {{% set ns.t = [ns.s] %}}{{{{ {look} }}}}"
                );
                match render(&source) {
                    Err(TemplateError::TooMuch { .. }) => {}
                    // Nothing twice is nothing, and one of two that are left out is one.
                    Ok(text) if look.contains("ns.e") => assert_eq!(text, "0"),
                    Ok(text) if twice.contains("[1:]") => assert_eq!(text, "1"),
                    other => panic!("{source}: {other:?}"),
                }
            }
        }
        for source in [
            "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}\
             {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in \
             range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
            "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}\
             {% endmacro %}{{ a(60) }}",
            "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
            "{% for x in [[[]]] recursive %}{{ loop([x]) }}{% endfor %}",
            // Deeper than a thread's stack, and endless.
            "{% set ns = namespace(x=1) %}{% for i in range(9999) %}\
             {% set ns.x = [ns.x] %}{% endfor %}",
            "{% set ns = namespace(x=1) %}{% for i in range(9999) %}\
             {% set ns.x = ns.x | batch(1) | list %}{% endfor %}",
            "{% set ns = namespace(x=[1]) %}{% set ns.x = [ns] %}{{ ns }}",
            "{% set ns = namespace(x=[1]) %}{% set ns.x = ns %}{{ ns | tojson }}",
            "{{ 'x' * 1000000000 }}",
            "{{ [0] * 1000000000 }}",
            "{{ [[[[0] * 1000] * 1000] * 1000] * 1000 == 1 }}",
            "{{ [[[0] * 1000] * 1000] * 1000 == [[[0] * 1000] * 1000] * 1000 }}",
            "{{ '' ~ [[[0] * 1000] * 1000] * 1000 }}",
            "{{ range(100000000) | list | length }}",
            "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
            "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
            "{{ ('x' * 100000).join(range(100000)) }}",
            "{{ range(100000) | join('x' * 100000) }}",
            "{{ ('x' * 4000000).split('x') | length }}",
            "{{ 'x' | indent(width=1000000000, first=true) }}",
            "{{ '%1000000000d' | format(1) }}",
            "{{ '{:>1000000000}'.format(1) }}",
            "{{ '{:.1000000000f}'.format(1.5) }}",
            "{{ '{:01000000000d}'.format(1) }}",
            "{{ ('{0}' * 100000).format('x' * 100000) }}",
            "{{ 'a'.center(1000000000) }}",
            "{{ 'a' | center(1000000000) }}",
            "{% for i in range(999) %}{{ [1] | tojson(indent='x' * 100000) | length }}{% endfor %}",
            "{{ [[1] * 10000] | tojson(indent='x' * 10000) }}",
            "{{ [1] | batch(1000000000, 'x') | list }}",
            "{{ [1] | slice(1000000000) | list }}",
            "{% for i in range(99999) %}{{ ('x' * 4000000)[-1] }}{% endfor %}",
        ] {
            let refused = render(source).unwrap_err();
            assert!(!matches!(refused, TemplateError::Raised(_)), "{source}: {refused}");
        }
        let brackets = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(matches!(render(&brackets), Err(TemplateError::Syntax(_))));
        assert!(check(&"x".repeat(MAX_TEMPLATE_BYTES + 1)).is_err());
    }

    #[test]
    fn templates_are_read_when_the_model_is_built() {
        assert_eq!(check("{{ messages }}"), Ok(()));
        assert!(matches!(check("{% for %}"), Err(TemplateError::Syntax(_))));
        assert_eq!(
            render("\u{e9} * b{{ 2 * 3 }}{{ 'ab' * 2 }}{{ 2 ** 3 }}"),
            Ok("\u{e9} * b6abab8".to_owned())
        );
        assert_eq!(render("{%- generation %}\nx{% endgeneration -%}\n y"), Ok("xy".to_owned()));
    }
}
