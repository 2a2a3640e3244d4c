//! Random problems of the SigLIP loss.

use crate::siglip::{Number, normal};
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use reference_cpu::siglip::{Positives, SiglipParams};

/// One problem; the same case always makes the same inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) dim: usize,
    pub(crate) chunk: ChunkCase,
    pub(crate) params: SiglipParams,
    /// Length of every embedding before rounding.
    pub(crate) norm: f32,
    /// How much of a common direction (with a random sign) the embeddings share: 0 gives logits near the bias, more spreads them.
    pub(crate) shared: f32,
    pub(crate) data_seed: u64,
}

/// What a plan is told about its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ChunkCase {
    Auto,
    Rows(usize),
    /// About this share of the workspace that `Auto` takes: blocks of columns too, and sums in the memory of outputs.
    Workspace(f32),
}

/// Largest |z| that the cases reach.
pub(crate) const LARGEST_LOGIT: f32 = 40.0;

/// B from 1 to 700 (square and rectangular), D from 1 to 1200, any chunk, all kinds of positives, |z| up to 40.
pub(crate) fn cases() -> impl Strategy<Value = Case> {
    let extent = || prop_oneof![3 => 1usize..=64, 3 => 65usize..=300, 1 => 301usize..=700];
    let shape = (extent(), prop_oneof![1 => Just(None), 1 => extent().prop_map(Some)]);
    let dim = prop_oneof![4 => (1usize..=96).prop_map(|d| d * 8), 1 => (97usize..=150).prop_map(|d| d * 8), 3 => 1usize..=200, 1 => 201usize..=1200];
    let chunk = prop_oneof![
        1 => Just(ChunkCase::Auto),
        1 => (1usize..=300).prop_map(ChunkCase::Rows),
        1 => (0.0f32..=1.0).prop_map(ChunkCase::Workspace),
    ];
    let positives = prop_oneof![
        3 => Just(Positives::Diagonal { offset: 0 }),
        3 => (-700i64..=700).prop_map(|offset| Positives::Diagonal { offset }),
        1 => Just(Positives::None),
    ];
    let logits = (0.02f32..=1.0, -1.0f32..=1.0);
    let upstream =
        prop_oneof![3 => Just(1.0f32), 1 => Just(-0.5f32), 1 => Just(3.75f32), 1 => Just(64.0f32), 1 => Just(0.0f32)];
    let data = (prop_oneof![3 => Just(1.0f32), 1 => 0.25f32..=4.0], prop_oneof![1 => Just(0.0f32), 1 => 0.0f32..=2.0]);
    (shape, dim, chunk, positives, logits, upstream, data, 1usize..=2, any::<u64>()).prop_map(
        |((rows, cols), dim, chunk, positives, (spread, shift), upstream, (norm, shared), share, data_seed)| {
            let cols = cols.unwrap_or(rows);
            // |<img, txt>| is at most norm^2, so |z| stays within the temperature's part plus the bias's.
            let largest_dot = LARGEST_LOGIT * spread;
            let params = SiglipParams {
                log_temp: (largest_dot / (norm * norm)).ln(),
                bias: (LARGEST_LOGIT - largest_dot) * shift,
                positives,
                batch: rows.max(cols) * share,
                upstream,
            };
            Case { rows, cols, dim, chunk, params, norm, shared, data_seed }
        },
    )
}

impl Case {
    /// The embeddings, rounded to `T`: images `[rows, dim]`, texts `[cols, dim]`.
    pub(crate) fn inputs<T: Number>(&self) -> (Vec<T>, Vec<T>) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.data_seed);
        let common: Vec<f32> = (0..self.dim).map(|_| normal(&mut rng)).collect();
        let img = self.embeddings(self.rows, &common, &mut rng);
        let txt = self.embeddings(self.cols, &common, &mut rng);
        (img, txt)
    }

    fn embeddings<T: Number>(&self, rows: usize, common: &[f32], rng: &mut impl Rng) -> Vec<T> {
        let mut out = Vec::with_capacity(rows * self.dim);
        for _ in 0..rows {
            let shared = if rng.random::<bool>() { self.shared } else { -self.shared };
            let row: Vec<f32> = common.iter().map(|c| shared * c + normal(rng)).collect();
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            out.extend(row.iter().map(|x| T::rounded(x * self.norm / length)));
        }
        out
    }
}

pub(crate) fn widen<T: Number>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.wide()).collect()
}
