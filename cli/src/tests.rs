//! Commands against a coordinator of this process: real TLS, real gRPC, answers made up here.

mod access;
mod fake;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser as _;
use holdfast_common::context::{Context, ContextFile};
use holdfast_common::error::status::from_failure;
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::FleetId;
use holdfast_common::pki::{Authority, Credentials, TrustBundle, Validity};
use holdfast_common::tls::{ClientCertificate, HANDSHAKE_DEADLINE, Protocols, ServerSettings, ServerTls};
use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1::{self, cluster_service_server as clusters, identity_service_server as identity};
use holdfast_proto::v1::{node_service_server as nodes, operation_service_server as operations};
use jiff::Timestamp;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use self::fake::{Fake, State, serve};
use crate::args::Cli;
use crate::commands::{self, Session};
use crate::error::{Error, ExitCode};
use crate::output::Output;

struct Bench {
    folder: tempfile::TempDir,
    state: Arc<State>,
    authority: Authority,
    server: String,
}

impl Bench {
    async fn new() -> Self {
        holdfast_common::tls::install_provider();
        let authority = Authority::create(FleetId::generate(), Timestamp::now()).unwrap();
        let state = Arc::new(State::default());
        let server = serve(&authority, Fake(Arc::clone(&state))).await;
        Self { folder: tempfile::tempdir().unwrap(), state, authority, server }
    }

    /// A context file for this coordinator, with a certificate or without.
    fn config(&self, certificate: bool, trust: &Authority) -> PathBuf {
        let (issued, key) =
            trust.issue_operator(&"alice".parse().unwrap(), Validity::day(Timestamp::now())).unwrap();
        let context = Context {
            server: self.server.clone(),
            trust_bundle: trust.bundle().to_pem(),
            certificate: certificate.then(|| issued.chain_pem()),
            key: certificate.then(|| key.to_pem().as_str().to_owned().into()),
        };
        let path = self.folder.path().join(format!("{certificate}-{}.toml", trust.fleet()));
        ContextFile { current: "default".into(), contexts: BTreeMap::from([("default".into(), context)]) }
            .save(&path)
            .unwrap();
        path
    }

    async fn run(&self, arguments: &[&str]) -> (String, Result<(), Error>) {
        run_with(&self.config(true, &self.authority), None, arguments).await
    }
}

/// What a test reads back.
#[derive(Debug, Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn run_with(
    config: &std::path::Path,
    token: Option<&str>,
    arguments: &[&str],
) -> (String, Result<(), Error>) {
    let config = config.to_str().unwrap();
    let cli = Cli::try_parse_from(["holdfast", "--config", config].iter().chain(arguments)).unwrap();
    let page = Page::default();
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let mut session =
        Session::new(cli.global, |format| Output::to(format, Box::new(page.clone()), now), false);
    session.token = token.map(|token| token.to_owned().into());
    let result = commands::run(&mut session, cli.command).await;
    let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
    (text, result)
}

const CREATE: [&str; 7] = ["cluster", "create", "demo", "--engine", "postgresql", "--nodes", "n1,n2,n3"];

#[tokio::test]
async fn a_cluster_is_shown_as_a_table_and_as_json() {
    let bench = Bench::new().await;
    let (table, result) = bench.run(&["cluster", "show", "demo"]).await;
    result.unwrap();
    insta::assert_snapshot!(table);
    let (json, result) = bench.run(&["--output", "json", "cluster", "show", "demo"]).await;
    result.unwrap();
    insta::assert_snapshot!(json);
}

#[tokio::test]
async fn nodes_are_listed_over_all_pages_and_the_silent_one_says_nothing() {
    let bench = Bench::new().await;
    let (table, result) = bench.run(&["node", "list"]).await;
    result.unwrap();
    insta::assert_snapshot!(table);
    let (json, result) = bench.run(&["-o", "json", "node", "list"]).await;
    result.unwrap();
    insta::assert_snapshot!(json);
    let (top, result) = bench.run(&["node", "top"]).await;
    result.unwrap();
    insta::assert_snapshot!(top);
    let (_, result) = bench.run(&["node", "top", "n9"]).await;
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::NotFound);
    let (metrics, result) = bench.run(&["node", "metrics", "n1", "--series", "cpu_busy_fraction"]).await;
    result.unwrap();
    insta::assert_snapshot!(metrics);
}

#[tokio::test]
async fn a_node_is_shown_with_what_its_members_count_on() {
    let bench = Bench::new().await;
    let (text, result) = bench.run(&["node", "show", "n1"]).await;
    result.unwrap();
    insta::assert_snapshot!(text);
    let (text, result) = bench.run(&["-o", "json", "node", "show", "n1"]).await;
    result.unwrap();
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    insta::assert_snapshot!(format!("{:#}", shown["members"]));
}

#[tokio::test]
async fn schedules_of_reboots_are_set_shown_and_removed() {
    let bench = Bench::new().await;
    let set = ["node", "reboot", "n1", "--schedule", "0 3 * * SUN", "--time-zone", "Europe/Berlin"];
    let mut pages = String::new();
    for arguments in [
        &set[..],
        &["node", "schedule", "list"],
        &["node", "schedule", "show", "n1"],
        &["node", "schedule", "show", "n3"],
        &["node", "schedule", "remove", "n1"],
        &["node", "schedule", "remove", "n3"],
        &["-o", "json", "node", "schedule", "show", "n1"],
    ] {
        let (text, result) = bench.run(arguments).await;
        result.unwrap();
        pages.push_str(&format!("$ {}\n{text}\n", arguments.join(" ")));
    }
    insta::assert_snapshot!(pages);
}

#[tokio::test]
async fn a_change_is_sent_again_with_the_same_request_id_and_a_watch_survives_a_restart() {
    let bench = Bench::new().await;
    bench.state.unavailable.store(2, Ordering::SeqCst);
    let (text, result) = bench.run(&CREATE).await;
    result.unwrap();
    assert!(text.contains("Cluster demo is ready"), "{text}");
    let ids = bench.state.request_ids.lock().unwrap().clone();
    assert_eq!(ids.len(), 3);
    assert!(!ids[0].is_empty() && ids.iter().all(|id| *id == ids[0]));
    assert_eq!(bench.state.watches.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn calls_are_not_repeated_for_ever() {
    let bench = Bench::new().await;
    bench.state.unavailable.store(usize::MAX, Ordering::SeqCst);
    let (_, result) = bench.run(&["cluster", "show", "demo"]).await;
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Unavailable);
    assert_eq!(bench.state.authorizations.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn detach_prints_the_id_and_nothing_else() {
    let bench = Bench::new().await;
    let (text, result) = bench.run(&[&CREATE[..], &["--detach"]].concat()).await;
    result.unwrap();
    assert_eq!(text, "o1\n");
    assert_eq!(bench.state.watches.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_plan_with_an_unmet_precondition_is_shown_and_is_a_refusal() {
    let bench = Bench::new().await;
    let (text, result) = bench.run(&[&CREATE[..], &["--plan"]].concat()).await;
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Refused);
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn a_pause_and_its_end_are_planned_and_done() {
    let bench = Bench::new().await;
    let mut pages = String::new();
    for arguments in [
        &["cluster", "pause", "demo", "--reason", "new switches", "--plan"][..],
        &["cluster", "pause", "demo"],
        &["cluster", "resume", "demo", "--plan"],
        &["-o", "json", "cluster", "resume", "demo", "--plan"],
        &["cluster", "resume", "demo"],
    ] {
        let (text, result) = bench.run(arguments).await;
        result.unwrap();
        pages.push_str(&format!("$ {}\n{text}\n", arguments.join(" ")));
    }
    insta::assert_snapshot!(pages);
}

#[tokio::test]
async fn every_bad_field_is_told() {
    let bench = Bench::new().await;
    let (_, result) =
        bench.run(&["cluster", "create", "demo", "--engine", "postgresql", "--nodes", "nowhere"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    let text = error.to_text();
    assert!(text.contains("nodes[0]: names no node") && text.contains("port: must be"), "{text}");
}

#[tokio::test]
async fn refusals_have_their_exit_codes() {
    let bench = Bench::new().await;
    for (arguments, code) in [
        (&["node", "show", "n9"][..], ExitCode::NotFound),
        (&["operation", "cancel", "o1"], ExitCode::Refused),
        (&["cluster", "watch", "demo"], ExitCode::Failed),
        (&["operator", "list"], ExitCode::NotPermitted),
        // Nobody can be asked here, so nothing is destroyed.
        (&["cluster", "delete", "demo"], ExitCode::Refused),
        (&["cluster", "delete", "demo", "--confirm", "dema"], ExitCode::Refused),
        (&["cluster", "remove-member", "demo", "n1", "--confirm", "demo"], ExitCode::Refused),
        (&["node", "remove", "n1"], ExitCode::Refused),
        (&["operation", "wait", "endless", "--for", "1s"], ExitCode::Unavailable),
        (&["context", "show", "other"], ExitCode::NotFound),
        (
            &["cluster", "create", "d", "--engine", "postgresql", "--nodes", "n1", "--port", "0"],
            ExitCode::Usage,
        ),
    ] {
        let (text, result) = bench.run(arguments).await;
        assert_eq!(result.unwrap_err().exit_code(), code, "{arguments:?}");
        assert_eq!(text, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn a_password_is_printed_only_where_it_was_asked_for() {
    let bench = Bench::new().await;
    assert!(!bench.run(&["cluster", "connection", "demo"]).await.0.contains("hush"));
    assert!(bench.run(&["cluster", "connection", "demo", "--reveal-password"]).await.0.contains("hush"));
    assert_eq!(bench.run(&["cluster", "connection", "demo", "--uri"]).await.0, "postgresql://x\n");
}

#[tokio::test]
async fn a_token_goes_without_the_certificate_and_is_never_shown() {
    let bench = Bench::new().await;
    let config = bench.config(false, &bench.authority);
    let (text, result) = run_with(&config, Some("hfo1.a.b\n"), &["-o", "json", "whoami"]).await;
    result.unwrap();
    assert!(text.contains(r#""method": "token""#) && !text.contains("hfo1"), "{text}");
    assert_eq!(*bench.state.authorizations.lock().unwrap(), [Some("Bearer hfo1.a.b".to_owned())]);
    let (_, result) = run_with(&config, None, &["whoami"]).await;
    assert!(result.unwrap_err().to_text().contains("HOLDFAST_TOKEN"));
    let (_, result) = run_with(&config, Some("a\nb"), &["whoami"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(!error.to_text().contains("a\nb"));
}

#[tokio::test]
async fn a_coordinator_of_another_fleet_gets_nothing_from_us() {
    let bench = Bench::new().await;
    let other = Authority::create(FleetId::generate(), Timestamp::now()).unwrap();
    let (_, result) = run_with(&bench.config(true, &other), None, &["whoami"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Unavailable);
    assert!(error.to_text().contains("another fleet"), "{}", error.to_text());
    assert!(bench.state.authorizations.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_is_told_with_what_to_check() {
    let mut bench = Bench::new().await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    bench.server = free.to_string();
    let (_, result) = bench.run(&["whoami"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Unavailable);
    assert!(error.to_text().contains(&format!("Nothing listens at {free}")), "{}", error.to_text());
    assert_eq!(error.to_json()["error"]["exit_code"], 5);
    bench.server = "no port".into();
    let (_, result) = bench.run(&["whoami"]).await;
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Usage);
}

#[tokio::test]
async fn a_coordinator_that_hangs_is_given_up() {
    let bench = Bench::new().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut hanging = Bench { server: silent.local_addr().unwrap().to_string(), ..bench };
    let held = tokio::spawn(async move {
        let connection = silent.accept().await;
        // Closes once the client's hello has come: no TLS is spoken.
        if let Ok((tcp, _)) = connection {
            tcp.readable().await.unwrap();
        }
    });
    let waiting = tokio::time::timeout(Duration::from_secs(30), hanging.run(&["whoami"]));
    let (_, result) = waiting.await.unwrap();
    assert!(result.unwrap_err().to_text().contains("no TLS"));
    held.await.unwrap();
    hanging.server.clear();
}

#[tokio::test]
async fn a_coordinator_that_dies_over_a_change_leaves_it_open_whether_it_was_made() {
    let bench = Bench::new().await;
    let (_, result) = bench.run(&["cluster", "reset-password", "deadly"]).await;
    let text = result.unwrap_err().to_text();
    assert!(text.contains("the connection broke off before the answer"), "{text}");
    assert!(text.contains("may have been made or not: look") && !text.contains("https:"), "{text}");
}

#[tokio::test]
async fn a_coordinator_that_takes_a_call_and_hangs_is_told_as_such() {
    let bench = Bench::new().await;
    let (_, result) = bench.run(&["--timeout", "1s", "cluster", "reset-password", "demo"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Unavailable);
    let text = error.to_text();
    assert!(text.contains("took the connection, but did not answer within 1 s"), "{text}");
    assert!(text.contains("hung or very busy") && text.contains("may have been made or not"), "{text}");
}

/// As one that is stopped: the kernel takes the connection for it.
#[tokio::test]
async fn a_coordinator_that_takes_the_connection_alone_is_told_as_such() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = Bench { server: silent.local_addr().unwrap().to_string(), ..Bench::new().await };
    for timeout in ["1s", "30s"] {
        let (_, result) = bench.run(&["--timeout", timeout, "whoami"]).await;
        let text = result.unwrap_err().to_text();
        assert!(text.contains("stopped, hung or very busy"), "{text}");
        assert!(!text.contains("may have been made"), "{text}");
    }
}

#[tokio::test]
async fn a_context_file_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new().await;
    let config = bench.config(true, &bench.authority);
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (_, result) = run_with(&config, None, &["whoami"]).await;
    assert!(result.unwrap_err().to_text().contains("chmod 600"));
}

#[tokio::test]
async fn contexts_are_shown_without_their_keys_and_completion_needs_none() {
    let bench = Bench::new().await;
    let (text, result) = bench.run(&["-o", "json", "context", "show"]).await;
    result.unwrap();
    assert!(text.contains("operator/alice") && !text.contains("PRIVATE"), "{text}");
    let missing = bench.folder.path().join("missing.toml");
    for shell in ["bash", "zsh", "fish"] {
        let (text, result) = run_with(&missing, None, &["completion", shell]).await;
        result.unwrap();
        assert!(text.contains("add-member"));
    }
    let (text, result) = run_with(&missing, None, &["man"]).await;
    result.unwrap();
    assert!(text.contains(".TH holdfast"));
}
