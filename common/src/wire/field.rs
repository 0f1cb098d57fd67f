//! Single fields: what is missing, too long, unknown or senseless is refused under the field's name.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;

use super::{Error, Problem};

/// The highest term or generation: beyond it only an attack or a defect can have come.
const MAX_NUMBER: u64 = i64::MAX as u64;
/// The longest text of anything that is parsed further.
const MAX_PARSED_BYTES: usize = 2048;

/// The name of a field, on which its rules are called.
#[derive(Debug, Clone, Copy)]
pub struct Field(pub &'static str);

/// An enum that has a counterpart on the wire, where 0 stands for nothing.
pub trait WireEnum: Sized + Copy {
    /// # Errors
    /// [`Problem::Missing`] for 0, [`Problem::UnknownValue`] for a number that this build does not know.
    fn from_wire(number: i32) -> Result<Self, Problem>;

    fn to_wire(self) -> i32;
}

/// Counterparts by name; both sides are matched exhaustively.
macro_rules! wire_enum {
    ($domain:ty, $proto:ty, $($variant:ident),+ $(,)?) => {
        impl $crate::wire::WireEnum for $domain {
            fn from_wire(number: i32) -> Result<Self, $crate::wire::Problem> {
                match <$proto>::try_from(number) {
                    Ok(<$proto>::Unspecified) => Err($crate::wire::Problem::Missing),
                    $(Ok(<$proto>::$variant) => Ok(Self::$variant),)+
                    Err(_) => Err($crate::wire::Problem::UnknownValue { value: number }),
                }
            }

            fn to_wire(self) -> i32 {
                <$proto>::from(self).into()
            }
        }

        impl From<$domain> for $proto {
            fn from(value: $domain) -> Self {
                match value {
                    $(<$domain>::$variant => Self::$variant,)+
                }
            }
        }
    };
}
pub(super) use wire_enum;

// === impl Field ===

impl Field {
    pub fn refuse(self, problem: Problem) -> Error {
        Error::new(self.0, problem)
    }

    pub fn malformed(self, error: impl fmt::Display) -> Error {
        self.refuse(Problem::Malformed(error.to_string()))
    }

    /// What must be there.
    pub fn required<T>(self, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.refuse(Problem::Missing))
    }

    /// A message that must be there.
    pub fn message<D, P>(self, value: Option<P>) -> Result<D, Error>
    where
        D: TryFrom<P, Error = Error>,
    {
        self.nested(self.required(value)?)
    }

    /// A message that may be absent.
    pub fn optional_message<D, P>(self, value: Option<P>) -> Result<Option<D>, Error>
    where
        D: TryFrom<P, Error = Error>,
    {
        value.map(|value| self.nested(value)).transpose()
    }

    pub fn nested<D, P>(self, value: P) -> Result<D, Error>
    where
        D: TryFrom<P, Error = Error>,
    {
        D::try_from(value).map_err(|error| error.within(self.0))
    }

    /// A list of messages.
    pub fn list<D, P>(self, values: Vec<P>, most: usize) -> Result<Vec<D>, Error>
    where
        D: TryFrom<P, Error = Error>,
    {
        self.each(values, most, |value| D::try_from(value))
    }

    /// A list of texts that are parsed.
    pub fn parsed_list<D>(self, values: Vec<String>, most: usize) -> Result<Vec<D>, Error>
    where
        D: FromStr,
        D::Err: fmt::Display,
    {
        self.each(values, most, |value| Field("").parsed(value))
    }

    pub fn each<D, P>(
        self,
        values: Vec<P>,
        most: usize,
        convert: impl Fn(P) -> Result<D, Error>,
    ) -> Result<Vec<D>, Error> {
        if values.len() > most {
            return Err(self.refuse(Problem::TooMany { count: values.len(), most }));
        }
        let mut list = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            list.push(convert(value).map_err(|error| error.within(format_args!("{}[{index}]", self.0)))?);
        }
        Ok(list)
    }

    /// Nothing may be named twice.
    pub fn distinct<T, K: Eq + Hash + fmt::Display>(
        self,
        list: &[T],
        key: impl Fn(&T) -> K,
    ) -> Result<(), Error> {
        let mut seen = HashSet::with_capacity(list.len());
        for item in list {
            let key = key(item);
            if seen.contains(&key) {
                return Err(self.refuse(Problem::Repeated { name: key.to_string() }));
            }
            seen.insert(key);
        }
        Ok(())
    }

    /// A text that must be there.
    pub fn text(self, text: String, most: usize) -> Result<String, Error> {
        if text.is_empty() { Err(self.refuse(Problem::Missing)) } else { self.text_or_empty(text, most) }
    }

    pub fn text_or_empty(self, text: String, most: usize) -> Result<String, Error> {
        if text.len() > most {
            return Err(self.refuse(Problem::TooLong { bytes: text.len(), most }));
        }
        if text.contains('\0') {
            return Err(self.malformed("has a NUL character"));
        }
        Ok(text)
    }

    /// A text of which empty means none.
    pub fn optional_text(self, text: String, most: usize) -> Result<Option<String>, Error> {
        if text.is_empty() { Ok(None) } else { self.text(text, most).map(Some) }
    }

    /// One word of visible ASCII, such as a version or an identifier that an engine made.
    pub fn label(self, text: String, most: usize) -> Result<String, Error> {
        let text = self.text(text, most)?;
        if text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(text)
        } else {
            Err(self.malformed("has other characters than visible ASCII"))
        }
    }

    pub fn optional_label(self, text: String, most: usize) -> Result<Option<String>, Error> {
        if text.is_empty() { Ok(None) } else { self.label(text, most).map(Some) }
    }

    /// A text with a grammar of its own.
    pub fn parsed<T>(self, text: String) -> Result<T, Error>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.text(text, MAX_PARSED_BYTES)?.parse().map_err(|error| self.malformed(error))
    }

    pub fn optional_parsed<T>(self, text: String) -> Result<Option<T>, Error>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        if text.is_empty() { Ok(None) } else { self.parsed(text).map(Some) }
    }

    /// An address at which a machine can be reached.
    pub fn address(self, text: String) -> Result<IpAddr, Error> {
        let address: IpAddr = self.parsed(text)?;
        let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        if address.is_unspecified() || address.is_multicast() || mapped {
            return Err(self.refuse(Problem::OutOfRange {
                expected: "the address of one machine, not 0.0.0.0, ::, a group, or IPv4 inside IPv6",
            }));
        }
        Ok(address)
    }

    pub fn port(self, number: u32) -> Result<u16, Error> {
        match u16::try_from(number) {
            Ok(0) => Err(self.refuse(Problem::Missing)),
            Ok(port) => Ok(port),
            Err(_) => Err(self.refuse(Problem::OutOfRange { expected: "1–65535" })),
        }
    }

    /// A port, or 0 for none.
    pub fn optional_port(self, number: u32) -> Result<Option<u16>, Error> {
        if number == 0 { Ok(None) } else { self.port(number).map(Some) }
    }

    pub fn ports(self, numbers: &[u32], most: usize) -> Result<Vec<u16>, Error> {
        if numbers.len() > most {
            return Err(self.refuse(Problem::TooMany { count: numbers.len(), most }));
        }
        numbers.iter().map(|number| self.port(*number)).collect()
    }

    /// A term or generation; 0 is none.
    pub fn number(self, number: u64) -> Result<u64, Error> {
        if number > MAX_NUMBER {
            Err(self.refuse(Problem::OutOfRange { expected: "less than 2^63" }))
        } else {
            Ok(number)
        }
    }

    /// A term or generation that must be there.
    pub fn positive(self, number: u64) -> Result<u64, Error> {
        if number == 0 { Err(self.refuse(Problem::Missing)) } else { self.number(number) }
    }

    /// A measured quantity: finite, not negative.
    pub fn quantity(self, value: f64) -> Result<f64, Error> {
        if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(self.refuse(Problem::NotANumber)) }
    }

    pub fn optional_quantity(self, value: Option<f64>) -> Result<Option<f64>, Error> {
        value.map(|value| self.quantity(value)).transpose()
    }

    /// A share: 0..=1, with a little room for the rounding of those who measure.
    pub fn fraction(self, value: f64) -> Result<f64, Error> {
        match self.quantity(value)? {
            value if value <= 1.0 => Ok(value),
            value if value <= 1.01 => Ok(1.0),
            _ => Err(self.refuse(Problem::OutOfRange { expected: "0..1" })),
        }
    }

    pub fn time(self, time: Option<prost_types::Timestamp>) -> Result<Timestamp, Error> {
        self.moment(self.required(time)?)
    }

    pub fn optional_time(self, time: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, Error> {
        time.map(|time| self.moment(time)).transpose()
    }

    fn moment(self, time: prost_types::Timestamp) -> Result<Timestamp, Error> {
        const EXPECTED: &str = "a time of the years 1–9999";
        if !(0..1_000_000_000).contains(&time.nanos) {
            return Err(self.refuse(Problem::OutOfRange { expected: EXPECTED }));
        }
        match Timestamp::new(time.seconds, time.nanos) {
            Ok(moment) if time.seconds >= -62_135_596_800 => Ok(moment),
            Ok(_) | Err(_) => Err(self.refuse(Problem::OutOfRange { expected: EXPECTED })),
        }
    }

    pub fn duration(self, duration: Option<prost_types::Duration>) -> Result<Duration, Error> {
        let duration = self.required(duration)?;
        match (u64::try_from(duration.seconds), u32::try_from(duration.nanos)) {
            (Ok(seconds @ 0..=315_576_000_000), Ok(nanos @ 0..=999_999_999)) => {
                Ok(Duration::new(seconds, nanos))
            }
            _ => Err(self.refuse(Problem::OutOfRange { expected: "0 to 10,000 years" })),
        }
    }

    /// An enum of which 0 is refused.
    pub fn enumerated<E: WireEnum>(self, number: i32) -> Result<E, Error> {
        E::from_wire(number).map_err(|problem| self.refuse(problem))
    }

    /// An enum of which 0 means unknown.
    pub fn optional_enumerated<E: WireEnum>(self, number: i32) -> Result<Option<E>, Error> {
        if number == 0 { Ok(None) } else { self.enumerated(number).map(Some) }
    }
}

/// The text without NUL characters, cut where it has more than `most` bytes.
pub fn cut(text: &str, most: usize) -> String {
    let mut kept = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.to_owned() };
    if kept.len() > most {
        let mut end = most.saturating_sub('…'.len_utf8());
        while !kept.is_char_boundary(end) {
            end -= 1;
        }
        kept.truncate(end);
        kept.push('…');
    }
    kept
}

pub fn time_to_wire(time: Timestamp) -> prost_types::Timestamp {
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    prost_types::Timestamp { seconds, nanos }
}

pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX).min(315_576_000_000),
        nanos: i32::try_from(duration.subsec_nanos())
            .expect("a second has 10^9 nanoseconds, which fit in 31 bits"),
    }
}
