//! What is printed: tables for people, JSON for programs. Results go to standard output, everything else to standard error.
//!
//! Text that comes from nodes is printed without control characters: a log line must not drive the terminal.

pub(crate) mod json;
pub(crate) mod progress;

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};

use comfy_table::{ContentArrangement, Table, presets};
use holdfast_proto::r#type::v1 as nouns;
use jiff::Timestamp;
use serde_json::Value;

use crate::args::Format;

/// Where a command writes its results.
pub(crate) struct Output {
    pub(crate) format: Format,
    stdout: Box<dyn Write>,
    pub(crate) now: Timestamp,
    /// Of the terminal, if the output is one.
    width: Option<u16>,
    /// Colours are wanted and shown.
    colours: bool,
}

/// How a state is painted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    Bad,
    Uncertain,
    Plain,
}

// === impl Output ===

impl Output {
    pub(crate) fn to_stdout(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = terminal.then(|| Table::new().width()).flatten();
        Self {
            format,
            stdout: Box::new(io::stdout()),
            now: Timestamp::now(),
            width,
            colours: terminal && !no_color,
        }
    }

    #[cfg(test)]
    pub(crate) fn to(format: Format, stdout: Box<dyn Write>, now: Timestamp) -> Self {
        Self { format, stdout, now, width: None, colours: false }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    pub(crate) fn is_wide(&self) -> bool {
        self.format == Format::Wide
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.width.is_some()
    }

    pub(crate) fn json(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.stdout, "{value:#}")
    }

    /// One object a line, for what goes on.
    pub(crate) fn json_line(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.stdout, "{value}")?;
        self.stdout.flush()
    }

    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        writeln!(self.stdout, "{}", text.as_ref())
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stdout.write_all(bytes)?;
        self.stdout.flush()
    }

    pub(crate) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        let text = self.table_text(header, rows);
        writeln!(self.stdout, "{text}")
    }

    pub(crate) fn table_text(&self, header: &[&str], rows: Vec<Vec<String>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header);
        match self.width {
            Some(width) => {
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_width(width);
            }
            None => {
                table.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        for row in rows {
            table.add_row(row.iter().map(|cell| plain(cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text = table.to_string();
        let lines: Vec<_> = text.lines().map(|line| self.painted_line(line.trim_end())).collect();
        lines.join("\n")
    }

    /// `key  value` lines.
    pub(crate) fn facts(&mut self, facts: &[(&str, String)]) -> io::Result<()> {
        let width = facts.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        for (key, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
            writeln!(
                self.stdout,
                "{:<width$}  {}",
                format!("{key}:"),
                self.painted_line(&plain(value)),
                width = width + 1
            )?;
        }
        Ok(())
    }

    /// Paints the words of states in a line; widths are already settled then.
    fn painted_line(&self, line: &str) -> String {
        if !self.colours {
            return line.to_owned();
        }
        let mut painted = String::with_capacity(line.len() + 32);
        for piece in line.split_inclusive(' ') {
            let word = piece.trim_end();
            let code = match mood(word) {
                Mood::Good => "\x1b[32m",
                Mood::Bad => "\x1b[31m",
                Mood::Uncertain => "\x1b[33m",
                Mood::Plain => {
                    painted.push_str(piece);
                    continue;
                }
            };
            painted.push_str(code);
            painted.push_str(word);
            painted.push_str("\x1b[0m");
            painted.push_str(&piece[word.len()..]);
        }
        painted
    }
}

/// How good it is to be in that state.
pub(crate) fn mood(word: &str) -> Mood {
    match word {
        "online" | "healthy" | "running" | "streaming" | "succeeded" | "done" | "met" => Mood::Good,
        "offline" | "unavailable" | "failed" | "blocked" | "error" | "unmet" => Mood::Bad,
        "late" | "degraded" | "unknown" | "starting" | "building" | "creating" | "deleting" | "warning"
        | "rolling_back" => Mood::Uncertain,
        _ => Mood::Plain,
    }
}

/// Without control characters, and at most so long that a line stays a line.
pub(crate) fn plain(text: &str) -> String {
    const MAX: usize = 2000;
    let is_bad = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().take(MAX).map(|c| if is_bad(c) { ' ' } else { c }).collect()
}

/// `CLUSTER_STATE_HEALTHY` → `healthy`; unspecified → `None`.
pub(crate) fn word(name: &str, prefix: &str) -> Option<String> {
    let word = name.strip_prefix(prefix).unwrap_or(name);
    (word != "UNSPECIFIED").then(|| word.to_ascii_lowercase())
}

pub(crate) fn text_or_null(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(crate) fn timestamp(time: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
}

pub(crate) fn time(time: Option<&prost_types::Timestamp>) -> Option<String> {
    timestamp(time).map(|time| time.to_string())
}

#[expect(clippy::cast_precision_loss, reason = "spans of time are far below 2^53 seconds")]
pub(crate) fn seconds(duration: &prost_types::Duration) -> f64 {
    duration.seconds as f64 + f64::from(duration.nanos) / 1e9
}

pub(crate) fn busy_fraction(usage: &nouns::CpuUsage) -> f64 {
    (1.0 - usage.idle_fraction - usage.iowait_fraction).clamp(0.0, 1.0)
}

/// `-` for what is unknown.
pub(crate) fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// `1 entry`, `2 entries`.
pub(crate) fn counted<T: PartialEq + From<u8> + Display>(count: T, one: &str, many: &str) -> String {
    let noun = if count == T::from(1) { one } else { many };
    format!("{count} {noun}")
}

/// `1.4 GiB`.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(crate) fn bytes(amount: u64) -> String {
    float_bytes(amount as f64)
}

pub(crate) fn float_bytes(mut amount: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    while amount >= 1000.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || amount >= 100.0 { 0 } else { 1 };
    format!("{amount:.digits$} {}", UNITS[unit])
}

pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.0}%", fraction * 100.0)
}

/// `12s`, `4m`, `3h12m`, `5d4h`.
pub(crate) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// How long ago, or how long until.
pub(crate) fn distance(now: Timestamp, time: Option<&prost_types::Timestamp>) -> String {
    or_dash(timestamp(time).map(|time| span((now.as_second() - time.as_second()).abs())))
}

/// How long until, or that it was over how long ago.
pub(crate) fn expiry(now: Timestamp, time: Option<&prost_types::Timestamp>) -> String {
    let over = timestamp(time).is_some_and(|time| time <= now);
    let distance = distance(now, time);
    if over { format!("expired {distance} ago") } else { distance }
}

/// PostgreSQL's way of writing a position: `0/3000060`.
pub(crate) fn position(position: &nouns::Position) -> String {
    format!("{:X}/{:X}", position.offset >> 32, position.offset & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_spans_are_short() {
        assert_eq!(
            [0, 999, 1000, 1_500_000, u64::MAX].map(bytes),
            ["0 B", "999 B", "1.0 KiB", "1.4 MiB", "16384 PiB"]
        );
        assert_eq!([-5, 59, 61, 3700, 100_000].map(span), ["0s", "59s", "1m", "1h1m", "1d3h"]);
    }

    #[test]
    fn one_is_one_and_all_else_is_many() {
        assert_eq!(
            [0_u32, 1, 2].map(|n| counted(n, "entry", "entries")),
            ["0 entries", "1 entry", "2 entries"]
        );
    }

    #[test]
    fn what_has_expired_is_told_as_past() {
        let now = Timestamp::from_second(1_000).unwrap();
        let told = |seconds| expiry(now, Some(&prost_types::Timestamp { seconds, nanos: 0 }));
        assert_eq!(
            (told(1_180), told(820), told(1_000)),
            ("3m".into(), "expired 3m ago".into(), "expired 0s ago".into())
        );
        assert_eq!(expiry(now, None), distance(now, None));
    }

    #[test]
    fn what_a_node_says_does_not_drive_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\nc\u{202e}d"), "a [2Jb c d");
    }

    #[test]
    fn only_words_of_states_are_painted() {
        let mut output = Output::to(Format::Table, Box::new(Vec::new()), Timestamp::UNIX_EPOCH);
        assert_eq!(output.painted_line("n1  online  x"), "n1  online  x");
        output.colours = true;
        assert_eq!(output.painted_line("n1  online  x"), "n1  \x1b[32monline\x1b[0m  x");
    }
}
