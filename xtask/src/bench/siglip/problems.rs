//! Shapes, and which peers run on them.

use kernel_core::DType;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Every peer that the script knows, in the order of their names.
#[cfg(test)]
pub(crate) const PEERS: [&str; 5] =
    ["siglip-kernel", "siglip-kernel c=1024", "siglip-kernel fp8", "torch eager", "torch.compile"];

/// SigLIP's initial temperature and bias (arXiv 2303.15343, section 3.2).
pub(crate) const LOG_TEMP: f32 = std::f32::consts::LN_10;
pub(crate) const BIAS: f32 = -10.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Forward,
    Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BenchProblem {
    pub(crate) op: Op,
    pub(crate) b: usize,
    pub(crate) d: usize,
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

/// `only` keeps the sizes B that it lists; empty keeps all.
pub(crate) fn problems(quick: bool, only: &[usize]) -> Vec<BenchProblem> {
    let (sizes, others): (&[usize], &[(usize, usize, DType)]) = if quick {
        (&[8_192, 32_768], &[(8_192, 768, DType::F32)])
    } else {
        (
            &[8_192, 16_384, 32_768, 65_536, 131_072],
            &[
                (32_768, 1_152, DType::Bf16),
                (32_768, 512, DType::Bf16),
                (32_768, 768, DType::F16),
                (8_192, 768, DType::F32),
            ],
        )
    };
    let shapes = sizes.iter().map(|b| (*b, 768, DType::Bf16)).chain(others.iter().copied());
    shapes
        .filter(|(b, ..)| only.is_empty() || only.contains(b))
        .flat_map(|(b, d, dtype)| [Op::Step, Op::Forward].map(|op| BenchProblem { op, b, d, dtype }))
        .collect()
}

impl BenchProblem {
    pub(crate) fn shape(&self) -> BTreeMap<String, u64> {
        BTreeMap::from([("B".to_owned(), self.b as u64), ("D".to_owned(), self.d as u64)])
    }

    /// One product of B^2 D for the loss, two more for the gradients.
    pub(crate) fn flop(&self) -> u64 {
        let product = 2 * (self.b as u64).pow(2) * self.d as u64;
        if self.op == Op::Step { 3 * product } else { product }
    }

    /// Inputs read once, gradients written once.
    pub(crate) fn bytes(&self) -> u64 {
        let inputs = 2 * (self.b * self.d * self.dtype.size_bytes()) as u64;
        if self.op == Op::Step { 2 * inputs } else { inputs }
    }

    /// The workspace in bytes with which ours takes half of what siglip-kernel 0.1.2's `auto` takes above the inputs (25.3 B D at D = 768 and
    /// B from 8,192 to 131,072, of which 4 B D are the gradients).
    pub(crate) fn half_of_peer(&self) -> usize {
        self.b * self.d * 86 / 10
    }

    pub(crate) fn for_peers(&self) -> Value {
        json!({
            "op": self.op.name(),
            "shape": {"B": self.b, "D": self.d},
            "dtype": self.dtype.name(),
            "log_temp": LOG_TEMP,
            "bias": BIAS,
        })
    }

    /// The peers that have this operation, and those that are left out with the reason. `memory` is what the card has, in bytes.
    pub(crate) fn peers(&self, memory: usize) -> (Vec<&'static str>, Vec<(&'static str, String)>) {
        let mut run = vec!["siglip-kernel"];
        let mut out = Vec::new();
        if self.dtype == DType::Bf16 && self.op == Op::Step {
            run.extend(["siglip-kernel c=1024", "siglip-kernel fp8"]);
        }
        // Eager torch was seen to hold five B x B matrices at once, the compiled one three.
        for (name, matrices) in [("torch eager", 5), ("torch.compile", 3)] {
            let needed = matrices * self.b.pow(2) * self.dtype.size_bytes();
            if needed > memory / 10 * 9 || self.b > 65_536 {
                let (needed, memory) = (needed as f64 / 1e9, memory as f64 / 1e9);
                out.push((name, format!("holds {matrices} B x B matrices, {needed:.0} GB of {memory:.0} GB")));
            } else {
                run.push(name);
            }
        }
        (run, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_cover_the_sizes_and_can_be_limited() {
        let all = problems(false, &[]);
        let steps: Vec<usize> =
            all.iter().filter(|p| p.op == Op::Step && p.d == 768 && p.dtype == DType::Bf16).map(|p| p.b).collect();
        assert_eq!(steps, [8_192, 16_384, 32_768, 65_536, 131_072]);
        assert!(all.iter().any(|p| p.dtype == DType::F32) && all.iter().any(|p| p.d == 1_152));
        let limited = problems(false, &[65_536]);
        assert_eq!(limited.len(), 2);
        assert!(limited.iter().all(|p| p.b == 65_536));
    }

    #[test]
    fn counts_are_those_of_the_definition() {
        let step = BenchProblem { op: Op::Step, b: 65_536, d: 768, dtype: DType::Bf16 };
        assert_eq!(step.flop(), 6 * 65_536 * 65_536 * 768);
        assert_eq!(step.bytes(), 4 * 65_536 * 768 * 2);
        let forward = BenchProblem { op: Op::Forward, ..step };
        assert_eq!((forward.flop() * 3, forward.bytes() * 2), (step.flop(), step.bytes()));
    }

    #[test]
    fn peers_that_do_not_fit_are_named() {
        let step = BenchProblem { op: Op::Step, b: 131_072, d: 768, dtype: DType::Bf16 };
        let (run, out) = step.peers(141_000_000_000);
        assert_eq!(run, ["siglip-kernel", "siglip-kernel c=1024", "siglip-kernel fp8"]);
        assert_eq!(out.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["torch eager", "torch.compile"]);
        assert!(out[0].1.contains("172 GB of 141 GB"), "{}", out[0].1);
        let (run, out) = BenchProblem { b: 65_536, ..step }.peers(141_000_000_000);
        assert_eq!((run.len(), out.len()), (5, 0));
    }
}
