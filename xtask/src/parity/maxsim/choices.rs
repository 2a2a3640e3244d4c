//! Whether each query token chose a token that it might.

use super::case::{Case, Numbers, Side};
use crate::siglip::Number;

/// How far two computed similarities may be from what they are, for each unit of the tokens' lengths, before their order may be wrong. A similarity is a sum of
/// d products in f32. A tensor core adds 16 at a time to the running sum and cuts each addend below 2^-23 of the largest, an f32 unit rounds every
/// sum by half as much: at most 17/16 d of 2^-23. Of normalised tokens the squared lengths are such sums too, and a root halves their relative
/// error: at most d/2 more. The last few are the roots and the products with them.
fn rounding(dim: usize) -> f64 {
    (1.6 * dim as f64 + 4.0) * f64::from(f32::EPSILON)
}

/// Says which entry of `argmax` is not a best token's. `best`: the choices of f64. A choice may differ from it
/// - where f32 cannot tell the similarities apart, which it always can of small integers;
/// - but never for a token equal to an earlier one that counts: a similarity does not depend on where its token stands, so those tie in any
///   arithmetic, and the lowest index wins.
pub(super) fn check<T: Number>(
    case: &Case,
    [queries, docs]: [&Side<T>; 2],
    items: &[(usize, usize)],
    argmax: &[i32],
    best: &[i32],
) -> Result<(), String> {
    if argmax.len() != best.len() {
        return Err(format!("found {} choices, expected {}", argmax.len(), best.len()));
    }
    let mut entries = argmax.iter().zip(best).enumerate();
    for &(query, doc) in items {
        let (start, end) = (docs.offsets[doc], docs.offsets[doc + 1]);
        for i in queries.offsets[query]..queries.offsets[query + 1] {
            let Some((index, (&choice, &best))) = entries.next() else { return Err("too few choices".to_owned()) };
            let wrong = |why: String| Err(format!("argmax[{index}] is {choice}, in f64 {best}: {why}"));
            let (Ok(chosen), Ok(best)) = (usize::try_from(choice), usize::try_from(best)) else {
                if choice == best {
                    continue;
                }
                return wrong("expected -1 where no token counts, and there alone".to_owned());
            };
            if chosen == best {
                continue;
            }
            if chosen >= end - start {
                return wrong(format!("the document has {} tokens", end - start));
            }
            if case.numbers == Numbers::Integers {
                return wrong("sums of small integers are exact".to_owned());
            }
            let (chosen, best) = (start + chosen, start + best);
            if !docs.keeps(chosen) {
                return wrong("a masked token".to_owned());
            }
            let similarity = |j: usize| {
                let ((_, q_factor), (_, d_factor)) = (queries.length(case, i), docs.length(case, j));
                let products = queries.row(case, i).iter().zip(docs.row(case, j)).map(|(a, b)| a * b);
                products.sum::<f64>() * q_factor * d_factor
            };
            let (found, most) = (similarity(chosen), similarity(best));
            let lengths = queries.length(case, i).0 * (docs.length(case, chosen).0 + docs.length(case, best).0);
            // False for a NaN.
            let near = found >= most - rounding(case.dim) * lengths;
            if !near {
                return wrong(format!("its similarity is {found}, the largest {most}"));
            }
            let first = (start..chosen).find(|&j| docs.keeps(j) && docs.row(case, j) == docs.row(case, chosen));
            if let Some(first) = first {
                return wrong(format!("the equal token {} comes first", first - start));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "choices_test.rs"]
mod tests;
