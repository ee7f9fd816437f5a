//! JSON against a schema of OpenAPI 3.1, as far as ours uses the language.

use serde_json::Value;

/// Keywords that say nothing of a value.
const NOTES: [&str; 2] = ["description", "format"];

/// A document whose schemas refer to each other.
pub struct Schemas<'a>(pub &'a Value);

impl Schemas<'_> {
    /// What `reference` (`#/a/b`) stands for, or the value itself where it is none.
    pub fn resolve<'v>(&'v self, value: &'v Value) -> &'v Value {
        let Some(reference) = value.get("$ref") else { return value };
        let pointer = reference.as_str().and_then(|text| text.strip_prefix('#'));
        let found = pointer.and_then(|pointer| self.0.pointer(pointer));
        found.unwrap_or_else(|| panic!("{reference} refers to nothing"))
    }

    /// Where and how `value` is not as `schema` says. A field that is not described is wrong too:
    /// a document that leaves fields out describes another interface.
    pub fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolve(schema);
        let keywords = schema.as_object().expect("a schema is an object");
        for (keyword, wanted) in keywords {
            match keyword.as_str() {
                "type" => check_type(wanted, value, at)?,
                "enum" => {
                    let known = wanted.as_array().expect("enum is an array");
                    if !known.contains(value) {
                        return Err(format!("{at} is {value}, none of {wanted}"));
                    }
                }
                "minimum" => {
                    if value.as_f64() < wanted.as_f64() {
                        return Err(format!("{at} is {value}, less than {wanted}"));
                    }
                }
                "required" => {
                    let mut names = wanted.as_array().expect("required is an array").iter();
                    let missing = names.find(|name| value.get(name.as_str().unwrap()).is_none());
                    if let Some(name) = missing {
                        return Err(format!("{at} lacks {name}: {value}"));
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(wanted, item, &format!("{at}[{index}]"))?;
                    }
                }
                "properties" | "additionalProperties" => {}
                note if NOTES.contains(&note) => {}
                unknown => panic!("the checker does not know {unknown:?}, which is at {at}"),
            }
        }
        self.check_fields(schema, value, at)
    }

    fn check_fields(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let described = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties");
        if described.is_none() && others.is_none() {
            return Ok(());
        }
        for (name, field) in value.as_object().into_iter().flatten() {
            let schema = described.and_then(|described| described.get(name)).or(others);
            let schema = schema.ok_or_else(|| format!("{at}.{name} is not described: {field}"))?;
            self.check(schema, field, &format!("{at}.{name}"))?;
        }
        Ok(())
    }
}

fn check_type(wanted: &Value, value: &Value, at: &str) -> Result<(), String> {
    let is = |name: &Value| match name.as_str().expect("a type is a string") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        unknown => panic!("the checker does not know type {unknown:?}, which is at {at}"),
    };
    let fits = match wanted {
        Value::Array(names) => names.iter().any(is),
        name => is(name),
    };
    fits.then_some(()).ok_or_else(|| format!("{at} is no {wanted}: {value}"))
}
