//! The same loss on the CPU, with the same shape of call: on host slices, through [`reference_cpu`].
//!
//! [`Problem`] and [`Positives`] are those of the GPU; [`Plan`], [`Inputs`] and [`Outputs`] have the names, fields and
//! argument order of their namesakes, with host matrices for device views and `f32` for device scalars. Arithmetic is f32 on all cores of
//! the surrounding rayon pool, blocked, never B × B; results have the same bits on every run and with any number of threads.
//!
//! ```
//! use siglip_kernel::cpu::{HostMatrix, HostMatrixMut, Inputs, Outputs, Plan};
//! use siglip_kernel::{DType, Problem};
//!
//! let (img, txt) = ([1.0f32, 0.0, 0.0, 1.0], [0.9f32, 0.1, 0.2, 0.8]);
//! let inputs = Inputs {
//!     img: HostMatrix::new("img", &img, 2, 2)?,
//!     txt: HostMatrix::new("txt", &txt, 2, 2)?,
//!     log_temp: 10f32.ln(),
//!     bias: -10.0,
//! };
//! let (mut loss, mut d_log_temp, mut d_bias) = (0.0, 0.0, 0.0);
//! let (mut d_img, mut d_txt) = ([0.0; 4], [0.0; 4]);
//! let plan = Plan::new(Problem::square(2, 2, DType::F32))?;
//! plan.forward_backward(
//!     &inputs,
//!     1.0,
//!     &mut Outputs {
//!         loss: &mut loss,
//!         d_img: HostMatrixMut::new("d_img", &mut d_img, 2, 2)?,
//!         d_txt: HostMatrixMut::new("d_txt", &mut d_txt, 2, 2)?,
//!         d_log_temp: &mut d_log_temp,
//!         d_bias: &mut d_bias,
//!     },
//! )?;
//! // A larger bias helps the positives more than it hurts the two negatives.
//! assert!(loss > 0.0 && d_bias < 0.0);
//! # Ok::<(), siglip_kernel::Error>(())
//! ```

use reference_cpu::siglip::{self, SiglipParams};

pub use reference_cpu::{HostMatrix, HostMatrixMut};

use crate::error::Result;
use crate::problem::{Positives, Problem, shape};

/// The element types: `f32`, `half::f16` and `half::bf16`.
pub trait Element: kernel_core::Element + reference_cpu::Element {}

impl<T: kernel_core::Element + reference_cpu::Element> Element for T {}

/// The inputs of a call.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, T> {
    /// Image rows `[N, D]`.
    pub img: HostMatrix<'a, T>,
    /// Text rows `[M, D]`.
    pub txt: HostMatrix<'a, T>,
    /// Logarithm of the logit scale (the paper's t′).
    pub log_temp: f32,
    /// Bias of the logits.
    pub bias: f32,
}

/// Where [`Plan::forward_backward`] writes. Everything is overwritten; nothing is read.
#[derive(Debug)]
pub struct Outputs<'a, T> {
    /// The loss. Not scaled by the upstream gradient.
    pub loss: &'a mut f32,
    /// Gradient of the image rows `[N, D]`.
    pub d_img: HostMatrixMut<'a, T>,
    /// Gradient of the text rows `[M, D]`.
    pub d_txt: HostMatrixMut<'a, T>,
    /// Gradient of `log_temp`.
    pub d_log_temp: &'a mut f32,
    /// Gradient of `bias`.
    pub d_bias: &'a mut f32,
}

/// A checked problem. Unlike its namesake of the GPU it holds no memory; calls allocate what they need, a tile a thread and for 16-bit
/// gradients their f32 sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    problem: Problem,
}

fn expect(what: &'static str, found: (usize, usize), expected: (usize, usize)) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let text = |(rows, cols)| format!("[{rows}, {cols}]");
    Err(shape(what, text(found), text(expected)))
}

impl Plan {
    /// Checks the problem.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with `ZeroSize` or `Shape` for an impossible problem, as on the GPU.
    pub fn new(problem: Problem) -> Result<Self> {
        problem.check()?;
        Ok(Self { problem })
    }

    /// What is computed.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    fn params<T: Element>(&self, inputs: &Inputs<'_, T>, upstream: f32) -> Result<SiglipParams> {
        let Problem { rows, cols, dim, dtype, positives, batch } = self.problem;
        if T::DTYPE != dtype {
            let expected = dtype.to_string();
            return Err(kernel_core::Error::DType { what: "img and txt", found: T::DTYPE, expected }.into());
        }
        for (view, rows) in [(&inputs.img, rows), (&inputs.txt, cols)] {
            expect(view.what(), (view.rows(), view.cols()), (rows, dim))?;
        }
        let positives = match positives {
            Positives::Matching => siglip::Positives::Diagonal { offset: 0 },
            Positives::Diagonal { offset } => siglip::Positives::Diagonal { offset },
            Positives::None => siglip::Positives::None,
        };
        Ok(SiglipParams { log_temp: inputs.log_temp, bias: inputs.bias, positives, batch, upstream })
    }

    /// The loss alone; see [`crate::Plan::forward`] for the formula. 2·N·M·D flop.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) with `DType` or `Shape` naming the argument, [`Error::Cpu`](crate::Error::Cpu) with `NonFinite`
    /// for a scalar. A NaN or infinity in a matrix is no error: it reaches the loss.
    pub fn forward<T: Element>(&self, inputs: &Inputs<'_, T>, loss: &mut f32) -> Result<()> {
        let params = self.params(inputs, 1.0)?;
        *loss = siglip::forward(inputs.img, inputs.txt, &params)?;
        Ok(())
    }

    /// The loss and all gradients, those multiplied by `upstream`; see [`crate::Plan::forward_backward`]. 6·N·M·D flop.
    ///
    /// # Errors
    /// As [`Plan::forward`]. The outputs are then untouched.
    pub fn forward_backward<T: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        upstream: f32,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<()> {
        let params = self.params(inputs, upstream)?;
        let Problem { rows, cols, dim, .. } = self.problem;
        for (view, rows) in [(&outputs.d_img, rows), (&outputs.d_txt, cols)] {
            expect(view.what(), (view.rows(), view.cols()), (rows, dim))?;
        }
        let scalars =
            siglip::forward_backward(inputs.img, inputs.txt, &params, &mut outputs.d_img, &mut outputs.d_txt)?;
        (*outputs.loss, *outputs.d_log_temp, *outputs.d_bias) = (scalars.loss, scalars.d_log_temp, scalars.d_bias);
        Ok(())
    }
}
