use std::fs;
use std::path::Path;

use super::*;

const STAT: &str =
    "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 100 0 50 800 50 0 0 0 0 0\nctxt 1\nbtime 1700000000\nprocesses 1\n";
const NET: &str = "Inter-|   Receive  |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0
  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
";

fn moment(millis: u64) -> Moment {
    Moment {
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
        boottime: Boottime::from_duration(Duration::from_millis(millis)),
    }
}

/// A machine of files. No pressure files at all, as on a kernel without PSI.
fn machine(folder: &Path) -> Roots {
    let (proc, sys, run) = (folder.join("proc"), folder.join("sys"), folder.join("run"));
    fs::create_dir_all(proc.join("net")).unwrap();
    fs::create_dir_all(sys.join("block/vda")).unwrap();
    fs::create_dir_all(sys.join("block/loop0")).unwrap();
    fs::write(proc.join("stat"), STAT).unwrap();
    fs::write(proc.join("net/dev"), NET).unwrap();
    fs::write(proc.join("loadavg"), "0.50 1.25 2.00 1/100 4242\n").unwrap();
    fs::write(proc.join("uptime"), "3600.25 7000.00\n").unwrap();
    let disks = "   7 0 loop0 9 0 9 9 9 0 9 9 0 9 9\n 253 0 vda 100 0 800 50 200 0 1600 400 0 250 450\n 253 1 vda1 1 0 1 1 1 0 1 1 0 1 1\n";
    fs::write(proc.join("diskstats"), disks).unwrap();
    fs::create_dir_all(&run).unwrap();
    Roots { proc, sys, run }
}

#[test]
fn the_first_sample_has_no_rates_and_the_second_has() {
    let folder = tempfile::tempdir().unwrap();
    let roots = machine(folder.path());
    let mut collector = Collector::new(roots.clone());
    let first = collector.collect(moment(0));
    assert_eq!(first.interval_seconds, None);
    assert_eq!(first.cpu, Some(Cpu { logical_cores: 1, usage: None }));
    assert!(first.disks.items.iter().all(|disk| disk.rates.is_none()));
    assert!(first.interfaces.items.iter().all(|interface| interface.rates.is_none()));

    fs::write(roots.proc.join("stat"), STAT.replace("cpu  100 0 50 800", "cpu  150 0 50 850")).unwrap();
    fs::write(roots.proc.join("net/dev"), NET.replace("eth0: 1000", "eth0: 6000")).unwrap();
    let second = collector.collect(moment(5000));
    assert_eq!(second.interval_seconds, Some(5.0));
    let usage = second.cpu.unwrap().usage.unwrap();
    assert_eq!((usage.user_fraction, usage.idle_fraction), (0.5, 0.5));
    let eth0 = second.interfaces.items[0].rates.unwrap();
    assert_eq!((eth0.received_bytes_per_second, eth0.sent_bytes_per_second), (1000.0, 0.0));
}

#[test]
fn only_whole_real_disks_and_no_loopback_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let sample = Collector::new(machine(folder.path())).collect(moment(0));
    let disks: Vec<&str> = sample.disks.items.iter().map(|disk| disk.name.as_str()).collect();
    let interfaces: Vec<&str> =
        sample.interfaces.items.iter().map(|interface| interface.name.as_str()).collect();
    assert_eq!((disks, interfaces), (vec!["vda"], vec!["eth0"]));
}

#[test]
fn what_the_kernel_does_not_offer_is_none_and_not_zero() {
    let folder = tempfile::tempdir().unwrap();
    let roots = machine(folder.path());
    let sample = Collector::new(roots.clone()).collect(moment(0));
    assert_eq!(sample.pressure, holdfast_common::telemetry::Pressure::default());
    assert_eq!((sample.memory, sample.swap, sample.agent), (None, None, None));
    assert_eq!(sample.load.map(|load| load.fifteen_minutes), Some(2.0));

    fs::create_dir(roots.proc.join("pressure")).unwrap();
    fs::write(roots.proc.join("pressure/cpu"), "some avg10=6.00 avg60=7.00 avg300=3.00 total=2500000\n")
        .unwrap();
    let cpu = Collector::new(roots).collect(moment(0)).pressure.cpu.unwrap();
    assert!((cpu.some.ten_seconds_fraction - 0.06).abs() < 1e-6);
    assert!((cpu.some.total_seconds - 2.5).abs() < 1e-6);
    assert_eq!(cpu.full, None);
}

#[test]
fn the_note_of_a_package_that_waits_for_a_boot_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let roots = machine(folder.path());
    let mut collector = Collector::new(roots.clone());
    assert_eq!(collector.collect(moment(0)).reboot_required, Some(false));
    fs::write(roots.run.join("reboot-required"), "*** System restart required ***\n").unwrap();
    assert_eq!(collector.collect(moment(1000)).reboot_required, Some(true));
}

#[test]
fn a_device_that_comes_between_two_samples_has_no_rates_yet() {
    let folder = tempfile::tempdir().unwrap();
    let roots = machine(folder.path());
    let mut collector = Collector::new(roots.clone());
    collector.collect(moment(0));
    let more = format!("{NET}  eth1: 7 7 0 0 0 0 0 0 7 7 0 0 0 0 0 0\n");
    fs::write(roots.proc.join("net/dev"), more).unwrap();
    let sample = collector.collect(moment(1000));
    let rates: Vec<bool> =
        sample.interfaces.items.iter().map(|interface| interface.rates.is_some()).collect();
    assert_eq!(rates, [true, false]);
}

#[test]
fn two_samples_at_once_keep_the_older_base() {
    let folder = tempfile::tempdir().unwrap();
    let roots = machine(folder.path());
    let mut collector = Collector::new(roots.clone());
    collector.collect(moment(0));
    assert_eq!(collector.collect(moment(1)).interval_seconds, None);
    assert_eq!(collector.collect(moment(1000)).interval_seconds, Some(1.0));
}

#[test]
fn many_interfaces_are_cut_and_the_cut_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let roots = machine(folder.path());
    let many: String = (0..40)
        .map(|n| format!("veth{n}: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"))
        .fold(NET.to_owned(), |all, one| all + &one);
    fs::write(roots.proc.join("net/dev"), many).unwrap();
    let interfaces = Collector::new(roots).collect(moment(0)).interfaces;
    assert_eq!((interfaces.items.len(), interfaces.omitted), (MAX_INTERFACES, 41 - 32));
}

#[test]
fn a_sample_of_this_machine_agrees_with_its_own_files() {
    let sample = Collector::new(Roots::default()).collect(moment(0));
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap();
    assert_eq!(sample.memory.unwrap().total_bytes, total * 1024);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let agent = sample.agent.unwrap();
    let resident: u64 = field("VmRSS:").trim_end_matches(" kB").parse().unwrap();
    assert!(agent.resident_bytes.abs_diff(resident * 1024) < 8 << 20, "{agent:?} {resident}");
    assert!(agent.threads >= 1 && agent.open_files >= 3);
    let root = sample.file_systems.items.iter().find(|found| found.mount_point == "/").unwrap();
    assert!(root.total_bytes >= root.used_bytes && root.used_bytes > 0);
}

/// The bound is ten times the aim, for a debug build on a busy machine; processor time, so that waiting does not count.
#[test]
fn a_sample_costs_little() {
    let mut collector = Collector::new(Roots::default());
    let used = || Roots::default().own().unwrap().cpu_seconds;
    collector.collect(moment(0));
    let before = used();
    for n in 1..=100 {
        collector.collect(moment(n * 1000));
    }
    let each = (used() - before) / 100.0;
    assert!(each < 0.01, "{each} s of processor time per sample");
}
