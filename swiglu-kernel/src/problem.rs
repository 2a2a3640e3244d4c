//! What is computed, and how.

use std::fmt;
use std::str::FromStr;

use kernel_core::DType;
pub use reference_cpu::swiglu::{Gate, Order};

use crate::error::{Error, Result};

/// How the two projections are stored. Every tensor is row-major and may have a row stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// One tensor `[K, 2N]`: each row holds a gate half and an up half.
    Packed(Order),
    /// One tensor `[2N, K]`, as `nn.Linear` keeps its weight.
    Linear(Order),
    /// Two tensors `[K, N]`.
    Separate,
    /// Two tensors `[N, K]`.
    SeparateLinear,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 6] = [
        Layout::Packed(Order::GateFirst),
        Layout::Packed(Order::GateSecond),
        Layout::Linear(Order::GateFirst),
        Layout::Linear(Order::GateSecond),
        Layout::Separate,
        Layout::SeparateLinear,
    ];

    /// Which half of the bias and of saved pre-activations is the gate's: that of the weights; two tensors count as gate-first.
    pub fn order(self) -> Order {
        match self {
            Layout::Packed(order) | Layout::Linear(order) => order,
            Layout::Separate | Layout::SeparateLinear => Order::GateFirst,
        }
    }

    /// Whether a row holds inputs (`[2N, K]`, `[N, K]`) rather than outputs.
    pub fn is_linear(self) -> bool {
        matches!(self, Layout::Linear(_) | Layout::SeparateLinear)
    }

    /// Whether gate and up lie in one tensor.
    pub fn is_joined(self) -> bool {
        matches!(self, Layout::Packed(_) | Layout::Linear(_))
    }

    /// The shape of the one tensor, or of each of the two.
    pub fn shape(self, inputs: usize, outputs: usize) -> [usize; 2] {
        let across = if self.is_joined() { outputs.saturating_mul(2) } else { outputs };
        if self.is_linear() { [across, inputs] } else { [inputs, across] }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Packed(Order::GateFirst) => "packed",
            Layout::Packed(Order::GateSecond) => "packed-gate-second",
            Layout::Linear(Order::GateFirst) => "linear",
            Layout::Linear(Order::GateSecond) => "linear-gate-second",
            Layout::Separate => "separate",
            Layout::SeparateLinear => "separate-linear",
        })
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        find("layout", text, &Self::ALL)
    }
}

/// z = act(x·W_gate + b_gate) ⊙ (x·W_up + b_up), with x `[M, K]` and z `[M, N]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Rows M of x: tokens.
    pub rows: usize,
    /// Features K of x.
    pub inputs: usize,
    /// Features N of z.
    pub outputs: usize,
    /// Element type of x, weights, bias and z.
    pub dtype: DType,
    /// Where the weights lie.
    pub layout: Layout,
    /// The activation of the gate half.
    pub gate: Gate,
    /// Whether there is a bias `[2N]`, its halves in the order of the weights.
    pub bias: bool,
}

impl Problem {
    /// SwiGLU with weights `[K, 2N]`, gate first, and no bias.
    pub fn new(rows: usize, inputs: usize, outputs: usize, dtype: DType) -> Self {
        let layout = Layout::Packed(Order::GateFirst);
        Self { rows, inputs, outputs, dtype, layout, gate: Gate::Silu, bias: false }
    }

    /// The same with weights stored otherwise.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The same with another activation.
    #[must_use]
    pub fn with_gate(self, gate: Gate) -> Self {
        Self { gate, ..self }
    }

    /// The same with or without a bias.
    #[must_use]
    pub fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Floating-point operations of the forward: 4·M·K·N.
    pub fn forward_flop(&self) -> f64 {
        4.0 * self.rows as f64 * self.inputs as f64 * self.outputs as f64
    }

    /// Floating-point operations of forward, dx and dW from saved pre-activations: 12·M·K·N.
    pub fn step_flop(&self) -> f64 {
        3.0 * self.forward_flop()
    }

    pub(crate) fn check(&self) -> Result<()> {
        let sizes = [("rows", self.rows), ("inputs", self.inputs), ("outputs", self.outputs)];
        for (what, size) in sizes {
            if size == 0 {
                return Err(kernel_core::Error::ZeroSize { what }.into());
            }
            // Kernels count rows and the 2N columns in 31 bits; offsets into memory are 64-bit.
            if size > i32::MAX as usize / 2 {
                return Err(shape(what, size, format!("at most {}", i32::MAX / 2)));
            }
        }
        Ok(())
    }
}

/// Which kernels compute the forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Route {
    /// The fastest that the device, the dtype and the sizes have.
    #[default]
    Auto,
    /// One GEMM over both halves with the gate in its epilogue, on Hopper: f16 and bf16, K and N multiples of 8, 16-byte aligned rows.
    Fused,
    /// For M ≤ 64: weights stream through the tensor cores once, as the left operand, so no row is padded to a 128-row tile. f16 and
    /// bf16 from sm_80, K and N multiples of 8, 16-byte aligned rows.
    Decode,
    /// The same by `cp.async`, as it runs before Hopper.
    PortableDecode,
    /// cuBLASLt into f32 pre-activations, a block of rows at a time, then a gate pass: any size, any alignment, any dtype.
    Portable,
}

impl Route {
    /// Every route.
    pub const ALL: [Route; 5] = [Route::Auto, Route::Fused, Route::Decode, Route::PortableDecode, Route::Portable];
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Route::Auto => "auto",
            Route::Fused => "fused",
            Route::Decode => "decode",
            Route::PortableDecode => "portable-decode",
            Route::Portable => "portable",
        })
    }
}

impl FromStr for Route {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        find("route", text, &Self::ALL)
    }
}

/// What a plan must be able to do, which decides how much device memory it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Forward, and backward from saved pre-activations that the backward may overwrite: a training step peaks at the one `[M, 2N]`
    /// buffer that the caller keeps from forward to backward.
    #[default]
    InPlace,
    /// Also backward from x alone (the pre-activations are computed again) or from saved ones that stay as they are. Nothing but x is kept between
    /// forward and backward. The plan holds what such a backward works on: about 128 MiB of pre-activations at a time (128 features at least) and, where they are more, dx
    /// in f32. An [`MlpPlan`](crate::MlpPlan) holds all `[M, 2N]` of them.
    Recompute,
    /// Forward only.
    Inference,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 3] = [Mode::InPlace, Mode::Recompute, Mode::Inference];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::InPlace => "in-place",
            Mode::Recompute => "recompute",
            Mode::Inference => "inference",
        })
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        find("mode", text, &Self::ALL)
    }
}

/// How to compute it; the default is right for nearly everyone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    /// Which kernels.
    pub route: Route,
    /// What the plan is for.
    pub mode: Mode,
}

fn find<V: Copy + fmt::Display>(what: &'static str, text: &str, all: &[V]) -> Result<V> {
    all.iter().copied().find(|value| value.to_string() == text).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(V::to_string).collect();
        shape(what, format!("{text:?}"), format!("one of {}", names.join(", ")))
    })
}

pub(crate) fn shape(what: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    kernel_core::Error::Shape { what, found: found.to_string(), expected: expected.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_they_print() {
        for route in Route::ALL {
            assert_eq!(route.to_string().parse::<Route>().unwrap(), route);
        }
        for layout in Layout::ALL {
            assert_eq!(layout.to_string().parse::<Layout>().unwrap(), layout);
        }
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        let message = "fast".parse::<Route>().unwrap_err().to_string();
        assert!(message.contains("\"fast\"") && message.contains("portable"), "{message}");
    }

    #[test]
    fn impossible_problems_are_named() {
        let good = Problem::new(4, 8, 16, DType::Bf16);
        assert!(good.check().is_ok());
        let message = |problem: Problem| problem.check().unwrap_err().to_string();
        assert!(message(Problem { rows: 0, ..good }).contains("rows"));
        assert!(message(Problem { inputs: 0, ..good }).contains("inputs"));
        assert!(message(Problem { outputs: 0, ..good }).contains("outputs"));
        assert!(message(Problem { outputs: 1 << 30, ..good }).contains("1073741824"));
    }

    #[test]
    fn layouts_have_their_shapes() {
        let shapes: Vec<[usize; 2]> = Layout::ALL.iter().map(|layout| layout.shape(3, 5)).collect();
        assert_eq!(shapes, [[3, 10], [3, 10], [10, 3], [10, 3], [3, 5], [5, 3]]);
        assert_eq!(Layout::Linear(Order::GateSecond).order(), Order::GateSecond);
        assert_eq!(Layout::SeparateLinear.order(), Order::GateFirst);
    }
}
