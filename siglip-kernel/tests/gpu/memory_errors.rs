//! Too little device memory is an error, and the device is as usable as before.

use siglip_kernel::kernel_core::Error;
use siglip_kernel::{Chunk, DType, Options, Plan, Positives, Problem, workspace_bytes};

use crate::case::{Case, Host, run};
use crate::support::gpu;

#[test]
fn full_memory() {
    let Some(gpu) = gpu() else { return };
    let whole = Options { chunk: Chunk::Rows(usize::MAX), ..Options::default() };
    let most = i32::MAX as usize;
    let problems = [
        // f32 accumulators of the text side alone: 35 TB.
        (Problem::block(20_000, most, 4096, DType::Bf16, Positives::None), Options::default()),
        // Padded copies of the texts: 17 TB.
        (Problem::block(1000, most, 4095, DType::F16, Positives::Matching), Options::default()),
        // One block of all rows.
        (Problem::block(most, most, 8, DType::F32, Positives::Matching), whole),
        // More bytes than there are addresses.
        (Problem::block(most, most, most, DType::Bf16, Positives::Matching), Options::default()),
    ];
    for (problem, options) in problems {
        let needed = workspace_bytes(&gpu, &problem, &options).unwrap();
        match Plan::new(&gpu, problem, options) {
            Err(siglip_kernel::Error::Gpu(Error::OutOfMemory { bytes, free, total })) => {
                assert_eq!(bytes, needed, "{problem:?}");
                assert!(free <= total && total > 0, "{free} of {total}");
            }
            other => panic!("expected OutOfMemory, found {other:?}"),
        }
    }
    let case = Case::new(100, 100, 16);
    assert!(run(&gpu, &case, &Host::<f32>::unit(&case, 3)).unwrap().loss.is_finite());
}
