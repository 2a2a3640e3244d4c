//! Loaded kernels.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::sys::{self, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError};
use cudarc::nvrtc::Ptx;

use crate::arch::Arch;
use crate::compile::{CubinCache, compile, compile_all_in};
use crate::error::{Error, Result};
use crate::gpu::{DeviceInfo, lock, same_context};
use crate::launch::{KernelArg, LaunchConfig, pointers};
use crate::program::Program;
use crate::variant::Variant;

/// Dynamic shared memory that every kernel may use without opting in.
const SHARED_WITHOUT_OPT_IN: u32 = 48 * 1024;

/// What a kernel uses, as the driver reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelAttributes {
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Local memory of a thread in bytes: spills and arrays that are not in registers.
    pub local_bytes: u32,
    /// Threads a block may have at most.
    pub max_threads: u32,
}

struct Inner {
    entry: String,
    function: CudaFunction,
    context: Arc<CudaContext>,
    attributes: KernelAttributes,
    /// Dynamic shared memory that this kernel can opt in to.
    shared_limit: u32,
    compute_capability: (u32, u32),
    /// Set once the kernel has opted in.
    opted_in: OnceLock<()>,
}

/// A kernel loaded on a device. Cloning is cheap; launches may come from any thread.
#[derive(Clone)]
pub struct Kernel(Arc<Inner>);

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("entry", &self.0.entry).field("attributes", &self.0.attributes).finish()
    }
}

impl Kernel {
    fn load(context: &Arc<CudaContext>, info: &DeviceInfo, module: &Arc<CudaModule>, entry: &str) -> Result<Self> {
        if CString::new(entry).is_err() {
            return Err(Error::Unsupported { what: format!("kernel name {entry:?}: it holds a NUL byte") });
        }
        let function = module.load_function(entry).map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => Error::Unsupported {
                what: format!("kernel {entry:?}: its program has no extern \"C\" kernel of that name"),
            },
            _ => Error::driver("cuModuleGetFunction")(error),
        })?;
        let attribute = |value: Result<i32, DriverError>| -> Result<u32> {
            Ok(u32::try_from(value.map_err(Error::driver("cuFuncGetAttribute"))?).unwrap_or(0))
        };
        let attributes = KernelAttributes {
            registers: attribute(function.num_regs())?,
            shared_bytes: attribute(function.shared_size_bytes())?,
            local_bytes: attribute(function.local_size_bytes())?,
            max_threads: attribute(function.max_threads_per_block())?,
        };
        let optin = u32::try_from(info.shared_bytes_optin).unwrap_or(u32::MAX);
        Ok(Self(Arc::new(Inner {
            entry: entry.to_owned(),
            function,
            context: context.clone(),
            attributes,
            shared_limit: optin.saturating_sub(attributes.shared_bytes),
            compute_capability: info.compute_capability,
            opted_in: OnceLock::new(),
        })))
    }

    /// The `extern "C"` name.
    pub fn entry(&self) -> &str {
        &self.0.entry
    }

    /// Registers, shared and local memory.
    pub fn attributes(&self) -> KernelAttributes {
        self.0.attributes
    }

    /// The driver's handle, for calls that this crate does not wrap.
    pub fn function(&self) -> &CudaFunction {
        &self.0.function
    }

    /// Queues the kernel on `stream`. Neither waits nor allocates on the device, so it can be captured into a graph.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] or [`Error::Shape`] for an impossible grid, block or cluster, [`Error::UnsupportedDevice`] for more shared
    /// memory than the device has, and for clusters or programmatic launches before sm_90, [`Error::WrongDevice`] for a stream of another context, [`Error::Driver`].
    ///
    /// # Safety
    /// `args` must match the kernel's parameters in number, order and type, and the kernel must stay within the memory that they
    /// point to. That memory must live, and not be used by others in conflict, until the kernel has run.
    pub unsafe fn launch(&self, stream: &CudaStream, config: &LaunchConfig, args: &[&dyn KernelArg]) -> Result<()> {
        let kernel = &*self.0;
        self.check(config)?;
        same_context("stream", stream.context(), &kernel.context)?;
        self.allow_shared(config.shared_bytes)?;
        let mut pointers = pointers(args)?;
        // The stream's own context object: it also holds the errors that guards of views could not return.
        stream.context().bind_to_thread().map_err(Error::driver("cuCtxSetCurrent"))?;
        let function = kernel.function.cu_function();
        if config.is_extended() {
            let (mut attributes, count) = config.attributes();
            let driver_config = config.to_driver(stream.cu_stream(), &mut attributes, count);
            // SAFETY: configuration, attributes and argument pointers live across the call; the rest is the caller's promise.
            unsafe {
                sys::cuLaunchKernelEx(&raw const driver_config, function, pointers.as_mut_ptr(), std::ptr::null_mut())
            }
            .result()
            .map_err(Error::driver("cuLaunchKernelEx"))
        } else {
            let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
            // SAFETY: the argument pointers live across the call; the rest is the caller's promise.
            unsafe {
                sys::cuLaunchKernel(
                    function,
                    gx,
                    gy,
                    gz,
                    bx,
                    by,
                    bz,
                    config.shared_bytes,
                    stream.cu_stream(),
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
            .result()
            .map_err(Error::driver("cuLaunchKernel"))
        }
    }

    /// How many blocks of `block` threads with `shared` bytes of dynamic shared memory fit on one SM at once.
    ///
    /// # Errors
    /// [`Error::UnsupportedDevice`] for more shared memory than the device has, [`Error::Driver`].
    pub fn max_active_blocks(&self, block: u32, shared: u32) -> Result<u32> {
        self.allow_shared(shared)?;
        self.0.context.bind_to_thread().map_err(Error::driver("cuCtxSetCurrent"))?;
        self.0
            .function
            .occupancy_max_active_blocks_per_multiprocessor(block, shared as usize, None)
            .map_err(Error::driver("cuOccupancyMaxActiveBlocksPerMultiprocessor"))
    }

    /// How many clusters of `config` fit on the whole device at once; a persistent cluster kernel launches that many.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn max_active_clusters(&self, config: &LaunchConfig) -> Result<u32> {
        self.check(config)?;
        self.allow_shared(config.shared_bytes)?;
        self.0.context.bind_to_thread().map_err(Error::driver("cuCtxSetCurrent"))?;
        let (mut attributes, count) = config.attributes();
        let driver_config = config.to_driver(std::ptr::null_mut(), &mut attributes, count);
        let mut clusters = 0;
        // SAFETY: configuration and attributes live across the call, which only reads them and writes one int.
        unsafe {
            sys::cuOccupancyMaxActiveClusters(
                &raw mut clusters,
                self.0.function.cu_function(),
                &raw const driver_config,
            )
        }
        .result()
        .map_err(Error::driver("cuOccupancyMaxActiveClusters"))?;
        Ok(u32::try_from(clusters).unwrap_or(0))
    }

    fn check(&self, config: &LaunchConfig) -> Result<()> {
        config.check(self.0.attributes.max_threads)?;
        let (major, minor) = self.0.compute_capability;
        if config.is_extended() && major < 9 {
            return Err(Error::UnsupportedDevice {
                needs: "compute capability 9.0 for clusters and programmatic launches".to_owned(),
                found: format!("{major}.{minor}"),
            });
        }
        Ok(())
    }

    /// Opts in to large dynamic shared memory the first time it is needed. The whole limit is allowed at once, so that the attribute
    /// never changes again; what a launch takes is its own `shared_bytes`.
    fn allow_shared(&self, bytes: u32) -> Result<()> {
        let kernel = &*self.0;
        if bytes > kernel.shared_limit {
            return Err(Error::UnsupportedDevice {
                needs: format!(
                    "{bytes} bytes of dynamic shared memory per block for {} (beside {} static)",
                    kernel.entry, kernel.attributes.shared_bytes
                ),
                found: format!("at most {} bytes", kernel.shared_limit),
            });
        }
        // Static shared memory counts against the same 48 KiB.
        if bytes + kernel.attributes.shared_bytes <= SHARED_WITHOUT_OPT_IN || kernel.opted_in.get().is_some() {
            return Ok(());
        }
        kernel.context.bind_to_thread().map_err(Error::driver("cuCtxSetCurrent"))?;
        // Two threads may both get here; they set the same value.
        kernel
            .function
            .set_attribute(
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                i32::try_from(kernel.shared_limit).unwrap_or(i32::MAX),
            )
            .map_err(Error::driver("cuFuncSetAttribute"))?;
        let _ = kernel.opted_in.set(());
        Ok(())
    }
}

/// A program's identity. Its texts are `'static`, so their addresses and lengths say which they are: the look-up need not hash or
/// compare whole sources. (Two programs with equal texts at different addresses are only loaded twice.)
#[derive(Clone, PartialEq, Eq, Hash)]
struct ModuleKey {
    source: (usize, usize),
    headers: (usize, usize),
    name: &'static str,
    defines: Vec<(String, String)>,
}

impl ModuleKey {
    fn new(program: &Program, defines: &[(&str, String)]) -> Self {
        Self {
            source: (program.source.as_ptr() as usize, program.source.len()),
            headers: (program.headers.as_ptr() as usize, program.headers.len()),
            name: program.name,
            defines: defines.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        }
    }
}

/// One compiled program, and once it is loaded the kernels taken from it so far.
#[derive(Default)]
struct Loaded {
    /// Compiled ahead; the module takes its place.
    image: Option<Vec<u8>>,
    module: Option<Arc<CudaModule>>,
    kernels: HashMap<String, Kernel>,
}

/// The kernels of one context. Each program has its own lock, so different programs compile at the same time.
#[derive(Default)]
pub(crate) struct KernelTable(Mutex<HashMap<ModuleKey, Arc<Mutex<Loaded>>>>);

impl KernelTable {
    /// Compiles side by side the programs of `variants` for `arch` that are not here yet.
    pub(crate) fn compile(&self, arch: &Arch, variants: &[Variant]) -> Result<()> {
        let mut seen = HashSet::new();
        let (missing, slots): (Vec<Variant>, Vec<_>) = variants
            .iter()
            .filter(|variant| variant.supports(*arch))
            .filter_map(|variant| {
                let slot = self.slot(variant.program, &variant.defines);
                let here = |loaded: &Loaded| loaded.module.is_some() || loaded.image.is_some();
                let new = seen.insert(Arc::as_ptr(&slot)) && !here(&lock(&slot));
                new.then(|| (variant.clone(), slot))
            })
            .unzip();
        let cubins = compile_all_in(&CubinCache::default_location(), &missing, arch);
        // What did compile is kept, whatever else failed.
        let mut first_error = Ok(());
        for (cubin, slot) in cubins.into_iter().zip(slots) {
            match cubin {
                Ok(cubin) => {
                    let mut loaded = lock(&slot);
                    // Another thread may have loaded it meanwhile.
                    if loaded.module.is_none() {
                        loaded.image = Some(cubin.image);
                    }
                }
                Err(error) => first_error = first_error.and(Err(error)),
            }
        }
        first_error
    }

    fn slot(&self, program: &Program, defines: &[(&str, String)]) -> Arc<Mutex<Loaded>> {
        lock(&self.0).entry(ModuleKey::new(program, defines)).or_default().clone()
    }

    pub(crate) fn get(
        &self,
        context: &Arc<CudaContext>,
        info: &DeviceInfo,
        program: &Program,
        entry: &str,
        defines: &[(&str, String)],
    ) -> Result<Kernel> {
        let slot = self.slot(program, defines);
        let mut loaded = lock(&slot);
        if let Some(kernel) = loaded.kernels.get(entry) {
            return Ok(kernel.clone());
        }
        let module = match &loaded.module {
            Some(module) => module.clone(),
            None => {
                let image = match loaded.image.take() {
                    Some(image) => image,
                    None => compile(program, &info.arch(), defines)?.image,
                };
                let module = context.load_module(Ptx::from_binary(image)).map_err(Error::driver("cuModuleLoadData"))?;
                loaded.module.insert(module).clone()
            }
        };
        let kernel = Kernel::load(context, info, &module, entry)?;
        loaded.kernels.insert(entry.to_owned(), kernel.clone());
        Ok(kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_apart_by_program_and_defines() {
        static HEADERS: &[(&str, &str)] = &[("a.cuh", "")];
        let program = Program { name: "p", source: "extern \"C\" __global__ void f() {}", headers: HEADERS };
        let other = Program { name: "q", source: program.source, headers: HEADERS };
        let one = [("N", "1".to_owned())];
        let two = [("N", "2".to_owned())];
        assert!(ModuleKey::new(&program, &one) == ModuleKey::new(&program, &one));
        assert!(ModuleKey::new(&program, &one) != ModuleKey::new(&program, &two));
        assert!(ModuleKey::new(&program, &one) != ModuleKey::new(&program, &[]));
        assert!(ModuleKey::new(&program, &one) != ModuleKey::new(&other, &one));
    }
}
