//! Shapes, and which peers run on them.

use kernel_core::DType;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Every peer that the script knows, in the order of their names.
pub(crate) const PEERS: [&str; 5] =
    ["liger-kernel", "liger-kernel packed", "torch eager", "torch.compile", "torch.compile separate"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Forward,
    /// Forward that saves what the backward needs, dx and dW.
    Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BenchProblem {
    pub(crate) op: Op,
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) dtype: DType,
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Forward => "forward",
            Op::Step => "step",
        }
    }
}

/// M, K, N.
const SHAPES: [[usize; 3]; 7] = [
    [8192, 4096, 11008],
    [8192, 4096, 14336],
    [4096, 1024, 4096],
    [16384, 1152, 4304],
    [64, 4096, 14336],
    [16, 4096, 14336],
    [1, 4096, 14336],
];
const QUICK: [[usize; 3]; 2] = [[4096, 1024, 4096], [16, 4096, 14336]];

/// `only` keeps the rows M that it lists; empty keeps all. A few rows have the forward alone: that is decoding.
pub(crate) fn problems(quick: bool, only: &[usize]) -> Vec<BenchProblem> {
    let shapes: &[[usize; 3]] = if quick { &QUICK } else { &SHAPES };
    let kept = shapes.iter().filter(|[m, ..]| only.is_empty() || only.contains(m));
    kept.flat_map(|&[m, k, n]| {
        let ops: &[Op] = if m <= 64 { &[Op::Forward] } else { &[Op::Step, Op::Forward] };
        ops.iter().map(move |&op| BenchProblem { op, m, k, n, dtype: DType::Bf16 })
    })
    .collect()
}

impl BenchProblem {
    pub(crate) fn is_decode(&self) -> bool {
        self.m <= 64
    }

    pub(crate) fn shape(&self) -> BTreeMap<String, u64> {
        let axes = [("M", self.m), ("K", self.k), ("N", self.n)];
        axes.into_iter().map(|(name, size)| (name.to_owned(), size as u64)).collect()
    }

    /// Two products of M K N forward, four more for dx and dW.
    pub(crate) fn flop(&self) -> u64 {
        let forward = 4 * (self.m * self.k * self.n) as u64;
        if self.op == Op::Step { 3 * forward } else { forward }
    }

    /// Inputs read once, results written once.
    pub(crate) fn bytes(&self) -> u64 {
        let (x, weights, z) = (self.m * self.k, 2 * self.k * self.n, self.m * self.n);
        let elements = if self.op == Op::Step { 2 * (x + weights + z) } else { x + weights + z };
        (elements * self.dtype.size_bytes()) as u64
    }

    pub(crate) fn for_peers(&self) -> Value {
        json!({
            "op": self.op.name(),
            "shape": {"M": self.m, "K": self.k, "N": self.n},
            "dtype": self.dtype.name(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_cover_the_shapes_and_can_be_limited() {
        let all = problems(false, &[]);
        assert_eq!(all.iter().filter(|p| p.op == Op::Step).count(), 4);
        assert_eq!(all.iter().filter(|p| p.is_decode()).count(), 3);
        assert!(problems(false, &[16]).iter().all(|p| p.m == 16 && p.op == Op::Forward));
    }

    #[test]
    fn counts_are_those_of_the_definition() {
        let step = BenchProblem { op: Op::Step, m: 8192, k: 4096, n: 14336, dtype: DType::Bf16 };
        assert_eq!(step.flop(), 12 * 8192 * 4096 * 14336);
        let decode = BenchProblem { op: Op::Forward, m: 1, k: 4096, n: 14336, dtype: DType::Bf16 };
        assert_eq!(decode.bytes(), 2 * (4096 + 2 * 4096 * 14336 + 14336));
    }
}
