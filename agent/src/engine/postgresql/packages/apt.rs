//! Debian's package manager: what it offers, and installing with it so that no package starts or makes anything.

use std::path::Path;
use std::time::Duration;

use holdfast_common::telemetry::Privilege;
use tokio_util::sync::CancellationToken;

use crate::engine::{Error, Work};
use crate::host::Host;
use crate::host::exec::Program;
use crate::host::files::Access;

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_SAVED: &str = "/usr/sbin/policy-rc.d.holdfast-saved";
/// Debian's maintainer scripts ask this program before they start a service; 101 forbids it.
const POLICY_TEXT: &str = "#!/bin/sh\n# holdfast: no service starts while packages are installed\nexit 101\n";
const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";
const CREATE_CLUSTER_TEXT: &str =
    "# Written by Holdfast: it makes its own clusters.\ncreate_main_cluster = false\n";
const MAX_POLICY_BYTES: u64 = 1024 * 1024;
const INSTALL_DEADLINE: Duration = Duration::from_secs(20 * 60);
const UPDATE_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// A new node waits for this long with its first words, and tries again when it next looks.
const FIRST_UPDATE_DEADLINE: Duration = Duration::from_secs(20);
/// What the package sources have, as far as this machine has read them.
const LISTS: &str = "/var/lib/apt/lists";

/// Notes of changes that dpkg has not taken over, each named by a number: while there are any, apt refuses to change anything.
const DPKG_NOTES: &str = "/var/lib/dpkg/updates";
const AUDIT_DEADLINE: Duration = Duration::from_secs(60);

/// What the package manager says of a package that it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) installed: Option<String>,
    pub(super) candidate: Option<String>,
}

/// How packages are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Install,
    /// Those that are there alone, and none is removed for it.
    Upgrade,
}

/// The package manager. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Apt {
    host: Host,
}

// === impl Apt ===

impl Apt {
    pub(super) fn new(host: Host) -> Self {
        Self { host }
    }

    pub(super) fn may_install(&self) -> bool {
        self.host.system().privilege() == Privilege::Root
    }

    /// Reads the package sources if this machine never has, as images are shipped; says whether that was done.
    pub(super) async fn fetch_missing_lists(&self) -> bool {
        if !self.may_install() {
            return false;
        }
        let is_list = |name: &std::ffi::OsStr| name.to_string_lossy().contains("_Packages");
        match self.host.files().list(Path::new(LISTS)).await {
            Ok(lists) if lists.iter().any(|entry| is_list(&entry.name)) => return false,
            Err(error) if !error.is_not_found() => return false,
            Ok(_) | Err(_) => {}
        }
        match self.host.run(update(FIRST_UPDATE_DEADLINE), &CancellationToken::new()).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "the package sources of this machine were never read, and cannot be now");
                false
            }
        }
    }

    /// Installs packages, with nothing that they only recommend.
    pub(super) async fn install(&self, packages: &[String], work: &Work) -> Result<(), Error> {
        if !self.may_install() {
            let message = format!("the agent is not root; install by hand: {}", packages.join(" "));
            return Err(Error::Unmet { check: "engine_installed", message });
        }
        self.finish_what_was_cut(work).await?;
        self.refresh(work).await?;
        self.change(packages, How::Install, work).await
    }

    /// Brings packages that are installed up to their candidates; none is removed or made older for it.
    pub(super) async fn upgrade(&self, packages: &[String], work: &Work) -> Result<(), Error> {
        if !self.may_install() {
            let message = format!("the agent is not root; upgrade by hand: {}", packages.join(" "));
            return Err(Error::Unmet { check: "may_install", message });
        }
        self.change(packages, How::Upgrade, work).await
    }

    /// Reads the package sources.
    pub(super) async fn refresh(&self, work: &Work) -> Result<(), Error> {
        if !self.may_install() {
            return Ok(());
        }
        work.say("reading the package lists");
        let updated = self.host.run(update(UPDATE_DEADLINE), &work.cancelled).await;
        if let Err(error) = updated {
            work.check("install packages")?;
            // The lists on disk may be good enough; if not, the installation says so.
            tracing::warn!(%error, "update the package lists");
        }
        Ok(())
    }

    /// Has dpkg finish what it was interrupted in, by a power cut for one: apt changes nothing before.
    ///
    /// # Errors
    /// Where it cannot, with what a person can do.
    pub(super) async fn finish_what_was_cut(&self, work: &Work) -> Result<(), Error> {
        if !self.may_install() || !self.was_cut().await {
            return Ok(());
        }
        work.say("finishing what dpkg was interrupted in");
        let program = Program::new("dpkg")
            .args(["--force-confold", "--force-confdef", "--configure", "--pending"])
            .deadline(INSTALL_DEADLINE);
        self.guard_services().await?;
        let ended = self.host.run(apt_environment(program), &work.cancelled).await;
        let restored = self.restore_policy().await;
        work.check("install packages")?;
        ended.map_err(|error| {
            let deed = "finish what dpkg was interrupted in (see to it on the node with `dpkg --configure -a`, then repeat this)";
            Error::failed(deed, error)
        })?;
        restored
    }

    /// Whether dpkg has begun something that it has not finished.
    async fn was_cut(&self) -> bool {
        let is_note = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        let notes = self.host.files().list(Path::new(DPKG_NOTES)).await.unwrap_or_default();
        if notes.iter().any(|entry| is_note(&entry.name)) {
            return true;
        }
        let audit = Program::new("dpkg").arg("--audit").deadline(AUDIT_DEADLINE);
        match self.host.run(audit, &CancellationToken::new()).await {
            Ok(said) => !said.stdout.text().trim().is_empty(),
            // If it is broken, the installation says so.
            Err(error) => {
                tracing::warn!(%error, "ask dpkg whether it was interrupted");
                false
            }
        }
    }

    async fn change(&self, packages: &[String], how: How, work: &Work) -> Result<(), Error> {
        self.guard_services().await?;
        let changed = self.unpack(packages, how, work).await;
        let restored = self.restore_policy().await;
        changed.and(restored)
    }

    async fn unpack(&self, packages: &[String], how: How, work: &Work) -> Result<(), Error> {
        let only: &[&str] = match how {
            How::Install => &[],
            How::Upgrade => &["--only-upgrade", "--no-remove"],
        };
        let program = Program::new("apt-get")
            .args(["-q", "-y", "--no-install-recommends"])
            .args(only.iter().copied())
            .args(["-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Options::=--force-confold"])
            .args(["-o", "Dpkg::Options::=--force-confdef", "install"])
            .args(packages.iter().map(String::as_str))
            .deadline(INSTALL_DEADLINE);
        let teller = work.clone();
        let lines = Box::new(move |_, line: &str| teller.say(line.chars().take(200).collect::<String>()));
        let ended = self.host.run_with_lines(apt_environment(program), lines, &work.cancelled).await;
        work.check("install packages")?;
        ended.map(drop).map_err(|error| Error::failed(format!("install {}", packages.join(" ")), error))
    }

    /// Keeps the packages from starting servers, or making databases, of their own.
    async fn guard_services(&self) -> Result<(), Error> {
        self.restore_policy().await?;
        let files = self.host.files();
        let failed = |error| Error::failed("keep packages from starting services", error);
        files.create_dir("/etc/postgresql-common", Access::PUBLIC_DIR).await.map_err(failed)?;
        if files.stat(CREATE_CLUSTER).await.map_err(failed)?.is_none() {
            files.write(CREATE_CLUSTER, CREATE_CLUSTER_TEXT, Access::PUBLIC).await.map_err(failed)?;
        }
        if files.stat(POLICY).await.map_err(failed)?.is_some() {
            files.rename(POLICY, POLICY_SAVED).await.map_err(failed)?;
        }
        files.write(POLICY, POLICY_TEXT, Access { mode: 0o755, owner: None }).await.map_err(failed)
    }

    /// Gives the machine its own policy back, also after an agent that was killed in between.
    pub(super) async fn restore_policy(&self) -> Result<(), Error> {
        if !self.may_install() {
            return Ok(());
        }
        let files = self.host.files();
        let failed = |error| Error::failed("give the machine its policy-rc.d back", error);
        let saved = files.stat(POLICY_SAVED).await.map_err(failed)?.is_some();
        let ours = match files.read(POLICY, MAX_POLICY_BYTES).await {
            Ok(text) => text == POLICY_TEXT.as_bytes(),
            Err(_) => false,
        };
        match (ours, saved) {
            (_, true) => files.rename(POLICY_SAVED, POLICY).await.map_err(failed),
            (true, false) => files.remove_file(POLICY).await.map(drop).map_err(failed),
            (false, false) => Ok(()),
        }
    }

    /// What would be installed of each of these packages; those without a candidate are left out.
    pub(super) async fn candidates(&self, packages: &[String]) -> Result<Vec<(String, String)>, Error> {
        let known = self.policy(packages).await?;
        Ok(known.into_iter().filter_map(|package| Some((package.name, package.candidate?))).collect())
    }

    /// What is known of those of these packages that are known at all.
    pub(super) async fn policy(&self, packages: &[String]) -> Result<Vec<Policy>, Error> {
        let program = Program::new("apt-cache").arg("policy").args(packages.iter().map(String::as_str));
        let output = self.host.run(program, &CancellationToken::new()).await;
        let text = output.map_err(|error| Error::failed("ask the package manager", error))?.stdout.text();
        Ok(parse_policy(&text))
    }
}

fn update(deadline: Duration) -> Program {
    apt_environment(Program::new("apt-get").args(["-q", "update"]).deadline(deadline))
}

fn apt_environment(program: Program) -> Program {
    program.variable("DEBIAN_FRONTEND", "noninteractive").variable("NEEDRESTART_MODE", "l")
}

/// The output of `apt-cache policy`.
fn parse_policy(text: &str) -> Vec<Policy> {
    let mut found: Vec<Policy> = Vec::new();
    let known = |version: &str| (version != "(none)").then(|| version.to_owned());
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            found.push(Policy { name: name.to_owned(), installed: None, candidate: None });
        } else if let Some(package) = found.last_mut() {
            if let Some(version) = line.trim().strip_prefix("Installed: ") {
                package.installed = known(version);
            } else if let Some(version) = line.trim().strip_prefix("Candidate: ") {
                package.candidate = known(version);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{Answer, Fake};

    #[test]
    fn what_is_installed_and_what_is_on_offer_is_read() {
        let text = "postgresql-16:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\npostgresql-15:\n  \
                    Installed: 15.18-0+deb12u1\n  Candidate: 15.20-0+deb12u1\n  Version table:\n *** 15.20 500\n";
        let none = Policy { name: "postgresql-16".to_owned(), installed: None, candidate: None };
        let both = Policy {
            name: "postgresql-15".to_owned(),
            installed: Some("15.18-0+deb12u1".to_owned()),
            candidate: Some("15.20-0+deb12u1".to_owned()),
        };
        assert_eq!(parse_policy(text), [none, both]);
    }

    #[tokio::test]
    async fn sources_are_read_once_on_a_machine_that_never_did() {
        let fake = Fake::new([]);
        let tree = fake.tree.clone();
        tree.put_dir(LISTS);
        fake.exec.on("apt-get", move |_| {
            tree.put(format!("{LISTS}/source_main_binary-amd64_Packages"), "");
            Answer::stdout("")
        });
        let apt = Apt::new(fake.host());
        assert!(apt.fetch_missing_lists().await);
        assert!(!apt.fetch_missing_lists().await);
        assert_eq!(fake.exec.runs_of("apt-get").len(), 1);
    }

    #[tokio::test]
    async fn sources_that_cannot_be_read_or_must_not_be_are_no_failure() {
        let fake = Fake::new([]);
        fake.exec.on("apt-get", |program| Answer::exit(program, 100, "no route"));
        let apt = Apt::new(fake.host());
        assert!(!apt.fetch_missing_lists().await);
        assert_eq!(fake.exec.runs_of("apt-get").len(), 1);
        fake.system.set_privilege(Privilege::Unprivileged);
        assert!(!apt.fetch_missing_lists().await);
        assert_eq!(fake.exec.runs_of("apt-get").len(), 1);
    }
}
