//! What goes in and out of a call, and its checks.

use std::ops::Range;

use kernel_core::{DType, Element, Gpu, MatrixView, MatrixViewMut, VectorView, VectorViewMut, check_disjoint};

use crate::error::Result;
use crate::problem::{Layout, Problem};

/// What the tensor cores' loads need of the beginning of every row.
pub(crate) const VECTOR_BYTES: usize = 16;

/// The gate and up projections, in the problem's [`Layout`].
#[derive(Debug)]
pub enum Weights<'a, T> {
    /// One tensor: `[K, 2N]` or `[2N, K]`.
    Joined(MatrixView<'a, T>),
    /// Two tensors: `[K, N]` or `[N, K]` each.
    Separate {
        /// The gate's.
        gate: MatrixView<'a, T>,
        /// The other one.
        up: MatrixView<'a, T>,
    },
}

/// Where gradients of the weights go, in the problem's [`Layout`].
#[derive(Debug)]
pub enum WeightsMut<'a, G> {
    /// One tensor: `[K, 2N]` or `[2N, K]`.
    Joined(MatrixViewMut<'a, G>),
    /// Two tensors: `[K, N]` or `[N, K]` each.
    Separate {
        /// The gate's.
        gate: MatrixViewMut<'a, G>,
        /// The other one.
        up: MatrixViewMut<'a, G>,
    },
}

/// The inputs of a call. They are only read.
#[derive(Debug)]
pub struct Inputs<'a, T> {
    /// `[M, K]`.
    pub x: MatrixView<'a, T>,
    /// Both projections.
    pub weights: Weights<'a, T>,
    /// `[2N]`, its halves in the order of the weights; present if the problem has a bias.
    pub bias: Option<VectorView<'a, T>>,
}

/// Where [`Plan::backward`](crate::Plan::backward) gets the pre-activations from.
#[derive(Debug)]
pub enum Preactivations<'a, 'b, T> {
    /// `[M, 2N]` as the forward saved them; overwritten by their gradients, so that the step needs no second buffer of that size.
    InPlace(&'a mut MatrixViewMut<'b, T>),
    /// `[M, 2N]` as the forward saved them; left as they are. Needs a plan in [`Mode::Recompute`](crate::Mode::Recompute).
    Saved(&'a MatrixView<'b, T>),
    /// Computed again from x. Needs a plan in [`Mode::Recompute`](crate::Mode::Recompute).
    Recompute,
}

/// Where the gradients go; each is made only when asked for. `G` is `T` or `f32`.
#[derive(Debug)]
pub struct Gradients<'a, T, G = T> {
    /// `[M, K]`, overwritten.
    pub dx: Option<MatrixViewMut<'a, T>>,
    /// Gradients of the weights.
    pub d_weights: Option<WeightsMut<'a, G>>,
    /// `[2N]`, its halves in the order of the weights. May be asked for without a bias.
    pub d_bias: Option<VectorViewMut<'a, G>>,
    /// Adds to what the parameters' gradients hold instead of overwriting it. dx is always overwritten.
    pub accumulate: bool,
}

impl<T, G> Default for Gradients<'_, T, G> {
    fn default() -> Self {
        Self { dx: None, d_weights: None, d_bias: None, accumulate: false }
    }
}

pub(crate) type Ranges = Vec<(&'static str, Range<u64>)>;

fn variant_error(layout: Layout, joined: bool) -> kernel_core::Error {
    let count = |one: bool| if one { "one tensor" } else { "two tensors" };
    kernel_core::Error::Shape {
        what: "weights",
        found: count(joined).to_owned(),
        expected: format!("{} for the layout {layout}", count(layout.is_joined())),
    }
}

pub(crate) fn check_dtype<T: Element>(what: &'static str, expected: DType) -> Result<()> {
    if T::DTYPE == expected {
        return Ok(());
    }
    Err(kernel_core::Error::DType { what, found: T::DTYPE, expected: expected.to_string() }.into())
}

/// Gradients of parameters may be wider than the parameters.
pub(crate) fn check_gradient_dtype<G: Element>(what: &'static str, dtype: DType) -> Result<()> {
    if G::DTYPE == dtype || G::DTYPE == DType::F32 {
        return Ok(());
    }
    Err(kernel_core::Error::DType { what, found: G::DTYPE, expected: format!("{dtype} or f32") }.into())
}

/// Checks shape, context and, if asked for, alignment of one matrix, and notes its memory.
macro_rules! check_matrix {
    ($view:expr, $gpu:expr, $shape:expr, $aligned:expr, $ranges:expr) => {{
        $view.require_shape($shape)?;
        $view.check_context($gpu)?;
        if $aligned {
            $view.require_alignment($crate::io::VECTOR_BYTES)?;
        }
        $ranges.push($view.named_range());
    }};
}
pub(crate) use check_matrix;

impl<T: Element> Inputs<'_, T> {
    /// `aligned`: every row of every matrix must begin at a multiple of 16 bytes.
    pub(crate) fn check(&self, gpu: &Gpu, problem: &Problem, aligned: bool) -> Result<Ranges> {
        check_dtype::<T>("x and weights", problem.dtype)?;
        let mut ranges = Ranges::new();
        check_matrix!(self.x, gpu, [problem.rows, problem.inputs], aligned, ranges);
        let shape = problem.layout.shape(problem.inputs, problem.outputs);
        match &self.weights {
            Weights::Joined(_) if !problem.layout.is_joined() => return Err(variant_error(problem.layout, true).into()),
            Weights::Separate { .. } if problem.layout.is_joined() => {
                return Err(variant_error(problem.layout, false).into());
            }
            Weights::Joined(weights) => check_matrix!(weights, gpu, shape, aligned, ranges),
            Weights::Separate { gate, up } => {
                check_matrix!(gate, gpu, shape, aligned, ranges);
                check_matrix!(up, gpu, shape, aligned, ranges);
            }
        }
        match &self.bias {
            Some(bias) if problem.bias => check_matrix!(bias, gpu, [2 * problem.outputs], false, ranges),
            None if !problem.bias => {}
            found => {
                return Err(kernel_core::Error::Shape {
                    what: "bias",
                    found: if found.is_some() { "a bias" } else { "no bias" }.to_owned(),
                    expected: format!("a problem with bias = {}", found.is_some()),
                }
                .into());
            }
        }
        Ok(ranges)
    }
}

impl<T: Element, G: Element> Gradients<'_, T, G> {
    /// Checks, and gives the memory that is written.
    pub(crate) fn check(&self, gpu: &Gpu, problem: &Problem) -> Result<Ranges> {
        let mut ranges = Ranges::new();
        if let Some(dx) = &self.dx {
            check_matrix!(dx, gpu, [problem.rows, problem.inputs], false, ranges);
        }
        let shape = problem.layout.shape(problem.inputs, problem.outputs);
        if let Some(d_weights) = &self.d_weights {
            check_gradient_dtype::<G>("gradients of the weights", problem.dtype)?;
            match d_weights {
                WeightsMut::Joined(_) if !problem.layout.is_joined() => {
                    return Err(variant_error(problem.layout, true).into());
                }
                WeightsMut::Separate { .. } if problem.layout.is_joined() => {
                    return Err(variant_error(problem.layout, false).into());
                }
                WeightsMut::Joined(weights) => check_matrix!(weights, gpu, shape, false, ranges),
                WeightsMut::Separate { gate, up } => {
                    check_matrix!(gate, gpu, shape, false, ranges);
                    check_matrix!(up, gpu, shape, false, ranges);
                }
            }
        }
        if let Some(d_bias) = &self.d_bias {
            check_gradient_dtype::<G>("gradient of the bias", problem.dtype)?;
            check_matrix!(d_bias, gpu, [2 * problem.outputs], false, ranges);
        }
        Ok(ranges)
    }
}

pub(crate) fn check_outputs(read: &Ranges, written: &Ranges) -> Result<()> {
    Ok(check_disjoint(read, written)?)
}
