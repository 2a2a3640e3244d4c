//! What goes in and out of a call, and its checks.

use kernel_core::{Element, Gpu, MatrixView, MatrixViewMut, Scalar, VectorViewMut, check_disjoint};

use crate::error::Result;
use crate::problem::Problem;

/// Bytes of the widest load.
const VECTOR_BYTES: usize = 16;

/// What a route asks of the addresses of inputs and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alignment {
    /// Nothing: inputs are copied to a padded place first.
    Element,
    /// Every row begins at a multiple of 16 bytes.
    Rows,
    /// The first row begins at a multiple of 16 bytes.
    Start,
}

fn require_start(what: &'static str, address: u64) -> Result<()> {
    if address.is_multiple_of(VECTOR_BYTES as u64) {
        return Ok(());
    }
    Err(kernel_core::Error::Misaligned { what, address, required: VECTOR_BYTES }.into())
}

/// The inputs of a call. They are only read.
#[derive(Debug)]
pub struct Inputs<'a, T> {
    /// Image rows `[N, D]`.
    pub img: MatrixView<'a, T>,
    /// Text rows `[M, D]`.
    pub txt: MatrixView<'a, T>,
    /// Logarithm of the logit scale (the paper's t′).
    pub log_temp: Scalar<'a>,
    /// Bias of the logits.
    pub bias: Scalar<'a>,
}

/// Where [`Plan::forward_backward`](crate::Plan::forward_backward) writes. Everything is overwritten; nothing is read.
#[derive(Debug)]
pub struct Outputs<'a, T> {
    /// The loss, one element. Not scaled by the upstream gradient.
    pub loss: VectorViewMut<'a, f32>,
    /// Gradient of the image rows `[N, D]`.
    pub d_img: MatrixViewMut<'a, T>,
    /// Gradient of the text rows `[M, D]`. Its memory may hold intermediate results meanwhile.
    pub d_txt: MatrixViewMut<'a, T>,
    /// Gradient of `log_temp`, one element.
    pub d_log_temp: VectorViewMut<'a, f32>,
    /// Gradient of `bias`, one element.
    pub d_bias: VectorViewMut<'a, f32>,
}

impl<T: Element> Inputs<'_, T> {
    pub(crate) fn check(&self, gpu: &Gpu, problem: &Problem, alignment: Alignment) -> Result<()> {
        if T::DTYPE != problem.dtype {
            let expected = problem.dtype.to_string();
            return Err(kernel_core::Error::DType { what: "img and txt", found: T::DTYPE, expected }.into());
        }
        for (view, rows) in [(&self.img, problem.rows), (&self.txt, problem.cols)] {
            view.require_shape([rows, problem.dim])?;
            view.check_context(gpu)?;
            match alignment {
                Alignment::Element => {}
                Alignment::Rows => view.require_alignment(VECTOR_BYTES)?,
                Alignment::Start => require_start(view.what(), view.address())?,
            }
        }
        self.log_temp.check("log_temp", gpu)?;
        self.bias.check("bias", gpu)?;
        match self.log_temp {
            Scalar::Host(value) if !value.exp().is_finite() => {
                Err(kernel_core::Error::NonFinite { what: "exp(log_temp)", value: value.exp() }.into())
            }
            _ => Ok(()),
        }
    }

    fn ranges(&self) -> Vec<(&'static str, std::ops::Range<u64>)> {
        let mut ranges = vec![self.img.named_range(), self.txt.named_range()];
        for scalar in [&self.log_temp, &self.bias] {
            if let Scalar::Device(view) = scalar {
                ranges.push(view.named_range());
            }
        }
        ranges
    }

    pub(crate) fn check_loss(&self, gpu: &Gpu, loss: &VectorViewMut<'_, f32>) -> Result<()> {
        loss.require_shape([1])?;
        loss.check_context(gpu)?;
        Ok(check_disjoint(&self.ranges(), &[loss.named_range()])?)
    }
}

impl<T: Element> Outputs<'_, T> {
    pub(crate) fn check(
        &self,
        gpu: &Gpu,
        problem: &Problem,
        alignment: Alignment,
        inputs: &Inputs<'_, T>,
        upstream: &Scalar<'_>,
    ) -> Result<()> {
        upstream.check("upstream", gpu)?;
        self.d_img.require_shape([problem.rows, problem.dim])?;
        self.d_txt.require_shape([problem.cols, problem.dim])?;
        self.d_img.check_context(gpu)?;
        self.d_txt.check_context(gpu)?;
        for view in [&self.d_img, &self.d_txt] {
            match alignment {
                Alignment::Element => {}
                Alignment::Rows => view.require_alignment(VECTOR_BYTES)?,
                Alignment::Start => require_start(view.what(), view.address())?,
            }
        }
        for scalar in [&self.loss, &self.d_log_temp, &self.d_bias] {
            scalar.require_shape([1])?;
            scalar.check_context(gpu)?;
        }
        let mut taken = inputs.ranges();
        if let Scalar::Device(view) = upstream {
            taken.push(view.named_range());
        }
        let written = [
            self.loss.named_range(),
            self.d_img.named_range(),
            self.d_txt.named_range(),
            self.d_log_temp.named_range(),
            self.d_bias.named_range(),
        ];
        Ok(check_disjoint(&taken, &written)?)
    }
}
