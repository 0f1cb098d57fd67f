//! How much of its machine a member counts on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a member's memory may be, at least and at most, however large its machine.
pub const MEMORY_BYTES: std::ops::RangeInclusive<u64> = 256 * 1024 * 1024..=1 << 50;
/// The most cores.
pub const MAX_CORES: u32 = 65_536;

/// By how much of a machine settings go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub memory_bytes: u64,
    pub cores: u32,
    /// Of the file system that holds the data.
    pub disk_bytes: u64,
}

/// What a member counts on, and what it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// What its settings go by.
    pub kept: Budget,
    /// What they would go by if that were decided now.
    pub possible: Budget,
    /// The machine has noticeably more or less of something than when it was decided.
    pub resized: bool,
}

// === impl Budget ===

impl Budget {
    /// Whether there is at least a tenth more or less of something.
    #[must_use]
    pub fn differs_noticeably(self, other: Self) -> bool {
        let differs = |one: u64, other: u64| {
            let (less, more) = (u128::from(one.min(other)), u128::from(one.max(other)));
            (more - less) * 10 >= more && more > less
        };
        differs(self.memory_bytes, other.memory_bytes)
            || differs(self.cores.into(), other.cores.into())
            || differs(self.disk_bytes, other.disk_bytes)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_bytes, cores, disk_bytes } = *self;
        let tenths = |bytes: u64| bytes / (1 << 20) * 10 / 1024;
        let gibibytes = |bytes| format!("{}.{} GiB", tenths(bytes) / 10, tenths(bytes) % 10);
        let cores = if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
        write!(f, "{} of memory, {cores}, {} of disk", gibibytes(memory_bytes), gibibytes(disk_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_noticed_and_less_is_not() {
        let was = Budget { memory_bytes: 1000, cores: 16, disk_bytes: 1000 };
        for (now, noticed) in [
            (was, false),
            (Budget { memory_bytes: 1100, ..was }, false),
            (Budget { memory_bytes: 1112, ..was }, true),
            (Budget { memory_bytes: 901, ..was }, false),
            (Budget { memory_bytes: 900, ..was }, true),
            (Budget { cores: 17, ..was }, false),
            (Budget { cores: 18, ..was }, true),
            (Budget { disk_bytes: 0, ..was }, true),
        ] {
            assert_eq!(was.differs_noticeably(now), noticed, "{now:?}");
            assert_eq!(now.differs_noticeably(was), noticed, "{now:?}, the other way round");
        }
    }
}
