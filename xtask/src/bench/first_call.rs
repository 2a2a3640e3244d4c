//! What the first call of a process costs: with no cache at all, and with what an earlier process left.

use crate::siglip::{DeviceCall, options, random_rows};
use anyhow::{Context, Result, bail};
use kernel_core::Gpu;
use kernel_core::half::bf16;
use reference_cpu::siglip::SiglipParams;
use siglip_kernel::{Plan, Route, tune};
use std::collections::BTreeMap;
use std::env;
use std::process::Command;
use std::time::Instant;

/// Time the first call of this process (run by `bench` in processes of their own)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// With a measured row chunk, at a size where there is a choice
    #[arg(long)]
    tune: bool,
}

/// Prints the seconds from making the plan to the first result. Starting the driver is not counted: every CUDA program pays for it.
pub(crate) fn run(args: Args) -> Result<()> {
    const D: usize = 768;
    let b = if args.tune { 65_536 } else { 4_096 };
    let gpu = Gpu::new(args.device)?;
    let (img, txt) = (random_rows::<bf16>(b, D, 1), random_rows::<bf16>(b, D, 2));
    let mut call = DeviceCall::new(&gpu, &img, &txt, D, &SiglipParams::square(b, 10f32.ln(), -10.0))?;
    gpu.synchronize()?;
    let start = Instant::now();
    let options = match args.tune {
        true => tune(&gpu, &call.problem, options(Route::Auto, None))?,
        false => options(Route::Auto, None),
    };
    let mut plan = Plan::new(&gpu, call.problem, options)?;
    call.step(&mut plan)?;
    let loss = call.loss()?;
    let seconds = start.elapsed().as_secs_f64();
    if !loss.is_finite() {
        bail!("the first call gave a loss of {loss}");
    }
    println!("{seconds}");
    Ok(())
}

/// Seconds of the first call with an empty cache folder and with the one that this left; the same with a row chunk that is measured and remembered.
pub(crate) fn measure(device: usize) -> Result<BTreeMap<String, f64>> {
    let cache = env::temp_dir().join(format!("xtask-first-call-{}", std::process::id()));
    let mut figures = BTreeMap::new();
    let mut measured = || -> Result<()> {
        for (name, arguments) in [
            ("siglip_first_call_without_cache_s", [].as_slice()),
            ("siglip_first_call_with_cache_s", &[]),
            ("siglip_tuned_first_call_without_cache_s", &["--tune"]),
            ("siglip_tuned_first_call_with_cache_s", &["--tune"]),
        ] {
            if name.ends_with("without_cache_s") {
                // Of the one before, if there was one.
                let _ = std::fs::remove_dir_all(&cache);
            }
            let output = Command::new(env::current_exe().context("finding this program")?)
                .args(["first-call", "--device", &device.to_string()])
                .args(arguments)
                .env_remove("KERNELS_AUTOTUNE")
                .env("FUSED_KERNELS_CACHE_DIR", &cache)
                // NVRTC and the driver keep caches of their own, which a fresh machine does not have.
                .env("CUDA_CACHE_DISABLE", "1")
                .output()
                .context("starting a process for the first call")?;
            if !output.status.success() {
                bail!("the process of the first call failed: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
            let text = String::from_utf8_lossy(&output.stdout);
            figures
                .insert(name.to_owned(), text.trim().parse().with_context(|| format!("its answer `{}`", text.trim()))?);
        }
        Ok(())
    };
    let result = measured();
    // Made by us under a name of our own; what cannot be removed stays in the folder for temporary files.
    let _ = std::fs::remove_dir_all(&cache);
    result.map(|()| figures)
}
