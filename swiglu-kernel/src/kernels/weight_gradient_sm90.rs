//! `cuda/weight_gradient_sm90.cu`: dW on Hopper where whole tiles divide badly among the SMs.

use kernel_core::cudarc::driver::CudaStream;
use kernel_core::sm90::launch_config;
use kernel_core::{DType, DeviceInfo, Gpu, Kernel, KernelArg, LastMaps, TensorMap, Variant};

use super::load;
use crate::at::At;
use crate::error::Result;
use crate::problem::Problem;
use crate::programs::{self, CLUSTER};

/// Rows and columns of a tile, and what a stage holds of the sum.
const TILE: [usize; 2] = [128, 256];
const STAGE: usize = 64;
/// Consumers of a block: each counts the parts of its half of a tile.
const CONSUMERS: usize = 2;
/// Stages' worth of time that it takes to add parts up.
const ADDING: usize = 8;

/// `WeightGradientParams` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct WeightGradientParams {
    rows: u32,
    columns: u32,
    depth: u32,
    whole: u32,
    parts: u32,
    sums: u64,
    arrived: u64,
}

// SAFETY: plain data, laid out as the kernel's struct.
unsafe impl KernelArg for WeightGradientParams {}

/// Addresses of a call: dW = leftᵀ · right. Compared from call to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeightGradientCall {
    /// x, or for linear layouts the gradients of the pre-activations.
    pub(crate) left: At,
    pub(crate) right: At,
    pub(crate) to: At,
}

impl WeightGradientCall {
    /// Whether the kernel can address everything: rows that begin at multiples of 16 bytes.
    pub(crate) fn is_aligned(&self, element_bytes: usize) -> bool {
        [self.left, self.right, self.to].iter().all(|at| at.is_aligned(element_bytes))
    }
}

/// How pairs of tiles, one for each block of a cluster, are divided: most are taken whole, the others in so many parts each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Division {
    whole: usize,
    split: usize,
    parts: usize,
}

impl Division {
    /// What is left over after whole waves, in as many parts as there are clusters for. None where that would be none, where whole tiles keep 85% of the
    /// device busy, so that cuBLASLt is as fast, or parts less than 95%.
    fn choose([rows, columns, depth]: [usize; 3], sm_count: u32) -> Option<Self> {
        let clusters = (sm_count / CLUSTER) as usize;
        let pairs = rows.div_ceil(TILE[0]) * columns.div_ceil(2 * TILE[1]);
        let (waves, stages) = (pairs.checked_div(clusters)?, depth.div_ceil(STAGE));
        let split = pairs % clusters;
        // A part without a stage would have nothing to wait for.
        let parts = clusters.checked_div(split)?.min(stages);
        let area = 2 * clusters * TILE[0] * TILE[1];
        let (useful, unsplit) = (rows * columns * stages, area * (waves + 1) * stages);
        let spent = area * (waves * stages + stages.div_ceil(parts) + ADDING);
        let pays = parts > 1 && useful * 100 <= unsplit * 85 && useful * 100 >= spent * 95;
        pays.then_some(Self { whole: waves * clusters, split, parts })
    }

    fn sums_bytes(&self) -> usize {
        self.split * self.parts * CLUSTER as usize * TILE[0] * TILE[1] * size_of::<f32>()
    }

    fn arrived_bytes(&self) -> usize {
        self.split * CLUSTER as usize * CONSUMERS * size_of::<u32>()
    }
}

/// Bytes of the kernel's counters, which must be zero before its first launch: for no more than half of the clusters of any device.
pub(crate) const ARRIVED_BYTES: usize = 4096;

pub(crate) struct WeightGradientSm90 {
    kernel: Kernel,
    problem: Problem,
    division: Division,
    sums: u64,
    arrived: u64,
    maps: LastMaps<WeightGradientCall, [TensorMap; 3]>,
}

/// Rows and columns of dW, and rows summed over.
fn extents(problem: &Problem) -> [usize; 3] {
    let Problem { rows, inputs, outputs, layout, .. } = *problem;
    if layout.is_linear() { [2 * outputs, inputs, rows] } else { [inputs, 2 * outputs, rows] }
}

impl WeightGradientSm90 {
    /// What [`WeightGradientSm90::new`] loads, if there is memory for the sums.
    pub(crate) fn variant(info: &DeviceInfo, problem: &Problem) -> Option<Variant> {
        let divides = problem.dtype != DType::F32 && Division::choose(extents(problem), info.sm_count).is_some();
        divides.then(|| programs::weight_gradient_sm90(problem.dtype))
    }

    /// None where the product is better left to cuBLASLt. `sums`: address and size of memory for sums of parts; `arrived`: the address of
    /// [`ARRIVED_BYTES`] zeros.
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, sums: (u64, usize), arrived: u64) -> Result<Option<Self>> {
        let fits = |division: &Division| division.sums_bytes() <= sums.1 && division.arrived_bytes() <= ARRIVED_BYTES;
        let division = Division::choose(extents(problem), gpu.info().sm_count).filter(fits);
        let Some(division) = division.filter(|_| problem.dtype != DType::F32) else { return Ok(None) };
        let kernel = load(gpu, &programs::weight_gradient_sm90(problem.dtype))?;
        Ok(Some(Self { kernel, problem: *problem, division, sums: sums.0, arrived, maps: LastMaps::new() }))
    }

    fn encode(problem: &Problem, call: &WeightGradientCall) -> Result<[TensorMap; 3]> {
        let ([rows, columns, depth], dtype) = (extents(problem), problem.dtype);
        Ok([
            call.left.matrix(dtype, depth, rows).mn_major()?,
            call.right.matrix(dtype, depth, columns).mn_major()?,
            call.to.matrix(dtype, rows, columns).warp_store()?,
        ])
    }

    /// # Safety
    /// The addresses must be live memory of the problem's shapes, and aligned as [`WeightGradientCall::is_aligned`] says.
    pub(crate) unsafe fn launch(&mut self, gpu: &Gpu, stream: &CudaStream, call: &WeightGradientCall) -> Result<()> {
        let [left, right, to] = self.maps.of(*call, || Self::encode(&self.problem, call))?;
        let [rows, columns, depth] = extents(&self.problem).map(|extent| extent as u32);
        let Division { whole, split, parts } = self.division;
        let config = launch_config(gpu.info(), (whole + split * parts) * CLUSTER as usize, CLUSTER);
        let params = WeightGradientParams {
            rows,
            columns,
            depth,
            whole: whole as u32,
            parts: parts as u32,
            sums: self.sums,
            arrived: self.arrived,
        };
        // SAFETY: the arguments match the kernel's parameters; the memory is the caller's promise.
        Ok(unsafe { self.kernel.launch(stream, &config, &[&left, &right, &to, &params]) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn only_what_whole_tiles_leave_is_split() {
        let division = |m, k, n| Division::choose(extents(&Problem::new(m, k, n, DType::Bf16)), 132);
        assert_eq!(division(16_384, 1152, 4304), Some(Division { whole: 132, split: 21, parts: 3 }));
        assert_eq!((division(8192, 4096, 11_008), division(4096, 1024, 4096)), (None, None));
        assert_eq!(Division::choose([1152, 8608, 64], 132), None, "adding up would take longer");
        assert_eq!(Division::choose([1152, 8608, 16_384], 1), None, "no clusters");
        let of_a_stage = Division { whole: 330, split: 2, parts: 32 };
        assert_eq!(Division::choose([512, 83 * 512, 2048], 132), Some(of_a_stage), "no part without one");
    }

    #[test]
    fn the_memory_is_that_of_a_cublas_workspace() {
        let division = Division { whole: 132, split: 21, parts: 3 };
        assert_eq!((division.sums_bytes(), division.arrived_bytes()), (63 * 2 * 128 * 256 * 4, 336));
        assert!(division.sums_bytes() <= crate::gemms::CUBLAS_BYTES);
    }

    #[test]
    fn the_struct_is_laid_out_as_the_kernels() {
        assert_eq!((offset_of!(WeightGradientParams, sums), size_of::<WeightGradientParams>()), (24, 40));
    }
}
