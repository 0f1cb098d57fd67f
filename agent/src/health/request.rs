//! What is asked, from a request's path and query. Pure.

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    /// `None`: the only one that has a member here.
    pub(super) cluster: Option<&'a str>,
    pub(super) check: Check,
    pub(super) demands: Demands<'a>,
}

/// What must be true for the answer to be yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Primary,
    Replica,
    /// Either of them.
    Readable,
    /// The engine runs, as whatever.
    Running,
    /// This agent answers, and looks after its members.
    Alive,
}

/// What is demanded of a replica beyond being one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Demands<'a> {
    /// The most bytes that it may be behind.
    pub(super) lag: Option<u64>,
    /// One that no member of ours meets.
    pub(super) unmet: Option<&'a str>,
}

/// Why it is no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad<'a> {
    Path,
    Lag(&'a str),
}

// === impl Asked ===

impl<'a> Asked<'a> {
    /// Understands `/primary`, `/clusters/NAME/replica?lag=10MB` and the like. A slash at the end does no harm.
    pub(super) fn parse(path: &'a str, query: Option<&'a str>) -> Result<Self, Bad<'a>> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let (cluster, check) = match path.strip_prefix("/clusters/") {
            Some(rest) => rest.split_once('/').map_or((Some(rest), ""), |(name, check)| (Some(name), check)),
            None => (None, path.strip_prefix('/').unwrap_or(path)),
        };
        let check = match check {
            "" | "primary" | "read-write" | "leader" | "master" => Check::Primary,
            "replica" => Check::Replica,
            "read-only" | "readiness" => Check::Readable,
            "health" => Check::Running,
            "liveness" => Check::Alive,
            _ => return Err(Bad::Path),
        };
        Ok(Self { cluster, check, demands: demands(query.unwrap_or_default())? })
    }
}

// === impl Check ===

impl Check {
    /// The last part of its path.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Readable => "read-only",
            Self::Running => "health",
            Self::Alive => "liveness",
        }
    }
}

/// Keys that are not known are left alone, as Patroni does; tags are demands that nobody here meets.
fn demands(query: &str) -> Result<Demands<'_>, Bad<'_>> {
    let mut demands = Demands::default();
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "lag" => demands.lag = Some(bytes(value).ok_or(Bad::Lag(value))?),
            // A replica that is none is refused anyway.
            "replication_state" if value == "streaming" => {}
            "replication_state" => demands.unmet = Some(pair),
            tag if tag.starts_with("tag_") => demands.unmet = Some(pair),
            _ => {}
        }
    }
    Ok(demands)
}

/// `1048576`, `16kB`, `10MB`, `1GB`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kb" => 10,
        "mb" => 20,
        "gb" => 30,
        "tb" => 40,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()?.saturating_mul(1 << shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str) -> Result<Asked<'_>, Bad<'_>> {
        path.split_once('?')
            .map_or_else(|| Asked::parse(path, None), |(path, query)| Asked::parse(path, Some(query)))
    }

    #[test]
    fn every_path_of_an_haproxy_configuration_for_patroni_is_understood() {
        for (path, cluster, check) in [
            ("/", None, Check::Primary),
            ("/primary", None, Check::Primary),
            ("/read-write", None, Check::Primary),
            ("/leader", None, Check::Primary),
            ("/master", None, Check::Primary),
            ("/master/", None, Check::Primary),
            ("/replica", None, Check::Replica),
            ("/read-only", None, Check::Readable),
            ("/readiness", None, Check::Readable),
            ("/health", None, Check::Running),
            ("/liveness", None, Check::Alive),
            ("/clusters/orders", Some("orders"), Check::Primary),
            ("/clusters/orders/", Some("orders"), Check::Primary),
            ("/clusters/orders/replica?lag=1", Some("orders"), Check::Replica),
        ] {
            let asked = asked(path).unwrap();
            assert_eq!((asked.cluster, asked.check), (cluster, check), "{path}");
        }
    }

    #[test]
    fn every_other_path_is_refused() {
        let unknown =
            ["/metrics", "/primary/x", "//primary", "/Primary", "*", "/clusters/orders/x", "/clusters/a/b/c"];
        for path in unknown {
            assert_eq!(asked(path), Err(Bad::Path), "{path}");
        }
    }

    #[test]
    fn a_lag_is_bytes_or_has_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("16kB", 16 << 10),
            ("10MB", 10 << 20),
            ("1gb", 1 << 30),
            ("99999999999TB", u64::MAX),
        ] {
            let path = format!("/replica?lag={text}");
            assert_eq!(asked(&path).unwrap().demands.lag, Some(bytes), "{text}");
        }
        for text in ["", "much", "MB", "-1", "1.5GB", "1XB", "1 MB"] {
            let path = format!("/replica?lag={text}");
            assert_eq!(asked(&path), Err(Bad::Lag(text)));
        }
    }

    #[test]
    fn what_nobody_here_meets_is_remembered_and_what_is_not_known_is_not() {
        for (query, unmet) in [
            ("replication_state=streaming", None),
            ("replication_state=in+archive+recovery", Some("replication_state=in+archive+recovery")),
            ("tag_zone=a", Some("tag_zone=a")),
            ("lag=1&tag_zone=a&x", Some("tag_zone=a")),
            ("mode=apply&x=y", None),
            ("", None),
        ] {
            let path = format!("/replica?{query}");
            assert_eq!(asked(&path).unwrap().demands.unmet, unmet, "{query}");
        }
    }
}
