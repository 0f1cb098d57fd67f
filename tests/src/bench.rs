//! The benchmarks that `cargo xtask bench` runs. Each is a module here and a line in [`ALL`]; it measures in a release
//! build and answers with a [`Report`], which xtask writes to `docs/BENCHMARKS.md`.

mod agent;
mod crowd;
mod firewall;
mod measure;
mod resync;
mod roles;
mod swarm;

use std::io::Write as _;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

const HEAD: &str =
    "# Benchmarks\n\nWritten by `cargo xtask bench`; each table says on what machine it was measured.\n";

/// One benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    /// How long it may take.
    pub patience: Duration,
    /// Does it.
    pub run: fn() -> Running,
}

/// A benchmark under way.
pub type Running = Pin<Box<dyn Future<Output = anyhow::Result<Report>>>>;

/// What a benchmark found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The heading of its section.
    pub title: String,
    /// What was measured and how, in prose.
    pub about: String,
    /// Tables of results.
    pub tables: Vec<Table>,
}

/// A table of results.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What the columns are called.
    pub columns: Vec<String>,
    /// A cell for every column in every row.
    pub rows: Vec<Vec<String>>,
}

/// All benchmarks, in the order in which they are run.
pub const ALL: &[Bench] = &[
    Bench {
        name: "swarm",
        about: "what 100, 300 and 1,000 agents cost a coordinator, and how fast it reaches them",
        patience: Duration::from_secs(1800),
        run: || Box::pin(swarm::measure()),
    },
    Bench {
        name: "agent",
        about: "what an agent at rest costs its machine",
        patience: Duration::from_secs(900),
        run: || Box::pin(agent::measure()),
    },
    Bench {
        name: "roles",
        about: "how long nobody can write when the primary changes, beside a switchover by hand and Patroni",
        patience: Duration::from_secs(3600),
        run: || Box::pin(roles::measure()),
    },
    Bench {
        name: "crowd",
        about: "the same with 5,000 agents on the coordinator, and what it costs then",
        patience: Duration::from_secs(3600),
        run: || Box::pin(crowd::measure()),
    },
    Bench {
        name: "resync",
        about: "how long a replica of 2 GB takes to be made anew, beside pg_basebackup alone, and by a rewind",
        patience: Duration::from_secs(3600),
        run: || Box::pin(resync::measure()),
    },
    Bench {
        name: "firewall",
        about: "access rules by netlink against nft -f, up to 100,000 networks",
        patience: Duration::from_secs(900),
        run: || Box::pin(firewall::measure()),
    },
];

// === impl Report ===

impl Report {
    /// The report as a section of Markdown.
    #[must_use]
    pub fn render(&self) -> String {
        let Self { title, about, tables } = self;
        let mut text = format!("## {title}\n\n{}\n\n{about}\n", machine());
        for table in tables {
            let Table { columns, rows } = table;
            text += &format!("\n| {} |\n|{}\n", columns.join(" | "), " --- |".repeat(columns.len()));
            for row in rows {
                text += &format!("| {} |\n", row.join(" | "));
            }
        }
        text
    }
}

/// What `holdfast-bench FILE [NAME]` does: runs one benchmark or all, prints each report and puts it into the file. It is
/// also the servers that benchmarks need besides the product's own programs.
///
/// # Errors
///
/// When there is none of that name, one fails or takes too long, or the file cannot be written.
pub fn bench_main(arguments: &[String]) -> anyhow::Result<()> {
    let (file, name) = match arguments {
        [verb, state, socket] if verb == swarm::COORDINATE => {
            return swarm::coordinate(state.as_ref(), socket.as_ref());
        }
        [verb, state, _tls] if verb == swarm::FLOOR => return swarm::serve_floor(state.as_ref()),
        [_, name] if name == "list" => return list(),
        [verb, folder, address] if verb == crowd::CROWD => return crowd::gather(folder.as_ref(), address),
        [file] => (file, None),
        [file, name] => (file, Some(name)),
        _ => bail!("holdfast-bench is started by `cargo xtask bench`, not by people"),
    };
    let wanted: Vec<_> = ALL.iter().filter(|bench| name.is_none_or(|name| name == bench.name)).collect();
    ensure!(!wanted.is_empty(), "no such benchmark: `cargo xtask bench list` lists them");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("make a runtime")?;
    for bench in wanted {
        let run = async { tokio::time::timeout(bench.patience, (bench.run)()).await };
        let report =
            runtime.block_on(run).with_context(|| format!("{} did not end in time", bench.name))??;
        let section = report.render();
        writeln!(std::io::stdout(), "{section}")?;
        keep(file.as_ref(), bench.name, &section)?;
    }
    Ok(())
}

fn list() -> anyhow::Result<()> {
    for bench in ALL {
        writeln!(std::io::stdout(), "{:<12} {}", bench.name, bench.about)?;
    }
    Ok(())
}

/// Puts a benchmark's section into the file, in place of its old one.
fn keep(file: &Path, name: &str, section: &str) -> anyhow::Result<()> {
    let before = std::fs::read_to_string(file).unwrap_or_else(|_absent| HEAD.into());
    std::fs::write(file, replaced(&before, name, section))
        .with_context(|| format!("write {}", file.display()))
}

fn replaced(before: &str, name: &str, section: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->"), format!("<!-- end {name} -->"));
    let section = format!("{begin}\n{}\n{end}", section.trim_end());
    let old =
        before.find(&begin).and_then(|from| Some((from, from + before[from..].find(&end)? + end.len())));
    match old {
        Some((from, to)) => format!("{}{section}{}", &before[..from], &before[to..]),
        None => format!("{}\n\n{section}\n", before.trim_end()),
    }
}

/// What the numbers depend on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let memory = memory.map_or_else(|| "unknown".into(), |kib| format!("{} GiB", kib / (1 << 20)));
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "Measured on {cores} cores ({}), {memory} of memory, Linux {}.",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_section_with_its_tables() {
        let table = Table { columns: vec!["a".into(), "b".into()], rows: vec![vec!["1".into(), "2".into()]] };
        let report = Report { title: "T".into(), about: "How.".into(), tables: vec![table] };
        let text = report.render();
        assert!(text.starts_with("## T\n\nMeasured on "), "{text}");
        assert!(text.ends_with("\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"), "{text}");
    }

    #[test]
    fn a_section_takes_the_place_of_its_old_one_and_of_no_other() {
        let both = replaced(&replaced(HEAD, "one", "first"), "two", "second");
        let again = replaced(&both, "one", "anew");
        assert!(again.starts_with(HEAD.trim_end()));
        assert!(!again.contains("first") && again.contains("anew") && again.contains("second"), "{again}");
        assert_eq!(replaced(&again, "two", "second"), again);
    }
}
