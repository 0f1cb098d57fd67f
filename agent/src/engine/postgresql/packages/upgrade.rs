//! Minor upgrades: the packages of one major version that are installed, brought up to what the package sources offer.
//!
//! Servers run on with the program that they were started with: no maintainer script may stop or start one ([`Apt`](super::apt::Apt)
//! forbids it), and members are no units that Debian's packages know.

use holdfast_common::engine::EngineVersion;
use holdfast_common::question::{PackageUpgrade, Upgrades};

use super::{EXTENSIONS, Packages};
use crate::engine::{Error, Work};

/// Of every major version; `{}` is the version.
const ENGINE: &[&str] = &["postgresql-{}", "postgresql-client-{}", "postgresql-server-dev-{}"];

impl Packages {
    /// What is on offer, as far as the sources were read.
    pub(in super::super) async fn upgrades(&self, version: &EngineVersion) -> Result<Upgrades, Error> {
        Ok(Upgrades {
            installed_build: self.build(version).await?,
            packages: self.outdated(version).await?,
            may_install: self.may_install(),
        })
    }

    /// Upgrades what can be, and returns the build that is installed then.
    pub(in super::super) async fn upgrade(
        &self,
        version: &EngineVersion,
        work: &Work,
    ) -> Result<String, Error> {
        self.apt.finish_what_was_cut(work).await?;
        self.apt.refresh(work).await?;
        let outdated: Vec<String> =
            self.outdated(version).await?.into_iter().map(|package| package.name).collect();
        if outdated.is_empty() {
            work.say("the packages are up to date");
        } else {
            self.apt.upgrade(&outdated, work).await?;
        }
        self.build(version).await
    }

    async fn outdated(&self, version: &EngineVersion) -> Result<Vec<PackageUpgrade>, Error> {
        let known = self.apt.policy(&names(version)).await?;
        let outdated = known.into_iter().filter_map(|package| {
            let (installed, offered) = (package.installed?, package.candidate?);
            let differs = installed != offered;
            differs.then_some(PackageUpgrade { name: package.name, installed, offered })
        });
        Ok(outdated.collect())
    }
}

/// The packages that are of this version and no other.
fn names(version: &EngineVersion) -> Vec<String> {
    let extensions = EXTENSIONS.iter().map(|(_, pattern, _)| *pattern);
    let all = ENGINE.iter().copied().chain(extensions);
    let mut names: Vec<String> = all.map(|pattern| pattern.replace("{}", version.as_str())).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use holdfast_common::error::{Classify as _, Reason};
    use holdfast_common::telemetry::Privilege;

    use super::*;
    use crate::engine::contract::work;
    use crate::engine::postgresql::{DEBIAN_PROGRAMS, SYSTEM_FOLDERS};
    use crate::host::exec::Program;
    use crate::host::fake::{Answer, Fake};

    /// A machine with PostgreSQL 15.13 and a package source that has 15.14; `upgraded`: whether that was installed.
    fn machine() -> (Fake, Packages, Arc<AtomicBool>) {
        let fake = Fake::new(SYSTEM_FOLDERS.iter().map(PathBuf::from));
        let upgraded = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&upgraded);
        fake.exec.on("apt-cache", move |_| {
            let installed = if now.load(Ordering::Relaxed) { "15.14-1" } else { "15.13-1" };
            let engine = format!("postgresql-15:\n  Installed: {installed}\n  Candidate: 15.14-1\n");
            let others = "postgresql-15-cron:\n  Installed: (none)\n  Candidate: 1.6-1\n\
                          postgresql-client-15:\n  Installed: 15.14-1\n  Candidate: 15.14-1\n";
            Answer::stdout(format!("{engine}{others}"))
        });
        let now = Arc::clone(&upgraded);
        fake.exec.on("apt-get", move |program| {
            now.fetch_or(program.arguments().any(|word| word == "install"), Ordering::Relaxed);
            Answer::stdout("")
        });
        fake.exec.on("dpkg", |_| Answer::stdout(""));
        let now = Arc::clone(&upgraded);
        fake.exec.on("postgres", move |_| {
            let minor = if now.load(Ordering::Relaxed) { "15.14" } else { "15.13" };
            Answer::stdout(format!("postgres (PostgreSQL) {minor} (Debian {minor}-1)\n"))
        });
        let packages = Packages::new(fake.host(), DEBIAN_PROGRAMS.into());
        (fake, packages, upgraded)
    }

    #[tokio::test]
    async fn only_installed_packages_of_the_version_are_upgraded_and_none_removed_or_started() {
        let (fake, packages, _) = machine();
        let version: EngineVersion = "15".parse().unwrap();
        let offered = packages.upgrades(&version).await.unwrap();
        assert_eq!(offered.installed_build, "15.13 (Debian 15.13-1)");
        let named: Vec<&str> = offered.packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(named, ["postgresql-15"]);
        assert!(fake.exec.runs_of("apt-get").is_empty(), "a question changes nothing");

        let installed = packages.upgrade(&version, &work()).await.unwrap();
        assert_eq!(installed, "15.14 (Debian 15.14-1)");
        let runs = fake.exec.runs_of("apt-get");
        let words: Vec<String> = runs.last().unwrap().arguments().map(String::from).collect();
        for word in ["install", "--only-upgrade", "--no-remove", "postgresql-15"] {
            assert!(words.iter().any(|it| it == word), "{words:?}");
        }
        assert!(!words.iter().any(|it| it == "postgresql-15-cron"), "{words:?}");

        // A repeat finds nothing to do.
        packages.upgrade(&version, &work()).await.unwrap();
        let installs = fake.exec.runs_of("apt-get").len() - runs.len();
        assert_eq!(installs, 1, "the sources are read again, and that is all");
    }

    /// What dpkg was told, but for whether it was interrupted.
    fn told(fake: &Fake) -> Vec<String> {
        let words = |run: &Program| run.arguments().map(String::from).collect::<Vec<_>>().join(" ");
        fake.exec.runs_of("dpkg").iter().map(words).filter(|words| words != "--audit").collect()
    }

    #[tokio::test]
    async fn what_dpkg_was_interrupted_in_is_finished_before_anything_else_and_starts_no_service() {
        const POLICY: &str = "/usr/sbin/policy-rc.d";
        const FINISH: &str = "--force-confold --force-confdef --configure --pending";
        let version: EngineVersion = "15".parse().unwrap();
        for noted in [true, false] {
            let (fake, packages, _) = machine();
            let (tree, cut) = (fake.tree.clone(), Arc::new(AtomicBool::new(true)));
            tree.put_dir("/var/lib/dpkg/updates");
            if noted {
                tree.put("/var/lib/dpkg/updates/0001", "Package: postgresql-15\n");
            }
            let (disk, is_cut) = (tree.clone(), Arc::clone(&cut));
            fake.exec.on("dpkg", move |program| {
                if program.arguments().any(|word| word == "--configure") {
                    let policy = String::from_utf8(disk.contents(POLICY).unwrap()).unwrap();
                    assert!(policy.contains("exit 101"));
                    is_cut.store(false, Ordering::Relaxed);
                    disk.take("/var/lib/dpkg/updates/0001");
                }
                let unfinished = !noted && is_cut.load(Ordering::Relaxed);
                Answer::stdout(if unfinished {
                    "The following packages are only half configured"
                } else {
                    ""
                })
            });
            packages.upgrade(&version, &work()).await.unwrap();
            assert_eq!(told(&fake), [FINISH], "noted: {noted}");
            let runs = fake.exec.runs();
            let at = |name: &str, word: &str| {
                let is_it = |run: &Program| run.name() == name && run.arguments().any(|it| it == word);
                runs.iter().position(is_it).unwrap()
            };
            assert!(at("dpkg", "--configure") < at("apt-get", "update"));
            assert_eq!(tree.contents(POLICY), None, "the machine has its own policy back");
            packages.upgrade(&version, &work()).await.unwrap();
            assert_eq!(told(&fake).len(), 1, "it is whole");

            // Where it cannot, a person is told what to do, and nothing else is done.
            cut.store(true, Ordering::Relaxed);
            tree.put("/var/lib/dpkg/updates/0002", "");
            fake.exec.on("dpkg", |program| Answer::exit(program, 1, "no space left on device"));
            let before = fake.exec.runs_of("apt-get").len();
            let refused = packages.upgrade(&version, &work()).await.unwrap_err();
            let said = holdfast_common::error::Chain(&refused).to_string();
            assert!(said.contains("`dpkg --configure -a`") && said.contains("no space left"), "{said}");
            assert_eq!(fake.exec.runs_of("apt-get").len(), before);
            assert_eq!(tree.contents(POLICY), None, "the machine has its own policy back");
        }
    }

    #[tokio::test]
    async fn who_is_not_root_is_told_what_to_upgrade() {
        let (fake, packages, upgraded) = machine();
        fake.system.set_privilege(Privilege::Unprivileged);
        let version: EngineVersion = "15".parse().unwrap();
        assert!(!packages.upgrades(&version).await.unwrap().may_install);
        let refused = packages.upgrade(&version, &work()).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::PreconditionFailed);
        assert!(refused.to_string().contains("postgresql-15"), "{refused}");
        upgraded.store(true, Ordering::Relaxed);
        packages.upgrade(&version, &work()).await.unwrap();
        assert!(fake.exec.runs_of("apt-get").is_empty());
    }

    #[test]
    fn no_name_is_of_another_version() {
        let names = names(&"15".parse().unwrap());
        assert!(names.iter().all(|name| name.contains("15")), "{names:?}");
        assert!(names.contains(&"postgresql-15-pgvector".to_owned()));
    }
}
