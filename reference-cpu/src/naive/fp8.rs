//! The 8-bit floats e4m3 (one sign, four exponent and three mantissa bits, up to 448, no infinities) and e5m2 (OCP 8-bit floating point, 2023).

/// `x` rounded to that many mantissa bits, to even; below 2^`least` the spacing stays.
fn rounded(x: f64, mantissa: i32, least: i32) -> f64 {
    if x == 0.0 {
        return x;
    }
    let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(least);
    let spacing = f64::from(exponent - mantissa).exp2();
    (x / spacing).round_ties_even() * spacing
}

/// `x` rounded to e4m3, to even, for |x| up to 448.
pub fn e4m3(x: f64) -> f64 {
    rounded(x, 3, -6)
}

/// `x` rounded to e5m2, to even, for |x| up to 57344.
pub fn e5m2(x: f64) -> f64 {
    rounded(x, 2, -14)
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

/// The mean of a matrix' rows, and what they are less it.
fn centred(matrix: &[f64], dim: usize) -> (Vec<f64>, Vec<f64>) {
    let mut mean = vec![0.0; dim];
    let rows = matrix.len() / dim;
    for row in matrix.chunks(dim) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / rows as f64);
    }
    let rest = matrix.chunks(dim).flat_map(|row| row.iter().zip(&mean).map(|(x, m)| x - m)).collect();
    (mean, rest)
}

/// Rows whose dot products are the logits of route fp8-all, less the bias and by the temperature: of images and texts, dim + 1 long. The texts less their mean are rounded as
/// [`e4m3_matrix`] does it, and so are the images; an image's product with the mean comes last, and is exact.
pub fn fp8_logit_rows(img: &[f64], txt: &[f64], dim: usize) -> (Vec<f64>, Vec<f64>) {
    let (mean, rest) = centred(txt, dim);
    let and = |rows: &[f64], last: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let with = |(i, row): (usize, &[f64])| row.iter().copied().chain([last(i)]).collect::<Vec<_>>();
        rows.chunks(dim).enumerate().flat_map(with).collect()
    };
    let term = |i: usize| img[i * dim..][..dim].iter().zip(&mean).map(|(x, m)| x * m).sum();
    (and(&e4m3_matrix(img), &term), and(&e4m3_matrix(&rest), &|_| 1.0))
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
    fn rounds_to_three_bits() {
        for (x, rounded) in
            [(1.25, 1.25), (1.125, 1.0), (-1.375, -1.5), (57344.0, 57344.0), (0.00002, 0.0000152587890625), (1e-6, 0.0)]
        {
            assert_eq!(e5m2(x), rounded, "{x}");
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
