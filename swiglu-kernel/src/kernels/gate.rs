//! `cuda/gate.cu`: the gate, its derivative and the rounding of a sum as passes over matrices in memory.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LaunchConfig, Variant};
use reference_cpu::swiglu::Gate;

use super::load;
use crate::at::At;
use crate::error::Result;
use crate::programs;

const THREADS: u32 = 256;
/// Elements of a wide access, and what its address must be a multiple of, in elements.
const WIDE: usize = 8;

/// `Gate` of the header.
pub(crate) fn device_gate(gate: Gate) -> u32 {
    match gate {
        Gate::Silu => 0,
        Gate::GeluTanh => 1,
        Gate::Relu => 2,
        Gate::Sigmoid => 3,
    }
}

/// Whether all matrices can be walked eight elements at a time. Null addresses count as aligned.
fn wide(cols: usize, matrices: &[(At, usize)]) -> bool {
    cols.is_multiple_of(WIDE) && matrices.iter().all(|(at, bytes)| at.is_aligned(*bytes))
}

fn config(info: &DeviceInfo, rows: usize, vectors: usize) -> LaunchConfig {
    let blocks = (rows as u64 * vectors as u64).div_ceil(u64::from(THREADS));
    // From sm_90 on the next kernel's blocks may come up while this one ends.
    LaunchConfig::linear(blocks as u32, THREADS).with_programmatic(info.compute_capability >= (9, 0))
}

/// The same kernel for single and for wide accesses.
struct Pair {
    narrow: Kernel,
    wide: Kernel,
}

impl Pair {
    fn variants(dtype: DType, entry: &'static str) -> [Variant; 2] {
        [1, WIDE].map(|vector| programs::gate(dtype, entry, vector))
    }

    fn new(gpu: &Gpu, dtype: DType, entry: &'static str) -> Result<Self> {
        let [narrow, wide] = Self::variants(dtype, entry);
        Ok(Self { narrow: load(gpu, &narrow)?, wide: load(gpu, &wide)? })
    }

    fn choose(&self, cols: usize, wide: bool) -> (&Kernel, usize) {
        if wide { (&self.wide, cols / WIDE) } else { (&self.narrow, cols) }
    }
}

/// `GateForwardParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct GateForwardParams {
    gate: u64,
    up: u64,
    stride: u64,
    gate_bias: u64,
    up_bias: u64,
    z: u64,
    z_stride: u64,
    gate_saved: u64,
    up_saved: u64,
    saved_stride: u64,
    rows: u64,
    vectors: u32,
    activation: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for GateForwardParams {}

/// z = act(g) ⊙ u of f32 pre-activations without bias. Halves are `[gate, up]`; null addresses stand for what is absent.
pub(crate) struct GateForwardCall {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) gate: Gate,
    pub(crate) preactivations: [At; 2],
    pub(crate) bias: [u64; 2],
    pub(crate) z: At,
    pub(crate) saved: [At; 2],
}

pub(crate) struct GateForward {
    kernels: Pair,
    element_bytes: usize,
}

impl GateForward {
    pub(crate) fn variants(dtype: DType) -> [Variant; 2] {
        Pair::variants(dtype, "swiglu_gate_forward")
    }

    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        Ok(Self { kernels: Pair::new(gpu, dtype, "swiglu_gate_forward")?, element_bytes: dtype.size_bytes() })
    }

    /// # Safety
    /// The addresses must be live memory of the shapes that the call says.
    pub(crate) unsafe fn launch(&self, stream: &CudaStream, info: &DeviceInfo, call: &GateForwardCall) -> Result<()> {
        let ([gate, up], [gate_saved, up_saved]) = (call.preactivations, call.saved);
        let (float, own) = (size_of::<f32>(), self.element_bytes);
        let matrices = [(gate, float), (up, float), (call.z, own), (gate_saved, own), (up_saved, own)];
        let (kernel, vectors) = self.kernels.choose(call.cols, wide(call.cols, &matrices));
        let params = GateForwardParams {
            gate: gate.address,
            up: up.address,
            stride: gate.row_stride as u64,
            gate_bias: call.bias[0],
            up_bias: call.bias[1],
            z: call.z.address,
            z_stride: call.z.row_stride as u64,
            gate_saved: gate_saved.address,
            up_saved: up_saved.address,
            saved_stride: gate_saved.row_stride as u64,
            rows: call.rows as u64,
            vectors: vectors as u32,
            activation: device_gate(call.gate),
        };
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { kernel.launch(stream, &config(info, call.rows, vectors), &[&params]) }?)
    }
}

/// What the gate's derivative reads and writes: the first parameters of every kernel that takes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct DerivativeParams {
    gate: u64,
    up: u64,
    stride: u64,
    dz: u64,
    dz_stride: u64,
    d_gate: u64,
    d_up: u64,
    d_stride: u64,
}

impl DerivativeParams {
    /// Pairs are `[gate, up]`.
    pub(super) fn new([gate, up]: [At; 2], dz: At, [d_gate, d_up]: [At; 2]) -> Self {
        Self {
            gate: gate.address,
            up: up.address,
            stride: gate.row_stride as u64,
            dz: dz.address,
            dz_stride: dz.row_stride as u64,
            d_gate: d_gate.address,
            d_up: d_up.address,
            d_stride: d_gate.row_stride as u64,
        }
    }
}

/// `GateBackwardParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct GateBackwardParams {
    derivative: DerivativeParams,
    z: u64,
    z_stride: u64,
    rows: u64,
    vectors: u32,
    activation: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for GateBackwardParams {}

/// Gradients of the pre-activations from dz. Halves are `[gate, up]`; null addresses stand for what is absent.
pub(crate) struct GateBackwardCall {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) gate: Gate,
    pub(crate) preactivations: [At; 2],
    pub(crate) dz: At,
    /// May be the pre-activations.
    pub(crate) gradients: [At; 2],
    /// Receives z; may be `dz`.
    pub(crate) z: At,
}

pub(crate) struct GateBackward {
    kernels: Pair,
    element_bytes: usize,
}

impl GateBackward {
    pub(crate) fn variants(dtype: DType) -> [Variant; 2] {
        Pair::variants(dtype, "swiglu_gate_backward")
    }

    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        Ok(Self { kernels: Pair::new(gpu, dtype, "swiglu_gate_backward")?, element_bytes: dtype.size_bytes() })
    }

    /// # Safety
    /// The addresses must be live memory of the shapes that the call says.
    pub(crate) unsafe fn launch(&self, stream: &CudaStream, info: &DeviceInfo, call: &GateBackwardCall) -> Result<()> {
        let ([gate, up], [d_gate, d_up]) = (call.preactivations, call.gradients);
        let matrices = [gate, up, d_gate, d_up, call.dz, call.z].map(|at| (at, self.element_bytes));
        let (kernel, vectors) = self.kernels.choose(call.cols, wide(call.cols, &matrices));
        let params = GateBackwardParams {
            derivative: DerivativeParams::new(call.preactivations, call.dz, call.gradients),
            z: call.z.address,
            z_stride: call.z.row_stride as u64,
            rows: call.rows as u64,
            vectors: vectors as u32,
            activation: device_gate(call.gate),
        };
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { kernel.launch(stream, &config(info, call.rows, vectors), &[&params]) }?)
    }
}

/// `RoundingParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct RoundingParams {
    from: u64,
    from_stride: u64,
    to: u64,
    to_stride: u64,
    rows: u64,
    vectors: u32,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for RoundingParams {}

/// f32 to the kernel's dtype.
pub(crate) struct RoundingCall {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) from: At,
    pub(crate) to: At,
}

pub(crate) struct Rounding {
    kernels: Pair,
    element_bytes: usize,
}

impl Rounding {
    pub(crate) fn new(gpu: &Gpu, dtype: DType) -> Result<Self> {
        Ok(Self { kernels: Pair::new(gpu, dtype, "swiglu_round")?, element_bytes: dtype.size_bytes() })
    }

    /// # Safety
    /// The addresses must be live memory of the shapes that the call says.
    pub(crate) unsafe fn launch(&self, stream: &CudaStream, info: &DeviceInfo, call: &RoundingCall) -> Result<()> {
        let RoundingCall { rows, cols, from, to } = *call;
        let matrices = [(from, size_of::<f32>()), (to, self.element_bytes)];
        let (kernel, vectors) = self.kernels.choose(cols, wide(cols, &matrices));
        let params = RoundingParams {
            from: from.address,
            from_stride: from.row_stride as u64,
            to: to.address,
            to_stride: to.row_stride as u64,
            rows: rows as u64,
            vectors: vectors as u32,
        };
        // SAFETY: the argument matches the kernel's parameter; the memory is the caller's promise.
        Ok(unsafe { kernel.launch(stream, &config(info, rows, vectors), &[&params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_accesses_need_aligned_rows() {
        let at = |address, row_stride| At { address, row_stride };
        assert!(wide(16, &[(at(256, 24), 2), (at(0, 0), 2)]));
        assert!(!wide(12, &[(at(256, 24), 2)]));
        assert!(!wide(16, &[(at(258, 24), 2)]));
        assert!(!wide(16, &[(at(256, 20), 2)]));
        assert!(wide(16, &[(at(256, 20), 4)]));
    }
}
