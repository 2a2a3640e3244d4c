//! Forward of the gated projections and of the gated MLP.

use rayon::prelude::*;

use super::gate::{Gate, activate};
use super::panel::Preactivations;
use super::weights::Weights;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::host::{HostMatrix, HostMatrixMut, positive};
use crate::tiles::{Operand, ProductScratch, Tile, tiles, write};

/// Largest tile of the output.
pub(super) const HEIGHT: usize = 256;
const WIDTH: usize = 256;

/// Columns of z that the MLP holds at a time.
pub(super) const PANEL: usize = 512;

/// The gated projections: weights, bias, activation.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a, T> {
    /// Gate and up projections.
    pub weights: Weights<'a, T>,
    /// `[2N]`, its halves in the order of the weights.
    pub bias: Option<&'a [T]>,
    /// The activation of the gate half.
    pub gate: Gate,
}

impl<T: Element> Layer<'_, T> {
    pub(super) fn check(&self, x: HostMatrix<'_, T>) -> Result<()> {
        positive("M, the rows of x", x.rows())?;
        x.expect(x.rows(), self.weights.inputs())?;
        check_bias("bias", self.bias.map(<[T]>::len), self.weights.outputs())
    }
}

pub(super) fn check_bias(what: &'static str, length: Option<usize>, n: usize) -> Result<()> {
    match length {
        Some(length) if length != 2 * n => {
            Err(Error::Shape { what, found: format!("[{length}]"), expected: format!("[{}], 2N", 2 * n) })
        }
        _ => Ok(()),
    }
}

/// `z = act(x·W_gate + b_gate) ⊙ (x·W_up + b_up)`; see the [module](super) for the shapes. `saved` `[M, 2N]`, when given, receives the
/// pre-activations, rounded to `T`, its halves in the order of the weights. `z` is made from the unrounded ones.
///
/// # Errors
/// [`Shape`](Error::Shape) for matrices that do not fit the weights, [`ZeroSize`](Error::ZeroSize) for an empty `x`.
///
/// ```
/// use reference_cpu::{HostMatrix, HostMatrixMut, swiglu};
/// // One input, two gate columns, two up columns.
/// let weights = HostMatrix::new("w", &[1.0f32, -1.0, 3.0, 5.0], 1, 4)?;
/// let layer = swiglu::Layer {
///     weights: swiglu::Weights::packed(weights, swiglu::Order::GateFirst)?,
///     bias: None,
///     gate: swiglu::Gate::Relu,
/// };
/// let mut z = [0.0; 2];
/// swiglu::forward(HostMatrix::new("x", &[2.0], 1, 1)?, &layer, &mut HostMatrixMut::new("z", &mut z, 1, 2)?, None)?;
/// assert_eq!(z, [12.0, 0.0]);
/// # Ok::<(), reference_cpu::Error>(())
/// ```
pub fn forward<T: Element>(
    x: HostMatrix<'_, T>,
    layer: &Layer<'_, T>,
    z: &mut HostMatrixMut<'_, T>,
    saved: Option<&mut HostMatrixMut<'_, T>>,
) -> Result<()> {
    let n = layer.weights.outputs();
    layer.check(x)?;
    z.expect(x.rows(), n)?;
    if let Some(saved) = &saved {
        saved.expect(x.rows(), 2 * n)?;
    }
    let z_tiles = tiles(z.rows_mut(), HEIGHT, WIDTH);
    let saved_tiles = saved_tiles(saved, layer, z_tiles.len(), (0, n), WIDTH);
    z_tiles.into_par_iter().zip(saved_tiles).for_each_init(Scratch::default, |scratch, (mut z, saved)| {
        let (height, width) = (z.rows.len(), z.width());
        scratch.preactivations.compute(x, layer, (z.row, height), (z.col, width));
        scratch.activate(layer.gate, saved);
        z.write(&scratch.z, false);
    });
    Ok(())
}

/// A gated MLP: the gated projections and the down projection.
#[derive(Debug, Clone, Copy)]
pub struct Mlp<'a, T> {
    /// Gate and up projections.
    pub layer: Layer<'a, T>,
    /// `[N, K_out]`, or given with [`Operand::transposed`] as `[K_out, N]`.
    pub down: Operand<'a, T>,
}

impl<T: Element> Mlp<'_, T> {
    pub(super) fn check(&self, x: HostMatrix<'_, T>) -> Result<()> {
        self.layer.check(x)?;
        positive("K_out, the columns of the down projection", self.down.cols())?;
        if self.down.rows() == self.layer.weights.outputs() {
            return Ok(());
        }
        Err(Error::Shape {
            what: self.down.what(),
            found: format!("[{}, {}]", self.down.rows(), self.down.cols()),
            expected: format!("[{}, K_out], N rows", self.layer.weights.outputs()),
        })
    }
}

/// `y = (act(g) ⊙ u)·W_down`, without rounding in between; otherwise as [`forward`]. Memory: one f32 `[M, K_out]` and `M × 512` of z.
///
/// # Errors
/// As [`forward`], and [`Shape`](Error::Shape) for a down projection or an output that does not fit.
pub fn mlp_forward<T: Element>(
    x: HostMatrix<'_, T>,
    mlp: &Mlp<'_, T>,
    y: &mut HostMatrixMut<'_, T>,
    mut saved: Option<&mut HostMatrixMut<'_, T>>,
) -> Result<()> {
    let (m, n, k_out) = (x.rows(), mlp.layer.weights.outputs(), mlp.down.cols());
    mlp.check(x)?;
    y.expect(m, k_out)?;
    if let Some(saved) = &saved {
        saved.expect(m, 2 * n)?;
    }
    let mut sums = vec![0f32; m * k_out];
    for start in (0..n).step_by(PANEL) {
        let cols = (start, PANEL.min(n - start));
        let blocks: Vec<_> = sums.chunks_mut(HEIGHT * k_out).collect();
        let saved_tiles = saved_tiles(saved.as_deref_mut(), &mlp.layer, blocks.len(), cols, PANEL);
        let jobs = blocks.into_par_iter().zip(saved_tiles).enumerate();
        jobs.for_each_init(Scratch::default, |scratch, (index, (sums, saved))| {
            let rows = (index * HEIGHT, sums.len() / k_out);
            scratch.preactivations.compute(x, &mlp.layer, rows, cols);
            scratch.activate(mlp.layer.gate, saved);
            let z = HostMatrix::dense(&scratch.z, rows.1, cols.1);
            let down = mlp.down.part(cols, (0, k_out));
            scratch.product.product(sums, k_out, start > 0, Operand::new(z), down);
        });
    }
    for (target, source) in y.rows_mut().zip(sums.chunks(k_out)) {
        write(target, source, false);
    }
    Ok(())
}

/// Tiles of both halves of the saved pre-activations for columns `cols`, one pair for each of the `count` tiles of z.
fn saved_tiles<'a, T: Element>(
    saved: Option<&'a mut HostMatrixMut<'_, T>>,
    layer: &Layer<'_, T>,
    count: usize,
    cols: (usize, usize),
    width: usize,
) -> Vec<Option<(Tile<'a, T>, Tile<'a, T>)>> {
    let Some(saved) = saved else {
        return (0..count).map(|_| None).collect();
    };
    let n = layer.weights.outputs();
    let (first, second): (Vec<_>, Vec<_>) = saved.rows_mut().map(|row| row.split_at_mut(n)).unzip();
    let cut =
        |rows: Vec<&'a mut [T]>| tiles(rows.into_iter().map(|row| &mut row[cols.0..cols.0 + cols.1]), HEIGHT, width);
    let (gate, up) = layer.weights.order().pick(cut(first), cut(second));
    gate.into_iter().zip(up).map(Some).collect()
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    preactivations: Preactivations,
    z: Vec<f32>,
    product: ProductScratch,
}

impl Scratch {
    /// Makes z from the pre-activations and saves them.
    fn activate<T: Element>(&mut self, gate: Gate, saved: Option<(Tile<'_, T>, Tile<'_, T>)>) {
        let Preactivations { gate: g, up: u, .. } = &self.preactivations;
        self.z.resize(g.len(), 0.0);
        activate(gate, g, u, &mut self.z);
        if let Some((mut gate, mut up)) = saved {
            gate.write(g, false);
            up.write(u, false);
        }
    }
}
