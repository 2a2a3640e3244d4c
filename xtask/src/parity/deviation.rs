//! How far a result is from the truth.

/// Errors of one result, relative to the size of the truth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Deviation {
    /// max|d| / max|ref|
    pub(crate) max_rel: f64,
    /// |d|2 / |ref|2
    pub(crate) l2_rel: f64,
}

/// The least sizes that a deviation is measured against.
///
/// A sum whose terms cancel is smaller than the roundings of its terms allow any implementation to see. The sizes the sum would have if its
/// terms had random signs (the root of the sum of their squares) are the natural ones to measure it against.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Floor {
    pub(crate) max: f64,
    pub(crate) l2: f64,
}

impl Deviation {
    /// Of `found` from `truth`. Equal values, infinities included, differ by 0; a NaN or infinity that the truth lacks is infinitely far.
    pub(crate) fn of(found: impl IntoIterator<Item = f64>, truth: &[f64], floor: Floor) -> Self {
        let (mut worst, mut squares, mut largest, mut truth_squares) = (0.0f64, 0.0, floor.max, 0.0);
        let mut count = 0;
        for (found, truth) in found.into_iter().zip(truth) {
            let difference = if found == *truth { 0.0 } else { (found - truth).abs() };
            let difference = if difference.is_nan() { f64::INFINITY } else { difference };
            worst = worst.max(difference);
            squares += difference * difference;
            largest = largest.max(truth.abs());
            truth_squares += truth * truth;
            count += 1;
        }
        if count != truth.len() {
            return Self { max_rel: f64::INFINITY, l2_rel: f64::INFINITY };
        }
        Self { max_rel: ratio(worst, largest), l2_rel: ratio(squares.sqrt(), truth_squares.sqrt().max(floor.l2)) }
    }

    /// The same bound on both measures.
    pub(crate) fn both(bound: f64) -> Self {
        Self { max_rel: bound, l2_rel: bound }
    }

    /// Of one number whose terms add up to `magnitude` in absolute value.
    pub(crate) fn of_sum(found: f64, truth: f64, magnitude: f64) -> Self {
        Self::of([found], &[truth], Floor { max: magnitude, l2: magnitude })
    }

    pub(crate) fn worst(self) -> f64 {
        self.max_rel.max(self.l2_rel)
    }

    pub(crate) fn join(self, other: Self) -> Self {
        Self { max_rel: self.max_rel.max(other.max_rel), l2_rel: self.l2_rel.max(other.l2_rel) }
    }
}

fn ratio(difference: f64, size: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference / size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_against_the_truth_or_the_floor() {
        let d = Deviation::of([3.0, 4.1], &[3.0, 4.0], Floor::default());
        assert!((d.max_rel - 0.1 / 4.0).abs() < 1e-12 && (d.l2_rel - 0.1 / 5.0).abs() < 1e-12, "{d:?}");
        let floored = Deviation::of([3.0, 4.1], &[3.0, 4.0], Floor { max: 10.0, l2: 20.0 });
        assert!((floored.max_rel - 0.01).abs() < 1e-12 && (floored.l2_rel - 0.005).abs() < 1e-12, "{floored:?}");
    }

    #[test]
    fn nothing_hides_a_nan_or_a_missing_value() {
        for found in [vec![f64::NAN, 1.0], vec![f64::INFINITY, 1.0], vec![0.0]] {
            assert_eq!(Deviation::of(found, &[0.0, 1.0], Floor::default()).worst(), f64::INFINITY);
        }
        assert_eq!(Deviation::of([0.0], &[0.0], Floor::default()).worst(), 0.0);
        assert_eq!(Deviation::of([f64::INFINITY], &[f64::INFINITY], Floor::default()).max_rel, 0.0);
        assert_eq!(Deviation::of([1e-30], &[0.0], Floor::default()).worst(), f64::INFINITY);
    }
}
