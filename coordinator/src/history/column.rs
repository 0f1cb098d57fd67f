//! One series of whole numbers in few bytes: differences, zigzag, varint, and runs.
//!
//! A token is a varint `t`. `t` even: the zigzag difference to the value before is `t >> 1`. `t` odd, `k = t >> 1`: `k` even
//! repeats the value before `k / 2 + 1` times; `k` odd stands for `k / 2 + 1` places without a value. A series that hardly
//! changes costs next to nothing, a noisy one about a byte a value.
//!
//! Not here: what the numbers mean (`series`), or how columns are put together (`recent`, `rollup`).

/// The largest magnitude that a column holds; what is beyond is held at the edge.
pub(super) const LIMIT: i64 = 1 << 60;

/// Bytes that are no column: damaged on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the encoded series is damaged")]
pub(super) struct Damaged;

/// A column that still grows.
#[derive(Debug, Clone, Default)]
pub(super) struct Column {
    bytes: Vec<u8>,
    last: i64,
    run: Run,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Run {
    #[default]
    None,
    Same(u32),
    Gap(u32),
}

// === impl Column ===

impl Column {
    pub(super) fn push(&mut self, value: Option<i64>) {
        match (value.map(|value| value.clamp(-LIMIT, LIMIT)), self.run) {
            (None, Run::Gap(n)) => self.run = Run::Gap(n.saturating_add(1)),
            (None, Run::None | Run::Same(_)) => {
                self.end_run();
                self.run = Run::Gap(1);
            }
            (Some(value), Run::Same(n)) if value == self.last => self.run = Run::Same(n.saturating_add(1)),
            (Some(value), Run::None | Run::Gap(_)) if value == self.last => {
                self.end_run();
                self.run = Run::Same(1);
            }
            (Some(value), _) => {
                self.end_run();
                write_varint(&mut self.bytes, zigzag(value - self.last) << 1);
                self.last = value;
            }
        }
    }

    /// `count` places without a value.
    pub(super) fn skip(&mut self, count: u32) {
        if count == 0 {
            return;
        }
        match self.run {
            Run::Gap(n) => self.run = Run::Gap(n.saturating_add(count)),
            Run::None | Run::Same(_) => {
                self.end_run();
                self.run = Run::Gap(count);
            }
        }
    }

    /// All that was pushed, as bytes for [`decode`].
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.end_run();
        self.bytes
    }

    /// What has been pushed so far, as bytes for [`decode`].
    pub(super) fn encoded(&self) -> Vec<u8> {
        self.clone().finish()
    }

    /// Bytes held outside the structure itself.
    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    fn end_run(&mut self) {
        match std::mem::take(&mut self.run) {
            Run::None => {}
            Run::Same(n) => write_varint(&mut self.bytes, (u64::from(n - 1) << 2) | 1),
            Run::Gap(n) => write_varint(&mut self.bytes, (u64::from(n - 1) << 2) | 3),
        }
    }
}

/// The values of a finished column of `count` places.
///
/// # Errors
/// If the bytes are not exactly such a column.
pub(super) fn decode(mut bytes: &[u8], count: usize) -> Result<Vec<Option<i64>>, Damaged> {
    let mut values = Vec::with_capacity(count);
    let mut last = 0_i64;
    while !bytes.is_empty() {
        let token = read_varint(&mut bytes)?;
        if token & 1 == 0 {
            last = last.wrapping_add(unzigzag(token >> 1));
            values.push(Some(last));
        } else {
            let repeats = usize::try_from(token >> 2).map_err(|_| Damaged)?;
            // Checked before anything is allocated: the bytes may come from a damaged disk.
            if repeats >= count.saturating_sub(values.len()) {
                return Err(Damaged);
            }
            let value = if token & 2 == 0 { Some(last) } else { None };
            values.extend(std::iter::repeat_n(value, repeats + 1));
        }
        if values.len() > count {
            return Err(Damaged);
        }
    }
    if values.len() == count { Ok(values) } else { Err(Damaged) }
}

pub(super) fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push((value & 0x7f) as u8);
}

pub(super) fn read_varint(bytes: &mut &[u8]) -> Result<u64, Damaged> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&first, rest) = bytes.split_first().ok_or(Damaged)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Damaged)
}

/// The next `length` bytes, where a varint says the length.
pub(super) fn read_slice<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Damaged> {
    let length = usize::try_from(read_varint(bytes)?).map_err(|_| Damaged)?;
    let (slice, rest) = bytes.split_at_checked(length).ok_or(Damaged)?;
    *bytes = rest;
    Ok(slice)
}

pub(super) fn write_slice(bytes: &mut Vec<u8>, slice: &[u8]) {
    write_varint(bytes, slice.len() as u64);
    bytes.extend_from_slice(slice);
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(values: &[Option<i64>]) -> Vec<u8> {
        let mut column = Column::default();
        for value in values {
            column.push(*value);
        }
        column.finish()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(values in proptest::collection::vec(proptest::option::of(-LIMIT..=LIMIT), 0..300)) {
            prop_assert_eq!(decode(&encode(&values), values.len()), Ok(values));
        }

        #[test]
        fn runs_and_gaps_come_out(values in proptest::collection::vec(proptest::option::of(0_i64..3), 0..300), skip in 0_u32..500) {
            let mut column = Column::default();
            for value in &values {
                column.push(*value);
            }
            column.skip(skip);
            prop_assert_eq!(column.encoded(), column.clone().finish());
            let mut expected = values;
            expected.extend(std::iter::repeat_n(None, skip as usize));
            prop_assert_eq!(decode(&column.finish(), expected.len()), Ok(expected));
        }

        #[test]
        fn damaged_bytes_are_refused_or_read_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..64), count in 0_usize..100) {
            if let Ok(values) = decode(&bytes, count) {
                prop_assert_eq!(values.len(), count);
            }
        }
    }

    #[test]
    fn a_constant_series_costs_a_few_bytes() {
        assert!(encode(&[Some(123_456_789); 720]).len() <= 8);
    }

    #[test]
    fn values_beyond_the_limit_stay_at_the_edge() {
        assert_eq!(
            decode(&encode(&[Some(i64::MAX), Some(i64::MIN)]), 2),
            Ok(vec![Some(LIMIT), Some(-LIMIT)])
        );
    }

    #[test]
    fn a_run_longer_than_the_column_is_refused() {
        let mut bytes = Vec::new();
        write_varint(&mut bytes, (u64::MAX >> 2) << 2 | 1);
        assert_eq!(decode(&bytes, 10), Err(Damaged));
    }
}
