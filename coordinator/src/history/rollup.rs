//! Minutes: mean, least, greatest and number of a series' points, ten minutes to a [`Block`], and a block as bytes. Pure.
//!
//! Format: version, then for each series: code of its kind, label, and four columns of ten places (number of points; mean;
//! mean − least; greatest − mean), in the steps of the kind's scale. Two blocks of the same ten minutes can be merged, so
//! that what was written before a restart and what came after it make one.

use std::collections::BTreeMap;
use std::ops::Range;

use super::column::{Column, Damaged, decode, read_slice, write_slice};
use super::recent::Recent;
use super::series::{Key, Kind};

pub(super) const MINUTE_MS: i64 = 60_000;
pub(super) const BLOCK_MINUTES: usize = 10;
pub(super) const BLOCK_MS: i64 = 600_000;
const VERSION: u8 = 1;
const MAX_LABEL_BYTES: usize = 256;

/// Some points made one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) count: u32,
    pub(super) mean: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// Ten minutes of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Block {
    pub(super) series: BTreeMap<Key, [Option<Summary>; BLOCK_MINUTES]>,
}

// === impl Summary ===

impl Summary {
    pub(super) const fn of(value: f64) -> Self {
        Self { count: 1, mean: value, min: value, max: value }
    }

    #[must_use]
    pub(super) fn and(self, other: Self) -> Self {
        let count = self.count.saturating_add(other.count);
        let weight = f64::from(other.count) / f64::from(count.max(1));
        Self {
            count,
            mean: self.mean + (other.mean - self.mean) * weight,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

// === impl Block ===

impl Block {
    /// What is in memory of the span, which lies in one block.
    pub(super) fn of_recent(recent: &Recent, span: &Range<i64>, wanted: &[Kind]) -> Self {
        let start_ms = block_start(span.start);
        let mut block = Self::default();
        for (key, points) in recent.points(span, wanted) {
            let minutes = block.series.entry(key).or_default();
            for (time, value) in points {
                let place =
                    usize::try_from((time - start_ms) / MINUTE_MS).unwrap_or(0).min(BLOCK_MINUTES - 1);
                let summary = Summary::of(value);
                minutes[place] = Some(minutes[place].map_or(summary, |before| before.and(summary)));
            }
        }
        block
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (key, minutes) in other.series {
            let mine = self.series.entry(key).or_default();
            for (mine, theirs) in mine.iter_mut().zip(minutes) {
                *mine = match (*mine, theirs) {
                    (Some(one), Some(two)) => Some(one.and(two)),
                    (one, two) => one.or(two),
                };
            }
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for (key, minutes) in &self.series {
            let scale = key.kind.scale();
            let mut columns: [Column; 4] = Default::default();
            for minute in minutes {
                let values = minute.and_then(|Summary { count, mean, min, max }| {
                    let (mean, min, max) =
                        (scale.quantise(mean)?, scale.quantise(min)?, scale.quantise(max)?);
                    Some([i64::from(count), mean, mean - min, max - mean])
                });
                for (place, column) in columns.iter_mut().enumerate() {
                    column.push(values.map(|values| values[place]));
                }
            }
            bytes.push(key.kind.code());
            write_slice(&mut bytes, key.label.as_bytes());
            for column in columns {
                write_slice(&mut bytes, &column.finish());
            }
        }
        bytes
    }

    /// # Errors
    /// If the bytes were not made by [`Block::encode`].
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let (&version, mut rest) = bytes.split_first().ok_or(Damaged)?;
        if version != VERSION {
            return Err(Damaged);
        }
        let mut block = Self::default();
        while let Some((&code, after)) = rest.split_first() {
            rest = after;
            let kind = Kind::of_code(code).ok_or(Damaged)?;
            let label = std::str::from_utf8(read_slice(&mut rest)?).map_err(|_| Damaged)?;
            if label.len() > MAX_LABEL_BYTES {
                return Err(Damaged);
            }
            let mut columns = [const { Vec::new() }; 4];
            for column in &mut columns {
                *column = decode(read_slice(&mut rest)?, BLOCK_MINUTES)?;
            }
            let minutes = std::array::from_fn(|place| {
                let [count, mean, below, above] = [0, 1, 2, 3].map(|column: usize| columns[column][place]);
                let (count, mean, below, above) = (count?, mean?, below?, above?);
                let scale = kind.scale();
                Some(Summary {
                    count: u32::try_from(count).ok().filter(|count| *count > 0)?,
                    mean: scale.restore(mean),
                    min: scale.restore(mean.wrapping_sub(below)),
                    max: scale.restore(mean.wrapping_add(above)),
                })
            });
            block.series.insert(Key { kind, label: label.into() }, minutes);
        }
        Ok(block)
    }
}

/// The start of the block that the time lies in.
pub(super) const fn block_start(time_ms: i64) -> i64 {
    time_ms.div_euclid(BLOCK_MS) * BLOCK_MS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Dice, busy_sample};
    use super::*;

    fn recent(count: i64) -> Recent {
        let mut recent = Recent::default();
        let mut dice = Dice::new(3);
        for n in 0..count {
            let sample = busy_sample(&mut dice, n);
            recent.record(BLOCK_MS + n * 5000, &sample);
        }
        recent
    }

    fn close(one: &Block, two: &Block) {
        assert_eq!(one.series.keys().collect::<Vec<_>>(), two.series.keys().collect::<Vec<_>>());
        for (key, minutes) in &one.series {
            for (a, b) in minutes.iter().zip(&two.series[key]) {
                let (Some(a), Some(b)) = (a, b) else {
                    assert_eq!(a, b);
                    continue;
                };
                assert_eq!(a.count, b.count);
                let precision = match key.kind.scale() {
                    super::super::series::Scale::Linear(step) => step * 0.51,
                    super::super::series::Scale::Logarithmic(unit) => 0.0169 * (a.mean + unit),
                };
                assert!((a.mean - b.mean).abs() <= precision, "{key:?} {a:?} {b:?}");
                assert!(b.min <= b.mean && b.mean <= b.max, "{b:?}");
            }
        }
    }

    #[test]
    fn a_minute_has_mean_least_greatest_and_number() {
        let block = Block::of_recent(&recent(60), &(BLOCK_MS..2 * BLOCK_MS), &[Kind::CpuBusy]);
        let minutes = block.series.values().next().unwrap();
        assert_eq!(
            minutes.iter().map(|minute| minute.map_or(0, |minute| minute.count)).collect::<Vec<_>>(),
            [12, 12, 12, 12, 12, 0, 0, 0, 0, 0]
        );
        let first = minutes[0].unwrap();
        assert!(first.min < first.mean && first.mean < first.max);
    }

    #[test]
    fn a_block_survives_the_disk() {
        let block = Block::of_recent(&recent(100), &(BLOCK_MS..2 * BLOCK_MS), &[]);
        let bytes = block.encode();
        close(&block, &Block::decode(&bytes).unwrap());
        assert!(bytes.len() < 4096, "{} bytes for ten minutes of a node", bytes.len());
    }

    #[test]
    fn two_halves_of_a_minute_make_one() {
        let whole = recent(30);
        let all = Block::of_recent(&whole, &(BLOCK_MS..2 * BLOCK_MS), &[]);
        let mut merged = Block::default();
        for span in [BLOCK_MS..BLOCK_MS + 42_000, BLOCK_MS + 42_000..2 * BLOCK_MS] {
            merged.merge(Block::of_recent(&whole, &span, &[]));
        }
        close(&all, &merged);
    }

    proptest! {
        #[test]
        fn damaged_blocks_are_refused_and_nothing_breaks(place in 0_usize..2000, flip in 1_u8.., cut in 0_usize..2000) {
            let mut bytes = Block::of_recent(&recent(60), &(BLOCK_MS..2 * BLOCK_MS), &[]).encode();
            let length = bytes.len();
            bytes[place % length] ^= flip;
            bytes.truncate(length - cut % length);
            let _ = Block::decode(&bytes);
        }
    }
}
