//! Whatever is timed in turn with others on the same problem: our routes, bare cuBLAS, the peers.

use super::timing::Samples;
use anyhow::Result;

/// One implementation, ready to run one operation on one problem.
pub(crate) trait Contender {
    /// `ours`, `cublas`, or a peer's name and version.
    fn implementation(&self) -> &str;
    fn route(&self) -> &str;
    /// Set on the one that our automatic route takes.
    fn is_auto(&self) -> bool {
        false
    }
    /// Milliseconds of `reps` runs.
    fn round(&mut self, reps: usize) -> Result<Vec<f64>>;
    /// Device memory above the inputs, outputs included, and the host's part of a call in microseconds. Asked for after the last round.
    fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)>;
}

/// How much is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// In each every contender runs its repetitions, in turns of at most [`TURN`].
    pub(crate) rounds: usize,
    /// Milliseconds of runs that a contender is given in a round.
    pub(crate) budget_ms: f64,
    pub(crate) min_reps: usize,
    pub(crate) max_reps: usize,
}

impl Effort {
    /// `round_ms`: another budget than the usual one.
    pub(crate) fn new(quick: bool, round_ms: Option<f64>) -> Self {
        let usual = if quick {
            Self { rounds: 2, budget_ms: 60.0, min_reps: 3, max_reps: 10 }
        } else {
            Self { rounds: 6, budget_ms: 200.0, min_reps: 2, max_reps: 15 }
        };
        Self { budget_ms: round_ms.unwrap_or(usual.budget_ms), ..usual }
    }

    fn reps(&self, ms: f64) -> usize {
        ((self.budget_ms / ms.max(1e-3)) as usize).clamp(self.min_reps, self.max_reps)
    }
}

/// The most runs of a turn. With turns of 15, one kernel entered twice in a race differs from itself by up to 5%; with turns of 3, by 0.1%.
const TURN: usize = 3;

/// Who follows whom in a turn of all. Both the first one and everyone's neighbours differ from turn to turn: the card is power-bound, and who follows
/// a contender that draws little finds higher clocks.
fn order(count: usize, turn: usize) -> impl Iterator<Item = usize> {
    fn common_divisor(a: usize, b: usize) -> usize {
        if b == 0 { a } else { common_divisor(b, a % b) }
    }
    let strides: Vec<usize> = (1..count.max(2)).filter(|&stride| common_divisor(count, stride) == 1).collect();
    let stride = strides[turn % strides.len()];
    (0..count).map(move |place| (place * stride + turn) % count)
}

/// What was measured of one contender.
pub(crate) struct Measurement {
    pub(crate) implementation: String,
    pub(crate) route: String,
    pub(crate) auto: bool,
    pub(crate) samples: Samples,
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) host_us: Option<f64>,
}

/// Runs the contenders in turn, a few runs at a time, each time in another order. One that fails is reported to `missing` and leaves the race.
pub(crate) fn race(
    mut contenders: Vec<Box<dyn Contender + '_>>,
    effort: Effort,
    missing: &mut dyn FnMut(&str, &str),
) -> Vec<Measurement> {
    let mut samples: Vec<Samples> = contenders.iter().map(|_| Samples::default()).collect();
    let mut reps = vec![0; contenders.len()];
    let mut failed = vec![false; contenders.len()];
    let mut fail = |failed: &mut bool, contender: &dyn Contender, error: anyhow::Error| {
        *failed = true;
        missing(&format!("{} {}", contender.implementation(), contender.route()), &format!("{error:#}"));
    };
    for (i, contender) in contenders.iter_mut().enumerate() {
        // A first look, which also warms up, decides how often it runs.
        match contender.round(2) {
            Ok(ms) => reps[i] = effort.reps(ms.iter().copied().fold(f64::INFINITY, f64::min)),
            Err(error) => fail(&mut failed[i], contender.as_ref(), error),
        }
    }
    let turns = reps.iter().copied().max().unwrap_or(0).div_ceil(TURN);
    for (round, turn) in (0..effort.rounds).flat_map(|round| (0..turns).map(move |turn| (round, turn))) {
        // No index twice; and whoever has few turns a round, too, meets orders that follow one another.
        for i in order(contenders.len(), turn * effort.rounds + round) {
            let runs = reps[i].saturating_sub(turn * TURN).min(TURN);
            if failed[i] || runs == 0 {
                continue;
            }
            match contenders[i].round(runs) {
                Ok(ms) => samples[i].extend(ms),
                Err(error) => fail(&mut failed[i], contenders[i].as_ref(), error),
            }
        }
    }
    let mut measured = Vec::new();
    for ((contender, samples), failed) in contenders.iter_mut().zip(samples).zip(&mut failed) {
        if *failed {
            continue;
        }
        match contender.costs() {
            Ok((peak_bytes, host_us)) => measured.push(Measurement {
                implementation: contender.implementation().to_owned(),
                route: contender.route().to_owned(),
                auto: contender.is_auto(),
                samples,
                peak_bytes,
                host_us,
            }),
            Err(error) => fail(failed, contender.as_ref(), error),
        }
    }
    measured
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::cell::RefCell;

    struct Fake<'a> {
        name: &'static str,
        ms: f64,
        fails_at: Option<usize>,
        calls: usize,
        log: &'a RefCell<Vec<(&'static str, usize)>>,
    }

    impl Contender for Fake<'_> {
        fn implementation(&self) -> &str {
            self.name
        }
        fn route(&self) -> &str {
            "r"
        }
        fn round(&mut self, reps: usize) -> Result<Vec<f64>> {
            self.calls += 1;
            if self.fails_at == Some(self.calls) {
                bail!("out of memory");
            }
            self.log.borrow_mut().push((self.name, reps));
            Ok(vec![self.ms; reps])
        }
        fn costs(&mut self) -> Result<(Option<u64>, Option<f64>)> {
            Ok((Some(7), None))
        }
    }

    #[test]
    fn everyone_has_a_turn_and_other_neighbours() {
        for count in 1..12 {
            let mut followed = std::collections::HashSet::new();
            for round in 0..4 {
                let turns: Vec<usize> = order(count, round).collect();
                let mut sorted = turns.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..count).collect::<Vec<_>>());
                followed.extend(turns.windows(2).map(|pair| (pair[0], pair[1])));
            }
            assert!(count < 5 || followed.len() > count, "{count}: {followed:?}");
        }
    }

    #[test]
    fn turns_rotate_and_a_failure_leaves_the_race() {
        let log = RefCell::new(Vec::new());
        let fake =
            |name, ms, fails_at| Box::new(Fake { name, ms, fails_at, calls: 0, log: &log }) as Box<dyn Contender>;
        let effort = Effort { rounds: 2, budget_ms: 10.0, min_reps: 2, max_reps: 6 };
        let mut missing = Vec::new();
        let measured = race(
            vec![fake("a", 1.0, None), fake("b", 100.0, None), fake("c", 1.0, Some(2))],
            effort,
            &mut |who, why| {
                missing.push(format!("{who}: {why}"));
            },
        );
        assert_eq!(missing, ["c r: out of memory"]);
        let names: Vec<_> =
            measured.iter().map(|m| (m.implementation.as_str(), m.samples.len(), m.samples.median())).collect();
        assert_eq!(names, [("a", 12, 1.0), ("b", 4, 100.0)]);
        let log = log.borrow();
        let expected = [("a", 3), ("b", 2), ("a", 3), ("b", 2), ("a", 3), ("a", 3)];
        assert_eq!(log[3..], expected, "turns of three runs at most; the second round begins with another one");
    }
}
