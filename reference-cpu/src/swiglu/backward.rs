//! Backward of the gated projections and of the gated MLP, a panel of columns of z at a time: a panel's weight gradients are complete when it
//! is done, and only dx is summed over panels.

use rayon::prelude::*;

use super::forward::{HEIGHT, Layer, Mlp, PANEL, check_bias};
use super::gate::differentiate;
use super::panel::{Preactivations, Range};
use super::weights::{Half, WeightsMut};
use crate::element::Element;
use crate::error::Result;
use crate::host::{HostMatrix, HostMatrixMut};
use crate::tiles::{Operand, OperandMut, ProductScratch, Tile, tiles, write};

/// Where the gradients of [`backward`] go; each is made only when asked for.
#[derive(Debug)]
pub struct Gradients<'a, T, G = T> {
    /// `[M, K]`, overwritten.
    pub dx: Option<HostMatrixMut<'a, T>>,
    /// Gradients of the weights, in any layout and of any element type.
    pub d_weights: Option<WeightsMut<'a, G>>,
    /// `[2N]`, its halves in the order of the weights.
    pub d_bias: Option<&'a mut [G]>,
    /// Adds to what the parameters' gradients hold (in f32, rounded once) instead of overwriting it. dx is always overwritten.
    pub accumulate: bool,
}

impl<T, G> Default for Gradients<'_, T, G> {
    fn default() -> Self {
        Self { dx: None, d_weights: None, d_bias: None, accumulate: false }
    }
}

/// Where the gradients of [`mlp_backward`] go.
#[derive(Debug)]
pub struct MlpGradients<'a, T, G = T> {
    /// Of the input and of the gated projections; its `accumulate` holds for `d_down` too.
    pub layer: Gradients<'a, T, G>,
    /// `[N, K_out]`, or given with [`OperandMut::transposed`] as `[K_out, N]`.
    pub d_down: Option<OperandMut<'a, G>>,
}

impl<T, G> Default for MlpGradients<'_, T, G> {
    fn default() -> Self {
        Self { layer: Gradients::default(), d_down: None }
    }
}

/// Gradients of [`forward`](super::forward) for the gradient `dz` `[M, N]`. With `saved` `[M, 2N]`, as the forward saved them, the
/// pre-activations are read; without, they are computed again.
/// Memory: three f32 `M × 512`, and one f32 `[M, K]` when dx is asked for.
///
/// # Errors
/// As [`forward`](super::forward), for the gradients also.
pub fn backward<T: Element, G: Element>(
    x: HostMatrix<'_, T>,
    layer: &Layer<'_, T>,
    dz: HostMatrix<'_, T>,
    saved: Option<HostMatrix<'_, T>>,
    gradients: &mut Gradients<'_, T, G>,
) -> Result<()> {
    layer.check(x)?;
    dz.expect(x.rows(), layer.weights.outputs())?;
    Pass { x, layer, saved, incoming: Incoming::Given(dz) }.run(gradients, None)
}

/// Gradients of [`mlp_forward`](super::mlp_forward) for the gradient `dy` `[M, K_out]`; otherwise as [`backward`]. `z` is made again from the
/// pre-activations, and neither it nor its gradient is rounded on the way.
///
/// # Errors
/// As [`mlp_forward`](super::mlp_forward), for the gradients also.
pub fn mlp_backward<T: Element, G: Element>(
    x: HostMatrix<'_, T>,
    mlp: &Mlp<'_, T>,
    dy: HostMatrix<'_, T>,
    saved: Option<HostMatrix<'_, T>>,
    gradients: &mut MlpGradients<'_, T, G>,
) -> Result<()> {
    mlp.check(x)?;
    let (n, k_out) = (mlp.down.rows(), mlp.down.cols());
    dy.expect(x.rows(), k_out)?;
    let d_down = match gradients.d_down.as_mut().map(OperandMut::parts) {
        None => None,
        Some((matrix, transposed)) => {
            let (rows, cols) = if transposed { (k_out, n) } else { (n, k_out) };
            matrix.expect(rows, cols)?;
            Some(Half { rows: matrix.rows_mut().collect(), transposed })
        }
    };
    let incoming = Incoming::Through { dy, down: mlp.down };
    Pass { x, layer: &mlp.layer, saved, incoming }.run(&mut gradients.layer, d_down)
}

/// Where the gradient of z comes from.
#[derive(Clone, Copy)]
enum Incoming<'a, T> {
    Given(HostMatrix<'a, T>),
    Through { dy: HostMatrix<'a, T>, down: Operand<'a, T> },
}

struct Pass<'a, T> {
    x: HostMatrix<'a, T>,
    layer: &'a Layer<'a, T>,
    saved: Option<HostMatrix<'a, T>>,
    incoming: Incoming<'a, T>,
}

/// One panel's gradients of the pre-activations, and z itself; each f32 `[M, width]`.
struct Panel {
    gate: Vec<f32>,
    up: Vec<f32>,
    z: Vec<f32>,
}

impl<T: Element> Pass<'_, T> {
    fn run<G: Element>(&self, gradients: &mut Gradients<'_, T, G>, mut d_down: Option<Half<'_, G>>) -> Result<()> {
        let (m, k, n) = (self.x.rows(), self.layer.weights.inputs(), self.layer.weights.outputs());
        let accumulate = gradients.accumulate;
        if let Some(saved) = &self.saved {
            saved.expect(m, 2 * n)?;
        }
        if let Some(dx) = &gradients.dx {
            dx.expect(m, k)?;
        }
        if let Some(d_weights) = &gradients.d_weights {
            d_weights.expect(k, n)?;
        }
        check_bias("d_bias", gradients.d_bias.as_deref().map(<[G]>::len), n)?;

        let mut halves = gradients.d_weights.as_mut().map(|d_weights| d_weights.halves(n));
        let mut bias_halves = gradients.d_bias.as_deref_mut().map(|d_bias| {
            let (first, second) = d_bias.split_at_mut(n);
            self.layer.weights.order().pick(first, second)
        });
        let mut dx_sums = vec![0f32; if gradients.dx.is_some() { m * k } else { 0 }];
        let mut panel = Panel { gate: Vec::new(), up: Vec::new(), z: Vec::new() };
        for start in (0..n).step_by(PANEL) {
            let cols = (start, PANEL.min(n - start));
            self.differentiate(&mut panel, cols);
            let part = |values| Operand::new(HostMatrix::dense(values, m, cols.1));
            let (dg, du) = (part(&panel.gate), part(&panel.up));
            if let Some((gate, up)) = &mut halves {
                let x = Operand::new(self.x).t();
                add_product(half_tiles(gate, cols), accumulate, x, dg);
                add_product(half_tiles(up, cols), accumulate, x, du);
            }
            if let Some(d_down) = &mut d_down
                && let Incoming::Through { dy, .. } = self.incoming
            {
                // Seen as a half `[K_out, N]`, whose columns are the panel's, the down projection's gradient is dyᵀ·z.
                let rows = d_down.rows.iter_mut().map(|row| &mut **row).collect();
                let mut flipped = Half { rows, transposed: !d_down.transposed };
                add_product(half_tiles(&mut flipped, cols), accumulate, Operand::new(dy).t(), part(&panel.z));
            }
            if let Some((gate, up)) = &mut bias_halves {
                column_sums(&panel.gate, &mut gate[cols.0..cols.0 + cols.1], accumulate);
                column_sums(&panel.up, &mut up[cols.0..cols.0 + cols.1], accumulate);
            }
            if !dx_sums.is_empty() {
                self.add_dx(&mut dx_sums, &panel, cols);
            }
        }
        if let Some(dx) = &mut gradients.dx {
            dx.rows_mut().zip(dx_sums.chunks(k)).for_each(|(target, source)| write(target, source, false));
        }
        Ok(())
    }

    /// Fills the panel of columns `cols`.
    fn differentiate(&self, panel: &mut Panel, cols: Range) {
        let width = cols.1;
        for values in [&mut panel.gate, &mut panel.up, &mut panel.z] {
            values.resize(self.x.rows() * width, 0.0);
        }
        let blocks = panel.gate.par_chunks_mut(HEIGHT * width).zip(panel.up.par_chunks_mut(HEIGHT * width));
        let blocks = blocks.zip(panel.z.par_chunks_mut(HEIGHT * width)).enumerate();
        let scratch = || (Preactivations::default(), ProductScratch::default());
        blocks.for_each_init(scratch, |(preactivations, products), (index, ((gate, up), z))| {
            let rows = (index * HEIGHT, z.len() / width);
            match self.saved {
                Some(saved) => preactivations.load(saved, self.layer, rows, cols),
                None => preactivations.compute(self.x, self.layer, rows, cols),
            }
            gate.copy_from_slice(&preactivations.gate);
            up.copy_from_slice(&preactivations.up);
            match self.incoming {
                Incoming::Given(dz) => {
                    let part = dz.part(rows, cols);
                    for (to, from) in z.chunks_mut(width).zip(part.data().chunks(part.row_stride())) {
                        T::widen(&from[..width], to);
                    }
                }
                Incoming::Through { dy, down } => {
                    let down = down.part(cols, (0, down.cols())).t();
                    products.product(z, width, false, Operand::new(dy.block(rows.0, rows.1)), down);
                }
            }
            differentiate(self.layer.gate, gate, up, z);
        });
    }

    /// `dx += dg·W_gateᵀ + du·W_upᵀ`
    fn add_dx(&self, sums: &mut [f32], panel: &Panel, cols: Range) {
        let (k, width) = (self.layer.weights.inputs(), cols.1);
        let (gate, up) = self.layer.weights.operands();
        let blocks = sums.par_chunks_mut(HEIGHT * k);
        let blocks = blocks.zip(panel.gate.par_chunks(HEIGHT * width)).zip(panel.up.par_chunks(HEIGHT * width));
        blocks.for_each_init(ProductScratch::default, |scratch, ((sums, dg), du)| {
            for (values, weights, accumulate) in [(dg, gate, cols.0 > 0), (du, up, true)] {
                let values = Operand::new(HostMatrix::dense(values, values.len() / width, width));
                scratch.product(sums, k, accumulate, values, weights.part((0, k), cols).t());
            }
        });
    }
}

/// Tiles of the columns `cols` of a half, and whether they are transposed.
fn half_tiles<'a, G>(half: &'a mut Half<'_, G>, cols: Range) -> (Vec<Tile<'a, G>>, bool) {
    let end = cols.0 + cols.1;
    if half.transposed {
        (tiles(half.rows[cols.0..end].iter_mut().map(|row| &mut **row), HEIGHT, PANEL), true)
    } else {
        (tiles(half.rows.iter_mut().map(|row| &mut row[cols.0..end]), HEIGHT, PANEL), false)
    }
}

/// Writes `a·b`, or its transpose, into the tiles, or adds it to them.
fn add_product<A: Element, B: Element, G: Element>(
    (tiles, transposed): (Vec<Tile<'_, G>>, bool),
    accumulate: bool,
    a: Operand<'_, A>,
    b: Operand<'_, B>,
) {
    let scratch = || (Vec::new(), ProductScratch::default());
    tiles.into_par_iter().for_each_init(scratch, |(values, scratch), mut tile| {
        let (rows, cols) = ((tile.row, tile.rows.len()), (tile.col, tile.width()));
        values.resize(rows.1 * cols.1, 0.0);
        if transposed {
            let (a, b) = (a.part(cols, (0, a.cols())), b.part((0, b.rows()), rows));
            scratch.product(values, cols.1, false, b.t(), a.t());
        } else {
            let (a, b) = (a.part(rows, (0, a.cols())), b.part((0, b.rows()), cols));
            scratch.product(values, cols.1, false, a, b);
        }
        tile.write(values, accumulate);
    });
}

/// Sums over the rows of a panel, in f64.
fn column_sums<G: Element>(values: &[f32], target: &mut [G], accumulate: bool) {
    let mut sums = vec![0f64; target.len()];
    for row in values.chunks(target.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    for (target, sum) in target.iter_mut().zip(sums) {
        let before = if accumulate { f64::from(target.to_f32()) } else { 0.0 };
        *target = G::from_f32((before + sum) as f32);
    }
}
