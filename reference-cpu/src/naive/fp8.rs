//! The 8-bit float e4m3 (one sign, four exponent and three mantissa bits, up to 448, no infinities; OCP 8-bit floating point, 2023).

/// `x` rounded to e4m3, to even, for |x| up to 448.
pub fn e4m3(x: f64) -> f64 {
    if x == 0.0 {
        return x;
    }
    // Below 2^-6 the spacing stays.
    let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(-6);
    let spacing = f64::from(exponent - 3).exp2();
    (x / spacing).round_ties_even() * spacing
}

/// A matrix as FP8 products see it: times the power of two that brings its largest magnitude into (224, 448], rounded to e4m3, and back. Finite values
/// above 2^-119.
pub fn e4m3_matrix(matrix: &[f64]) -> Vec<f64> {
    let peak = matrix.iter().fold(0.0f64, |peak, x| peak.max(x.abs()));
    if peak == 0.0 {
        return matrix.to_vec();
    }
    let factor = (448.0 / peak).log2().floor().exp2();
    matrix.iter().map(|x| e4m3(x * factor) / factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_four_bits() {
        for exact in [0.0, 1.0, -1.125, 448.0, 240.0, 0.015625, 0.001953125, -0.013671875] {
            assert_eq!(e4m3(exact), exact);
        }
        // Ties go to even; below 2^-6 the spacing is 2^-9.
        for (x, rounded) in
            [(1.0625, 1.0), (1.1875, 1.25), (17.1, 18.0), (0.0009, 0.0), (0.001, 0.001953125), (-300.0, -288.0)]
        {
            assert_eq!(e4m3(x), rounded, "{x}");
        }
    }

    #[test]
    fn a_matrix_uses_the_whole_range() {
        assert_eq!(e4m3_matrix(&[0.0; 3]), [0.0; 3]);
        assert_eq!(e4m3_matrix(&[1.75, 0.1, -1.0]), [1.75, 0.1015625, -1.0]);
        // A power of two changes nothing.
        let scaled = |factor: f64| -> Vec<f64> {
            let matrix = [3.3, 1e-3, 0.77].map(|x| x * factor);
            e4m3_matrix(&matrix).into_iter().map(|x| x / factor).collect()
        };
        assert_eq!(scaled(1.0), scaled(1024.0));
    }
}
