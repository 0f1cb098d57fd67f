//! How long a call may take: as its row says, or as its caller says (`grpc-timeout`), whichever is less.
//!
//! The header's form is that of <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>: one to eight digits and a
//! unit. What has another form is taken for absent.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::rules::Length;

const HEADER: HeaderName = HeaderName::from_static("grpc-timeout");
const MAX_DIGITS: usize = 8;

/// When the call must have ended, from now; `None`: a stream whose caller does not say.
pub(super) fn of(length: Length, headers: &HeaderMap) -> Option<Duration> {
    let asked = headers.get(HEADER).and_then(|value| parse(value.to_str().ok()?));
    match length {
        Length::Call(most) => Some(asked.map_or(most, |asked| asked.min(most))),
        Length::Stream => asked,
    }
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > MAX_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(length: Length, text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, text.parse().unwrap());
        of(length, &headers)
    }

    #[test]
    fn a_caller_may_ask_for_less_and_never_gets_more() {
        const ROW: Length = Length::Call(Duration::from_secs(30));
        for (text, expected) in [
            ("1S", Duration::from_secs(1)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("99999999H", Duration::from_secs(30)),
            ("1M", Duration::from_secs(30)),
        ] {
            assert_eq!(asked(ROW, text), Some(expected), "{text}");
        }
        assert_eq!(of(ROW, &HeaderMap::new()), Some(Duration::from_secs(30)));
        assert_eq!(of(Length::Stream, &HeaderMap::new()), None);
        assert_eq!(asked(Length::Stream, "2M"), Some(Duration::from_secs(120)));
    }

    #[test]
    fn another_form_is_taken_for_absent() {
        for text in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "1 S", "0x1S"] {
            assert_eq!(asked(Length::Stream, text), None, "{text}");
        }
    }
}
