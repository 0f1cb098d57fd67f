//! What is shipped in `deploy/` is what systemd and cloud-init understand, and as shut as it claims to be.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use holdfast_tests::process::Program;

/// The worst score of each unit: 0 is shut, 10 is open. Lower it when a unit gets better.
const UNITS: [(&str, &str); 3] = [
    ("holdfast-agent.service", "45"),
    ("holdfast-coordinator.service", "15"),
    ("holdfast-firewall.service", "25"),
];

fn deploy(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy").join(part)
}

/// The unit as it would be installed, except that its program is one that exists here.
fn installed(unit: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(deploy("systemd").join(unit))?;
    let (name, _) = unit.split_once('.').context("a unit has a kind")?;
    let name = if name == "holdfast-firewall" { "holdfast-agent" } else { name };
    let program = format!("ExecStart=/usr/bin/{name} ");
    ensure!(text.contains(&program), "{unit} starts {name}");
    let place = folder.join(unit);
    std::fs::write(&place, text.replace(&program, "ExecStart=/bin/true "))?;
    Ok(place)
}

#[tokio::test]
async fn the_units_are_understood_by_systemd() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    for (unit, _) in UNITS {
        let place = installed(unit, folder.path())?;
        let verify = Program::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]);
        let output = verify.arg(&place).output().await?;
        let own: Vec<_> = output.stderr.lines().filter(|line| line.contains(unit)).collect();
        ensure!(output.status.success() && own.is_empty(), "{unit}: {}", output.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn the_units_are_as_shut_as_they_can_be() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    for (unit, worst) in UNITS {
        let place = installed(unit, folder.path())?;
        let security = Program::new("systemd-analyze").args(["security", "--offline=yes", "--no-pager"]);
        let output = security.args(["--threshold", worst]).arg(&place).output().await?;
        ensure!(output.status.success(), "{unit} is more open than {worst}: {}", output.stdout);
    }
    Ok(())
}

#[test]
fn the_cloud_init_template_has_only_keys_that_cloud_init_knows() -> anyhow::Result<()> {
    // cloud-init itself says nothing of a key that it does not know.
    const KNOWN: [&str; 5] = ["hostname", "write_files", "package_update", "packages", "runcmd"];
    let text = std::fs::read_to_string(deploy("cloud-init/join.yaml.in"))?;
    ensure!(text.starts_with("#cloud-config\n"), "the first line says what it is");
    let keys = text.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_alphabetic()));
    for key in keys.filter_map(|line| line.split(':').next()) {
        ensure!(KNOWN.contains(&key), "{key} is no key that we use");
    }
    for word in ["@COORDINATOR@", "@TOKEN@", "@NAME@"] {
        let used = text.lines().filter(|line| !line.starts_with('#') && line.contains(word)).count();
        ensure!(used > 0, "{word} is put in somewhere");
    }
    let in_arguments = text.lines().any(|line| line.starts_with("  - [") && line.contains("@TOKEN@"));
    ensure!(!in_arguments, "the token is in no command's arguments, which everybody can read");
    Ok(())
}

#[test]
fn the_example_configurations_load_and_say_the_defaults() -> anyhow::Result<()> {
    let agent = deploy("config/agent.example.toml");
    let loaded = holdfast_agent::config::Config::load(Some(&agent))?;
    let mut defaults = holdfast_agent::config::Config::default();
    ensure!(
        loaded.state_dir.as_deref() == Some(Path::new(holdfast_agent::config::STATE_DIR)),
        "the default folder"
    );
    defaults.state_dir.clone_from(&loaded.state_dir);
    defaults.log.clone_from(&loaded.log);
    ensure!(loaded == defaults, "every other key has its default value");

    let coordinator = deploy("config/coordinator.example.toml");
    let text = std::fs::read_to_string(&coordinator)?;
    let loaded: holdfast_coordinator::config::Config = holdfast_common::config::parse(&coordinator, &text)?;
    ensure!(
        loaded.limits == holdfast_coordinator::config::Limits::default(),
        "the bounds are the usual ones"
    );
    ensure!(loaded.advertise.len() == 3, "a name and an address of either kind");
    Ok(())
}

#[test]
fn every_commented_key_of_the_examples_is_a_key() -> anyhow::Result<()> {
    let path = deploy("config/agent.example.toml");
    let text = std::fs::read_to_string(&path)?;
    let commented = |line: &str| {
        let key = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")).map(|(key, _)| key);
        key.is_some_and(|key| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    let opened: Vec<_> = text.lines().map(|line| if commented(line) { &line[2..] } else { line }).collect();
    ensure!(opened.join("\n") != text.trim_end(), "there are some");
    let _loads: holdfast_agent::config::Config = holdfast_common::config::parse(&path, &opened.join("\n"))?;
    Ok(())
}
