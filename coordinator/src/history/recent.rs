//! The last hour of one node at full resolution, in memory.
//!
//! ```text
//! record ─► open chunk (a growing column a series) ──60 samples──► sealed chunk (one block of bytes) ──an hour──► gone
//! ```
//!
//! Bounded three times: in time ([`KEPT_MS`]), in series ([`MAX_SERIES`]), in bytes ([`MAX_BYTES`]). Series that have not
//! been seen for an hour make room for new ones (interfaces of containers come and go).

use std::collections::VecDeque;
use std::mem::size_of;
use std::ops::Range;

use super::column::{Column, decode, read_slice, read_varint, write_slice, write_varint};
use super::series::{Key, Kind, each};
use holdfast_common::telemetry::Sample;

/// How long full resolution is kept.
pub(super) const KEPT_MS: i64 = 3_600_000;
/// The most series of one node.
pub(super) const MAX_SERIES: usize = 256;
/// The most memory for one node; where it is not enough, the oldest goes first.
pub(super) const MAX_BYTES: usize = 256 * 1024;
/// Two samples of a node are at least so far apart; the later one is refused otherwise.
const MIN_DISTANCE_MS: i64 = 900;
const CHUNK_SAMPLES: u32 = 60;

/// Whether a sample was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    Taken {
        /// Values of series beyond the bound.
        series_refused: u32,
    },
    /// Not newer than the last one.
    OutOfOrder,
}

#[derive(Debug, Default)]
pub(super) struct Recent {
    keys: Vec<Slot>,
    sealed: VecDeque<Chunk>,
    sealed_bytes: usize,
    open: Open,
    last_ms: Option<i64>,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    last_used_ms: i64,
}

#[derive(Debug, Default)]
struct Open {
    start_ms: i64,
    count: u32,
    /// Distances to the sample before.
    times: Column,
    columns: Vec<Growing>,
}

#[derive(Debug, Default)]
struct Growing {
    column: Column,
    /// Places written.
    count: u32,
}

#[derive(Debug)]
struct Chunk {
    start_ms: i64,
    end_ms: i64,
    count: u32,
    /// The times' column, then for each series that has values: slot, column.
    data: Box<[u8]>,
}

// === impl Recent ===

impl Recent {
    pub(super) fn record(&mut self, time_ms: i64, sample: &Sample) -> Recorded {
        if self.last_ms.is_some_and(|last| time_ms < last.saturating_add(MIN_DISTANCE_MS)) {
            return Recorded::OutOfOrder;
        }
        let distance = self.last_ms.filter(|_| self.open.count > 0).map_or(0, |last| time_ms - last);
        if self.open.count == 0 {
            self.open.start_ms = time_ms;
        }
        self.last_ms = Some(time_ms);
        self.open.times.push(Some(distance));
        let place = self.open.count;
        let mut hint = 0;
        let mut series_refused = 0;
        each(sample, |kind, label, value| {
            let Some(quantised) = kind.scale().quantise(value) else { return };
            let Some(slot) = self.slot(kind, label, hint, time_ms) else {
                series_refused += 1;
                return;
            };
            hint = slot + 1;
            let open = &mut self.open.columns[slot];
            // A label named twice in one sample: the first one counts.
            if open.count <= place {
                open.column.skip(place - open.count);
                open.column.push(Some(quantised));
                open.count = place + 1;
            }
        });
        self.open.count += 1;
        if self.open.count == CHUNK_SAMPLES {
            self.seal();
        }
        self.expire(time_ms);
        Recorded::Taken { series_refused }
    }

    /// Since when all that the node sent is here.
    pub(super) fn start_ms(&self) -> Option<i64> {
        self.sealed
            .front()
            .map(|chunk| chunk.start_ms)
            .or_else(|| (self.open.count > 0).then_some(self.open.start_ms))
    }

    pub(super) fn last_ms(&self) -> Option<i64> {
        self.last_ms
    }

    /// Every point in the span, series by series, in order of time.
    pub(super) fn points(&self, span: &Range<i64>, wanted: &[Kind]) -> Vec<(Key, Vec<(i64, f64)>)> {
        let mut found: Vec<Vec<(i64, f64)>> = vec![Vec::new(); self.keys.len()];
        let mut take = |slot: usize, times: &[i64], column: &[u8]| {
            let Some(Slot { key, .. }) = self.keys.get(slot) else { return };
            if !wanted.is_empty() && !wanted.contains(&key.kind) {
                return;
            }
            let Ok(values) = decode(column, times.len()) else { return };
            let scale = key.kind.scale();
            let points = times.iter().zip(values).filter(|(time, _)| span.contains(time));
            found[slot].extend(points.filter_map(|(time, value)| Some((*time, scale.restore(value?)))));
        };
        for chunk in
            self.sealed.iter().filter(|chunk| chunk.start_ms < span.end && chunk.end_ms >= span.start)
        {
            // Our own bytes in our own memory: what cannot be read is left out rather than answered wrongly.
            let _ = chunk.read(&mut take);
        }
        if self.open.count > 0 {
            let times = times(&self.open.times.encoded(), self.open.start_ms, self.open.count);
            for (slot, open) in self.open.columns.iter().enumerate().filter(|(_, open)| open.count > 0) {
                let mut column = open.column.clone();
                column.skip(self.open.count - open.count);
                take(slot, &times, &column.finish());
            }
        }
        let keyed = self.keys.iter().map(|slot| slot.key.clone()).zip(found);
        keyed.filter(|(_, points)| !points.is_empty()).collect()
    }

    /// Memory that this node's history takes.
    pub(super) fn bytes(&self) -> usize {
        let slots = self.keys.capacity() * size_of::<Slot>()
            + self.keys.iter().map(|slot| slot.key.label.len() + 16).sum::<usize>();
        let columns = self.open.columns.iter().map(|open| open.column.heap_bytes()).sum::<usize>();
        size_of::<Self>()
            + slots
            + self.open.times.heap_bytes()
            + self.open.columns.capacity() * size_of::<Growing>()
            + columns
            + self.sealed.capacity() * size_of::<Chunk>()
            + self.sealed_bytes
    }

    /// The series' place; samples name them in the same order, so it is mostly where the hint says.
    fn slot(&mut self, kind: Kind, label: &str, hint: usize, now_ms: i64) -> Option<usize> {
        let same = |slot: &Slot| slot.key.kind == kind && &*slot.key.label == label;
        let place =
            if self.keys.get(hint).is_some_and(same) { Some(hint) } else { self.keys.iter().position(same) };
        let place = match place {
            Some(place) => place,
            None => self.new_slot(Key { kind, label: label.into() })?,
        };
        self.keys[place].last_used_ms = now_ms;
        Some(place)
    }

    fn new_slot(&mut self, key: Key) -> Option<usize> {
        let slot = Slot { key, last_used_ms: 0 };
        if self.keys.len() < MAX_SERIES {
            // One by one: there are few, and they stay.
            self.keys.reserve_exact(1);
            self.keys.push(slot);
            self.open.columns.reserve_exact(1);
            self.open.columns.push(Growing::default());
            return Some(self.keys.len() - 1);
        }
        let start = self.start_ms()?;
        let place = self.keys.iter().position(|old| old.last_used_ms < start)?;
        self.keys[place] = slot;
        Some(place)
    }

    fn seal(&mut self) {
        let open = std::mem::take(&mut self.open);
        let mut data = Vec::new();
        write_slice(&mut data, &open.times.finish());
        for (slot, mut series) in open.columns.into_iter().enumerate() {
            if series.count > 0 {
                series.column.skip(open.count - series.count);
                write_varint(&mut data, slot as u64);
                write_slice(&mut data, &series.column.finish());
            }
        }
        self.open.columns.resize_with(self.keys.len(), Growing::default);
        self.sealed_bytes += data.len();
        let end_ms = self.last_ms.unwrap_or(open.start_ms);
        self.sealed.push_back(Chunk {
            start_ms: open.start_ms,
            end_ms,
            count: open.count,
            data: data.into_boxed_slice(),
        });
    }

    fn expire(&mut self, now_ms: i64) {
        while let Some(oldest) = self.sealed.front() {
            if oldest.end_ms >= now_ms - KEPT_MS && self.bytes() <= MAX_BYTES {
                break;
            }
            self.sealed_bytes -= oldest.data.len();
            self.sealed.pop_front();
        }
    }
}

// === impl Chunk ===

impl Chunk {
    fn read(&self, take: &mut impl FnMut(usize, &[i64], &[u8])) -> Result<(), super::column::Damaged> {
        let mut data = &*self.data;
        let times = times(read_slice(&mut data)?, self.start_ms, self.count);
        while !data.is_empty() {
            let slot = usize::try_from(read_varint(&mut data)?).unwrap_or(usize::MAX);
            take(slot, &times, read_slice(&mut data)?);
        }
        Ok(())
    }
}

fn times(encoded: &[u8], start_ms: i64, count: u32) -> Vec<i64> {
    let distances = decode(encoded, count as usize).unwrap_or_default();
    let mut time = start_ms;
    let sum = distances.into_iter().map(|distance| {
        time += distance.unwrap_or(0);
        time
    });
    sum.collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Dice, busy_sample};
    use super::*;

    #[test]
    fn an_hour_of_a_node_costs_well_below_40_kib() {
        // Every value restless, and a node whose second interface and pressure are at rest.
        assert!(most_bytes(false) < 36 * 1024, "{} bytes", most_bytes(false));
        assert!(most_bytes(true) < 28 * 1024, "{} bytes", most_bytes(true));
    }

    fn most_bytes(typical: bool) -> usize {
        let mut recent = Recent::default();
        let mut dice = Dice::new(7);
        let mut most = 0;
        // Two hours, so that the ring is full and turns over.
        for n in 0..1440 {
            let mut sample = busy_sample(&mut dice, n);
            if typical {
                sample.pressure = holdfast_common::telemetry::Pressure::default();
                sample.interfaces.items[1].rates = None;
            }
            assert_eq!(
                recent.record(n * 5000 + dice.up_to(20), &sample),
                Recorded::Taken { series_refused: 0 }
            );
            most = most.max(recent.bytes());
        }
        let points = recent.points(&(i64::MIN..i64::MAX), &[Kind::CpuBusy]);
        assert!(points[0].1.len() >= 720, "an hour is kept: {}", points[0].1.len());
        assert!(recent.keys.len() >= 40, "a typical node: {} series", recent.keys.len());
        most
    }

    #[test]
    fn samples_come_back_as_they_were() {
        let mut recent = Recent::default();
        let mut dice = Dice::new(1);
        let mut expected = Vec::new();
        for n in 0..200 {
            let sample = busy_sample(&mut dice, n);
            let time = n * 5000 + dice.up_to(100);
            recent.record(time, &sample);
            expected.push((time, sample.cpu.unwrap().usage.unwrap().busy_fraction()));
        }
        let points = recent.points(&(i64::MIN..i64::MAX), &[Kind::CpuBusy]);
        assert_eq!(points.len(), 1);
        assert_eq!(points[0].1.len(), expected.len());
        for ((time, value), (expected_time, expected_value)) in points[0].1.iter().zip(expected) {
            assert_eq!(*time, expected_time);
            assert!((value - expected_value).abs() <= 0.001_251);
        }
    }

    #[test]
    fn a_sample_that_is_not_newer_is_refused_and_changes_nothing() {
        let mut recent = Recent::default();
        let mut dice = Dice::new(1);
        let sample = busy_sample(&mut dice, 0);
        recent.record(10_000, &sample);
        for time in [10_000, 10_500, 9_000, 0, i64::MIN] {
            assert_eq!(recent.record(time, &sample), Recorded::OutOfOrder);
        }
        assert_eq!(recent.points(&(i64::MIN..i64::MAX), &[Kind::CpuBusy])[0].1.len(), 1);
        assert_eq!(recent.record(15_000, &sample), Recorded::Taken { series_refused: 0 });
    }

    #[test]
    fn a_device_that_goes_and_comes_has_a_gap() {
        let mut recent = Recent::default();
        let mut dice = Dice::new(1);
        for n in 0..100 {
            let mut sample = busy_sample(&mut dice, n);
            if (20..70).contains(&n) {
                sample.disks.items.truncate(1);
            }
            recent.record(n * 5000, &sample);
        }
        let points = recent.points(&(i64::MIN..i64::MAX), &[Kind::DiskRead]);
        let times: Vec<i64> = points[1].1.iter().map(|(time, _)| time / 5000).collect();
        assert_eq!(times, (0..20).chain(70..100).collect::<Vec<_>>());
        assert_eq!(points[0].1.len(), 100);
    }

    #[test]
    fn names_without_end_are_bounded_and_old_ones_make_room() {
        let mut recent = Recent::default();
        let mut dice = Dice::new(1);
        let mut refused = 0;
        for n in 0..2000 {
            let mut sample = busy_sample(&mut dice, n);
            for interface in &mut sample.interfaces.items {
                interface.name = format!("veth{n}-{}", interface.name);
            }
            if let Recorded::Taken { series_refused } = recent.record(n * 5000, &sample) {
                refused += series_refused;
            }
            assert!(recent.keys.len() <= MAX_SERIES && recent.bytes() <= MAX_BYTES);
        }
        assert!(refused > 0);
        let last = recent.points(&(1999 * 5000 - 1_800_000..i64::MAX), &[Kind::CpuBusy]);
        assert_eq!(last[0].1.len(), 361, "the series that stay are not pushed out");
        assert!(
            recent.keys.iter().any(|slot| slot.key.label.starts_with("veth14")
                || slot.key.label.starts_with("veth19")
                || slot.key.label.starts_with("veth15")),
            "new names got room after an hour"
        );
    }
}
