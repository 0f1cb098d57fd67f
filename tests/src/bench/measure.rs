//! What benchmarks measure with: a process's processor time and memory as the kernel counts them, medians, and how
//! busy the machine was meanwhile.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::unistd::{SysconfVar, sysconf};
use tokio::time::Instant;

use crate::proc::{self, Process};

/// What processes have cost until now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    at: Instant,
    /// Processor time, user and system, with that of children that have ended.
    cpu: Duration,
    /// Resident memory, shared pages included; where several processes share pages among them, each page once.
    pub(super) resident_bytes: u64,
}

/// Numbers of several rounds, in order of size.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rounds(Vec<f64>);

/// How many tasks ran or waited on the machine, over the last minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load(f64);

// === impl Cost ===

impl Cost {
    /// Of one process.
    pub(super) fn of(process: Process) -> anyhow::Result<Self> {
        let at = Instant::now();
        let memory = kibibytes(&of(process, "status")?, "VmRSS:")?;
        Ok(Self { at, cpu: ticks(&of(process, "stat")?)?, resident_bytes: memory })
    }

    /// Of a process's one thread of this name; its memory is that of the process.
    pub(super) fn of_thread(process: Process, name: &str) -> anyhow::Result<Self> {
        let at = Instant::now();
        let tasks = format!("/proc/{}/task", process.pid);
        for task in std::fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
            let task = task?.path();
            if std::fs::read_to_string(task.join("comm"))?.trim() != name {
                continue;
            }
            // The first number is the time that it ran, in nanoseconds.
            let schedule = std::fs::read_to_string(task.join("schedstat"))?;
            let ran = schedule.split_whitespace().next().context("no time")?.parse()?;
            return Ok(Self { at, cpu: Duration::from_nanos(ran), resident_bytes: 0 });
        }
        bail!("process {} has no thread `{name}`", process.pid)
    }

    /// Of a process and all that descend from it.
    pub(super) fn of_tree(ancestor: Process) -> anyhow::Result<Self> {
        let mut cost = Self { at: Instant::now(), cpu: Duration::ZERO, resident_bytes: 0 };
        for entry in proc::tree(ancestor) {
            // One that ended meanwhile is in its parent's times.
            let (Ok(stat), Ok(memory)) = (of(entry.process, "stat"), of(entry.process, "smaps_rollup"))
            else {
                continue;
            };
            cost.cpu += ticks(&stat)?;
            cost.resident_bytes += kibibytes(&memory, "Pss:")?;
        }
        ensure!(cost.resident_bytes > 0, "none of the processes to be measured runs");
        Ok(cost)
    }

    /// The share of one processor that was used since `before`: 1 is a whole one.
    pub(super) fn cores_since(&self, before: &Self) -> f64 {
        let span = self.at.duration_since(before.at).as_secs_f64();
        self.cpu.saturating_sub(before.cpu).as_secs_f64() / span.max(f64::EPSILON)
    }
}

/// Fields 14 to 17 of `stat`: user and system time, of the process and of its children that were waited for.
fn ticks(stat: &str) -> anyhow::Result<Duration> {
    let fields = stat.rsplit_once(')').context("no name")?.1.split_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() == 4, "too few fields");
    let second = sysconf(SysconfVar::CLK_TCK)?.context("no length of a tick")?;
    let second = u64::try_from(second).context("the length of a tick")?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / second))
}

/// What the kernel says under this name, in bytes.
fn kibibytes(text: &str, name: &str) -> anyhow::Result<u64> {
    let found =
        text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    let kib = found.split_whitespace().next().context("no number")?;
    Ok(kib.parse::<u64>().with_context(|| format!("understand {name}"))? * 1024)
}

fn of(process: Process, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{}/{file}", process.pid);
    std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
}

// === impl Rounds ===

impl Rounds {
    /// # Errors
    ///
    /// When there was no round.
    pub(super) fn new(numbers: impl IntoIterator<Item = f64>) -> anyhow::Result<Self> {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        ensure!(!numbers.is_empty(), "nothing was measured");
        numbers.sort_by(f64::total_cmp);
        Ok(Self(numbers))
    }

    /// The middle one; of an even number the mean of both.
    pub(super) fn median(&self) -> f64 {
        let Self(numbers) = self;
        let middle = numbers.len() / 2;
        if numbers.len() % 2 == 1 {
            numbers[middle]
        } else {
            f64::midpoint(numbers[middle - 1], numbers[middle])
        }
    }

    /// The largest.
    pub(super) fn most(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Rounds {
    /// The median, and in parentheses the smallest and the largest.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = out.precision().unwrap_or(1);
        let least = self.0.first().copied().unwrap_or(f64::NAN);
        write!(out, "{:.digits$} ({least:.digits$}–{:.digits$})", self.median(), self.most())
    }
}

// === impl Load ===

impl Load {
    pub(super) fn now() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string("/proc/loadavg").context("read the load")?;
        let first = text.split_whitespace().next().context("no load")?;
        Ok(Self(first.parse().context("understand the load")?))
    }
}

impl fmt::Display for Load {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:.2}", self.0)
    }
}

/// Bytes as KiB.
pub(super) fn kib(bytes: f64) -> f64 {
    bytes / 1024.0
}

/// Bytes as MiB.
pub(super) fn mib(bytes: f64) -> f64 {
    bytes / (1024.0 * 1024.0)
}

/// A count or a number of bytes for reckoning: exact far beyond what any machine has.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

/// Whether an aim is met, in a word.
pub(super) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() -> anyhow::Result<()> {
        assert_eq!(Rounds::new([9.0, 1.0, 5.0])?.median(), 5.0);
        assert_eq!(Rounds::new([4.0, 1.0, 2.0, 100.0])?.median(), 3.0);
        assert_eq!(Rounds::new([7.0])?.median(), 7.0);
        assert_eq!(Rounds::new([4.0, 1.0])?.most(), 4.0);
        Rounds::new([]).unwrap_err();
        Ok(())
    }

    #[test]
    fn rounds_are_told_with_their_spread() -> anyhow::Result<()> {
        let rounds = Rounds::new([1.25, 3.0, 2.0])?;
        assert_eq!(format!("{rounds:.1}"), "2.0 (1.2–3.0)");
        assert_eq!(format!("{rounds:.0}"), "2 (1–3)");
        Ok(())
    }

    #[test]
    fn times_are_read_behind_a_name_that_holds_anything() -> anyhow::Result<()> {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 20 30 20 0 4 0 100 1 1";
        assert_eq!(ticks(stat)?, Duration::from_millis(2500));
        ticks("7 (a) S 1").unwrap_err();
        Ok(())
    }

    #[test]
    fn a_process_that_works_costs_time_and_memory() -> anyhow::Result<()> {
        let me = Process::of(std::process::id()).context("this process is there")?;
        let before = Cost::of(me)?;
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {}
        let after = Cost::of(me)?;
        let cores = after.cores_since(&before);
        assert!(cores > 0.05, "{cores} of a core");
        assert!(after.resident_bytes > 100 * 1024, "{} bytes", after.resident_bytes);
        Cost::of(Process { pid: u32::MAX, start_time: 0 }).unwrap_err();
        Ok(())
    }
}
