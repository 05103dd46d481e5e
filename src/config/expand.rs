//! `${VAR}` in the values of config.yaml.
//!
//! | written | means |
//! |---|---|
//! | `${VAR}` | the variable; an error when it is not set |
//! | `${VAR:default}` | the variable, or `default` when it is not set |
//! | `${VAR:-default}` | the same, and `default` also when it is empty |
//! | `$$` | `$` |
//! | any other `$` | itself |
//!
//! A default ends at the first `}` and is taken literally. It works on values after the YAML is parsed,
//! so what a variable holds can never change the structure of the file.

use std::borrow::Cow;

/// Why a value has no expansion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// `${VAR}` without a default, and the variable is not set.
    #[error("the variable `{0}` is not set")]
    Unset(String),
    /// `${` without its `}`.
    #[error("`${{` has no closing `}}`")]
    Unclosed,
    /// What stands between the braces is not a variable.
    #[error("`{0}` is not the name of a variable")]
    BadName(String),
}

/// Replaces what the table above says. `vars` answers what a variable holds, `None` when it is not set.
pub fn expand<'t>(text: &'t str, vars: &dyn Fn(&str) -> Option<String>) -> Result<Cow<'t, str>, ExpandError> {
    if !text.contains("$$") && !text.contains("${") {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('{') {
            let (inner, after) = inner.split_once('}').ok_or(ExpandError::Unclosed)?;
            out.push_str(&lookup(inner, vars)?);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

fn lookup(inner: &str, vars: &dyn Fn(&str) -> Option<String>) -> Result<String, ExpandError> {
    let (name, default) = match inner.split_once(':') {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !valid {
        return Err(ExpandError::BadName(name.to_owned()));
    }
    let value = vars(name);
    match default.map(|d| (d.strip_prefix('-'), d)) {
        None => value.ok_or_else(|| ExpandError::Unset(name.to_owned())),
        Some((Some(default), _)) => Ok(value.filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned())),
        Some((None, default)) => Ok(value.unwrap_or_else(|| default.to_owned())),
    }
}

/// The shortest text that [`expand`] turns back into `literal`.
pub fn escape(literal: &str) -> Cow<'_, str> {
    if literal.contains("$$") || literal.contains("${") {
        Cow::Owned(literal.replace('$', "$$"))
    } else {
        Cow::Borrowed(literal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vars(name: &str) -> Option<String> {
        match name {
            "A" => Some("a: [x]\n#".to_owned()),
            "EMPTY" => Some(String::new()),
            "NEST" => Some("${A}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn each_form_means_what_the_table_says() {
        let unset = |name: &str| Err(ExpandError::Unset(name.to_owned()));
        for (text, want) in [
            ("plain", Ok("plain")),
            ("${A}", Ok("a: [x]\n#")),
            ("<${A}><${EMPTY}>", Ok("<a: [x]\n#><>")),
            ("${NEST}", Ok("${A}")),
            ("${NO:x}", Ok("x")),
            ("${NO:-x}", Ok("x")),
            ("${NO:}", Ok("")),
            ("${NO:-}", Ok("")),
            ("${NO:http://h:1/p}", Ok("http://h:1/p")),
            ("${EMPTY:x}", Ok("")),
            ("${EMPTY:-x}", Ok("x")),
            ("${NO:-${A}}", Ok("${A}")),
            ("$$", Ok("$")),
            ("$${A}", Ok("${A}")),
            ("$$$${A}", Ok("$${A}")),
            ("$A $ 5$", Ok("$A $ 5$")),
            ("a$b$$c", Ok("a$b$c")),
            ("${NO}", unset("NO")),
            ("${A", Err(ExpandError::Unclosed)),
            ("${}", Err(ExpandError::BadName(String::new()))),
            ("${1}", Err(ExpandError::BadName("1".to_owned()))),
            ("${A-x}", Err(ExpandError::BadName("A-x".to_owned()))),
        ] {
            assert_eq!(expand(text, &vars).map(Cow::into_owned), want.map(str::to_owned), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_expands_or_fails_without_a_panic(text in "[${}:\\-A-Cé \n]{0,40}") {
            let _ = expand(&text, &vars);
        }

        #[test]
        fn an_escaped_text_expands_to_itself(text in "[${}:A é]{0,40}|.*") {
            let escaped = escape(&text);
            prop_assert_eq!(expand(&escaped, &|_| None).unwrap(), text.as_str());
        }
    }
}
