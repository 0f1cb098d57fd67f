//! At which times: a cron expression by the clocks of a time zone, or once.
//!
//! Where clocks are set forward over a time, it comes right after the gap; where they are set back over it, it comes once, the first time.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::{Deserialize, Serialize};

/// Two times are at least so far apart: closer ones are a slip, such as a `*` for the hours.
const APART: SignedDuration = SignedDuration::from_hours(6);
/// How far ahead a single time may lie.
const FURTHEST: SignedDuration = SignedDuration::from_hours(366 * 24);
/// Longer than any expression of sense.
const MAX_EXPRESSION: usize = 100;
const MAX_ZONE: usize = 64;
/// How many times of an expression are looked at for whether they are far enough apart.
const LOOKED_AT: usize = 50;

/// When a node is rebooted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    Cron {
        /// Minute, hour, day of month, month, day of week.
        expression: String,
        /// Of the IANA database.
        time_zone: String,
    },
    Once {
        at: Timestamp,
    },
}

/// Why there are no such times.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("has {length} characters; at most {MAX_EXPRESSION} are allowed")]
    TooLong { length: usize },
    #[error(
        "`{expression}` is no cron expression: {why}; give minute, hour, day of month, month and day of week, such as `0 3 * * SUN` for Sundays at 3:00"
    )]
    Expression { expression: String, why: String },
    #[error("`{expression}` names a day that never comes")]
    Never { expression: String },
    #[error(
        "`{expression}` comes at {first} and again at {second}; leave at least {hours} hours between, as `0 3 * * *` does: daily at 3:00",
        hours = APART.as_hours()
    )]
    TooOften { expression: String, first: Timestamp, second: Timestamp },
    #[error(
        "is no time zone that the coordinator's machine knows; give a name of the IANA database, such as `Europe/Berlin`, or `UTC`"
    )]
    Zone,
    #[error("is over; it is {now}")]
    Over { now: Timestamp },
    #[error("is too far away; it must lie within a year")]
    TooFar,
}

// === impl When ===

impl When {
    /// By a cron expression; an empty zone is UTC.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn cron(expression: &str, time_zone: &str, now: Timestamp) -> Result<Self, Error> {
        let time_zone = if time_zone.is_empty() { "UTC" } else { time_zone };
        let expression = expression.trim();
        let length = expression.chars().count();
        if length > MAX_EXPRESSION {
            return Err(Error::TooLong { length });
        }
        let this = Self::Cron { expression: expression.to_owned(), time_zone: time_zone.to_owned() };
        let times = this.next(now, LOOKED_AT)?;
        let close = times.windows(2).find(|pair| pair[1].duration_since(pair[0]) < APART);
        match close {
            None => Ok(this),
            Some(pair) => {
                Err(Error::TooOften { expression: expression.to_owned(), first: pair[0], second: pair[1] })
            }
        }
    }

    /// At this time, and never again.
    ///
    /// # Errors
    /// If it is over or too far away.
    pub fn once(at: Timestamp, now: Timestamp) -> Result<Self, Error> {
        match at.duration_since(now) {
            ahead if ahead <= SignedDuration::ZERO => Err(Error::Over { now }),
            ahead if ahead > FURTHEST => Err(Error::TooFar),
            _ => Ok(Self::Once { at }),
        }
    }

    /// The next times after this one, at most so many; fewer: there are no more.
    ///
    /// # Errors
    /// If the expression or the time zone is not understood, or no longer.
    pub fn next(&self, after: Timestamp, count: usize) -> Result<Vec<Timestamp>, Error> {
        let (expression, time_zone) = match self {
            Self::Once { at } => return Ok([*at].into_iter().filter(|at| *at > after).take(count).collect()),
            Self::Cron { expression, time_zone } => (expression, time_zone),
        };
        let zone = zone(time_zone)?;
        let cron = parsed(expression)?;
        let mut times = Vec::with_capacity(count);
        let mut last: Zoned = after.to_zoned(zone);
        while times.len() < count {
            let found = cron.find_next_occurrence(&last, false);
            last = found.map_err(|_| Error::Never { expression: expression.clone() })?;
            times.push(last.timestamp());
        }
        Ok(times)
    }

    /// That time as the clocks of its zone show it.
    pub fn on_the_wall(&self, time: Timestamp) -> String {
        let zone = match self {
            Self::Cron { time_zone, .. } => zone(time_zone).unwrap_or(TimeZone::UTC),
            Self::Once { .. } => TimeZone::UTC,
        };
        time.to_zoned(zone).strftime("%a %Y-%m-%d %H:%M %Z").to_string()
    }
}

/// `0 3 * * SUN Europe/Berlin`, or a time.
impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cron { expression, time_zone } => write!(f, "`{expression}` {time_zone}"),
            Self::Once { at } => write!(f, "{}", at.strftime("%Y-%m-%d %H:%M:%S UTC")),
        }
    }
}

// === impl Error ===

impl Error {
    /// Of a request, which it is about.
    pub fn field(&self) -> &'static str {
        match self {
            Self::TooLong { .. } | Self::Expression { .. } | Self::Never { .. } | Self::TooOften { .. } => {
                "cron"
            }
            Self::Zone => "time_zone",
            Self::Over { .. } | Self::TooFar => "at_time",
        }
    }
}

fn zone(name: &str) -> Result<TimeZone, Error> {
    if name.eq_ignore_ascii_case("UTC") {
        return Ok(TimeZone::UTC);
    }
    if name.len() > MAX_ZONE {
        return Err(Error::Zone);
    }
    TimeZone::get(name).map_err(|_| Error::Zone)
}

fn parsed(expression: &str) -> Result<Cron, Error> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(expression).map_err(|error| Error::Expression {
        expression: expression.to_owned(),
        why: error.to_string().trim_end_matches('.').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(expression: &str, time_zone: &str, after: &str, count: usize) -> Vec<String> {
        let when = When::cron(expression, time_zone, time(after)).unwrap();
        let times = when.next(time(after), count).unwrap();
        times.into_iter().map(|time| time.to_string()).collect()
    }

    #[test]
    fn a_time_of_the_week_is_the_same_on_the_wall_whether_it_is_summer_or_not() {
        let times = next("0 3 * * SUN", "Europe/Berlin", "2026-10-12T00:00:00Z", 3);
        assert_eq!(times, ["2026-10-18T01:00:00Z", "2026-10-25T02:00:00Z", "2026-11-01T02:00:00Z"]);
        let times = next("0 3 * * SUN", "", "2026-10-18T03:00:00Z", 2);
        assert_eq!(times, ["2026-10-25T03:00:00Z", "2026-11-01T03:00:00Z"]);
    }

    #[test]
    fn a_time_that_the_clocks_leave_out_comes_right_after_the_gap_and_one_they_repeat_comes_once() {
        // At 2:00 of March 29 the clocks show 3:00; at 3:00 of October 25 they show 2:00 again.
        let times = next("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
        assert_eq!(times, ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        let times = next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(times, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        // Asked between the two.
        let times = next("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", 1);
        assert_eq!(times, ["2026-10-26T01:30:00Z"]);
    }

    #[test]
    fn days_may_be_named_as_the_last_of_a_month_or_the_second_of_their_kind() {
        assert_eq!(next("0 4 L * *", "UTC", "2028-02-01T00:00:00Z", 1), ["2028-02-29T04:00:00Z"]);
        assert_eq!(next("0 4 * * TUE#2", "UTC", "2026-12-01T00:00:00Z", 1), ["2026-12-08T04:00:00Z"]);
        assert_eq!(next("@weekly", "UTC", "2026-11-23T00:00:00Z", 1), ["2026-11-29T00:00:00Z"]);
        assert_eq!(
            next("0 0 29 2 *", "UTC", "2026-11-23T00:00:00Z", 2).last().unwrap(),
            "2032-02-29T00:00:00Z"
        );
    }

    #[test]
    fn what_is_no_expression_is_told_with_one_that_is() {
        let now = time("2026-11-23T00:00:00Z");
        let refused = |expression: &str| When::cron(expression, "", now).unwrap_err().to_string();
        for bad in ["", "0", "0 25 * * *", "0 3 * * NODAY", "0 3 * * * *", "every sunday", "0 3 32 * *"] {
            let told = refused(bad);
            assert!(
                told.contains("is no cron expression") && told.contains("`0 3 * * SUN`"),
                "{bad}: {told}"
            );
        }
        assert!(refused("0 3 30 2 *").contains("never comes"));
        assert!(refused("0 * * * SUN").contains("at least 6 hours"));
        assert!(refused("0 3,5 * * *").contains("2026-11-23T05:00:00Z"));
        assert!(refused(&"1,".repeat(99)).contains("at most 100"));
        assert_eq!(When::cron("0 3 * * *", "Mars/Olympus", now).unwrap_err().field(), "time_zone");
        assert_eq!(When::cron("0 3 * * *", &"x".repeat(65), now), Err(Error::Zone));
    }

    #[test]
    fn a_single_time_lies_ahead_and_within_a_year() {
        let now = time("2026-11-23T00:00:00Z");
        assert_eq!(When::once(now, now), Err(Error::Over { now }));
        assert_eq!(When::once(time("2028-01-01T00:00:00Z"), now), Err(Error::TooFar));
        let when = When::once(time("2026-11-24T03:00:00Z"), now).unwrap();
        assert_eq!(when.next(now, 3).unwrap(), [time("2026-11-24T03:00:00Z")]);
        assert!(when.next(time("2026-11-24T03:00:00Z"), 3).unwrap().is_empty());
    }
}
