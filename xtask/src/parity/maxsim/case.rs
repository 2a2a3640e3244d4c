//! Random problems of late-interaction scores.

use crate::siglip::{Number, normal};
use maxsim_kernel::Spans;
use proptest::prelude::*;
use rand::RngExt;
use rand_xoshiro::Xoshiro256PlusPlus;
use std::ops::Range;

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Cross,
    Candidates(usize),
    Pairs,
    List(usize),
}

/// Which tokens of a side count.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mask {
    /// All, and there is no mask.
    None,
    /// All but this share, anywhere.
    Holes(f32),
    /// Of each text those before some place.
    Suffix,
    /// All of some texts and none of the others.
    Texts,
    /// None.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Numbers {
    Normal,
    /// Normal, and about every second document token is equal to an earlier one of its document.
    Repeated,
    /// -2 to 2: whatever the order of additions, sums are exact, and so many tie.
    Integers,
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
    /// Of queries and of documents.
    pub(super) masks: [Mask; 2],
    /// NaN and infinities in masked tokens, instead of numbers like any.
    pub(super) poisoned: bool,
    pub(super) numbers: Numbers,
    pub(super) normalize: bool,
    pub(super) data_seed: u64,
}

fn masks() -> impl Strategy<Value = Mask> {
    prop_oneof![
        4 => Just(Mask::None),
        3 => (0.05f32..=1.0).prop_map(Mask::Holes),
        2 => Just(Mask::Suffix),
        1 => Just(Mask::Texts),
        1 => Just(Mask::All),
    ]
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    prop_oneof![7 => any_cases(), 1 => streamed_cases()]
}

/// Few query rows that meet many documents, as retrieval has them: kernels of their own stream the documents of these.
fn streamed_cases() -> impl Strategy<Value = Case> {
    let dim = prop_oneof![2 => 1usize..=128, 1 => 129usize..=1024];
    let numbers = prop_oneof![2 => Just(Numbers::Normal), 1 => Just(Numbers::Repeated), 1 => Just(Numbers::Integers)];
    (1usize..=4, 1usize..=16, 530usize..=700, 1usize..=20, dim, any::<bool>(), numbers, any::<u64>()).prop_map(
        |(queries, query_len, docs, doc_len, dim, packed, numbers, data_seed)| Case {
            kind: Kind::Cross,
            queries,
            docs,
            query_len: query_len.min(15_000 / dim),
            // As much work for wide rows as for others.
            doc_len: doc_len.min(2000 / dim + 1),
            dim,
            packed,
            masks: [Mask::None; 2],
            poisoned: false,
            numbers,
            normalize: false,
            data_seed,
        },
    )
}

fn any_cases() -> impl Strategy<Value = Case> {
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
    let dim = prop_oneof![8 => 1usize..=80, 2 => Just(128usize), 2 => 81usize..=300, 1 => 301usize..=1024];
    let numbers = prop_oneof![2 => Just(Numbers::Normal), 1 => Just(Numbers::Repeated), 1 => Just(Numbers::Integers)];
    (kind, texts, lengths, dim, any::<[bool; 3]>(), [masks(), masks()], numbers, any::<u64>()).prop_map(
        |(kind, (queries, docs), (query_len, doc_len), dim, flags, masks, numbers, data_seed)| {
            let [packed, normalize, poisoned] = flags;
            let few = query_len * queries <= 64;
            let docs = match kind {
                Kind::Candidates(per_query) => queries * per_query,
                Kind::Pairs => queries,
                // Few query rows meet many documents in other ways than many do.
                Kind::Cross if few && docs > 4 => docs * 120,
                Kind::Cross | Kind::List(_) => docs,
            };
            // As much work for wide rows as for others.
            let longest = if docs > 500 { 20 } else { 330 };
            let (query_len, doc_len) = (query_len.min(15_000 / dim), doc_len.min(longest).min(longest * 100 / dim + 1));
            // Normalising rounds what is exact.
            let numbers = if normalize && numbers == Numbers::Integers { Numbers::Repeated } else { numbers };
            Case {
                kind,
                queries,
                docs,
                query_len,
                doc_len,
                dim,
                packed,
                masks,
                poisoned,
                numbers,
                normalize,
                data_seed,
            }
        },
    )
}

/// Queries or documents: their tokens, where each text lies, and which tokens count.
pub(super) struct Side<T> {
    pub(super) tokens: Vec<T>,
    pub(super) wide: Vec<f64>,
    pub(super) offsets: Vec<usize>,
    pub(super) mask: Option<Vec<bool>>,
}

impl<T: Number> Side<T> {
    pub(super) fn queries(case: &Case, rng: &mut Xoshiro256PlusPlus) -> Self {
        Self::random(case, [case.queries, case.query_len], case.masks[0], false, rng)
    }

    pub(super) fn docs(case: &Case, rng: &mut Xoshiro256PlusPlus) -> Self {
        let repeated = case.numbers == Numbers::Repeated;
        Self::random(case, [case.docs, case.doc_len], case.masks[1], repeated, rng)
    }

    fn random(
        case: &Case,
        [count, length]: [usize; 2],
        mask: Mask,
        repeated: bool,
        rng: &mut Xoshiro256PlusPlus,
    ) -> Self {
        let mut offsets = vec![0];
        for _ in 0..count {
            let length = if case.packed { rng.random_range(0..=length) } else { length };
            offsets.push(offsets[offsets.len() - 1] + length);
        }
        let (rows, dim) = (offsets[count], case.dim);
        // Rows of about unit length, or of any length where they are normalised.
        let scale = (dim as f32).sqrt().recip() * if case.normalize { 3.0 } else { 1.0 };
        let number = |rng: &mut Xoshiro256PlusPlus| match case.numbers {
            Numbers::Integers => rng.random_range(-2i32..=2) as f32,
            Numbers::Normal | Numbers::Repeated => normal(rng) * scale,
        };
        let mut tokens: Vec<T> = (0..rows * dim).map(|_| T::rounded(number(rng))).collect();
        let texts = offsets.windows(2).map(|pair| pair[0]..pair[1]);
        if repeated {
            for row in texts.clone().flat_map(|text| text.clone().skip(1).map(move |row| (text.start, row))) {
                let (start, row) = row;
                if rng.random() {
                    let from = rng.random_range(start..row);
                    tokens.copy_within(from * dim..(from + 1) * dim, row * dim);
                }
            }
        }
        let mut mask_of = |text: Range<usize>| -> Vec<bool> {
            let length = text.len();
            match mask {
                Mask::None => vec![true; length],
                Mask::Holes(dropped) => (0..length).map(|_| rng.random::<f32>() >= dropped).collect(),
                Mask::Suffix => {
                    let kept = rng.random_range(0..=length);
                    (0..length).map(|at| at < kept).collect()
                }
                Mask::Texts => vec![rng.random(); length],
                Mask::All => vec![false; length],
            }
        };
        let kept: Vec<bool> = texts.flat_map(&mut mask_of).collect();
        if case.poisoned {
            let poison = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(T::rounded);
            for row in (0..rows).filter(|row| !kept[*row]) {
                tokens[row * dim..][..dim].fill(poison[row % poison.len()]);
            }
        }
        let mask = (!matches!(mask, Mask::None)).then_some(kept);
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
