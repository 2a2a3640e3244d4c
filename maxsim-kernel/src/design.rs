//! What is decided of a plan without touching the device.

use kernel_core::{Arch, DType, DeviceInfo, Gpu};

use crate::error::Result;
use crate::problem::{BackwardRoute, Options, Problem, Route};
use crate::scorer::Scorer;
use crate::tables::Tables;
use crate::tiles::Division;
use crate::workspace::{Needs, Regions};

/// Routes, the division of the work, and what memory it takes.
#[derive(Debug)]
pub(crate) struct Design {
    pub(crate) route: Route,
    pub(crate) backward: BackwardRoute,
    pub(crate) division: Division,
    pub(crate) regions: Regions,
    pub(crate) needs: Needs,
}

impl Design {
    pub(crate) fn new(info: &DeviceInfo, problem: &Problem, options: &Options) -> Result<Self> {
        Self::with_streaming(info, problem, options, true)
    }

    /// For a plan that takes the same kernels whatever the number of documents.
    pub(crate) fn without_streaming(info: &DeviceInfo, problem: &Problem, options: &Options) -> Result<Self> {
        Self::with_streaming(info, problem, options, false)
    }

    /// `streaming`: whether documents may be streamed.
    fn with_streaming(info: &DeviceInfo, problem: &Problem, options: &Options, streaming: bool) -> Result<Self> {
        problem.check()?;
        if info.compute_capability < (8, 0) {
            let (major, minor) = info.compute_capability;
            return Err(kernel_core::Error::UnsupportedDevice {
                needs: "compute capability 8.0 or newer".to_owned(),
                found: format!("{major}.{minor} ({})", info.name),
            }
            .into());
        }
        let route = resolve(info.arch(), problem.dtype, options.route)?;
        let backward = match options.backward {
            BackwardRoute::Auto => BackwardRoute::LowMemory,
            named => named,
        };
        let division = Scorer::division(route, info, problem, streaming);
        let (needs, regions) = Regions::layout(problem, &division, Scorer::padded_dim(problem), backward);
        Ok(Self { route, backward, division, regions, needs })
    }

    /// As `Plan::own_bytes` of a plan of it.
    pub(crate) fn own_bytes(&self, problem: &Problem) -> Result<usize> {
        Ok(Tables::new(None, problem, &self.division)?.bytes() + Scorer::own_bytes(self.route))
    }
}

/// The one place where dtype, device and wish become a route.
fn resolve(arch: Arch, dtype: DType, route: Route) -> Result<Route> {
    let hopper = arch.has_wgmma() && dtype != DType::F32;
    match route {
        Route::Auto if hopper => Ok(Route::Hopper),
        Route::Auto | Route::Portable => Ok(Route::Portable),
        Route::Hopper if hopper => Ok(Route::Hopper),
        Route::Hopper if dtype == DType::F32 => {
            let expected = "f16 or bf16 (f32 has the route portable)".to_owned();
            Err(kernel_core::Error::DType { what: "route hopper", found: dtype, expected }.into())
        }
        Route::Hopper => Err(kernel_core::Error::UnsupportedDevice {
            needs: "sm_90a for the route hopper".to_owned(),
            found: arch.to_string(),
        }
        .into()),
    }
}

/// Device memory in bytes that a plan will hold, without making it. Inputs, outputs and gradients are the caller's and not counted.
///
/// # Errors
/// As [`Plan::new`](crate::Plan::new), for what can be told from the problem and the device.
pub fn workspace_bytes(gpu: &Gpu, problem: &Problem, options: &Options) -> Result<usize> {
    let design = Design::new(gpu.info(), problem, options)?;
    Ok(design.needs.bytes() + design.own_bytes(problem)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_resolve_by_architecture_and_dtype() {
        let (hopper, ada) = (Arch::parse("sm_90a").unwrap(), Arch::parse("sm_89").unwrap());
        assert_eq!(resolve(hopper, DType::Bf16, Route::Auto).unwrap(), Route::Hopper);
        assert_eq!(resolve(hopper, DType::F32, Route::Auto).unwrap(), Route::Portable);
        assert_eq!(resolve(ada, DType::F16, Route::Auto).unwrap(), Route::Portable);
        assert_eq!(resolve(hopper, DType::F16, Route::Portable).unwrap(), Route::Portable);
        assert!(resolve(hopper, DType::F32, Route::Hopper).unwrap_err().to_string().contains("f32"));
        assert!(resolve(ada, DType::F16, Route::Hopper).unwrap_err().to_string().contains("sm_89"));
    }
}
