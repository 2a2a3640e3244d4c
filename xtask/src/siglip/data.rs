//! Random numbers.

use super::host::Number;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rayon::prelude::*;

/// `rows` unit-length embeddings of `dim` features in random directions, rounded to `T`; the same seed gives the same ones.
pub(crate) fn random_rows<T: Number>(rows: usize, dim: usize, seed: u64) -> Vec<T> {
    let mut out = vec![T::rounded(0.0); rows * dim];
    out.par_chunks_mut(dim).enumerate().for_each_init(
        || vec![0.0f32; dim],
        |row, (index, target)| {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            row.iter_mut().for_each(|x| *x = normal(&mut rng));
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            target.iter_mut().zip(row.iter()).for_each(|(to, x)| *to = T::rounded(x / length));
        },
    );
    out
}

/// A standard normal number (Box and Muller, 1958).
pub(crate) fn normal(rng: &mut impl Rng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_unit_length_and_depend_on_the_seed() {
        let rows = random_rows::<f32>(5, 33, 7);
        assert_eq!(rows, random_rows::<f32>(5, 33, 7));
        assert_ne!(rows, random_rows::<f32>(5, 33, 8));
        for row in rows.chunks(33) {
            assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        }
        assert_ne!(rows[..33], rows[33..66]);
    }
}
