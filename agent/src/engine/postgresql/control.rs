//! The beginning of `global/pg_control`: the identity of the data, without starting a program. The tests compare it with
//! what pg_controldata says. And of a file of the log.

use serde::{Deserialize, Serialize};

/// More than the file has.
pub(super) const MAX_BYTES: u64 = 64 * 1024;
/// The versions of the file's layout whose beginning is known (PostgreSQL 13 to 18).
const LAYOUTS: std::ops::RangeInclusive<u32> = 1300..=1800;

/// `DBState` of a primary that has written its last checkpoint.
const SHUT_DOWN: u32 = 1;
/// Of a checkpoint's record at least so much is the record itself; it begins where the control file says.
const CHECKPOINT_BYTES: u64 = 114;

/// Timeline and end of the log of a server that was stopped cleanly as a primary; the end is short of the true one by some
/// bytes of the last checkpoint's record, which nobody has by halves.
pub(super) fn clean_end(bytes: &[u8]) -> Option<(u64, u64)> {
    system_identifier(bytes)?;
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let checkpoint = u64::from_ne_bytes(bytes.get(32..40)?.try_into().ok()?);
    let timeline = number(48)?;
    (number(16)? == SHUT_DOWN).then_some((u64::from(timeline), checkpoint.checked_add(CHECKPOINT_BYTES)?))
}

/// Of a server that was stopped cleanly while it followed.
const SHUT_DOWN_IN_RECOVERY: u32 = 2;
/// Of a primary that runs, or ran until it was killed.
const IN_PRODUCTION: u32 = 6;

/// The last checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoint {
    pub(super) timeline: u64,
    pub(super) offset: u64,
    /// When the file was written, in seconds.
    pub(super) time: i64,
}

pub(super) fn checkpoint(bytes: &[u8]) -> Option<Checkpoint> {
    system_identifier(bytes)?;
    Some(Checkpoint {
        timeline: u32::from_ne_bytes(bytes.get(48..52)?.try_into().ok()?).into(),
        offset: u64::from_ne_bytes(bytes.get(32..40)?.try_into().ok()?),
        time: i64::from_ne_bytes(bytes.get(24..32)?.try_into().ok()?),
    })
}

/// Whether a primary runs on the data, or was killed on them.
pub(super) fn in_production(bytes: &[u8]) -> bool {
    state(bytes) == Some(IN_PRODUCTION)
}

/// Whether the server on the data was stopped cleanly, as a primary or as a replica.
pub(super) fn is_stopped(bytes: &[u8]) -> bool {
    matches!(state(bytes), Some(SHUT_DOWN | SHUT_DOWN_IN_RECOVERY))
}

fn state(bytes: &[u8]) -> Option<u32> {
    system_identifier(bytes)?;
    Some(u32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?))
}

/// Where a file of the log says that it begins, at its own beginning.
pub(super) fn page_address(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?))
}

/// The system identifier; `None` if this is no control file that we know.
pub(super) fn system_identifier(bytes: &[u8]) -> Option<String> {
    let system = u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?);
    let layout = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    (LAYOUTS.contains(&layout) && system != 0).then(|| system.to_string())
}
