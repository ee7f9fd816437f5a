//! What bounds a template, whatever it does: minijinja's fuel, paid for all that is walked.
//!
//! By itself the engine pays for instructions and for what they make, not for what lies behind it:
//! a list that holds another twice, or that is two lists one of which begins where the other ends,
//! costs a few slots and is walked in full by each comparison, each text made of it. So a compiled
//! template is changed before it runs:
//!
//! - No value is lazy, nested too deeply, or part of itself: what makes one is followed by a look.
//! - What may walk values is a call of ours, which pays for what it is given before it works.

use super::dump;
use super::sought::{Sought, all};
use minijinja::machinery::{CompiledTemplate, Instruction, Instructions};
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Deepest nesting of a value: what walks or drops it takes the stack once for each.
const MAX_DEPTH: usize = 128;

/// Units of which one fuel is made; a byte costs one.
const UNITS: u64 = 64;

/// Units for looking at a value.
const LOOK_UNITS: u64 = 4;

/// Units for a value that is written, compared or hashed.
const WALK_UNITS: u64 = 16;

/// Units for a slot in a list.
const SLOT_UNITS: u64 = 32;

/// Filters that do not look into the items of what they are given, or pay for it themselves.
const LIGHT_FILTERS: [&str; 18] = [
    "length",
    "count",
    "first",
    "last",
    "list",
    "default",
    "d",
    "items",
    "reverse",
    "map",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "tojson",
    "string",
    "join",
    "attr",
];

/// Tests of the same kind.
const LIGHT_TESTS: [&str; 15] = [
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "number",
    "integer",
    "float",
    "boolean",
    "true",
    "false",
    "callable",
    "filter",
];

/// Tests that compare, and pay for it themselves, by the operator that each is.
const COMPARING: [(&str, &str); 17] = [
    ("eq", "=="),
    ("equalto", "=="),
    ("==", "=="),
    ("ne", "!="),
    ("!=", "!="),
    ("lt", "<"),
    ("lessthan", "<"),
    ("<", "<"),
    ("le", "<="),
    ("<=", "<="),
    ("gt", ">"),
    ("greaterthan", ">"),
    (">", ">"),
    ("ge", ">="),
    (">=", ">="),
    ("in", "in"),
    ("sameas", "is"),
];

/// Filters that no template for Jinja has, and that make what is lazy.
const FOREIGN: [&str; 4] = ["chain", "zip", "lines", "split"];

/// The names by which a template calls its filters, tests and methods through what pays for them.
/// No template can write such a name.
pub struct Names(BTreeMap<(char, String), String>);

impl Names {
    /// Of all that a template may call.
    pub fn of(template: &CompiledTemplate) -> Names {
        let mut names = BTreeMap::new();
        for instruction in all(&template.instructions) {
            let (kind, name) = match instruction {
                Instruction::ApplyFilter(name, ..) => ('|', *name),
                Instruction::PerformTest(name, ..) => ('?', *name),
                Instruction::CallMethod(name, _) => ('.', *name),
                _ => continue,
            };
            names.insert((kind, name.to_owned()), format!("\0{kind}{name}"));
        }
        Names(names)
    }

    fn get(&self, kind: char, name: &str) -> &str {
        self.0.get(&(kind, name.to_owned())).map_or("", String::as_str)
    }

    /// Adds what those names call, and all else that a bounded template calls.
    pub fn install(&self, environment: &mut Environment, sought: Sought) {
        for ((kind, name), full) in &self.0 {
            let (kind, name, sought) = (*kind, name.clone(), sought.clone());
            environment.add_function(
                full.clone(),
                move |state: &mut State, given: Rest<ValueOrKwargs>| {
                    let given: Vec<Value> = given.iter().map(|given| (**given).clone()).collect();
                    let given = sought.given(&name, &given).unwrap_or(given);
                    let made = match kind {
                        '|' => filter(state, &name, &given),
                        '?' => test(state, &name, &given),
                        _ => method(state, &name, &given),
                    }?;
                    settled(&Toll::new(state), made, 0)
                },
            );
        }
        environment.add_function("\0in", move |state: &State, part: &Value, whole: &Value| {
            let texts = part.as_str().zip(whole.as_str());
            let word = texts.and_then(|(part, whole)| sought.within(whole, part));
            let word = word.map(Value::from);
            compare(state, "in", word.as_ref().unwrap_or(part), whole)
        });
        for operator in ["==", "!=", "<", "<=", ">", ">="] {
            let apply = move |state: &State, a: &Value, b: &Value| compare(state, operator, a, b);
            environment.add_function(format!("\0{operator}"), apply);
        }
        for (name, operator) in COMPARING {
            let apply = move |state: &State, a: &Value, b: &Value| compare(state, operator, a, b);
            environment.add_test(name, apply);
        }
        environment.add_function("\0~", concat);
        environment.add_function("\0item", item);
        environment.add_function("\0map", map);
        environment.add_function("\0settled", |state: &State, value: ValueOrKwargs| {
            settled(&Toll::new(state), value.into(), 0)
        });
        environment.add_function("\0eager", |state: &State, value: ValueOrKwargs| {
            eager(&Toll::new(state), value.into())
        });
        environment.add_function("\0kept", |state: &State, value: ValueOrKwargs| {
            check_kept(&Toll::new(state), &value, 0).map(|()| Value::from(value))
        });
        environment.add_function("\0paid", |state: &State, given: Rest<Value>| {
            let toll = Toll::new(state);
            given.iter().try_for_each(|value| toll.walk(value))?;
            // They are put back onto the stack from the last to the first.
            Ok::<_, Error>(given.iter().rev().cloned().collect::<Vec<_>>())
        });
        environment.add_function("namespace", |state: &State, given: Option<ValueOrKwargs>| {
            given.iter().try_for_each(|given| check_kept(&Toll::new(state), given, 0))?;
            minijinja::functions::namespace(given)
        });
        for name in FOREIGN {
            environment.remove_filter(name);
        }
        environment.remove_global("debug");
    }
}

/// The template as it may run: what it was, with our calls before, behind or in place of what makes
/// and walks values.
pub fn bounded<'a>(template: &CompiledTemplate<'a>, names: &'a Names) -> Instructions<'a> {
    let old = &template.instructions;
    let mut groups = vec![];
    let mut starts = vec![];
    let mut start = 0;
    let mut last = None;
    for instruction in all(old) {
        let group = guarded(instruction, last, names);
        starts.push(start);
        start += group.len() as u32;
        groups.push(group);
        last = Some(instruction);
    }
    starts.push(start);
    let mut new = Instructions::new(old.name(), old.source());
    for (index, group) in (0..).zip(groups) {
        let line = old.get_line(index).and_then(|line| u16::try_from(line).ok());
        for mut instruction in group {
            match &mut instruction {
                Instruction::Jump(to)
                | Instruction::JumpIfFalse(to)
                | Instruction::JumpIfFalseOrPop(to)
                | Instruction::JumpIfTrueOrPop(to)
                | Instruction::Iterate(to)
                | Instruction::BuildMacro(_, to, _) => {
                    *to = starts.get(*to as usize).copied().unwrap_or(start);
                }
                _ => {}
            }
            match line {
                Some(line) => new.add_with_line(instruction, line),
                None => new.add(instruction),
            };
        }
    }
    new
}

/// What runs in an instruction's place.
fn guarded<'a>(
    instruction: &Instruction<'a>,
    last: Option<&Instruction>,
    names: &'a Names,
) -> Vec<Instruction<'a>> {
    let call = |name, count| Instruction::CallFunction(name, Some(count));
    let same = instruction.clone();
    let is_name = matches!(last, Some(Instruction::LoadConst(key)) if key.as_str().is_some());
    match instruction {
        Instruction::Eq => vec![call("\0==", 2)],
        Instruction::Ne => vec![call("\0!=", 2)],
        Instruction::Lt => vec![call("\0<", 2)],
        Instruction::Lte => vec![call("\0<=", 2)],
        Instruction::Gt => vec![call("\0>", 2)],
        Instruction::Gte => vec![call("\0>=", 2)],
        Instruction::In => vec![call("\0in", 2)],
        Instruction::StringConcat => vec![call("\0~", 2)],
        Instruction::GetItem if !is_name => vec![call("\0item", 2)],
        Instruction::BuildMap(pairs) => match u16::try_from(2 * pairs) {
            Ok(count) => vec![call("\0map", count)],
            // The one that begins there fails.
            Err(_) => vec![call("\0too many", 0)],
        },
        Instruction::CompareAndPreserve(_) => {
            vec![call("\0paid", 2), Instruction::UnpackList(2), same]
        }
        Instruction::Slice => {
            vec![call("\0paid", 4), Instruction::UnpackList(4), same, call("\0eager", 1)]
        }
        Instruction::Add | Instruction::Mul => vec![same, call("\0eager", 1)],
        Instruction::BuildList(_)
        | Instruction::BuildTuple(_)
        | Instruction::CallFunction(..)
        | Instruction::CallObject(_) => vec![same, call("\0settled", 1)],
        Instruction::SetAttr(_) => {
            vec![Instruction::Swap, call("\0kept", 1), Instruction::Swap, same]
        }
        Instruction::ApplyFilter(name, count, _) => {
            vec![Instruction::CallFunction(names.get('|', name), *count)]
        }
        Instruction::PerformTest(name, count, _) if !LIGHT_TESTS.contains(name) => {
            vec![Instruction::CallFunction(names.get('?', name), *count)]
        }
        Instruction::CallMethod(name, count) => {
            vec![Instruction::CallFunction(names.get('.', name), *count)]
        }
        _ => vec![same],
    }
}

/// Fuel that is paid in parts.
struct Toll<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    units: Cell<u64>,
}

impl<'a, 'b, 'c> Toll<'a, 'b, 'c> {
    fn new(state: &'a State<'b, 'c>) -> Self {
        Toll { state, units: Cell::new(0) }
    }

    fn pay(&self, units: u64) -> Result<(), Error> {
        let units = self.units.get().saturating_add(units);
        self.units.set(units % UNITS);
        match units / UNITS {
            0 => Ok(()),
            fuel => self.state.consume_fuel(fuel),
        }
    }

    /// For walking all of a value, as comparing it, hashing it and making a text of it do.
    fn walk(&self, value: &Value) -> Result<(), Error> {
        self.walk_from(value, 0)
    }

    fn walk_from(&self, value: &Value, depth: usize) -> Result<(), Error> {
        self.pay(value.as_str().map_or(WALK_UNITS, |text| text.len() as u64))?;
        each(value, depth, |item| self.walk_from(item, depth + 1))
    }
}

fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// Looks at what a value holds; of texts that is nothing.
fn each(
    value: &Value,
    depth: usize,
    mut look: impl FnMut(&Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let is_map = match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        _ => return Ok(()),
    };
    if depth > MAX_DEPTH {
        return Err(refused("a value is nested too deeply"));
    }
    for item in value.try_iter()?.checked() {
        let item = item?;
        look(&item)?;
        if is_map {
            look(&value.get_item(&item)?)?;
        }
    }
    Ok(())
}

/// A value none of which is lazy, and that is not nested too deeply.
fn settled(toll: &Toll, value: Value, depth: usize) -> Result<Value, Error> {
    let value = eager(toll, value)?;
    if !holds_lazy(toll, &value, depth)? {
        return Ok(value);
    }
    if value.kind() != ValueKind::Seq {
        return Err(refused("a map holds what is no value"));
    }
    let items = value.try_iter()?.checked().map(|item| settled(toll, item?, depth + 1));
    items.collect::<Result<Vec<_>, _>>().map(Value::from)
}

/// Whether something in a value makes its items only when it is walked.
fn holds_lazy(toll: &Toll, value: &Value, depth: usize) -> Result<bool, Error> {
    let mut holds = false;
    each(value, depth, |item| {
        toll.pay(LOOK_UNITS)?;
        holds |= item.kind() == ValueKind::Iterable;
        if item.as_object().is_some() && !holds {
            holds = holds_lazy(toll, item, depth + 1)?;
        }
        Ok(())
    })?;
    Ok(holds)
}

/// A list in place of what makes its items when it is walked.
fn eager(toll: &Toll, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = vec![];
    for item in value.try_iter()?.checked() {
        toll.pay(SLOT_UNITS)?;
        items.push(item?);
    }
    Ok(Value::from(items))
}

/// Whether a namespace may keep a value: one that holds a namespace could come to hold itself.
fn check_kept(toll: &Toll, value: &Value, depth: usize) -> Result<(), Error> {
    toll.pay(LOOK_UNITS)?;
    let is_namespace = value.as_object().is_some_and(|o| o.type_name().ends_with("Namespace"));
    if is_namespace {
        return Err(refused("a namespace cannot hold a namespace"));
    }
    each(value, depth, |item| check_kept(toll, item, depth + 1))
}

/// Fails where so many bytes more could not be paid for.
pub fn ensure(state: &State, bytes: usize) -> Result<(), Error> {
    match state.fuel_levels() {
        Some((_, left)) if bytes as u64 / UNITS >= left => state.consume_fuel(left + 1),
        _ => Ok(()),
    }
}

/// What a filter makes.
fn filter(state: &mut State, name: &str, given: &[Value]) -> Result<Value, Error> {
    let toll = Toll::new(state);
    let Some((value, rest)) = given.split_first() else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    // What the filter itself calls for each item.
    let for_each = match name {
        "map" | "select" | "reject" => rest.first(),
        "selectattr" | "rejectattr" => rest.get(1),
        _ => None,
    };
    let for_each = for_each.and_then(|name| name.as_str());
    let is_light = |name: &str| {
        let compares = COMPARING.iter().any(|(test, _)| *test == name);
        LIGHT_FILTERS.contains(&name) || LIGHT_TESTS.contains(&name) || compares
    };
    match value.as_str() {
        Some(text) => toll.pay(text.len() as u64)?,
        None if LIGHT_FILTERS.contains(&name) && for_each.is_none_or(is_light) => {}
        None => toll.walk(value)?,
    }
    // What sorts compares each item with some of the others.
    let times = match name {
        "sort" | "unique" | "groupby" | "dictsort" => u64::from(usize::BITS),
        _ => 1,
    };
    for _ in 1..times {
        toll.walk(value)?;
    }
    let times = if for_each.is_some() { value.len().unwrap_or(0) } else { 1 };
    for _ in 0..times {
        rest.iter().try_for_each(|value| toll.walk(value))?;
    }
    state.apply_filter(name, given).map_err(|error| named(error, "filter", name))
}

/// What a test says.
fn test(state: &mut State, name: &str, given: &[Value]) -> Result<Value, Error> {
    let toll = Toll::new(state);
    let compares = COMPARING.iter().any(|(test, _)| *test == name);
    if !compares {
        given.iter().try_for_each(|value| toll.walk(value))?;
    }
    let told = state.perform_test(name, given).map_err(|error| named(error, "test", name));
    told.map(Value::from)
}

/// The error with the name of what is not there.
fn named(error: Error, kind: &str, name: &str) -> Error {
    match error.kind() {
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest if error.detail().is_none() => {
            Error::new(error.kind(), format!("{kind} {name} is unknown"))
        }
        _ => error,
    }
}

/// What a method returns.
fn method(state: &mut State, name: &str, given: &[Value]) -> Result<Value, Error> {
    let toll = Toll::new(state);
    let Some((value, rest)) = given.split_first() else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    rest.iter().try_for_each(|value| toll.walk(value))?;
    match value.as_str() {
        None if value.kind() == ValueKind::Map => {}
        None => toll.walk(value)?,
        Some(text) => {
            toll.pay(text.len() as u64)?;
            let separator = rest.first().and_then(|separator| separator.as_str());
            let separator = separator.filter(|separator| !separator.is_empty());
            match (name, separator) {
                ("split" | "rsplit", Some(separator)) => {
                    text.matches(separator).try_for_each(|_| toll.pay(SLOT_UNITS))?;
                }
                ("split" | "rsplit", None) => {
                    text.split_whitespace().try_for_each(|_| toll.pay(SLOT_UNITS))?;
                }
                ("splitlines", _) => text.lines().try_for_each(|_| toll.pay(SLOT_UNITS))?,
                ("format", _) => {
                    check_widths(text)?;
                    for _ in text.matches('{') {
                        rest.iter().try_for_each(|value| toll.walk(value))?;
                    }
                }
                _ => {}
            }
        }
    }
    value.call_method(state, name, rest)
}

/// Whether no field of a format is wider, or more precise, than it may be.
fn check_widths(format: &str) -> Result<(), Error> {
    let mut numbers =
        format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let most = super::python::MAX_WIDTH;
    match numbers.any(|digits| digits.parse::<u64>().map_or(true, |width| width > most)) {
        true => Err(refused(format!("format: no number may be more than {most}"))),
        false => Ok(()),
    }
}

/// `a < b` and the like.
fn compare(state: &State, operator: &str, a: &Value, b: &Value) -> Result<bool, Error> {
    let toll = Toll::new(state);
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => toll.pay(a.len().min(b.len()) as u64 / 16)?,
        _ if a.as_object().is_some() && b.as_object().is_some() && operator != "in" => {
            toll.walk(a)?;
            toll.walk(b)?;
        }
        _ => {}
    }
    let ordering = || {
        let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
        let kinds = (a.kind(), b.kind());
        let is_alike = is_number(a) && is_number(b)
            || kinds.0 == kinds.1 && matches!(kinds.0, ValueKind::String | ValueKind::Seq);
        match is_alike {
            true => Ok(a.partial_cmp(b)),
            false => {
                let what = format!("'{operator}' is not for a {} and a {}", kinds.0, kinds.1);
                Err(refused(what))
            }
        }
    };
    Ok(match operator {
        "==" => a == b,
        "!=" => a != b,
        "<" => ordering()? == Some(Ordering::Less),
        ">" => ordering()? == Some(Ordering::Greater),
        "<=" => matches!(ordering()?, Some(Ordering::Less | Ordering::Equal)),
        ">=" => matches!(ordering()?, Some(Ordering::Greater | Ordering::Equal)),
        "in" => contains(&toll, a, b)?,
        _ => minijinja::tests::is_sameas(a, b),
    })
}

/// `part in whole`.
fn contains(toll: &Toll, part: &Value, whole: &Value) -> Result<bool, Error> {
    let refuse =
        || Err(refused(format!("'in' is not for a {} in a {}", part.kind(), whole.kind())));
    toll.walk(part)?;
    match whole.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::String => match (part.as_str(), whole.as_str()) {
            (Some(part), Some(whole)) => {
                toll.pay(whole.len() as u64)?;
                Ok(whole.contains(part))
            }
            _ => refuse(),
        },
        ValueKind::Map => Ok(!whole.get_item(part)?.is_undefined()),
        ValueKind::Seq | ValueKind::Iterable => {
            for item in whole.try_iter()? {
                toll.pay(SLOT_UNITS)?;
                if part.as_object().is_some() {
                    toll.walk(&item)?;
                }
                if item == *part {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => refuse(),
    }
}

/// `a ~ b`.
fn concat(state: &State, a: &Value, b: &Value) -> Result<String, Error> {
    let mut text = String::new();
    for part in [a, b] {
        let bytes = part.as_str().map_or(0, str::len);
        ensure(state, text.len() + bytes)?;
        dump::write_text(state, part, &mut text)?;
    }
    Ok(text)
}

/// `whole[key]`.
fn item(state: &State, whole: &Value, key: &Value) -> Result<Value, Error> {
    let toll = Toll::new(state);
    if key.as_object().is_some() {
        toll.walk(key)?;
    }
    // Characters have no places but by counting.
    toll.pay(whole.as_str().map_or(0, |text| text.len() as u64 / 16))?;
    whole.get_item(key)
}

/// `{key: value}`.
fn map(state: &State, given: Rest<Value>) -> Result<Value, Error> {
    let toll = Toll::new(state);
    let mut pairs = vec![];
    for pair in given.chunks_exact(2) {
        toll.walk(&pair[0])?;
        toll.pay(2 * SLOT_UNITS)?;
        pairs.push((pair[0].clone(), pair[1].clone()));
    }
    settled(&toll, Value::from_pairs(pairs), 0)
}
