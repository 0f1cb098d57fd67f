//! What two readings of the kernel's counters say together. Pure.
//!
//! A counter that went down was reset (a device was replaced, a driver reloaded) or wrapped: then there is no rate for
//! that interval, rather than a negative or a huge one.

use std::time::Duration;

use holdfast_common::telemetry::{CpuUsage, DiskRates, InterfaceRates};

use super::counters::{CpuTimes, DiskCounters, InterfaceCounters};

/// Two samples closer than this say nothing: the kernel's clock ticks every 10 ms.
pub const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// Shares of the processors' time between two readings.
pub fn cpu_usage(before: &CpuTimes, after: &CpuTimes) -> Option<CpuUsage> {
    let CpuTimes { user, nice, system, idle, iowait, irq, softirq, steal } = *after;
    let parts = [
        (before.user, user),
        (before.nice, nice),
        (before.system, system),
        (before.irq, irq),
        (before.softirq, softirq),
        (before.steal, steal),
    ];
    let mut busy = [0_u64; 6];
    for (part, (from, to)) in busy.iter_mut().zip(parts) {
        *part = to.checked_sub(from)?;
    }
    // These two are known to go back a little on some kernels; that is no reset.
    let idle = idle.saturating_sub(before.idle);
    let iowait = iowait.saturating_sub(before.iowait);
    let total = busy.iter().sum::<u64>() + idle + iowait;
    if total == 0 {
        return None;
    }
    let share = |ticks: u64| real(ticks) / real(total);
    let [user, nice, system, irq, softirq, steal] = busy;
    Some(CpuUsage {
        user_fraction: share(user),
        nice_fraction: share(nice),
        system_fraction: share(system),
        idle_fraction: share(idle),
        iowait_fraction: share(iowait),
        irq_fraction: share(irq),
        softirq_fraction: share(softirq),
        steal_fraction: share(steal),
    })
}

/// What a disk did between two readings.
pub fn disk_rates(before: &DiskCounters, after: &DiskCounters, interval: Duration) -> Option<DiskRates> {
    let seconds = span(interval)?;
    let reads = after.reads.checked_sub(before.reads)?;
    let writes = after.writes.checked_sub(before.writes)?;
    let read_bytes = after.read_bytes.checked_sub(before.read_bytes)?;
    let written_bytes = after.written_bytes.checked_sub(before.written_bytes)?;
    // The kernel keeps these in 32 bits of milliseconds: they wrap within weeks of a busy disk.
    let reading = milliseconds(before.read_millis, after.read_millis);
    let writing = milliseconds(before.write_millis, after.write_millis);
    let busy = milliseconds(before.busy_millis, after.busy_millis);
    let weighted = milliseconds(before.weighted_millis, after.weighted_millis);
    let latency = |spent: Option<f64>, count: u64| spent.filter(|_| count > 0).map(|s| s / real(count));
    Some(DiskRates {
        reads_per_second: real(reads) / seconds,
        writes_per_second: real(writes) / seconds,
        read_bytes_per_second: real(read_bytes) / seconds,
        written_bytes_per_second: real(written_bytes) / seconds,
        busy_fraction: (busy? / seconds).clamp(0.0, 1.0),
        read_latency_seconds: latency(reading, reads),
        write_latency_seconds: latency(writing, writes),
        queue_depth: weighted? / seconds,
    })
}

/// What went through an interface between two readings.
pub fn interface_rates(
    before: &InterfaceCounters,
    after: &InterfaceCounters,
    interval: Duration,
) -> Option<InterfaceRates> {
    let seconds = span(interval)?;
    let rate = |from: u64, to: u64| to.checked_sub(from).map(|count| real(count) / seconds);
    Some(InterfaceRates {
        received_bytes_per_second: rate(before.received_bytes, after.received_bytes)?,
        sent_bytes_per_second: rate(before.sent_bytes, after.sent_bytes)?,
        received_packets_per_second: rate(before.received_packets, after.received_packets)?,
        sent_packets_per_second: rate(before.sent_packets, after.sent_packets)?,
        receive_errors_per_second: rate(before.receive_errors, after.receive_errors)?,
        send_errors_per_second: rate(before.send_errors, after.send_errors)?,
        receive_drops_per_second: rate(before.receive_drops, after.receive_drops)?,
        send_drops_per_second: rate(before.send_drops, after.send_drops)?,
    })
}

/// The share of one processor that was used between two readings.
pub fn cpu_fraction(before_seconds: f64, after_seconds: f64, interval: Duration) -> Option<f64> {
    let used = after_seconds - before_seconds;
    (used >= 0.0).then_some(used / span(interval)?)
}

fn span(interval: Duration) -> Option<f64> {
    (interval >= MIN_INTERVAL).then_some(interval.as_secs_f64())
}

/// Seconds between two readings of a millisecond counter that went up; a fall is a wrap or a reset: unknown.
fn milliseconds(before: u64, after: u64) -> Option<f64> {
    after.checked_sub(before).map(|millis| real(millis) / 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(parts: [u64; 8]) -> CpuTimes {
        let [user, nice, system, idle, iowait, irq, softirq, steal] = parts;
        CpuTimes { user, nice, system, idle, iowait, irq, softirq, steal }
    }

    fn disk(parts: [u64; 8]) -> DiskCounters {
        let [
            reads,
            writes,
            read_bytes,
            written_bytes,
            read_millis,
            write_millis,
            busy_millis,
            weighted_millis,
        ] = parts;
        DiskCounters {
            reads,
            writes,
            read_bytes,
            written_bytes,
            read_millis,
            write_millis,
            busy_millis,
            weighted_millis,
        }
    }

    fn interface(parts: [u64; 8]) -> InterfaceCounters {
        let [
            received_bytes,
            sent_bytes,
            received_packets,
            sent_packets,
            receive_errors,
            send_errors,
            receive_drops,
            send_drops,
        ] = parts;
        InterfaceCounters {
            received_bytes,
            sent_bytes,
            received_packets,
            sent_packets,
            receive_errors,
            send_errors,
            receive_drops,
            send_drops,
        }
    }

    fn fractions(usage: &CpuUsage) -> [f64; 8] {
        [
            usage.user_fraction,
            usage.nice_fraction,
            usage.system_fraction,
            usage.idle_fraction,
            usage.iowait_fraction,
            usage.irq_fraction,
            usage.softirq_fraction,
            usage.steal_fraction,
        ]
    }

    #[test]
    fn a_known_second_of_a_disk_gives_known_rates() {
        let after = disk([10, 20, 4096, 8192, 50, 400, 250, 500]);
        let rates = disk_rates(&disk([0; 8]), &after, Duration::from_secs(2)).unwrap();
        assert_eq!(
            rates,
            DiskRates {
                reads_per_second: 5.0,
                writes_per_second: 10.0,
                read_bytes_per_second: 2048.0,
                written_bytes_per_second: 4096.0,
                busy_fraction: 0.125,
                read_latency_seconds: Some(0.005),
                write_latency_seconds: Some(0.02),
                queue_depth: 0.25,
            }
        );
    }

    #[test]
    fn an_idle_disk_has_no_latency_rather_than_none_at_all() {
        let rates = disk_rates(&disk([7; 8]), &disk([7; 8]), Duration::from_secs(1)).unwrap();
        assert_eq!((rates.read_latency_seconds, rates.write_latency_seconds), (None, None));
        assert_eq!(rates.busy_fraction, 0.0);
    }

    #[test]
    fn a_counter_that_was_reset_gives_no_rate() {
        let (before, after) = (interface([1000; 8]), interface([10; 8]));
        assert_eq!(interface_rates(&before, &after, Duration::from_secs(1)), None);
        assert_eq!(disk_rates(&disk([1000; 8]), &disk([10; 8]), Duration::from_secs(1)), None);
        assert_eq!(cpu_usage(&times([1000; 8]), &times([10; 8])), None);
    }

    #[test]
    fn iowait_that_goes_back_a_little_is_no_reset() {
        let usage = cpu_usage(&times([0, 0, 0, 0, 9, 0, 0, 0]), &times([5, 0, 0, 5, 8, 0, 0, 0])).unwrap();
        assert_eq!((usage.user_fraction, usage.iowait_fraction), (0.5, 0.0));
    }

    #[test]
    fn two_readings_at_once_give_no_rate() {
        assert_eq!(disk_rates(&disk([0; 8]), &disk([1; 8]), Duration::ZERO), None);
        assert_eq!(cpu_fraction(1.0, 2.0, Duration::ZERO), None);
        assert_eq!(cpu_usage(&times([5; 8]), &times([5; 8])), None);
    }

    proptest! {
        #[test]
        fn shares_of_the_processors_add_up_to_one(before: [u32; 8], step: [u32; 8]) {
            let before = before.map(u64::from);
            let mut after = before;
            after.iter_mut().zip(step).for_each(|(to, by)| *to += u64::from(by));
            match cpu_usage(&times(before), &times(after)) {
                Some(usage) => {
                    let shares = fractions(&usage);
                    prop_assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
                    prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                }
                None => prop_assert!(step.iter().all(|by| *by == 0)),
            }
        }

        #[test]
        fn no_rate_is_negative_or_more_than_was_counted(before: [u64; 8], after: [u64; 8], millis in 0_u64..20_000) {
            let interval = Duration::from_millis(millis);
            if let Some(rates) = disk_rates(&disk(before), &disk(after), interval) {
                prop_assert!((0.0..=1.0).contains(&rates.busy_fraction));
                prop_assert!(rates.reads_per_second >= 0.0 && rates.queue_depth >= 0.0);
                prop_assert!(rates.read_latency_seconds.is_none_or(|latency| latency >= 0.0));
                prop_assert!(rates.reads_per_second * interval.as_secs_f64() <= real(after[0]) * 1.000_001);
            }
            if let Some(rates) = interface_rates(&interface(before), &interface(after), interval) {
                prop_assert!(before.iter().zip(after).all(|(from, to)| *from <= to));
                prop_assert!(rates.sent_bytes_per_second >= 0.0 && rates.sent_bytes_per_second.is_finite());
            }
        }
    }
}
