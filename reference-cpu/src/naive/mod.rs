//! The three operations written down plainly in f64, forward and analytic backward, on dense row-major slices: one loop an index, no
//! blocking, no reordering. What the parallel versions, the GPU kernels and the finite differences are checked against.

mod fp8;
mod int8;
mod maxsim;
mod siglip;
mod swiglu;

pub use fp8::{e4m3, e4m3_matrix};
pub use int8::{int8_columns, int8_factors, int8_logit_rows, int8_rows};
pub use maxsim::{MaxsimSide, maxsim, maxsim_backward};
pub use siglip::{SiglipResult, SiglipScalars, siglip, siglip_fp8, siglip_int8, siglip_loss};
pub use swiglu::{MlpResult, SwigluLayer, SwigluResult, mlp, mlp_backward, swiglu, swiglu_backward};

use crate::error::{Error, Result};

/// An error unless `slice` has exactly `expected` elements.
fn exactly(what: &'static str, slice: &[f64], axes: &[usize]) -> Result<()> {
    let expected = axes.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis));
    if expected == Some(slice.len()) {
        return Ok(());
    }
    Err(Error::Shape { what, found: format!("[{}]", slice.len()), expected: format!("{axes:?} flattened") })
}

/// `1 / (1 + exp(-z))` without overflow.
fn sigmoid(z: f64) -> f64 {
    if z > 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// `target += scale · source`.
fn add_scaled(target: &mut [f64], scale: f64, source: &[f64]) {
    for (t, s) in target.iter_mut().zip(source) {
        *t += scale * s;
    }
}
