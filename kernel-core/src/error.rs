//! The one error type of the crate.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::dtype::DType;

/// `Result` with [`enum@Error`] as its error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Every message names what was wrong and what was expected.
///
/// After any of these the caller's inputs are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The CUDA driver could not be started.
    #[error("no usable CUDA driver: {detail}; expected an NVIDIA driver (libcuda) that supports CUDA 12 or newer")]
    NoDriver {
        /// What the driver or the loader said.
        detail: String,
    },
    /// There is no device of this ordinal.
    #[error("no CUDA device {ordinal}: the driver lists {available} device(s); expected an ordinal below that")]
    NoDevice {
        /// The ordinal that was asked for.
        ordinal: usize,
        /// How many devices the driver lists.
        available: usize,
    },
    /// A shared library was not found.
    #[error("{library} was not found; {hint} (tried: {})", join(tried))]
    MissingLibrary {
        /// The library's name.
        library: &'static str,
        /// The names and paths that were tried, in order.
        tried: Vec<String>,
        /// What to do about it.
        hint: &'static str,
    },
    /// The device lacks something that the operation needs.
    #[error("unsupported device: needs {needs}, found {found}")]
    UnsupportedDevice {
        /// What is needed.
        needs: String,
        /// What the device has.
        found: String,
    },
    /// A shape or a length is not what the operation expects.
    #[error("{what}: wrong shape: found {found}, expected {expected}")]
    Shape {
        /// The tensor or argument.
        what: &'static str,
        /// Its shape or length.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A dtype is not what the operation expects.
    #[error("{what}: wrong dtype: found {found}, expected {expected}")]
    DType {
        /// The tensor or argument.
        what: &'static str,
        /// Its dtype.
        found: DType,
        /// What was expected.
        expected: String,
    },
    /// A row stride is smaller than the row.
    #[error("{what}: wrong row stride: found {found} elements, expected at least {minimum}")]
    Stride {
        /// The tensor or argument.
        what: &'static str,
        /// Its row stride in elements.
        found: usize,
        /// The smallest one that is allowed, in elements.
        minimum: usize,
    },
    /// An address (or a stride in bytes) is not aligned as the operation needs.
    #[error("{what}: misaligned: found {address:#x}, expected a multiple of {required} bytes")]
    Misaligned {
        /// The tensor or argument.
        what: &'static str,
        /// The device address, or the stride in bytes.
        address: u64,
        /// The alignment in bytes that is needed.
        required: usize,
    },
    /// A tensor, stream or plan belongs to another device (or to another context of the same device).
    #[error("{what}: wrong device: found one of device {found}, expected one of device {expected} in the same context")]
    WrongDevice {
        /// The tensor or argument.
        what: &'static str,
        /// Ordinal of the device it belongs to.
        found: usize,
        /// Ordinal of the device that was expected.
        expected: usize,
    },
    /// Two tensors that must not share memory do.
    #[error("{a} and {b} overlap in memory: expected them to be disjoint")]
    Overlap {
        /// One tensor.
        a: &'static str,
        /// The other one.
        b: &'static str,
    },
    /// An extent that must be positive is zero.
    #[error("{what}: zero size: found an extent of 0, expected at least 1")]
    ZeroSize {
        /// The tensor, argument or extent.
        what: &'static str,
    },
    /// A scalar is infinite or not a number.
    #[error("{what}: not finite: found {value}, expected a finite number")]
    NonFinite {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: f32,
    },
    /// Device memory ran out.
    #[error(
        "out of device memory: {} needed, {free} bytes free of {total}",
        if *bytes == 0 { "an unknown amount".to_owned() } else { format!("{bytes} bytes") }
    )]
    OutOfMemory {
        /// Bytes that were asked for, or 0 when the failing call does not say.
        bytes: usize,
        /// Bytes free on the device just after the failure, or 0 when unknown.
        free: usize,
        /// Bytes the device has, or 0 when unknown.
        total: usize,
    },
    /// A CUDA source did not compile.
    #[error("{program} does not compile for {arch}:\n{log}")]
    Compile {
        /// The program's name.
        program: String,
        /// The architecture it was compiled for.
        arch: String,
        /// The compiler's log.
        log: String,
    },
    /// A call of the CUDA driver failed.
    #[error("{call} failed with {:?}", source.0)]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's error.
        source: DriverError,
    },
    /// A call of cuBLASLt failed.
    #[error("{call} failed with {status}; expected CUBLAS_STATUS_SUCCESS")]
    Cublas {
        /// The call.
        call: &'static str,
        /// The status it returned.
        status: String,
    },
    /// Something that is not supported.
    #[error("unsupported: {what}")]
    Unsupported {
        /// What, and what is supported instead.
        what: String,
    },
    /// Reading or writing a file failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being read or written, with its path.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Error {
    /// Turns a failure of the driver's `call` into an error; out-of-memory becomes [`Error::OutOfMemory`] (with unknown sizes).
    ///
    /// Made for `map_err`: `result.map_err(Error::driver("cuLaunchKernel"))?`.
    pub fn driver(call: &'static str) -> impl Fn(DriverError) -> Error {
        move |source| match source.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { bytes: 0, free: 0, total: 0 },
            _ => Error::Driver { call, source },
        }
    }
}

impl From<DriverError> for Error {
    fn from(source: DriverError) -> Self {
        Error::driver("a CUDA driver call")(source)
    }
}

fn join(tried: &[String]) -> String {
    if tried.is_empty() { "nothing".to_owned() } else { tried.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_keeps_its_kind() {
        let error = Error::from(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert!(matches!(error, Error::OutOfMemory { .. }));
        assert!(error.to_string().contains("unknown amount"), "{error}");
        let error = Error::OutOfMemory { bytes: 4096, free: 10, total: 20 };
        assert_eq!(error.to_string(), "out of device memory: 4096 bytes needed, 10 bytes free of 20");
    }

    #[test]
    fn driver_error_names_call_and_code() {
        let error = Error::driver("cuLaunchKernel")(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert_eq!(error.to_string(), "cuLaunchKernel failed with CUDA_ERROR_INVALID_VALUE");
    }

    #[test]
    fn messages_name_found_and_expected() {
        let cases = [
            (Error::NoDevice { ordinal: 3, available: 1 }, vec!["device 3", "1 device"]),
            (Error::NoDriver { detail: "cuInit said 999".into() }, vec!["cuInit said 999", "NVIDIA driver"]),
            (
                Error::MissingLibrary { library: "nvrtc", tried: vec!["a".into(), "b".into()], hint: "install it" },
                vec!["nvrtc", "install it", "a, b"],
            ),
            (
                Error::UnsupportedDevice { needs: "sm_80".into(), found: "sm_75".into() },
                vec!["needs sm_80", "found sm_75"],
            ),
            (
                Error::Shape { what: "img", found: "[2, 3]".into(), expected: "[2, 4]".into() },
                vec!["img", "[2, 3]", "[2, 4]"],
            ),
            (
                Error::DType { what: "img", found: DType::F16, expected: "bf16".into() },
                vec!["img", "found f16", "expected bf16"],
            ),
            (Error::Stride { what: "img", found: 3, minimum: 4 }, vec!["img", "found 3", "at least 4"]),
            (Error::Misaligned { what: "img", address: 0x102, required: 16 }, vec!["img", "0x102", "16 bytes"]),
            (Error::WrongDevice { what: "img", found: 1, expected: 0 }, vec!["img", "device 1", "device 0"]),
            (Error::Overlap { a: "img", b: "d_img" }, vec!["img and d_img", "disjoint"]),
            (Error::ZeroSize { what: "rows of img" }, vec!["rows of img", "at least 1"]),
            (Error::NonFinite { what: "upstream", value: f32::NAN }, vec!["upstream", "NaN", "finite number"]),
            (
                Error::Compile { program: "p".into(), arch: "sm_90a".into(), log: "line 3: oops".into() },
                vec!["p", "sm_90a", "line 3: oops"],
            ),
            (
                Error::Cublas { call: "cublasLtMatmul", status: "CUBLAS_STATUS_INVALID_VALUE".into() },
                vec!["cublasLtMatmul", "INVALID_VALUE"],
            ),
            (Error::Unsupported { what: "rank 6; at most 5".into() }, vec!["rank 6; at most 5"]),
            (Error::Io { what: "reading x".into(), source: std::io::Error::other("bad") }, vec!["reading x", "bad"]),
        ];
        for (error, parts) in cases {
            let message = error.to_string();
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
    }
}
