//! Random problems of late-interaction scores.

use crate::siglip::{Number, normal};
use maxsim_kernel::Spans;
use proptest::prelude::*;
use rand::RngExt;
use rand_xoshiro::Xoshiro256PlusPlus;

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Cross,
    Candidates(usize),
    Pairs,
    List(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) kind: Kind,
    pub(super) queries: usize,
    pub(super) docs: usize,
    pub(super) query_len: usize,
    pub(super) doc_len: usize,
    pub(super) dim: usize,
    /// Texts of different lengths, packed with offsets, instead of padded.
    pub(super) packed: bool,
    /// Share of tokens that the masks drop; no masks at 0.
    pub(super) dropped: f32,
    pub(super) normalize: bool,
    pub(super) data_seed: u64,
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let kind = prop_oneof![
        Just(Kind::Cross),
        (1usize..=4).prop_map(Kind::Candidates),
        Just(Kind::Pairs),
        (1usize..=12).prop_map(Kind::List)
    ];
    let texts = (1usize..=5, 1usize..=6);
    // Mostly small: the f64 version compares every two tokens plainly.
    let lengths =
        (prop_oneof![4 => 1usize..=40, 1 => 41usize..=150], prop_oneof![4 => 1usize..=90, 1 => 91usize..=330]);
    let dropped = prop_oneof![Just(0.0f32), 0.05f32..=1.0];
    (
        kind,
        texts,
        lengths,
        prop_oneof![4 => 1usize..=80, 1 => Just(128usize), 1 => 81usize..=300],
        any::<[bool; 2]>(),
        dropped,
        any::<u64>(),
    )
        .prop_map(|(kind, (queries, docs), (query_len, doc_len), dim, [packed, normalize], dropped, data_seed)| {
            let few = query_len * queries <= 64;
            let (docs, doc_len) = match kind {
                Kind::Candidates(per_query) => (queries * per_query, doc_len),
                Kind::Pairs => (queries, doc_len),
                // Few query rows meet many documents in other ways than many do.
                Kind::Cross if few && docs > 4 => (docs * 120, doc_len.min(20)),
                Kind::Cross | Kind::List(_) => (docs, doc_len),
            };
            Case { kind, queries, docs, query_len, doc_len, dim, packed, dropped, normalize, data_seed }
        })
}

/// Queries or documents: their tokens, where each text lies, and which tokens count.
pub(super) struct Side<T> {
    pub(super) tokens: Vec<T>,
    pub(super) wide: Vec<f64>,
    pub(super) offsets: Vec<usize>,
    pub(super) mask: Option<Vec<bool>>,
}

impl<T: Number> Side<T> {
    pub(super) fn random(case: &Case, count: usize, length: usize, rng: &mut Xoshiro256PlusPlus) -> Self {
        let mut offsets = vec![0];
        for _ in 0..count {
            let length = if case.packed { rng.random_range(0..=length) } else { length };
            offsets.push(offsets[offsets.len() - 1] + length);
        }
        let rows = offsets[count];
        // Rows of about unit length, or of any length where they are normalised.
        let scale = (case.dim as f32).sqrt().recip() * if case.normalize { 3.0 } else { 1.0 };
        let tokens: Vec<T> = (0..rows * case.dim).map(|_| T::rounded(normal(rng) * scale)).collect();
        let mask = (case.dropped > 0.0).then(|| (0..rows).map(|_| rng.random::<f32>() >= case.dropped).collect());
        Self { wide: tokens.iter().map(|x| x.wide()).collect(), tokens, offsets, mask }
    }

    pub(super) fn layout(&self, case: &Case, length: usize) -> Spans {
        if case.packed { Spans::packed(self.offsets.clone()) } else { Spans::padded(self.offsets.len() - 1, length) }
    }

    pub(super) fn spans(&self) -> Vec<(usize, usize)> {
        self.offsets.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    pub(super) fn row(&self, case: &Case, row: usize) -> &[f64] {
        &self.wide[row * case.dim..][..case.dim]
    }

    /// Whether a token counts.
    pub(super) fn keeps(&self, row: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask[row])
    }

    /// Length of a token, and the factor that normalising multiplies it by.
    pub(super) fn length(&self, case: &Case, row: usize) -> (f64, f64) {
        let square: f64 = self.row(case, row).iter().map(|x| x * x).sum();
        if case.normalize { (1.0, 1.0 / square.max(1e-12).sqrt()) } else { (square.sqrt(), 1.0) }
    }
}
