//! Times of queued work, by CUDA events.

use anyhow::{Context, Result};
use cudarc::driver::{CudaEvent, CudaSlice, sys::CUevent_flags};
use kernel_core::Gpu;
use std::time::Instant;

/// Times calls that queue work on the card's stream.
pub(crate) struct Stopwatch {
    gpu: Gpu,
    flush: CudaSlice<u8>,
}

/// Milliseconds of single runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Stopwatch {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self> {
        // Well over any L2, and long enough on the card to hide the host's part of a short call. The peers write as much.
        let bytes = (256 << 20).max(4 * gpu.info().l2_bytes);
        let flush = gpu.alloc(bytes).context("the buffer that flushes the L2")?;
        Ok(Self { gpu: gpu.clone(), flush })
    }

    /// `reps` runs after `warmup` that are not timed; before each, the L2 is filled with something else. Nothing waits for the host in
    /// between.
    pub(crate) fn round(
        &mut self,
        reps: usize,
        warmup: usize,
        mut call: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f64>> {
        let stream = self.gpu.stream().clone();
        for _ in 0..warmup {
            call()?;
        }
        let mut events: Vec<(CudaEvent, CudaEvent)> = Vec::with_capacity(reps);
        for _ in 0..reps {
            stream.memset_zeros(&mut self.flush)?;
            let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            call()?;
            events.push((start, stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?));
        }
        self.gpu.synchronize()?;
        events.iter().map(|(start, end)| Ok(f64::from(start.elapsed_ms(end)?))).collect()
    }

    /// `reps` times the mean of `calls` runs in a row, with nothing between them: for calls that bring their own cold data.
    pub(crate) fn streak(
        &mut self,
        reps: usize,
        calls: usize,
        mut call: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f64>> {
        let stream = self.gpu.stream().clone();
        let mut events: Vec<(CudaEvent, CudaEvent)> = Vec::with_capacity(reps);
        for _ in 0..reps {
            call()?;
            let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            for _ in 0..calls {
                call()?;
            }
            events.push((start, stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?));
        }
        self.gpu.synchronize()?;
        events.iter().map(|(start, end)| Ok(f64::from(start.elapsed_ms(end)?) / calls as f64)).collect()
    }

    /// Median host time of one call on an idle stream, microseconds: the launches alone, not the work.
    pub(crate) fn host_us(&self, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
        let mut times = Samples::default();
        for _ in 0..10 {
            self.gpu.synchronize()?;
            let start = Instant::now();
            call()?;
            times.extend(vec![start.elapsed().as_secs_f64() * 1e6]);
        }
        self.gpu.synchronize()?;
        Ok(times.median())
    }
}

impl Samples {
    pub(crate) fn extend(&mut self, more: Vec<f64>) {
        self.0.extend(more);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle one, or the mean of the two in the middle; NaN of nothing.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n.is_multiple_of(2) => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
            n => sorted[n / 2],
        }
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_summarise() {
        let mut samples = Samples::default();
        assert!(samples.median().is_nan());
        samples.extend(vec![3.0, 1.0]);
        samples.extend(vec![2.0]);
        assert_eq!((samples.len(), samples.median(), samples.min(), samples.max()), (3, 2.0, 1.0, 3.0));
        samples.extend(vec![10.0]);
        assert_eq!(samples.median(), 2.5);
    }
}
