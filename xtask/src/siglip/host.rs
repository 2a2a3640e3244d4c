//! Numbers and results on the host, and the loss by reference-cpu.

use reference_cpu::siglip::{self, SiglipParams};
use reference_cpu::{HostMatrix, HostMatrixMut};

/// An element type of both the GPU crates and reference-cpu.
pub(crate) trait Number: kernel_core::Element + reference_cpu::Element {
    fn wide(self) -> f64 {
        f64::from(kernel_core::Element::to_f32(self))
    }

    fn rounded(value: f32) -> Self {
        <Self as kernel_core::Element>::from_f32(value)
    }
}

impl<T: kernel_core::Element + reference_cpu::Element> Number for T {}

/// Loss and gradients.
#[derive(Clone, Debug)]
pub(crate) struct Step<T> {
    pub(crate) loss: f32,
    pub(crate) d_img: Vec<T>,
    pub(crate) d_txt: Vec<T>,
    pub(crate) d_log_temp: f32,
    pub(crate) d_bias: f32,
}

/// By reference-cpu: images `[N, dim]`, texts `[M, dim]`, dense.
pub(crate) fn on_host<T: Number>(
    img: &[T],
    txt: &[T],
    dim: usize,
    params: &SiglipParams,
) -> reference_cpu::Result<Step<T>> {
    let (rows, cols) = (img.len() / dim, txt.len() / dim);
    // Poisoned: a gradient that is not written is found.
    let mut d_img = vec![T::rounded(f32::NAN); img.len()];
    let mut d_txt = vec![T::rounded(f32::NAN); txt.len()];
    let gradients = siglip::forward_backward(
        HostMatrix::new("img", img, rows, dim)?,
        HostMatrix::new("txt", txt, cols, dim)?,
        params,
        &mut HostMatrixMut::new("d_img", &mut d_img, rows, dim)?,
        &mut HostMatrixMut::new("d_txt", &mut d_txt, cols, dim)?,
    )?;
    Ok(Step { loss: gradients.loss, d_img, d_txt, d_log_temp: gradients.d_log_temp, d_bias: gradients.d_bias })
}
