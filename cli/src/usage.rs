//! What is wrong with a command line, told in the way that it asks for.

use std::ffi::OsString;
use std::process;

use clap::error::ErrorKind;

use crate::args::Format;
use crate::error::{Error, ExitCode};

/// Tells it, or prints the help or version that was asked for; gives the exit code.
pub(crate) fn tell(error: &clap::Error, words: impl IntoIterator<Item = OsString>) -> process::ExitCode {
    if error.use_stderr() && format(words) == Format::Json {
        crate::tell(&Error::Usage(message(error)), Format::Json);
        return process::ExitCode::from(ExitCode::Usage as u8);
    }
    // If even that cannot be written, the exit code still tells.
    let _ = error.print();
    process::ExitCode::from(if error.use_stderr() { ExitCode::Usage as u8 } else { ExitCode::Done as u8 })
}

/// The output that the words ask for, although they are no command line.
fn format(words: impl IntoIterator<Item = OsString>) -> Format {
    let mut words = words.into_iter().skip(1).map(|word| word.to_string_lossy().into_owned());
    let mut format = Format::Table;
    while let Some(word) = words.next().filter(|word| word != "--") {
        let value = match word.as_str() {
            "--output" | "-o" => words.next(),
            _ => word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o")).map(str::to_owned),
        };
        if let Some(value) = value {
            let is_json = value.trim_start_matches('=') == "json";
            format = if is_json { Format::Json } else { Format::Table };
        }
    }
    format
}

fn message(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing; --help lists them".to_owned();
    }
    let text = error.render().to_string();
    text.trim().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_output_asked_for_is_found_in_a_bad_command_line() {
        for line in
            ["h --output json x", "h x -o json", "h -ojson", "h --output=json", "h -o=json", "h -o x -o json"]
        {
            assert_eq!(format(words(line)), Format::Json, "{line}");
        }
        for line in ["h", "h -o table", "h -- -o json", "h json", "h --output"] {
            assert_eq!(format(words(line)), Format::Table, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_as_any_other_error() {
        let error = Cli::try_parse_from(words("holdfast -o json node show")).unwrap_err();
        let told = Error::Usage(message(&error)).to_json();
        assert_eq!((&told["error"]["reason"], &told["error"]["exit_code"]), (&"USAGE".into(), &2.into()));
        let said = told["error"]["message"].as_str().unwrap();
        assert!(said.contains("required arguments") && said.contains("<NAME>"), "{said}");
        let error = Cli::try_parse_from(words("holdfast -o json node")).unwrap_err();
        assert_eq!(message(&error), "a command is missing; --help lists them");
    }
}
