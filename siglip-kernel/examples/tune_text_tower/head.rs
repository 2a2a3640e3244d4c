//! A linear head, and the optimiser of its weights.

use crate::matrix::Matrix;

/// x · weightᵀ, each row divided by its length: the loss is made for embeddings of length 1.
pub(crate) struct Head {
    pub(crate) weight: Matrix,
}

/// What a head makes of its inputs.
pub(crate) struct Embeddings {
    /// Rows of length 1.
    pub(crate) rows: Matrix,
    /// Their lengths before.
    lengths: Vec<f32>,
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

impl Head {
    /// The head that changes nothing.
    pub(crate) fn identity(dim: usize) -> Self {
        let mut weight = Matrix::zeros(dim, dim);
        weight.data.iter_mut().step_by(dim + 1).for_each(|x| *x = 1.0);
        Self { weight }
    }

    pub(crate) fn apply(&self, inputs: &Matrix) -> Embeddings {
        let mut rows = inputs.times_transposed(&self.weight);
        let mut lengths = Vec::with_capacity(rows.rows);
        for row in rows.data.chunks_mut(rows.cols) {
            // A row of zeros stays one.
            let length = dot(row, row).sqrt().max(f32::MIN_POSITIVE);
            row.iter_mut().for_each(|x| *x /= length);
            lengths.push(length);
        }
        Embeddings { rows, lengths }
    }

    /// The gradient of the weight, from the gradient of the embeddings that `apply` made of these inputs.
    pub(crate) fn gradient(&self, inputs: &Matrix, embeddings: &Embeddings, d_embeddings: &Matrix) -> Matrix {
        let mut d_rows = d_embeddings.clone();
        for (i, d_row) in d_rows.data.chunks_mut(inputs.cols).enumerate() {
            // Of x / |x|: what points along the row changes its length alone, which the division undoes.
            let row = embeddings.rows.row(i);
            let along = dot(row, d_row);
            d_row.iter_mut().zip(row).for_each(|(d, x)| *d = (*d - along * x) / embeddings.lengths[i]);
        }
        d_rows.transposed_times(inputs)
    }
}

/// Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1).
pub(crate) struct Adam {
    learning_rate: f32,
    steps: i32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Adam {
    const BETA: [f32; 2] = [0.9, 0.999];
    const EPSILON: f32 = 1e-8;

    pub(crate) fn new(learning_rate: f32, weights: usize) -> Self {
        Self { learning_rate, steps: 0, mean: vec![0.0; weights], square: vec![0.0; weights] }
    }

    pub(crate) fn step(&mut self, weights: &mut [f32], gradients: &[f32]) {
        self.steps += 1;
        let [unbiased_mean, unbiased_square] = Self::BETA.map(|beta| 1.0 / (1.0 - beta.powi(self.steps)));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((weight, gradient), (mean, square)) in weights.iter_mut().zip(gradients).zip(moments) {
            *mean += (1.0 - Self::BETA[0]) * (gradient - *mean);
            *square += (1.0 - Self::BETA[1]) * (gradient * gradient - *square);
            *weight -=
                self.learning_rate * (*mean * unbiased_mean) / ((*square * unbiased_square).sqrt() + Self::EPSILON);
        }
    }
}
