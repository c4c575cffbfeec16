//! What stands behind Llama's `<|python_tag|>`: a call of a built-in tool, `brave_search.call(query="…")`, or Python code.

use serde_json::{Map, Value};

/// The tool that runs Python code, as Llama's own documentation calls it.
pub(super) const CODE: &str = "code_interpreter";

/// Name and arguments (JSON) of the call.
pub(super) fn read(text: &str) -> (String, String) {
    builtin(text.trim()).unwrap_or_else(|| {
        let code = Value::from(text);
        (CODE.to_owned(), Value::from_iter([("code", code)]).to_string())
    })
}

fn builtin(text: &str) -> Option<(String, String)> {
    let (name, rest) = text.split_once(".call(")?;
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let mut rest = rest.strip_suffix(')')?.trim();
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=')?;
        let key = key.trim();
        if !plain(key) {
            return None;
        }
        let mut values = serde_json::Deserializer::from_str(value).into_iter::<Value>();
        arguments.insert(key.to_owned(), values.next()?.ok()?);
        let behind = value.get(values.byte_offset()..)?.trim_start();
        rest = match behind.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if behind.is_empty() => "",
            None => return None,
        };
    }
    plain(name).then(|| (name.to_owned(), Value::Object(arguments).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_tools_and_code() {
        let read = |text| {
            let (name, arguments) = read(text);
            format!("{name} {arguments}")
        };
        assert_eq!(
            read(r#"brave_search.call(query="a, \"b\" = (c)", count = 3)"#),
            r#"brave_search {"query":"a, \"b\" = (c)","count":3}"#
        );
        assert_eq!(read("now.call()"), "now {}");
        for code in ["print(1)", "x.call(1)", "a b.call()", "f.call(x='1')"] {
            assert_eq!(
                read(code),
                format!("code_interpreter {}", serde_json::json!({"code": code}))
            );
        }
    }
}
