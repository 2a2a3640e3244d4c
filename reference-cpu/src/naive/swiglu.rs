//! The gated projections and the gated MLP, plainly.

use super::{add_scaled, exactly, sigmoid};
use crate::error::Result;
use crate::swiglu::Gate;

/// A gated layer on dense f64 slices.
#[derive(Debug, Clone, Copy)]
pub struct SwigluLayer<'a> {
    /// Input dimension.
    pub k: usize,
    /// Output dimension.
    pub n: usize,
    /// `[K, N]`
    pub w_gate: &'a [f64],
    /// `[K, N]`
    pub w_up: &'a [f64],
    /// Gate and up biases, each `[N]`.
    pub bias: Option<(&'a [f64], &'a [f64])>,
    /// The activation.
    pub gate: Gate,
}

/// Gradients of [`swiglu`].
#[derive(Debug, Clone, PartialEq)]
pub struct SwigluResult {
    /// `[M, K]`
    pub dx: Vec<f64>,
    /// `[K, N]`
    pub d_gate: Vec<f64>,
    /// `[K, N]`
    pub d_up: Vec<f64>,
    /// `[N]`
    pub d_gate_bias: Vec<f64>,
    /// `[N]`
    pub d_up_bias: Vec<f64>,
}

/// Gradients of [`mlp`].
#[derive(Debug, Clone, PartialEq)]
pub struct MlpResult {
    /// Of the input and the gated projections.
    pub layer: SwigluResult,
    /// `[N, K_out]`
    pub d_down: Vec<f64>,
}

/// `(act(g), act'(g))`
fn activation(gate: Gate, g: f64) -> (f64, f64) {
    let s = sigmoid(g);
    match gate {
        Gate::Silu => (g * s, s + g * s * (1.0 - s)),
        Gate::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let t = (c * (g + 0.044715 * g.powi(3))).tanh();
            let slope = c * (1.0 + 3.0 * 0.044715 * g * g);
            (0.5 * g * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * slope)
        }
        Gate::Relu if g > 0.0 => (g, 1.0),
        Gate::Relu if g.is_nan() => (g, g),
        Gate::Relu => (0.0, 0.0),
        Gate::Sigmoid => (s, s * (1.0 - s)),
    }
}

/// `a·b` of `[m, k]` and `[k, n]`.
fn matmul(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for p in 0..k {
            add_scaled(&mut c[i * n..][..n], a[i * k + p], &b[p * n..][..n]);
        }
    }
    c
}

/// The transpose of `[m, n]`.
fn transpose(a: &[f64], m: usize, n: usize) -> Vec<f64> {
    (0..m * n).map(|i| a[i % m * n + i / m]).collect()
}

/// Checks the layer and gives the pre-activations `(g, u)`, each `[M, N]`.
fn preactivations(x: &[f64], layer: &SwigluLayer<'_>, m: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let (k, n) = (layer.k, layer.n);
    exactly("x", x, &[m, k])?;
    exactly("w_gate", layer.w_gate, &[k, n])?;
    exactly("w_up", layer.w_up, &[k, n])?;
    let (mut g, mut u) = (matmul(x, layer.w_gate, m, k, n), matmul(x, layer.w_up, m, k, n));
    if let Some((gate, up)) = layer.bias {
        exactly("gate bias", gate, &[n])?;
        exactly("up bias", up, &[n])?;
        for i in 0..m {
            add_scaled(&mut g[i * n..][..n], 1.0, gate);
            add_scaled(&mut u[i * n..][..n], 1.0, up);
        }
    }
    Ok((g, u))
}

/// `z` `[M, N]` of `x` `[M, K]`.
///
/// # Errors
/// [`Shape`](crate::Error::Shape) for a slice of the wrong length.
pub fn swiglu(x: &[f64], layer: &SwigluLayer<'_>, m: usize) -> Result<Vec<f64>> {
    let (g, u) = preactivations(x, layer, m)?;
    Ok(g.iter().zip(&u).map(|(&g, &u)| activation(layer.gate, g).0 * u).collect())
}

/// Gradients of [`swiglu`] for `dz` `[M, N]`.
///
/// # Errors
/// As [`swiglu`].
pub fn swiglu_backward(x: &[f64], layer: &SwigluLayer<'_>, dz: &[f64], m: usize) -> Result<SwigluResult> {
    let (k, n) = (layer.k, layer.n);
    exactly("dz", dz, &[m, n])?;
    let (g, u) = preactivations(x, layer, m)?;
    let (mut dg, mut du) = (vec![0.0; m * n], vec![0.0; m * n]);
    let (mut d_gate_bias, mut d_up_bias) = (vec![0.0; n], vec![0.0; n]);
    for i in 0..m * n {
        let (value, slope) = activation(layer.gate, g[i]);
        dg[i] = dz[i] * u[i] * slope;
        du[i] = dz[i] * value;
        d_gate_bias[i % n] += dg[i];
        d_up_bias[i % n] += du[i];
    }
    let mut dx = matmul(&dg, &transpose(layer.w_gate, k, n), m, n, k);
    add_scaled(&mut dx, 1.0, &matmul(&du, &transpose(layer.w_up, k, n), m, n, k));
    let xt = transpose(x, m, k);
    let (d_gate, d_up) = (matmul(&xt, &dg, k, m, n), matmul(&xt, &du, k, m, n));
    Ok(SwigluResult { dx, d_gate, d_up, d_gate_bias, d_up_bias })
}

/// `y` `[M, K_out]` of `x` `[M, K]` and the down projection `[N, K_out]`.
///
/// # Errors
/// As [`swiglu`].
pub fn mlp(x: &[f64], layer: &SwigluLayer<'_>, down: &[f64], m: usize, k_out: usize) -> Result<Vec<f64>> {
    exactly("down", down, &[layer.n, k_out])?;
    Ok(matmul(&swiglu(x, layer, m)?, down, m, layer.n, k_out))
}

/// Gradients of [`mlp`] for `dy` `[M, K_out]`.
///
/// # Errors
/// As [`swiglu`].
pub fn mlp_backward(
    x: &[f64],
    layer: &SwigluLayer<'_>,
    down: &[f64],
    dy: &[f64],
    m: usize,
    k_out: usize,
) -> Result<MlpResult> {
    exactly("down", down, &[layer.n, k_out])?;
    exactly("dy", dy, &[m, k_out])?;
    let z = swiglu(x, layer, m)?;
    let dz = matmul(dy, &transpose(down, layer.n, k_out), m, k_out, layer.n);
    let d_down = matmul(&transpose(&z, m, layer.n), dy, layer.n, m, k_out);
    Ok(MlpResult { layer: swiglu_backward(x, layer, &dz, m)?, d_down })
}
