//! A device, its context and a stream.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, HostSlice, ValidAsZeroBits,
};

use crate::arch::Arch;
use crate::error::{Error, Result};
use crate::gemm::LtHandle;
use crate::kernel::{Kernel, KernelTable};
use crate::probe::{self, Library};
use crate::program::Program;
use crate::variant::Variant;

/// The oldest CUDA version a driver must support: tensor maps and cluster launches came with 12.0.
const MINIMUM_DRIVER: u32 = 12000;

/// What a device is; every decision that depends on the device comes from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The driver's name for it, such as `NVIDIA H200`.
    pub name: String,
    /// Its ordinal in the driver's list.
    pub ordinal: usize,
    /// Major and minor compute capability, such as (9, 0).
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// L2 cache in bytes.
    pub l2_bytes: usize,
    /// Largest shared memory per block in bytes that a kernel can opt in to.
    pub shared_bytes_optin: usize,
    /// Device memory in bytes.
    pub total_bytes: usize,
    /// Newest CUDA version that the driver supports, as 1000 × major + 10 × minor: 13000 is 13.0.
    pub driver_version: u32,
}

impl DeviceInfo {
    /// The architecture kernels are compiled for on this device.
    pub fn arch(&self) -> Arch {
        Arch::from_capability(self.compute_capability)
    }

    fn query(context: &CudaContext, driver_version: u32) -> Result<Self> {
        let attribute = |attribute: CUdevice_attribute| -> Result<u32> {
            let value = context.attribute(attribute).map_err(Error::driver("cuDeviceGetAttribute"))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        use CUdevice_attribute as A;
        Ok(Self {
            name: context.name().map_err(Error::driver("cuDeviceGetName"))?,
            ordinal: context.ordinal(),
            compute_capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            sm_count: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            shared_bytes_optin: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
            total_bytes: context.total_mem().map_err(Error::driver("cuDeviceTotalMem"))?,
            driver_version,
        })
    }
}

/// What all `Gpu`s of one context share: its kernels and its cuBLASLt handle.
struct Shared {
    context: Arc<CudaContext>,
    info: DeviceInfo,
    kernels: KernelTable,
    cublaslt: Mutex<Option<Arc<LtHandle>>>,
}

/// Weak, so that the context is released when its last `Gpu`, kernel and plan are gone.
static CONTEXTS: LazyLock<Mutex<HashMap<usize, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// A poisoned lock here only says that another thread panicked between two consistent states.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds and starts the driver, once. Gives the CUDA version it supports.
///
/// The bindings panic on a missing library or symbol, so every entry into them goes through here first.
pub(crate) fn start_driver() -> Result<u32> {
    static VERSION: OnceLock<u32> = OnceLock::new();
    if let Some(version) = VERSION.get() {
        return Ok(*version);
    }
    probe::ensure(Library::Driver)?;
    let mut version: c_int = 0;
    // SAFETY: the library is loaded; the call writes one int and needs no initialised driver.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|error| no_driver("cuDriverGetVersion", error))?;
    let version = u32::try_from(version).unwrap_or(0);
    if version < MINIMUM_DRIVER {
        return Err(Error::NoDriver { detail: format!("the driver supports CUDA {}", version_text(version)) });
    }
    match cudarc::driver::result::init() {
        Ok(()) => {}
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(Error::NoDevice { ordinal: 0, available: 0 }),
        Err(error) => return Err(no_driver("cuInit", error)),
    }
    Ok(*VERSION.get_or_init(|| version))
}

fn no_driver(call: &str, error: DriverError) -> Error {
    Error::NoDriver { detail: format!("{call} failed with {:?}", error.0) }
}

/// `13000` as `13.0`.
fn version_text(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// A device with a context and a stream. Cloning is cheap.
///
/// All work that takes a `Gpu` goes to its [stream](Gpu::stream), in order. `Gpu`s of one context share their loaded kernels and
/// their cuBLASLt handle; every method may be called from any thread.
///
/// # Graph capture
/// Launches neither allocate nor wait, so they can be captured, best after one run outside of the capture, which makes the driver load
/// their code. Two rules come with cudarc: the default stream cannot be captured
/// (use [`Gpu::with_stream`]), and cudarc's event tracking between streams must be off for memory used in the capture
/// (`CudaContext::disable_event_tracking`, before that memory is allocated), because an event recorded outside of a capture cannot be
/// waited for inside.
#[derive(Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
    stream: Arc<CudaStream>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("info", self.info()).field("stream", &self.stream.cu_stream()).finish()
    }
}

impl Gpu {
    /// The device of this ordinal, in its primary context, with the context's default stream.
    ///
    /// # Errors
    /// [`Error::MissingLibrary`] or [`Error::NoDriver`] without a usable driver, [`Error::NoDevice`] when there is no such device.
    pub fn new(ordinal: usize) -> Result<Self> {
        let available = match Self::count() {
            Err(Error::NoDevice { available, .. }) => return Err(Error::NoDevice { ordinal, available }),
            other => other?,
        };
        if ordinal >= available {
            return Err(Error::NoDevice { ordinal, available });
        }
        let context = CudaContext::new(ordinal).map_err(Error::driver("cuDevicePrimaryCtxRetain"))?;
        let mut gpu = Self::from_stream(context.default_stream())?;
        // One context object for all: cudarc keeps in it whether memory needs events between streams.
        gpu.stream = gpu.shared.context.default_stream();
        Ok(gpu)
    }

    /// How many devices the driver lists.
    ///
    /// # Errors
    /// As [`Gpu::new`].
    pub fn count() -> Result<usize> {
        start_driver()?;
        let count = cudarc::driver::result::device::get_count().map_err(Error::driver("cuDeviceGetCount"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The device and context of a stream that the caller made.
    ///
    /// # Errors
    /// [`Error::NoDriver`] when the driver is too old, [`Error::Driver`].
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let driver_version = start_driver()?;
        let context = stream.context().clone();
        let key = context.cu_ctx() as usize;
        let mut contexts = lock(&CONTEXTS);
        if let Some(shared) = contexts.get(&key).and_then(Weak::upgrade) {
            return Ok(Self { shared, stream });
        }
        let info = DeviceInfo::query(&context, driver_version)?;
        let shared = Arc::new(Shared { kernels: KernelTable::default(), cublaslt: Mutex::new(None), context, info });
        contexts.retain(|_, other| other.strong_count() > 0);
        contexts.insert(key, Arc::downgrade(&shared));
        Ok(Self { shared, stream })
    }

    /// The same device with another stream of the same context; shares the loaded kernels.
    ///
    /// # Errors
    /// [`Error::WrongDevice`] when the stream belongs to another context.
    pub fn with_stream(&self, stream: Arc<CudaStream>) -> Result<Self> {
        self.check_context("stream", stream.context())?;
        Ok(Self { shared: self.shared.clone(), stream })
    }

    /// The same device with a new stream of its own (non-blocking, ordered after what is queued on this one).
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn fork(&self) -> Result<Self> {
        let stream = self.stream.fork().map_err(Error::driver("cuStreamCreate"))?;
        Ok(Self { shared: self.shared.clone(), stream })
    }

    /// The stream that work goes to.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The context that memory, streams and kernels belong to.
    pub fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    /// Waits until all work on the stream is done. This is a host sync.
    ///
    /// # Errors
    /// [`Error::Driver`], also when earlier work failed on the device.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(Error::driver("cuStreamSynchronize"))
    }

    /// Free and total device memory in bytes. Other processes use it too.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        self.shared.context.mem_get_info().map_err(Error::driver("cuMemGetInfo"))
    }

    /// Allocates `len` zeroed elements on the stream.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::OutOfMemory`], [`Error::Driver`].
    pub fn alloc<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>> {
        let bytes = self.allocation_bytes::<T>(len)?;
        self.stream.alloc_zeros(len).map_err(|error| self.allocation_error("cuMemAlloc", bytes, error))
    }

    /// Copies host elements to a new allocation.
    ///
    /// # Errors
    /// As [`Gpu::alloc`].
    pub fn upload<T: DeviceRepr>(&self, host: &[T]) -> Result<CudaSlice<T>> {
        let bytes = self.allocation_bytes::<T>(host.len())?;
        self.stream.clone_htod(host).map_err(|error| self.allocation_error("cuMemcpyHtoD", bytes, error))
    }

    /// Copies device elements to the host, after all earlier work on the stream. This is a host sync.
    ///
    /// # Errors
    /// [`Error::Driver`], also when earlier work failed on the device.
    pub fn download<T: DeviceRepr>(&self, device: &impl DevicePtr<T>) -> Result<Vec<T>>
    where
        Vec<T>: HostSlice<T>,
    {
        let host = self.stream.clone_dtoh(device).map_err(Error::driver("cuMemcpyDtoH"))?;
        self.synchronize()?;
        Ok(host)
    }

    /// The kernel `entry` (an `extern "C"` name) of `program`, compiled for this device with `defines`.
    ///
    /// Compiled once (kept on disk and in the process) and loaded once per context; after that a call costs a map look-up. Plans
    /// keep their [`Kernel`]s and need not call it again. Two threads that ask for the same kernel compile it once.
    ///
    /// # Errors
    /// [`Error::MissingLibrary`] without NVRTC, [`Error::Compile`], [`Error::Driver`] when the image or the entry cannot be loaded.
    pub fn kernel(&self, program: &Program, entry: &str, defines: &[(&str, String)]) -> Result<Kernel> {
        self.shared.kernels.get(&self.shared.context, self.info(), program, entry, defines)
    }

    /// Compiles side by side what [`Gpu::kernel`] will be asked for, so that it only loads it: the first of several kernels need not wait for each of them in
    /// turn. What is compiled already costs a map look-up, and what another thread compiles just now the wait for it. Several kernels of one program with the same
    /// macros are compiled once; those that this device's architecture does not support ([`Variant::supports`]) are passed over.
    ///
    /// # Errors
    /// [`Error::MissingLibrary`] without NVRTC; [`Error::Compile`] of the first one that does not compile, when all others are.
    pub fn compile(&self, variants: &[Variant]) -> Result<()> {
        self.shared.kernels.compile(&self.info().arch(), variants)
    }

    /// Demands that something of `context` can be used here.
    ///
    /// # Errors
    /// [`Error::WrongDevice`].
    pub fn check_context(&self, what: &'static str, context: &Arc<CudaContext>) -> Result<()> {
        same_context(what, context, &self.shared.context)
    }

    /// The context's cuBLASLt handle, made on first use.
    pub(crate) fn cublaslt(&self) -> Result<Arc<LtHandle>> {
        let mut slot = lock(&self.shared.cublaslt);
        if let Some(handle) = slot.as_ref() {
            return Ok(handle.clone());
        }
        Ok(slot.insert(Arc::new(LtHandle::new(&self.shared.context)?)).clone())
    }

    fn allocation_bytes<T>(&self, len: usize) -> Result<usize> {
        if len == 0 {
            return Err(Error::ZeroSize { what: "allocation" });
        }
        // The bindings multiply unchecked.
        match len.checked_mul(size_of::<T>()) {
            Some(bytes) if isize::try_from(bytes).is_ok() => Ok(bytes),
            _ => Err(self.out_of_memory(usize::MAX)),
        }
    }

    fn allocation_error(&self, call: &'static str, bytes: usize, error: DriverError) -> Error {
        match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => self.out_of_memory(bytes),
            _ => Error::driver(call)(error),
        }
    }

    fn out_of_memory(&self, bytes: usize) -> Error {
        let (free, total) = self.memory_info().unwrap_or((0, self.info().total_bytes));
        Error::OutOfMemory { bytes, free, total }
    }
}

/// Demands that two contexts are one.
pub(crate) fn same_context(what: &'static str, found: &Arc<CudaContext>, expected: &Arc<CudaContext>) -> Result<()> {
    if Arc::ptr_eq(found, expected) || found == expected {
        Ok(())
    } else {
        Err(Error::WrongDevice { what, found: found.ordinal(), expected: expected.ordinal() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_reads_as_cuda_writes_it() {
        assert_eq!(version_text(13000), "13.0");
        assert_eq!(version_text(12080), "12.8");
    }

    #[test]
    fn an_absent_device_is_an_error_value() {
        // Passes with and without a driver: no machine has this ordinal.
        let error = Gpu::new(usize::MAX).unwrap_err();
        assert!(
            matches!(error, Error::MissingLibrary { .. } | Error::NoDriver { .. } | Error::NoDevice { .. }),
            "{error}"
        );
    }
}
