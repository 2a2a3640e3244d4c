//! Choices that are right, nearly right and wrong.

use super::super::case::{Kind, Mask};
use super::*;

const CASE: Case = Case {
    kind: Kind::Pairs,
    queries: 1,
    docs: 1,
    query_len: 1,
    doc_len: 5,
    dim: 2,
    packed: false,
    masks: [Mask::None; 2],
    poisoned: false,
    numbers: Numbers::Normal,
    normalize: false,
    data_seed: 0,
};

fn side(tokens: &[f32], mask: Option<Vec<bool>>) -> Side<f32> {
    let wide = tokens.iter().map(|x| f64::from(*x)).collect();
    Side { tokens: tokens.to_vec(), wide, offsets: vec![0, tokens.len() / CASE.dim], mask }
}

/// One query token (1, 1) on five tokens of a document, of which tokens 1 and 3 are equal, 2 is masked and 4 is a hair better.
fn found(choice: i32, numbers: Numbers) -> Result<(), String> {
    let queries = side(&[1.0, 1.0], None);
    let tokens = [0.0, 1.0, 2.0, 1.0, 9.0, 9.0, 2.0, 1.0, 2.0, 1.0 + 2.0 * f32::EPSILON];
    let docs = side(&tokens, Some(vec![true, true, false, true, true]));
    check(&Case { numbers, ..CASE }, [&queries, &docs], &[(0, 0)], &[choice], &[4])
}

#[test]
fn near_ties_pass_and_nothing_else() {
    for choice in [4, 1] {
        assert_eq!(found(choice, Numbers::Normal), Ok(()));
    }
    for (choice, why) in
        [(-1, "no token counts"), (0, "the largest"), (2, "masked"), (3, "token 1 comes first"), (5, "has 5 tokens")]
    {
        let message = found(choice, Numbers::Normal).unwrap_err();
        assert!(message.contains(why), "{message}");
    }
    assert!(found(1, Numbers::Integers).unwrap_err().contains("exact"));
}
