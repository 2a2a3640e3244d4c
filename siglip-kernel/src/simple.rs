//! One call that plans, allocates and computes.

use kernel_core::cudarc::driver::CudaSlice;
use kernel_core::{Element, Gpu, MatrixViewMut, Scalar, VectorViewMut};

use crate::error::Result;
use crate::io::{Inputs, Outputs};
use crate::plan::Plan;
use crate::problem::{Options, Positives, Problem};

/// The loss and all gradients, in device memory of their own.
#[derive(Debug)]
pub struct Gradients<T> {
    /// The loss, one element. Not scaled by the upstream gradient.
    pub loss: CudaSlice<f32>,
    /// Gradient of the image rows, `[N, D]` without gaps.
    pub d_img: CudaSlice<T>,
    /// Gradient of the text rows, `[M, D]` without gaps.
    pub d_txt: CudaSlice<T>,
    /// Gradient of `log_temp`, one element.
    pub d_log_temp: CudaSlice<f32>,
    /// Gradient of `bias`, one element.
    pub d_bias: CudaSlice<f32>,
}

/// The problem that the inputs pose, divided by the number of image rows.
fn problem<T: Element>(inputs: &Inputs<'_, T>, positives: Positives) -> Problem {
    let [rows, dim] = inputs.img.shape();
    Problem::block(rows, inputs.txt.shape()[0], dim, T::DTYPE, positives)
}

/// The loss alone, as [`Plan::forward`] with [`Options::default`], divided by the number of image rows.
///
/// It makes a [`Plan`], allocates, computes and frees the workspace again: right for a single answer. A loop wants a [`Plan`] of its own,
/// whose calls do none of that. The result is queued on `gpu`'s stream and not waited for.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::forward`].
pub fn forward<T: Element>(gpu: &Gpu, inputs: &Inputs<'_, T>, positives: Positives) -> Result<CudaSlice<f32>> {
    let mut plan = Plan::new(gpu, problem(inputs, positives), Options::default())?;
    let mut loss = gpu.alloc(1)?;
    plan.forward(inputs, &mut VectorViewMut::new("loss", &mut loss, [1])?)?;
    Ok(loss)
}

/// The loss and all gradients, as [`Plan::forward_backward`] with [`Options::default`], divided by the number of image rows.
///
/// Costs as [`forward`](crate::forward()), and allocates the gradients.
///
/// # Errors
/// Those of [`Plan::new`] and [`Plan::forward_backward`].
pub fn forward_backward<T: Element>(
    gpu: &Gpu,
    inputs: &Inputs<'_, T>,
    positives: Positives,
    upstream: &Scalar<'_>,
) -> Result<Gradients<T>> {
    let problem = problem(inputs, positives);
    let Problem { rows, cols, dim, .. } = problem;
    let mut plan = Plan::new(gpu, problem, Options::default())?;
    let mut gradients = Gradients {
        loss: gpu.alloc(1)?,
        // Views of the inputs exist with these shapes, so the products cannot overflow.
        d_img: gpu.alloc(rows * dim)?,
        d_txt: gpu.alloc(cols * dim)?,
        d_log_temp: gpu.alloc(1)?,
        d_bias: gpu.alloc(1)?,
    };
    let outputs = &mut Outputs {
        loss: VectorViewMut::new("loss", &mut gradients.loss, [1])?,
        d_img: MatrixViewMut::new("d_img", &mut gradients.d_img, [rows, dim])?,
        d_txt: MatrixViewMut::new("d_txt", &mut gradients.d_txt, [cols, dim])?,
        d_log_temp: VectorViewMut::new("d_log_temp", &mut gradients.d_log_temp, [1])?,
        d_bias: VectorViewMut::new("d_bias", &mut gradients.d_bias, [1])?,
    };
    plan.forward_backward(inputs, upstream, outputs)?;
    Ok(gradients)
}
