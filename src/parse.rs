//! The string forms of ids and identities.

use std::str::FromStr;

use crate::ids::{Gid, Uid};
use crate::lookup_error::LookupError;

/// Accepts decimal digits only, without sign or space. Returns [`LookupError::ParseGid`] for any
/// other string, and for [`u32::MAX`].
impl FromStr for Gid {
    type Err = LookupError;

    fn from_str(text: &str) -> Result<Self, LookupError> {
        parse_id(text)
            .map(Gid::from_raw)
            .ok_or_else(|| LookupError::ParseGid { text: text.into() })
    }
}

/// Accepts decimal digits only, without sign or space. Returns [`LookupError::ParseUid`] for any
/// other string, and for [`u32::MAX`].
impl FromStr for Uid {
    type Err = LookupError;

    fn from_str(text: &str) -> Result<Self, LookupError> {
        parse_id(text)
            .map(Uid::from_raw)
            .ok_or_else(|| LookupError::ParseUid { text: text.into() })
    }
}

/// Parses decimal digits, of a number that an id can have.
fn parse_id(text: &str) -> Option<u32> {
    let only_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|&raw| only_digits && raw != u32::MAX)
}

/// A user or group as written in the string form of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Number(u32),
    Name(&'a str),
}

/// Splits the string form of an identity into a user and, if one is given, a group.
pub(crate) fn parse_fields(text: &str) -> Result<(Field<'_>, Option<Field<'_>>), LookupError> {
    let error = |problem| LookupError::ParseIdentity {
        text: text.into(),
        problem,
    };
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = parse_field(user).map_err(error)?;
    Ok((user, group.map(parse_field).transpose().map_err(error)?))
}

fn parse_field(field: &str) -> Result<Field<'_>, &'static str> {
    if field.is_empty() {
        return Err("a user or group is empty");
    }
    if field.contains(':') {
        return Err("it contains more than one colon");
    }
    if field.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("it contains a space or a control character");
    }
    if field.starts_with(['-', '+']) {
        return Err("a user or group starts with a sign");
    }
    if field.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_id(field)
            .map(Field::Number)
            .ok_or("a number is larger than 4294967294");
    }
    Ok(Field::Name(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_only_plain_decimal_numbers_in_range() {
        for (text, id) in [
            ("0", 0),
            ("1004", 1004),
            ("0007", 7),
            ("4294967294", u32::MAX - 1),
        ] {
            assert_eq!(text.parse::<Gid>().unwrap(), Gid::from_raw(id), "{text}");
            assert_eq!(text.parse::<Uid>().unwrap(), Uid::from_raw(id), "{text}");
        }
        for text in [
            "",
            "-1",
            "+1",
            "-0",
            " 1",
            "1 ",
            "0x10",
            "1.0",
            "adm",
            "4294967295",
            "4294967296",
            "99999999999999999999",
            "\u{661}",
        ] {
            assert!(
                matches!(text.parse::<Gid>(), Err(LookupError::ParseGid { .. })),
                "{text}"
            );
            assert!(
                matches!(text.parse::<Uid>(), Err(LookupError::ParseUid { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn parses_the_accepted_forms() {
        use Field::{Name, Number};
        for (text, fields) in [
            ("alice", (Name("alice"), None)),
            ("1000", (Number(1000), None)),
            ("alice:staff", (Name("alice"), Some(Name("staff")))),
            ("1000:1000", (Number(1000), Some(Number(1000)))),
            ("alice:1000", (Name("alice"), Some(Number(1000)))),
            ("1000:staff", (Number(1000), Some(Name("staff")))),
            ("a.b$:c.d", (Name("a.b$"), Some(Name("c.d")))),
            ("007:0", (Number(7), Some(Number(0)))),
            ("4294967294:1x", (Number(u32::MAX - 1), Some(Name("1x")))),
            ("a-b:_c+", (Name("a-b"), Some(Name("_c+")))),
        ] {
            assert_eq!(parse_fields(text).unwrap(), fields, "{text}");
        }
    }

    #[test]
    fn rejects_all_other_strings() {
        for text in [
            "",
            ":",
            "alice:",
            ":staff",
            "a:b:c",
            "a::b",
            "-1",
            "+1",
            "1000:-1",
            "-a",
            "+a:b",
            " alice",
            "alice ",
            "a b",
            "alice\n",
            "alice:\tstaff",
            "a\0",
            "4294967295",
            "1:4294967295",
            "99999999999999999999:1",
        ] {
            let error = parse_fields(text).unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains(&format!("{text:?}")) && message.contains("1000:1000"),
                "{message}"
            );
        }
    }
}
