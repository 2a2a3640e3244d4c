//! A logit kernel beside the maps of what it reads.

use kernel_core::sm90::MatrixAt;
use kernel_core::{Error, LastMaps, TensorMap};

use crate::error::Result;

/// A logit kernel of Hopper, and the maps of images and texts as it reads them.
pub(super) struct Logits<K> {
    pub(super) kernel: K,
    maps: LastMaps<[MatrixAt; 2], [TensorMap; 2]>,
}

impl<K> Logits<K> {
    pub(super) fn new(kernel: K) -> Self {
        Self { kernel, maps: LastMaps::new() }
    }

    /// `text_rows`: of a box of text.
    pub(super) fn maps(&mut self, inputs: [MatrixAt; 2], text_rows: usize) -> Result<[TensorMap; 2]> {
        let [img, txt] = inputs;
        Ok(self.maps.of(inputs, || Ok::<_, Error>([img.k_major(1)?, txt.k_major_rows(text_rows)?]))?)
    }
}
