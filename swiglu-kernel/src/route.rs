//! The one place where device, dtype, sizes and wish become a path.

use kernel_core::{Arch, DType, DeviceInfo};

use crate::error::Result;
use crate::problem::{Problem, Route};

/// The kernels behind a forward: a [`Route`] resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Sm90,
    DecodeSm90,
    Decode,
    Portable,
}

impl Path {
    pub(crate) fn route(self) -> Route {
        match self {
            Path::Sm90 => Route::Fused,
            Path::DecodeSm90 => Route::Decode,
            Path::Decode => Route::PortableDecode,
            Path::Portable => Route::Portable,
        }
    }

    /// Whether rows must begin at multiples of 16 bytes.
    pub(crate) fn needs_alignment(self) -> bool {
        self != Path::Portable
    }
}

/// The most rows that the decode kernel takes.
pub(crate) const DECODE_ROWS: usize = 64;

/// What the tensor cores' loads ask of the sizes: whole 16-byte pieces in a row of either layout.
fn tiles(problem: &Problem) -> bool {
    problem.inputs.is_multiple_of(8) && problem.outputs.is_multiple_of(8)
}

fn unsupported(what: String) -> crate::Error {
    kernel_core::Error::Unsupported { what }.into()
}

pub(crate) fn resolve(arch: Arch, problem: &Problem, route: Route) -> Result<Path> {
    let sixteen_bit = problem.dtype != DType::F32;
    let Problem { rows, inputs, outputs, dtype, .. } = *problem;
    let decode = if arch.has_wgmma() { Path::DecodeSm90 } else { Path::Decode };
    match route {
        Route::Portable => Ok(Path::Portable),
        Route::Auto if sixteen_bit && tiles(problem) && rows <= DECODE_ROWS => Ok(decode),
        Route::Auto if sixteen_bit && tiles(problem) && arch.has_wgmma() => Ok(Path::Sm90),
        Route::Auto => Ok(Path::Portable),
        Route::Fused | Route::Decode | Route::PortableDecode if !sixteen_bit => Err(kernel_core::Error::DType {
            what: match route {
                Route::Fused => "route fused",
                Route::Decode => "route decode",
                _ => "route portable-decode",
            },
            found: dtype,
            expected: "f16 or bf16 (f32 has the route portable)".to_owned(),
        }
        .into()),
        Route::Fused | Route::Decode | Route::PortableDecode if !tiles(problem) => Err(unsupported(format!(
            "route {route} with K = {inputs} and N = {outputs}; expected multiples of 8 (the route portable takes any)"
        ))),
        Route::Decode | Route::PortableDecode if rows > DECODE_ROWS => {
            Err(unsupported(format!("route {route} with M = {rows}; expected at most {DECODE_ROWS}")))
        }
        Route::Decode => Ok(decode),
        Route::PortableDecode => Ok(Path::Decode),
        Route::Fused if arch.has_wgmma() => Ok(Path::Sm90),
        Route::Fused => Err(kernel_core::Error::UnsupportedDevice {
            needs: "an sm_90a device for the route fused".to_owned(),
            found: arch.to_string(),
        }
        .into()),
    }
}

/// The oldest device that the kernels run on.
pub(crate) fn check_device(info: &DeviceInfo) -> Result<()> {
    if info.compute_capability >= (8, 0) {
        return Ok(());
    }
    let (major, minor) = info.compute_capability;
    Err(kernel_core::Error::UnsupportedDevice {
        needs: "compute capability 8.0 or newer".to_owned(),
        found: format!("{major}.{minor} ({})", info.name),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_resolve_by_device_dtype_and_size() {
        let (hopper, ada) = (Arch::parse("sm_90a").unwrap(), Arch::parse("sm_89").unwrap());
        let large = Problem::new(4096, 1024, 4096, DType::Bf16);
        let few = Problem { rows: 64, ..large };
        let odd = Problem { inputs: 1001, ..large };
        let float = Problem { dtype: DType::F32, ..few };
        assert_eq!(resolve(hopper, &large, Route::Auto).unwrap(), Path::Sm90);
        assert_eq!(resolve(ada, &large, Route::Auto).unwrap(), Path::Portable);
        assert_eq!(resolve(hopper, &few, Route::Auto).unwrap(), Path::DecodeSm90);
        assert_eq!(resolve(hopper, &few, Route::PortableDecode).unwrap(), Path::Decode);
        assert_eq!(resolve(ada, &few, Route::Decode).unwrap(), Path::Decode);
        assert_eq!(resolve(ada, &few, Route::Auto).unwrap(), Path::Decode);
        assert_eq!(resolve(hopper, &few, Route::Fused).unwrap(), Path::Sm90);
        assert_eq!(resolve(hopper, &odd, Route::Auto).unwrap(), Path::Portable);
        assert_eq!(resolve(hopper, &float, Route::Auto).unwrap(), Path::Portable);
        let message = |arch, problem, route| resolve(arch, problem, route).unwrap_err().to_string();
        assert!(message(hopper, &float, Route::Decode).contains("route decode"));
        assert!(message(hopper, &odd, Route::Fused).contains("1001"));
        assert!(message(hopper, &large, Route::Decode).contains("4096"));
        assert!(message(ada, &large, Route::Fused).contains("sm_89"));
    }
}
