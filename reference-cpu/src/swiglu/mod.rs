//! Gated dual projections (SwiGLU and its kin), forward and backward, alone or with the down projection of a gated MLP.
//!
//! With `x` `[M, K]` and weights of N gate and N up columns,
//!
//! ```text
//! g = x·W_gate + b_gate       u = x·W_up + b_up       z = act(g) ⊙ u        [M, N]
//! y = z·W_down                                                               [M, K_out]
//! ```
//!
//! (Shazeer, "GLU Variants Improve Transformer", [arXiv 2002.05202](https://arxiv.org/abs/2002.05202)). Arithmetic and sums are f32 whatever
//! the element type; results are rounded once. The cost is 4·M·K·N flop forward, 8·M·K·N more for dx and dW, and 4·M·K·N again when the
//! pre-activations were not saved. Results have the same bits on every run, whatever the number of threads.

mod backward;
mod forward;
mod gate;
mod panel;
mod weights;

pub use crate::tiles::{Operand, OperandMut};
pub use backward::{Gradients, MlpGradients, backward, mlp_backward};
pub use forward::{Layer, Mlp, forward, mlp_forward};
pub use gate::{Gate, ParseGateError};
pub use weights::{Order, Weights, WeightsMut};
