//! Adam (arXiv 1412.6980).

const BETA: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

pub(crate) struct Adam {
    rate: f32,
    step: i32,
    moments: [Vec<f32>; 2],
}

impl Adam {
    pub(crate) fn new(rate: f32, parameters: usize) -> Self {
        Self { rate, step: 0, moments: [vec![0.0; parameters], vec![0.0; parameters]] }
    }

    pub(crate) fn step(&mut self, parameters: &mut [f32], gradients: &[f32]) {
        self.step += 1;
        let correction = BETA.map(|beta| 1.0 - beta.powi(self.step));
        let [first, second] = &mut self.moments;
        for (((parameter, gradient), m), v) in parameters.iter_mut().zip(gradients).zip(first).zip(second) {
            *m = BETA[0] * *m + (1.0 - BETA[0]) * gradient;
            *v = BETA[1] * *v + (1.0 - BETA[1]) * gradient * gradient;
            *parameter -= self.rate * (*m / correction[0]) / ((*v / correction[1]).sqrt() + EPSILON);
        }
    }
}
