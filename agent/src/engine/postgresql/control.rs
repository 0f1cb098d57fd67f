//! The beginning of `global/pg_control`: the identity of the data, without starting a program. The tests compare it with
//! what pg_controldata says.

/// More than the file has.
pub(super) const MAX_BYTES: u64 = 64 * 1024;
/// The versions of the file's layout whose beginning is known (PostgreSQL 13 to 18).
const LAYOUTS: std::ops::RangeInclusive<u32> = 1300..=1800;

/// The system identifier; `None` if this is no control file that we know.
pub(super) fn system_identifier(bytes: &[u8]) -> Option<String> {
    let system = u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?);
    let layout = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    (LAYOUTS.contains(&layout) && system != 0).then(|| system.to_string())
}
