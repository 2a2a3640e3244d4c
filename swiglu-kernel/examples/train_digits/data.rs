//! The images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Pixels of an image.
pub(crate) const PIXELS: usize = 64;
/// Kinds of digits.
pub(crate) const CLASSES: usize = 10;
/// The largest pixel value.
const WHITE: f32 = 16.0;

/// Images with their digits.
#[derive(Default)]
pub(crate) struct Digits {
    /// `[len, PIXELS]`, in -1..1.
    pub(crate) pixels: Vec<f32>,
    pub(crate) labels: Vec<usize>,
}

impl Digits {
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(crate) fn image(&self, index: usize) -> &[f32] {
        &self.pixels[index * PIXELS..][..PIXELS]
    }

    fn push(&mut self, image: &[f32], label: usize) {
        self.pixels.extend_from_slice(image);
        self.labels.push(label);
    }

    /// Four of five images to train on, and the others.
    pub(crate) fn split(&self) -> (Digits, Digits) {
        let (mut training, mut test) = (Digits::default(), Digits::default());
        for index in 0..self.len() {
            let part = if index % 5 == 4 { &mut test } else { &mut training };
            part.push(self.image(index), self.labels[index]);
        }
        (training, test)
    }
}

/// The file in the repository; the published crate comes without it.
pub(crate) fn default_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digits/digits.csv")
}

pub(crate) fn read(path: &Path) -> Result<Digits> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {} (see --data)", path.display()))?;
    let mut digits = Digits::default();
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{}:{}", path.display(), number + 1);
        let values: Vec<f32> = line
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{}: a number", place()))?;
        ensure!(values.len() == PIXELS + 1, "{}: {} values, expected {}", place(), values.len(), PIXELS + 1);
        let (pixels, label) = (&values[..PIXELS], values[PIXELS]);
        ensure!((0.0..CLASSES as f32).contains(&label), "{}: the digit {label}, expected 0 to 9", place());
        let pixels: Vec<f32> = pixels.iter().map(|pixel| pixel / WHITE * 2.0 - 1.0).collect();
        digits.push(&pixels, label as usize);
    }
    ensure!(digits.len() > CLASSES, "{}: {} images, expected more", path.display(), digits.len());
    Ok(digits)
}
