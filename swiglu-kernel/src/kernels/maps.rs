//! The tensor maps of a launcher's matrices.

use kernel_core::sm90::MatrixAt;

use crate::at::At;
use crate::problem::Problem;

/// The weights of one projection, whose [`MatrixAt::mn_major`] has the same boxes of 64 × 64 for either layout.
pub(super) fn weights(problem: &Problem, at: At) -> MatrixAt {
    let Problem { inputs, outputs, dtype, layout, .. } = *problem;
    if layout.is_linear() { at.matrix(dtype, outputs, inputs) } else { at.matrix(dtype, inputs, outputs) }
}
