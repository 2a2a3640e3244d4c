//! Matrices in 8-bit integers, as route int8 of SigLIP has them.

/// How many of K share a scale of G.
const GROUP: usize = 128;

/// `x` in units of `largest / steps`, rounded.
fn rounded(x: f64, largest: f64, steps: f64) -> f64 {
    if largest == 0.0 { 0.0 } else { (x / largest * steps).round_ties_even() * largest / steps }
}

fn largest<'a>(of: impl Iterator<Item = &'a f64>) -> f64 {
    of.fold(0.0, |most: f64, x| most.max(x.abs()))
}

/// Each row in signed 8-bit integers, its largest magnitude as 127.
pub fn int8_rows(matrix: &[f64], dim: usize) -> Vec<f64> {
    let row = |row: &[f64]| {
        let most = largest(row.iter());
        row.iter().map(move |x| rounded(*x, most, 127.0)).collect::<Vec<_>>()
    };
    matrix.chunks(dim).flat_map(row).collect()
}

/// The same of each column.
pub fn int8_columns(matrix: &[f64], dim: usize) -> Vec<f64> {
    let most: Vec<f64> = (0..dim).map(|column| largest(matrix.iter().skip(column).step_by(dim))).collect();
    matrix.iter().enumerate().map(|(i, x)| rounded(*x, most[i % dim], 127.0)).collect()
}

/// One row of G, positive pairs 0 and the others at least that, as a gradient product has it: every 128 in unsigned 8-bit integers, their largest as 255. `first`: where in a
/// group it begins.
pub fn int8_factors(q: &[f64], first: usize) -> Vec<f64> {
    let (head, rest) = q.split_at((GROUP - first % GROUP).min(q.len()));
    let groups = [head].into_iter().chain(rest.chunks(GROUP));
    let group = |group: &[f64]| {
        let most = largest(group.iter());
        group.iter().map(move |x| rounded(*x, most, 255.0)).collect::<Vec<_>>()
    };
    groups.flat_map(group).collect()
}

/// Rows whose dot products are the logits of negative pairs, less the bias and by the temperature: of images and texts, dim + 1 long. The texts less their mean are rounded as
/// [`int8_rows`] does it, and so are the images; an image's product with the mean comes last, and is exact.
pub fn int8_logit_rows(img: &[f64], txt: &[f64], dim: usize) -> (Vec<f64>, Vec<f64>) {
    let mut mean = vec![0.0; dim];
    let rows = txt.len() / dim;
    for row in txt.chunks(dim) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / rows as f64);
    }
    let rest: Vec<f64> = txt.iter().enumerate().map(|(i, x)| x - mean[i % dim]).collect();
    let and = |rows: &[f64], last: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let with = |(i, row): (usize, &[f64])| row.iter().copied().chain([last(i)]).collect::<Vec<_>>();
        rows.chunks(dim).enumerate().flat_map(with).collect()
    };
    let term = |i: usize| img[i * dim..][..dim].iter().zip(&mean).map(|(x, m)| x * m).sum();
    (and(&int8_rows(img, dim), &term), and(&int8_rows(&rest, dim), &|_| 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_and_a_column_have_a_scale_each() {
        let matrix = [127.0, -0.6, 0.0, 0.5, 2.0, 0.0];
        assert_eq!(int8_rows(&matrix, 3), [127.0, -1.0, 0.0, 32.0 * 2.0 / 127.0, 2.0, 0.0]);
        assert_eq!(int8_columns(&matrix, 3), [127.0, -38.0 * 2.0 / 127.0, 0.0, 0.0, 2.0, 0.0]);
    }

    #[test]
    fn a_group_of_g_has_a_scale() {
        let mut q = vec![0.4; 3];
        q.extend([255.0, 0.4]);
        let group = |first| int8_factors(&q, first);
        assert_eq!(group(0), [0.0, 0.0, 0.0, 255.0, 0.0]);
        assert_eq!(group(GROUP - 3), [0.4, 0.4, 0.4, 255.0, 0.0]);
    }

    #[test]
    fn the_mean_is_exact() {
        let (img, txt) = int8_logit_rows(&[0.3, 0.1], &[5.0, 1.0, 5.0, 1.0], 2);
        assert_eq!(img.len(), 3);
        assert_eq!(img[2], 0.3 * 5.0 + 0.1);
        assert_eq!(txt, [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    }
}
