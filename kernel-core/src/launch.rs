//! How a kernel is launched: grid, block, cluster, arguments.

use std::ffi::{c_int, c_void};

use cudarc::driver::sys;

use crate::error::{Error, Result};
use crate::tma::TensorMap;

/// The most arguments one launch may have.
pub(crate) const MAX_ARGS: usize = 64;

/// Grid, block and launch attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z. With clusters, each a multiple of the cluster's.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Blocks of a cluster in x, y, z (sm_90 up, at most 8 in all). `None` also for kernels with a compile-time `__cluster_dims__`.
    pub cluster: Option<[u32; 3]>,
    /// Programmatic dependent launch: the kernel may start before the one ahead of it on the stream ends, and must execute
    /// `griddepcontrol.wait` before it reads that one's results (sm_90 up).
    pub programmatic: bool,
}

impl LaunchConfig {
    /// `blocks` blocks of `threads` threads in one dimension, without shared memory, clusters or overlap.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0, cluster: None, programmatic: false }
    }

    /// The same with dynamic shared memory.
    #[must_use]
    pub fn with_shared(self, bytes: u32) -> Self {
        Self { shared_bytes: bytes, ..self }
    }

    /// The same in clusters.
    #[must_use]
    pub fn with_cluster(self, cluster: [u32; 3]) -> Self {
        Self { cluster: Some(cluster), ..self }
    }

    /// The same with programmatic dependent launch on or off.
    #[must_use]
    pub fn with_programmatic(self, programmatic: bool) -> Self {
        Self { programmatic, ..self }
    }

    /// Checks what needs no device. `max_threads` is the kernel's own limit.
    pub(crate) fn check(&self, max_threads: u32) -> Result<()> {
        if self.grid.contains(&0) {
            return Err(Error::ZeroSize { what: "grid" });
        }
        if self.block.contains(&0) {
            return Err(Error::ZeroSize { what: "block" });
        }
        let threads = self.block.iter().map(|axis| u64::from(*axis)).product::<u64>();
        if threads > u64::from(max_threads) {
            return Err(Error::Shape {
                what: "block",
                found: format!("{:?}, {threads} threads", self.block),
                expected: format!("at most {max_threads} threads for this kernel"),
            });
        }
        let Some(cluster) = self.cluster else { return Ok(()) };
        if cluster.contains(&0) {
            return Err(Error::ZeroSize { what: "cluster" });
        }
        if cluster.iter().map(|axis| u64::from(*axis)).product::<u64>() > 8 {
            return Err(Error::Shape {
                what: "cluster",
                found: format!("{cluster:?}"),
                expected: "at most 8 blocks".to_owned(),
            });
        }
        if self.grid.iter().zip(cluster).any(|(blocks, size)| !blocks.is_multiple_of(size)) {
            return Err(Error::Shape {
                what: "grid",
                found: format!("{:?}", self.grid),
                expected: format!("multiples of the cluster {cluster:?}"),
            });
        }
        Ok(())
    }

    /// Whether the extended launch call is needed.
    pub(crate) fn is_extended(&self) -> bool {
        self.cluster.is_some() || self.programmatic
    }

    /// The launch attributes and how many of them count.
    pub(crate) fn attributes(&self) -> ([sys::CUlaunchAttribute; 2], u32) {
        use sys::CUlaunchAttributeID as Id;
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let unused = attribute(Id::CU_LAUNCH_ATTRIBUTE_IGNORE, sys::CUlaunchAttributeValue { pad: [0; 64] });
        let mut attributes = [unused; 2];
        let mut count = 0;
        if let Some([x, y, z]) = self.cluster {
            let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            attributes[count] = attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value);
            count += 1;
        }
        if self.programmatic {
            let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
            value.programmaticStreamSerializationAllowed = c_int::from(true);
            attributes[count] = attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value);
            count += 1;
        }
        (attributes, count as u32)
    }

    /// The configuration as the driver takes it. `attributes` must outlive the result's use.
    pub(crate) fn to_driver(
        self,
        stream: sys::CUstream,
        attributes: &mut [sys::CUlaunchAttribute; 2],
        count: u32,
    ) -> sys::CUlaunchConfig {
        sys::CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block[0],
            blockDimY: self.block[1],
            blockDimZ: self.block[2],
            sharedMemBytes: self.shared_bytes,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        }
    }
}

/// A kernel argument passed by value.
///
/// # Safety
/// The bytes of the value must be what the kernel's parameter of the same position expects: plain data, `#[repr(C)]` for structs, of
/// the same size, alignment and meaning as on the device.
pub unsafe trait KernelArg {}

// SAFETY: plain data of the same size and alignment on both sides.
unsafe impl KernelArg for u32 {}
// SAFETY: as above.
unsafe impl KernelArg for i32 {}
// SAFETY: as above. Device pointers travel as u64.
unsafe impl KernelArg for u64 {}
// SAFETY: as above.
unsafe impl KernelArg for i64 {}
// SAFETY: as above.
unsafe impl KernelArg for f32 {}
// SAFETY: 128 opaque bytes, aligned to 64 on both sides.
unsafe impl KernelArg for TensorMap {}

/// Pointers to the argument values, as the driver takes them; lives on the stack.
pub(crate) fn pointers(args: &[&dyn KernelArg]) -> Result<[*mut c_void; MAX_ARGS]> {
    let mut pointers = [std::ptr::null_mut(); MAX_ARGS];
    if args.len() > MAX_ARGS {
        return Err(Error::Unsupported {
            what: format!("a launch with {} arguments; expected at most {MAX_ARGS}", args.len()),
        });
    }
    for (pointer, arg) in pointers.iter_mut().zip(args) {
        // The driver only reads through it, whatever its signature says.
        *pointer = std::ptr::from_ref::<dyn KernelArg>(*arg).cast::<c_void>().cast_mut();
    }
    Ok(pointers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_follow_the_configuration() {
        let plain = LaunchConfig::linear(4, 128);
        assert!(!plain.is_extended());
        assert_eq!(plain.attributes().1, 0);

        let (attributes, count) = plain.with_cluster([2, 1, 1]).with_programmatic(true).attributes();
        assert_eq!(count, 2);
        // SAFETY: the constructor wrote exactly these fields.
        let (cluster, allowed) =
            unsafe { (attributes[0].value.clusterDim, attributes[1].value.programmaticStreamSerializationAllowed) };
        assert_eq!((cluster.x, cluster.y, cluster.z, allowed), (2, 1, 1, 1));

        let (attributes, count) = plain.with_programmatic(true).attributes();
        assert_eq!(count, 1);
        assert_eq!(attributes[0].id, sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
    }

    #[test]
    fn impossible_launches_are_named() {
        let plain = LaunchConfig::linear(4, 128);
        assert!(plain.check(1024).is_ok());
        assert!(matches!(LaunchConfig::linear(0, 128).check(1024), Err(Error::ZeroSize { what: "grid" })));
        assert!(matches!(LaunchConfig::linear(1, 0).check(1024), Err(Error::ZeroSize { what: "block" })));
        let message = LaunchConfig::linear(1, 512).check(256).unwrap_err().to_string();
        assert!(message.contains("512") && message.contains("256"), "{message}");
        assert!(matches!(plain.with_cluster([3, 1, 1]).check(1024), Err(Error::Shape { what: "grid", .. })));
        assert!(matches!(plain.with_cluster([4, 4, 1]).check(1024), Err(Error::Shape { what: "cluster", .. })));
        assert!(matches!(plain.with_cluster([0, 1, 1]).check(1024), Err(Error::ZeroSize { what: "cluster" })));
        assert!(plain.with_cluster([2, 1, 1]).check(1024).is_ok());
    }

    #[test]
    fn argument_pointers_point_at_the_values() {
        let (a, b) = (7u32, 2.5f32);
        let pointers = pointers(&[&a, &b]).unwrap();
        assert_eq!(pointers[0].cast_const(), (&raw const a).cast());
        assert_eq!(pointers[1].cast_const(), (&raw const b).cast());
        assert!(pointers[2].is_null());
        let many: Vec<&dyn KernelArg> = vec![&a; MAX_ARGS + 1];
        assert!(super::pointers(&many).unwrap_err().to_string().contains("65 arguments"));
    }
}
