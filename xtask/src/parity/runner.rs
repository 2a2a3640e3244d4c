//! Runs one group of random cases (a family, dtype and route) through proptest and tallies each operation's errors.

use super::deviation::Deviation;
use indicatif::ProgressBar;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::RefCell;
use std::fmt::Debug;

/// What one case gave for one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// The operation whose line it counts in.
    pub(crate) op: &'static str,
    /// What was compared.
    pub(crate) what: &'static str,
    pub(crate) deviation: Deviation,
    /// What the deviation may be, in either measure.
    pub(crate) tolerance: Deviation,
}

impl Measured {
    /// False for a NaN.
    fn passes(&self) -> bool {
        self.deviation.max_rel <= self.tolerance.max_rel && self.deviation.l2_rel <= self.tolerance.l2_rel
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) family: &'static str,
    pub(crate) op: String,
    pub(crate) dtype: String,
    pub(crate) route: String,
    pub(crate) cases: u64,
    pub(crate) worst: Deviation,
    /// The loosest that a case was held to.
    pub(crate) tolerance: f64,
    pub(crate) passed: bool,
    /// Every case ran twice and gave the same bits.
    pub(crate) reproducible: bool,
    /// Measured on a GPU, and so recorded.
    pub(crate) on_gpu: bool,
}

/// A group of cases.
pub(crate) struct Group<'a> {
    pub(crate) family: &'static str,
    pub(crate) dtype: String,
    pub(crate) route: String,
    pub(crate) ops: &'static [&'static str],
    pub(crate) cases: u32,
    pub(crate) seed: u64,
    pub(crate) on_gpu: bool,
    pub(crate) bar: &'a ProgressBar,
}

#[derive(Default)]
struct Tally {
    lines: Vec<(&'static str, u64, Deviation, f64, bool)>,
    /// After the first failure proptest shrinks: those runs are not cases.
    failed: bool,
}

impl Tally {
    fn add(&mut self, case: &[Measured]) {
        for (op, cases, worst, tolerance, passed) in &mut self.lines {
            let mine: Vec<&Measured> = case.iter().filter(|m| m.op == *op).collect();
            *cases += u64::from(!mine.is_empty());
            for measured in mine {
                *worst = worst.join(measured.deviation);
                *tolerance = tolerance.max(measured.tolerance.worst());
                *passed &= measured.passes();
            }
        }
    }
}

impl Group<'_> {
    /// Runs the cases of `strategy` through `check`, which measures a case or says what broke. Returns a line an operation, and the failure
    /// with its seed and the smallest case that still fails.
    pub(crate) fn run<S>(
        &self,
        strategy: &S,
        check: impl Fn(&S::Value) -> Result<Vec<Measured>, String>,
    ) -> (Vec<Line>, Option<String>)
    where
        S: Strategy,
        S::Value: Debug,
    {
        let config =
            Config { cases: self.cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &self.seed_bytes());
        let lines = self.ops.iter().map(|op| (*op, 0, Deviation::default(), 0.0, true)).collect();
        let tally = RefCell::new(Tally { lines, failed: false });
        let result = TestRunner::new_with_rng(config, rng).run(strategy, |case| {
            let outcome = check(&case);
            let mut tally = tally.borrow_mut();
            let verdict = match &outcome {
                Err(reason) => Err(TestCaseError::fail(reason.clone())),
                Ok(measured) => match measured.iter().find(|m| !m.passes()) {
                    None => Ok(()),
                    Some(bad) => Err(TestCaseError::fail(format!(
                        "{} of {}: max {:.2e} (tolerance {:.2e}), l2 {:.2e} (tolerance {:.2e})",
                        bad.what,
                        bad.op,
                        bad.deviation.max_rel,
                        bad.tolerance.max_rel,
                        bad.deviation.l2_rel,
                        bad.tolerance.l2_rel
                    ))),
                },
            };
            if !tally.failed {
                self.bar.inc(1);
                tally.add(outcome.as_deref().unwrap_or_default());
                tally.failed = verdict.is_err();
            }
            verdict
        });
        let failure = match result {
            Ok(()) => None,
            Err(TestError::Fail(reason, case)) => {
                Some(self.describe(&format!("{reason}\n  smallest case that fails: {case:?}")))
            }
            Err(TestError::Abort(reason)) => Some(self.describe(&format!("gave up: {reason}"))),
        };
        let failed_without_numbers = failure.is_some() && tally.borrow().lines.iter().all(|line| line.4);
        let lines = tally.into_inner().lines.into_iter().map(|(op, cases, worst, tolerance, passed)| Line {
            family: self.family,
            op: op.to_owned(),
            dtype: self.dtype.clone(),
            route: self.route.clone(),
            cases,
            worst,
            tolerance,
            passed: passed && !failed_without_numbers,
            reproducible: self.on_gpu && failure.is_none(),
            on_gpu: self.on_gpu,
        });
        (lines.collect(), failure)
    }

    fn describe(&self, what: &str) -> String {
        let Group { family, dtype, route, seed, cases, .. } = self;
        format!("{family} {dtype} {route}: {what}\n  again with: --family {family} --seed {seed} --cases {cases}")
    }

    /// Each group draws cases of its own from the one seed.
    fn seed_bytes(&self) -> [u8; 32] {
        let mut bytes = [0u8; 32];
        bytes[..8].copy_from_slice(&self.seed.to_le_bytes());
        for (i, byte) in format!("{} {} {}", self.family, self.dtype, self.route).bytes().enumerate() {
            bytes[8 + i % 24] = bytes[8 + i % 24].rotate_left(3) ^ byte;
        }
        bytes
    }
}

#[cfg(test)]
#[path = "runner_test.rs"]
mod tests;
