//! Clients that are not ours, against the operators' interface: Go's grpcurl and buf, by reflection, over mutual TLS and with
//! a bearer token.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use holdfast_tests::binaries;
use holdfast_tests::fleet::Fleet;
use holdfast_tests::network::Network;
use holdfast_tests::process::Program;

/// A coordinator, and the first operator's credentials as files.
struct Operator {
    fleet: Fleet,
    folder: PathBuf,
}

impl Operator {
    async fn new() -> anyhow::Result<Self> {
        let fleet = Fleet::start(Network::new().await?, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let text = std::fs::read_to_string(fleet.context_file())?;
        let context: toml::Value = toml::from_str(&text)?;
        let folder = fleet.context_file().parent().context("the context file is in a folder")?.to_owned();
        for (key, file) in
            [("trust_bundle", "ca.pem"), ("certificate", "operator.pem"), ("key", "operator.key")]
        {
            let pem = context["contexts"]["default"][key].as_str().with_context(|| format!("no {key}"))?;
            std::fs::write(folder.join(file), pem)?;
        }
        Ok(Self { fleet, folder })
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    fn grpcurl(&self) -> anyhow::Result<Program> {
        Ok(Program::new(binaries::tool("grpcurl")?).args(["-cacert", &self.file("ca.pem")]))
    }

    fn with_certificate(&self) -> anyhow::Result<Program> {
        Ok(self.grpcurl()?.args(["-cert", &self.file("operator.pem"), "-key", &self.file("operator.key")]))
    }

    fn address(&self) -> String {
        self.fleet.operators().to_string()
    }

    fn buf(&self) -> anyhow::Result<Program> {
        let buf = Program::new(binaries::tool("buf")?).args(["curl", "--cacert", &self.file("ca.pem")]);
        Ok(buf.args(["--cert", &self.file("operator.pem"), "--key", &self.file("operator.key")]))
    }
}

const SERVICES: [&str; 5] =
    ["ClusterService", "EventService", "IdentityService", "NodeService", "OperationService"];

#[tokio::test]
async fn grpcurl_lists_describes_and_calls_with_a_certificate() -> anyhow::Result<()> {
    let operator = Operator::new().await?;
    let address = operator.address();
    let listed = operator.with_certificate()?.args([address.as_str(), "list"]).run().await?;
    for service in SERVICES {
        ensure!(listed.contains(&format!("holdfast.v1.{service}")), "{service} is not listed: {listed}");
    }
    ensure!(!listed.contains("holdfast.link"), "what is not served here is listed: {listed}");
    ensure!(listed.contains("grpc.health.v1.Health"), "no health service: {listed}");
    for service in listed.lines() {
        // What is named can be described: clients that resolve the whole list stop at the first that cannot.
        operator.with_certificate()?.args([address.as_str(), "describe", service]).run().await?;
    }
    let method = "holdfast.v1.ClusterService.CreateCluster";
    let described = operator.with_certificate()?.args([address.as_str(), "describe", method]).run().await?;
    ensure!(described.contains("CreateClusterRequest"), "described as {described}");
    let caller =
        operator.with_certificate()?.args([address.as_str(), "holdfast.v1.IdentityService/GetCaller"]);
    let caller = caller.run().await?;
    ensure!(caller.contains("operator/admin"), "the caller is {caller}");
    let health =
        operator.with_certificate()?.args([address.as_str(), "grpc.health.v1.Health/Check"]).run().await?;
    ensure!(health.contains("SERVING"), "health is {health}");
    Ok(())
}

#[tokio::test]
async fn grpcurl_shows_every_bad_field_with_its_remedy() -> anyhow::Result<()> {
    let operator = Operator::new().await?;
    let request = r#"{"name": "../x", "port": 80, "nodes": ["n1", "n1"]}"#;
    let call = operator.with_certificate()?.args(["-d", request, operator.address().as_str()]);
    let refused = call.arg("holdfast.v1.ClusterService/CreateCluster").output().await?;
    ensure!(!refused.status.success(), "it was taken: {}", refused.stdout);
    let said = refused.stderr;
    for part in ["InvalidArgument", "INVALID_FIELD", "name", "engine", "nodes[1]", "port", "1024"] {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_bearer_token_is_as_good_as_a_certificate_until_it_is_revoked() -> anyhow::Result<()> {
    let operator = Operator::new().await?;
    let address = operator.address();
    let created = operator.fleet.json(["token", "create"]).await?;
    let token = created["token"].as_str().context("no token")?.to_owned();
    let call = || -> anyhow::Result<Program> {
        let call = operator.grpcurl()?.env("TOKEN", &token).args(["-expand-headers", "-H"]);
        let call = call.args(["authorization: Bearer ${TOKEN}", address.as_str()]);
        Ok(call.arg("holdfast.v1.IdentityService/GetCaller"))
    };
    let caller = call()?.run().await?;
    ensure!(caller.contains("operator/admin") && caller.contains("token"), "the caller is {caller}");
    let without = operator.grpcurl()?.args([address.as_str(), "holdfast.v1.IdentityService/GetCaller"]);
    let without = without.output().await?;
    ensure!(without.stderr.contains("Unauthenticated"), "without any identity: {}", without.stderr);
    let id = created["access_token"]["id"].as_str().context("no id")?;
    operator.fleet.cli(["token", "revoke", id])?.run().await?;
    let after = call()?.output().await?;
    ensure!(after.stderr.contains("Unauthenticated"), "after its end: {}", after.stderr);
    Ok(())
}

#[tokio::test]
async fn buf_curl_calls_by_reflection() -> anyhow::Result<()> {
    let operator = Operator::new().await?;
    let base = format!("https://{}", operator.address());
    let listed = operator.buf()?.args(["--protocol", "grpc", "--list-methods", &base]).run().await?;
    ensure!(listed.contains("holdfast.v1.NodeService/ListNodes"), "it lists {listed}");
    let call = operator.buf()?.args(["--protocol", "grpc", "-d", "{}"]);
    let answer = call.arg(format!("{base}/holdfast.v1.IdentityService/GetCaller")).run().await?;
    ensure!(answer.contains("operator/admin"), "the caller is {answer}");
    Ok(())
}
