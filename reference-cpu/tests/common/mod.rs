//! What the tests share: data, rounding, comparisons, thread pools.
#![allow(dead_code)]

use reference_cpu::Element;

/// Uniform numbers in -1..1 from a linear congruential generator (Knuth's MMIX constants).
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d)
    }

    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Numbers of a type, scaled.
    pub(crate) fn take<T: Element>(&mut self, count: usize, scale: f32) -> Vec<T> {
        (0..count).map(|_| T::from_f32(self.next() * scale)).collect()
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((self.next() + 1.0) * 0.5 * bound as f32) as usize % bound
    }
}

/// The values in f64.
pub(crate) fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// Rows of `cols` out of a slice whose rows lie `stride` apart.
pub(crate) fn dense<T: Copy>(values: &[T], cols: usize, stride: usize) -> Vec<T> {
    values.chunks(stride).flat_map(|row| row[..cols].to_vec()).collect()
}

/// max|found - exact| / max|exact|; the absolute error where all of `exact` is 0. NaN is infinitely far from a number. Half a step of the
/// type's subnormal numbers is no error.
pub(crate) fn error<T: Element>(found: &[T], exact: &[f64]) -> f64 {
    floored_error(found, exact, 0.0)
}

/// As [`error`], relative to `floor` where `exact` is smaller: for sums whose terms are of that size and may cancel.
pub(crate) fn floored_error<T: Element>(found: &[T], exact: &[f64], floor: f64) -> f64 {
    assert_eq!(found.len(), exact.len());
    let largest = exact.iter().fold(floor, |m, x| m.max(x.abs()));
    // exp(x) is 0 below the least normal f32.
    let underflow = if T::NAME == "f16" { 2f64.powi(-25) } else { 2f64.powi(-125) };
    let worst = found.iter().zip(exact).fold(0f64, |m, (f, e)| {
        let distance = (f64::from(f.to_f32()) - e).abs();
        if distance.is_nan() { f64::INFINITY } else { m.max(distance - underflow) }
    });
    if largest > 0.0 { worst / largest } else { worst }
}

/// What rounding to `T` adds to an f32 error, relative to the largest entry.
pub(crate) fn rounding<T: Element>() -> f64 {
    if T::NAME == "f32" { 0.0 } else { f64::from(T::EPSILON) / 2.0 * 1.01 }
}

/// Runs on a pool of its own.
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(f)
}
