//! The loss over tiles of the pair matrix.
//!
//! Blocks of rows and blocks of columns are paired in waves: in wave `s`, row block `i` meets column block `i + s` (modulo their number).
//! Within a wave no two tiles share a block, so every tile adds to its own rows of both gradients without locks, and each block
//! receives its sums in the order of the waves, which no scheduling changes.

use rayon::prelude::*;

use super::params::{Gradients, SiglipParams, check_dims};
use super::pointwise::{self, Logit, RowScratch, Sums};
use crate::element::Element;
use crate::error::Result;
use crate::host::{HostMatrix, HostMatrixMut};
use crate::product::{Block, add_scaled, product, widened};

/// Largest number of rows and columns of a tile. Larger tiles would save packing and lose parallelism and accuracy.
const BLOCK: usize = 256;

/// The loss `L`; see the [module](super) for the formula. `img` is `[N, D]`, `txt` `[M, D]`.
///
/// # Errors
/// [`ZeroSize`](crate::Error::ZeroSize) for an empty matrix or a zero `batch`, [`Shape`](crate::Error::Shape) for unequal dimensions,
/// [`NonFinite`](crate::Error::NonFinite) for a scalar or temperature that is not finite.
///
/// ```
/// use reference_cpu::{HostMatrix, siglip};
/// let img = HostMatrix::new("img", &[1.0f32, 0.0, 0.0, 1.0], 2, 2)?;
/// let loss = siglip::forward(img, img, &siglip::SiglipParams::square(2, 0.0, 0.0))?;
/// // Two positives with z = 1, two negatives with z = 0.
/// let expected = (2.0 * (-1f32).exp().ln_1p() + 2.0 * 2f32.ln()) / 2.0;
/// assert!((loss - expected).abs() < 1e-6);
/// # Ok::<(), reference_cpu::Error>(())
/// ```
pub fn forward<T: Element>(img: HostMatrix<'_, T>, txt: HostMatrix<'_, T>, params: &SiglipParams) -> Result<f32> {
    check_dims((img.rows(), img.cols()), (txt.rows(), txt.cols()))?;
    let logit = Logit { temperature: params.temperature()?, bias: params.bias };
    let starts: Vec<usize> = (0..img.rows()).step_by(BLOCK).collect();
    let sums: Vec<f64> = starts
        .par_iter()
        .map_init(Scratch::default, |scratch, &start| {
            let rows = img.block(start, BLOCK.min(img.rows() - start));
            (0..txt.rows())
                .step_by(BLOCK)
                .map(|first| {
                    let cols = txt.block(first, BLOCK.min(txt.rows() - first));
                    scratch.tile_loss(rows, cols, (start, first), txt.rows(), params, logit)
                })
                .sum()
        })
        .collect();
    Ok((sums.iter().sum::<f64>() / params.batch as f64) as f32)
}

/// The loss and all gradients; see the [module](super) for the formula. `img` and `d_img` are `[N, D]`, `txt` and `d_txt` `[M, D]`.
/// Gradients are multiplied by `params.upstream`, the loss is not. What `d_img` and `d_txt` held before is overwritten.
///
/// # Errors
/// As [`forward`]; [`Shape`](crate::Error::Shape) also for gradients shaped unlike their inputs, and
/// [`NonFinite`](crate::Error::NonFinite) when upstream · temperature / batch overflows. The outputs are then untouched.
///
/// ```
/// use reference_cpu::{HostMatrix, HostMatrixMut, siglip};
/// let img = [1.0f32, 0.0, 0.0, 1.0];
/// let (mut d_img, mut d_txt) = ([0.0; 4], [0.0; 4]);
/// let view = HostMatrix::new("img", &img, 2, 2)?;
/// let gradients = siglip::forward_backward(
///     view,
///     view,
///     &siglip::SiglipParams::square(2, 0.0, 0.0),
///     &mut HostMatrixMut::new("d_img", &mut d_img, 2, 2)?,
///     &mut HostMatrixMut::new("d_txt", &mut d_txt, 2, 2)?,
/// )?;
/// // Each image is drawn to its own text and pushed from the other.
/// assert!(d_img[0] < 0.0 && d_img[1] > 0.0 && gradients.loss > 0.0);
/// # Ok::<(), reference_cpu::Error>(())
/// ```
pub fn forward_backward<T: Element>(
    img: HostMatrix<'_, T>,
    txt: HostMatrix<'_, T>,
    params: &SiglipParams,
    d_img: &mut HostMatrixMut<'_, T>,
    d_txt: &mut HostMatrixMut<'_, T>,
) -> Result<Gradients> {
    check_dims((img.rows(), img.cols()), (txt.rows(), txt.cols()))?;
    d_img.expect(img.rows(), img.cols())?;
    d_txt.expect(txt.rows(), txt.cols())?;
    let logit = Logit { temperature: params.temperature()?, bias: params.bias };
    let scale = params.gradient_scale(logit.temperature)?;

    let mut rows = Side::blocks(img, d_img);
    let mut cols = Side::blocks(txt, d_txt);
    let waves = rows.len().max(cols.len());
    let rows_rotate = rows.len() == waves;
    for _ in 0..waves {
        // zip stops at the shorter of the two.
        rows.par_iter_mut().zip(cols.par_iter_mut()).for_each_init(Scratch::default, |scratch, (row, col)| {
            scratch.tile(row, col, txt.rows(), params, logit, scale)
        });
        if rows_rotate { rows.rotate_left(1) } else { cols.rotate_left(1) }
    }

    // After as many rotations as there are blocks, all are in their places again.
    let mut sums = Sums::default();
    rows.iter().for_each(|row| sums.add(row.sums));
    rows.into_par_iter().chain(cols).for_each(Side::finish);
    let per_pair = f64::from(params.upstream) / params.batch as f64;
    Ok(Gradients {
        loss: (sums.loss / params.batch as f64) as f32,
        d_log_temp: (sums.log_temp * per_pair) as f32,
        d_bias: (sums.bias * per_pair) as f32,
    })
}

/// A block of images or of texts, and what it has received so far.
struct Side<'a, T> {
    start: usize,
    input: HostMatrix<'a, T>,
    output: &'a mut [T],
    row_stride: usize,
    /// f32 sums of a gradient that cannot be summed in its own type.
    wide: Vec<f32>,
    started: bool,
    sums: Sums,
}

impl<'a, T: Element> Side<'a, T> {
    fn blocks(input: HostMatrix<'a, T>, output: &'a mut HostMatrixMut<'_, T>) -> Vec<Self> {
        let row_stride = output.row_stride();
        let make = |(index, output): (usize, &'a mut [T])| {
            let start = index * BLOCK;
            let count = BLOCK.min(input.rows() - start);
            let sums = if T::as_f32(&[]).is_some() { 0 } else { count * input.cols() };
            Self {
                start,
                input: input.block(start, count),
                output,
                row_stride,
                wide: vec![0.0; sums],
                started: false,
                sums: Sums::default(),
            }
        };
        output.row_blocks(BLOCK).enumerate().map(make).collect()
    }

    /// Adds `scale · weights · others` to the gradient; the first time it overwrites what was there.
    fn receive(&mut self, scale: f32, weights: Block<'_>, others: Block<'_>) {
        match T::as_f32_mut(self.output) {
            Some(output) => product(output, self.row_stride, self.started, scale, weights, others),
            None => product(&mut self.wide, self.input.cols(), self.started, scale, weights, others),
        }
        self.started = true;
    }

    /// Adds `scale · other` to row `index` of the gradient, after [`Side::receive`].
    fn receive_row(&mut self, index: usize, scale: f32, other: &[f32]) {
        let (sums, stride) = match T::as_f32_mut(self.output) {
            Some(output) => (output, self.row_stride),
            None => (&mut self.wide[..], self.input.cols()),
        };
        add_scaled(&mut sums[index * stride..][..other.len()], scale, other);
    }

    /// Rounds the f32 sums into the output.
    fn finish(self) {
        let cols = self.input.cols();
        for (target, source) in self.output.chunks_mut(self.row_stride).zip(self.wide.chunks(cols)) {
            T::narrow(source, &mut target[..cols]);
        }
    }
}

/// Buffers of one thread.
struct Scratch {
    tile: Vec<f32>,
    row: RowScratch,
    /// Row, column and weight of the tile's positives.
    positives: Vec<(usize, usize, f32)>,
    img: Vec<f32>,
    txt: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { tile: Vec::new(), row: RowScratch::new(BLOCK), positives: Vec::new(), img: Vec::new(), txt: Vec::new() }
    }
}

impl Scratch {
    /// Loss and gradients of one tile.
    fn tile<T: Element>(
        &mut self,
        row: &mut Side<'_, T>,
        col: &mut Side<'_, T>,
        cols: usize,
        params: &SiglipParams,
        logit: Logit,
        scale: f32,
    ) {
        let (height, width) = (row.input.rows(), col.input.rows());
        let img = widened(row.input, &mut self.img);
        let txt = widened(col.input, &mut self.txt);
        self.tile.resize(height * width, 0.0);
        product(&mut self.tile, width, false, 1.0, img, txt.transposed());
        self.positives.clear();
        for (r, dots) in self.tile.chunks_mut(width).enumerate() {
            let positive = column_in(params, row.start + r, cols, col.start, width);
            row.sums.add(pointwise::row(dots, positive, logit, &mut self.row));
            if let Some(c) = positive {
                self.positives.push((r, c, std::mem::take(&mut dots[c])));
            }
        }
        let weights = Block::new(&self.tile, height, width, width);
        row.receive(scale, weights, txt);
        col.receive(scale, weights.transposed(), img);
        // A positive's weight is often 10⁴ times the negatives': summed among them, it would round every later addition.
        for &(r, c, weight) in &self.positives {
            row.receive_row(r, scale * weight, txt.row(c));
            col.receive_row(c, scale * weight, img.row(r));
        }
    }

    /// Loss of one tile whose corner is at `start`.
    fn tile_loss<T: Element>(
        &mut self,
        rows: HostMatrix<'_, T>,
        cols: HostMatrix<'_, T>,
        start: (usize, usize),
        all_cols: usize,
        params: &SiglipParams,
        logit: Logit,
    ) -> f64 {
        let (height, width) = (rows.rows(), cols.rows());
        let img = widened(rows, &mut self.img);
        let txt = widened(cols, &mut self.txt);
        self.tile.resize(height * width, 0.0);
        product(&mut self.tile, width, false, 1.0, img, txt.transposed());
        let mut loss = 0.0;
        for (r, dots) in self.tile.chunks(width).enumerate() {
            let positive = column_in(params, start.0 + r, all_cols, start.1, width);
            loss += pointwise::row_loss(dots, positive, logit, &mut self.row);
        }
        loss
    }
}

/// The positive column of `row`, counted from `start`, when it is one of the `width` columns there.
fn column_in(params: &SiglipParams, row: usize, cols: usize, start: usize, width: usize) -> Option<usize> {
    params.positives.column(row, cols)?.checked_sub(start).filter(|&col| col < width)
}
