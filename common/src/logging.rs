//! Logs: to standard error, as text for people or JSON for machines.
//!
//! What may be logged: ids, names, addresses, counts, durations, reasons. What may not: whatever opens a door. Types that
//! hold a secret print `redacted` in `Debug` (see [`crate::pki`]), so `?value` is safe for all types of ours; a `String`
//! that holds a secret is a defect in itself. Errors are logged once, where they end, with their whole chain:
//! `tracing::warn!(error = %Chain(&error), "…")`, see [`crate::error::Chain`].

use std::io;

use serde::Deserialize;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// The environment variable that overrides the configured filter.
pub const FILTER_VARIABLE: &str = "HOLDFAST_LOG";
const DEFAULT_FILTER: &str = "info";

/// How and what to log; a table of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The shape of a line.
    pub format: Format,
    /// Directives such as `info,holdfast_agent=debug`; `info` if there are none.
    pub filter: Option<String>,
}

/// The shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines: one object a line.
    Json,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directives make no sense.
    #[error("understand the log filter `{filter}` (from {origin})")]
    Filter {
        /// The directives.
        filter: String,
        /// Where they stand.
        origin: &'static str,
        /// What is wrong.
        #[source]
        source: ParseError,
    },
    /// Logging was started before.
    #[error("start logging")]
    Start(#[source] TryInitError),
}

/// Starts logging to standard error for the whole process. `from_environment` is the value of [`FILTER_VARIABLE`].
///
/// # Errors
/// See [`Error`].
pub fn init(settings: &Settings, from_environment: Option<&str>) -> Result<(), Error> {
    subscriber(settings, from_environment, io::stderr)?.try_init().map_err(Error::Start)
}

fn subscriber<W>(
    settings: &Settings,
    from_environment: Option<&str>,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, Error>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let Settings { format, filter } = settings;
    let (filter, origin) = match (from_environment.filter(|text| !text.is_empty()), filter) {
        (Some(filter), _) => (filter, FILTER_VARIABLE),
        (None, Some(filter)) => (filter.as_str(), "the configuration"),
        (None, None) => (DEFAULT_FILTER, "the default"),
    };
    let parsed = EnvFilter::try_new(filter).map_err(|source| Error::Filter {
        filter: filter.to_owned(),
        origin,
        source,
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(writer).with_ansi(false);
    Ok(match format {
        Format::Text => Box::new(builder.finish()),
        Format::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::pki::{AccessToken, TokenSecret};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(settings: &Settings, environment: Option<&str>, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(settings, environment, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_is_one_object_a_line_with_its_fields() {
        let settings = Settings { format: Format::Json, filter: None };
        let text = logged(&settings, None, || tracing::info!(node = "n1", "joined"));
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&object["message"], &object["node"], &object["level"]),
            (&"joined".into(), &"n1".into(), &"INFO".into())
        );
    }

    #[test]
    fn the_environment_overrides_the_configured_filter() {
        let log = || {
            tracing::info!("the info");
            tracing::debug!("the debug");
        };
        let configured = |filter: &str| Settings { format: Format::Text, filter: Some(filter.to_owned()) };
        assert!(!logged(&configured("warn"), None, log).contains("the info"));
        assert!(!logged(&Settings::default(), Some(""), log).contains("the debug"));
        let text = logged(&configured("warn"), Some("debug"), log);
        assert!(text.contains("the info") && text.contains("the debug"), "{text}");
    }

    #[test]
    fn a_filter_that_makes_no_sense_is_refused_with_its_origin() {
        let settings = Settings { format: Format::Text, filter: Some("info,=x=".to_owned()) };
        let error = subscriber(&settings, None, io::stderr).err().unwrap().to_string();
        assert_eq!(error, "understand the log filter `info,=x=` (from the configuration)");
        let error = subscriber(&settings, Some("a=loud"), io::stderr).err().unwrap().to_string();
        assert_eq!(error, "understand the log filter `a=loud` (from HOLDFAST_LOG)");
    }

    #[test]
    fn a_secret_that_is_logged_by_mistake_stays_secret() {
        let (token, secret) = (AccessToken::generate(), TokenSecret::generate());
        let text = logged(&Settings::default(), None, || tracing::info!(?token, ?secret, "careless"));
        assert!(text.contains("redacted"), "{text}");
        for hidden in [&token.secret, &secret] {
            assert!(!text.contains(hidden.reveal().as_str()), "{text}");
        }
    }
}
