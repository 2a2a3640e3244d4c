//! The activation of the gate half, and the passes over rows of pre-activations.

use crate::vector::{mul_add, multiversion, sigmoids};

/// The activation `act` in `act(g) ⊙ u`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// `g · sigmoid(g)`: SwiGLU.
    Silu,
    /// `g/2 · (1 + tanh(√(2/π) · (g + 0.044715 g³)))`: GeGLU with the tanh approximation of GELU.
    GeluTanh,
    /// `max(g, 0)`: ReGLU. Its derivative at 0 is 0.
    Relu,
    /// `sigmoid(g)`: GLU.
    Sigmoid,
}

/// A name that is not a gate's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown gate {0:?}, expected silu, gelu-tanh, relu or sigmoid")]
pub struct ParseGateError(String);

impl Gate {
    /// All gates.
    pub const ALL: [Self; 4] = [Self::Silu, Self::GeluTanh, Self::Relu, Self::Sigmoid];

    /// `act(g)`.
    pub fn value(self, g: f32) -> f32 {
        self.value_and_derivative(g).0
    }

    /// `(act(g), act'(g))`.
    pub fn value_and_derivative(self, g: f32) -> (f32, f32) {
        match self {
            Self::Silu => silu::<false>(g),
            Self::GeluTanh => gelu_tanh::<false>(g),
            Self::Relu => relu::<false>(g),
            Self::Sigmoid => logistic::<false>(g),
        }
    }
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu-tanh",
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
        })
    }
}

impl std::str::FromStr for Gate {
    type Err = ParseGateError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|gate| gate.to_string() == name).ok_or_else(|| ParseGateError(name.to_owned()))
    }
}

#[inline(always)]
fn silu<const FMA: bool>(g: f32) -> (f32, f32) {
    let (s, t) = sigmoids::<FMA>(g);
    (g * s, s * mul_add::<FMA>(g, t, 1.0))
}

#[inline(always)]
fn gelu_tanh<const FMA: bool>(g: f32) -> (f32, f32) {
    // (1 + tanh(v)) / 2 is sigmoid(2v), which keeps its small values. C is 2·√(2/π).
    const C: f32 = 1.595_769_2;
    let square = g * g;
    let (s, t) = sigmoids::<FMA>(C * g * mul_add::<FMA>(0.044_715, square, 1.0));
    let tail = s * t;
    // Far out the tail is 0 and the slope may be infinite; their product's limit is 0.
    let bend = if tail == 0.0 { 0.0 } else { tail * g * C * mul_add::<FMA>(3.0 * 0.044_715, square, 1.0) };
    (g * s, s + bend)
}

#[inline(always)]
fn relu<const FMA: bool>(g: f32) -> (f32, f32) {
    // Unlike f32::max, this keeps a NaN.
    if g <= 0.0 { (0.0, 0.0) } else { (g, 1.0) }
}

#[inline(always)]
fn logistic<const FMA: bool>(g: f32) -> (f32, f32) {
    let (s, t) = sigmoids::<FMA>(g);
    (s, s * t)
}

multiversion! {
    /// `z = act(g) ⊙ u`.
    pub(super) fn activate(gate: Gate, g: &[f32], u: &[f32], z: &mut [f32]) = activate_body
}

#[inline(always)]
fn activate_body<const FMA: bool>(gate: Gate, g: &[f32], u: &[f32], z: &mut [f32]) {
    match gate {
        Gate::Silu => activate_by(silu::<FMA>, g, u, z),
        Gate::GeluTanh => activate_by(gelu_tanh::<FMA>, g, u, z),
        Gate::Relu => activate_by(relu::<FMA>, g, u, z),
        Gate::Sigmoid => activate_by(logistic::<FMA>, g, u, z),
    }
}

#[inline(always)]
fn activate_by(act: impl Fn(f32) -> (f32, f32), g: &[f32], u: &[f32], z: &mut [f32]) {
    for ((z, &g), &u) in z.iter_mut().zip(g).zip(u) {
        *z = act(g).0 * u;
    }
}

multiversion! {
    /// Replaces `g` and `u` by the gradients that reach them from `dz`, and `dz` by `z`.
    pub(super) fn differentiate(gate: Gate, g: &mut [f32], u: &mut [f32], dz: &mut [f32]) = differentiate_body
}

#[inline(always)]
fn differentiate_body<const FMA: bool>(gate: Gate, g: &mut [f32], u: &mut [f32], dz: &mut [f32]) {
    match gate {
        Gate::Silu => differentiate_by(silu::<FMA>, g, u, dz),
        Gate::GeluTanh => differentiate_by(gelu_tanh::<FMA>, g, u, dz),
        Gate::Relu => differentiate_by(relu::<FMA>, g, u, dz),
        Gate::Sigmoid => differentiate_by(logistic::<FMA>, g, u, dz),
    }
}

#[inline(always)]
fn differentiate_by(act: impl Fn(f32) -> (f32, f32), g: &mut [f32], u: &mut [f32], dz: &mut [f32]) {
    for ((dz, g), u) in dz.iter_mut().zip(g).zip(u) {
        let (value, slope) = act(*g);
        let (up, incoming) = (*u, *dz);
        *g = incoming * up * slope;
        *u = incoming * value;
        *dz = value * up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_follow_their_formulas() {
        for i in -400..=400 {
            let g = i as f32 * 0.05;
            let x = f64::from(g);
            let s = 1.0 / (1.0 + (-x).exp());
            let v = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let dv = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
            let exact = [
                (Gate::Silu, x * s, s * (1.0 + x * (1.0 - s))),
                (Gate::GeluTanh, 0.5 * x * (1.0 + v.tanh()), 0.5 * (1.0 + v.tanh()) + 0.5 * x * dv / v.cosh().powi(2)),
                (Gate::Relu, x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
                (Gate::Sigmoid, s, s * (1.0 - s)),
            ];
            for (gate, value, slope) in exact {
                let found = gate.value_and_derivative(g);
                assert!((f64::from(found.0) - value).abs() <= 2e-6 * value.abs().max(1e-3), "{gate}({g})");
                assert!((f64::from(found.1) - slope).abs() <= 2e-6, "{gate}'({g})");
            }
        }
    }

    #[test]
    fn gates_are_finite_far_out_and_keep_nan() {
        for gate in Gate::ALL {
            for g in [-1e30f32, -1e4, 1e4, 1e30] {
                let (value, slope) = gate.value_and_derivative(g);
                assert!(value.is_finite() && slope.is_finite(), "{gate}({g}) = {value}, {slope}");
            }
            assert!(gate.value(f32::NAN).is_nan(), "{gate}");
            assert_eq!(gate.to_string().parse(), Ok(gate));
        }
        assert!("swish".parse::<Gate>().is_err());
    }

    #[test]
    fn vectorised_passes_agree_with_the_scalar_functions() {
        let g: Vec<f32> = (0..77).map(|i| (i as f32 - 38.0) * 0.3).collect();
        let u: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin()).collect();
        let dz: Vec<f32> = (0..77).map(|i| (i as f32 * 0.3).cos()).collect();
        for gate in Gate::ALL {
            let mut z = vec![0.0; 77];
            activate(gate, &g, &u, &mut z);
            let (mut dg, mut du, mut again) = (g.clone(), u.clone(), dz.clone());
            differentiate(gate, &mut dg, &mut du, &mut again);
            for i in 0..77 {
                let (value, slope) = gate.value_and_derivative(g[i]);
                let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                assert!(close(z[i], value * u[i]) && z[i] == again[i]);
                assert!(close(dg[i], dz[i] * u[i] * slope) && close(du[i], dz[i] * value));
            }
        }
    }
}
