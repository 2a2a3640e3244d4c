//! The sigmoid contrastive loss of SigLIP, with all its gradients.
//!
//! With images `img` `[N, D]` and texts `txt` `[M, D]`,
//!
//! ```text
//! z_ij = exp(log_temp) · <img_i, txt_j> + bias
//! L    = -(1 / batch) Σ_ij log sigmoid(y_ij · z_ij),      y_ij = +1 on the positives, -1 elsewhere
//! ```
//!
//! (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", [arXiv 2303.15343](https://arxiv.org/abs/2303.15343)). Logits are made
//! in tiles of at most 256 × 256 and never kept: memory beside the inputs and the gradients is a tile a thread, and for 16-bit gradients
//! their f32 sums. The cost is 2·N·M·D flop for [`forward`] and 6·N·M·D for [`forward_backward`].
//!
//! Results have the same bits on every run, whatever the number of threads: each block of rows and of columns is summed in a fixed
//! order. NaN in an input makes the loss NaN; infinities follow IEEE arithmetic.

mod blocked;
mod params;
mod pointwise;

pub use blocked::{forward, forward_backward};
pub use params::{Gradients, Positives, SiglipParams};
