//! Puts points of many series into steps, never more of them than an answer may have. Pure.

use std::collections::BTreeMap;

use super::rollup::Summary;
use super::series::Key;

/// The most points of one series in an answer.
pub const MAX_POINTS: usize = 11_000;
/// The most points of all series in an answer: it must fit into one message.
pub const MAX_TOTAL: usize = 60_000;

/// The answer would have too many points at the step that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

#[derive(Debug)]
pub(super) struct Gather {
    step_ms: i64,
    /// The distance of points as they come; at this step they keep their own times.
    native_ms: i64,
    fixed: bool,
    total: usize,
    series: BTreeMap<Key, Vec<(i64, Summary)>>,
}

// === impl Gather ===

impl Gather {
    /// `asked_ms`: the step that must be kept; without one it grows as needed.
    pub(super) fn new(native_ms: i64, asked_ms: Option<i64>) -> Self {
        let step_ms = asked_ms.map_or(native_ms, |asked| asked.max(native_ms));
        Self { step_ms, native_ms, fixed: asked_ms.is_some(), total: 0, series: BTreeMap::new() }
    }

    /// Points of a series come in order of time.
    pub(super) fn add(&mut self, key: &Key, time_ms: i64, point: Summary) -> Result<(), TooMany> {
        let place = self.place(time_ms);
        if !self.series.contains_key(key) {
            self.series.insert(key.clone(), Vec::new());
        }
        let Some(points) = self.series.get_mut(key) else { return Ok(()) };
        match points.last_mut() {
            Some((last, summary)) if *last == place => *summary = summary.and(point),
            Some(_) | None => {
                points.push((place, point));
                self.total += 1;
            }
        }
        let over = points.len() > MAX_POINTS;
        if over || self.total > MAX_TOTAL {
            if self.fixed {
                return Err(TooMany);
            }
            self.coarsen();
        }
        Ok(())
    }

    pub(super) fn finish(self) -> (i64, BTreeMap<Key, Vec<(i64, Summary)>>) {
        (self.step_ms, self.series)
    }

    fn place(&self, time_ms: i64) -> i64 {
        if self.step_ms == self.native_ms { time_ms } else { time_ms.div_euclid(self.step_ms) * self.step_ms }
    }

    fn coarsen(&mut self) {
        self.step_ms *= 2;
        self.total = 0;
        for points in self.series.values_mut() {
            let mut coarse: Vec<(i64, Summary)> = Vec::with_capacity(points.len() / 2 + 1);
            for (time, point) in points.drain(..) {
                let place = time.div_euclid(self.step_ms) * self.step_ms;
                match coarse.last_mut() {
                    Some((last, summary)) if *last == place => *summary = summary.and(point),
                    Some(_) | None => coarse.push((place, point)),
                }
            }
            self.total += coarse.len();
            *points = coarse;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::series::Kind;
    use super::*;

    fn key() -> Key {
        Key { kind: Kind::CpuBusy, label: "".into() }
    }

    #[test]
    fn an_answer_never_has_more_points_than_it_may_and_loses_none() {
        let mut gather = Gather::new(60_000, None);
        for n in 0..50_000 {
            gather.add(&key(), n * 60_000, Summary::of(f64::from(u32::try_from(n).unwrap()))).unwrap();
        }
        let (step, series) = gather.finish();
        assert_eq!(step, 480_000);
        let points = &series[&key()];
        assert!(points.len() <= MAX_POINTS);
        assert_eq!(points.iter().map(|(_, point)| point.count).sum::<u32>(), 50_000);
        assert_eq!(points[1], (480_000, Summary { count: 8, mean: 11.5, min: 8.0, max: 15.0 }));
    }

    #[test]
    fn a_step_that_was_asked_for_is_kept_or_refused() {
        let mut gather = Gather::new(5000, Some(60_000));
        for n in 0..24 {
            gather.add(&key(), n * 5000, Summary::of(1.0)).unwrap();
        }
        assert_eq!(gather.finish().1[&key()].len(), 2);
        let mut gather = Gather::new(5000, Some(5000));
        let last = (0..20_000).map(|n| gather.add(&key(), n * 5000, Summary::of(1.0))).find(Result::is_err);
        assert_eq!(last, Some(Err(TooMany)));
    }
}
