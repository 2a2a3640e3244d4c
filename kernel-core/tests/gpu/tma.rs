//! Tensor maps: tiles travel through shared memory and back.

use half::bf16;
use kernel_core::cudarc::driver::DevicePtr;
use kernel_core::{Error, LaunchConfig, MapType, Swizzle, TensorMap, TiledMap};

use crate::programs::TMA;
use crate::support::{hopper, noise, skip};

const ROWS: usize = 100;
const COLS: usize = 136;
/// Elements; 288 bytes, a multiple of 16.
const STRIDE: usize = 144;

#[test]
fn tiles_round_trip_and_read_zero_beyond_the_edge() {
    let Some(gpu) = hopper() else { return };
    let kernel = match gpu.kernel(&TMA, "round_trip", &[]) {
        Ok(kernel) => kernel,
        Err(error @ Error::MissingLibrary { .. }) => return skip(&format!("no NVRTC ({error})")),
        Err(error) => panic!("{error}"),
    };
    let host: Vec<bf16> = noise(ROWS * STRIDE, 3).into_iter().map(bf16::from_f32).collect();
    let source = gpu.upload(&host).unwrap();
    for (swizzle, tile) in
        [(Swizzle::None, [64u32, 32u32]), (Swizzle::B32, [16, 64]), (Swizzle::B64, [32, 16]), (Swizzle::B128, [64, 64])]
    {
        let filler = bf16::from_f32(7.0);
        let target = gpu.upload(&vec![filler; ROWS * STRIDE]).unwrap();
        let grid = [COLS.div_ceil(tile[0] as usize), ROWS.div_ceil(tile[1] as usize)];
        let words = (tile[0] * tile[1]) as usize;
        let dense = gpu.alloc::<bf16>(grid[0] * grid[1] * words).unwrap();
        {
            let (from, _from) = source.device_ptr(gpu.stream());
            let (to, _to) = target.device_ptr(gpu.stream());
            let (copy, _copy) = dense.device_ptr(gpu.stream());
            let map = |address| {
                TensorMap::tiled(&TiledMap {
                    dtype: MapType::Bf16,
                    address,
                    dims: &[COLS as u64, ROWS as u64],
                    strides: &[STRIDE as u64 * 2],
                    tile: &tile,
                    swizzle,
                    l2_promotion: true,
                })
                .unwrap()
            };
            let config = LaunchConfig {
                grid: [grid[0] as u32, grid[1] as u32, 1],
                ..LaunchConfig::linear(1, 32).with_shared(tile[0] * tile[1] * 2 + 1024)
            };
            // SAFETY: the maps cover the two matrices, `dense` holds one tile a block, shared memory a tile and its alignment.
            unsafe {
                kernel.launch(gpu.stream(), &config, &[&map(from), &map(to), &copy, &tile[0], &tile[1]]).unwrap();
            }
        }
        let found = gpu.download(&target).unwrap();
        for (i, (found, source)) in found.iter().zip(&host).enumerate() {
            let expected = if i % STRIDE < COLS { *source } else { filler };
            assert_eq!(*found, expected, "{swizzle:?}, row {}, column {}", i / STRIDE, i % STRIDE);
        }
        if swizzle == Swizzle::None {
            for (i, found) in gpu.download(&dense).unwrap().iter().enumerate() {
                let (block, inside) = (i / words, i % words);
                let row = block / grid[0] * tile[1] as usize + inside / tile[0] as usize;
                let col = block % grid[0] * tile[0] as usize + inside % tile[0] as usize;
                let expected = if row < ROWS && col < COLS { host[row * STRIDE + col] } else { bf16::ZERO };
                assert_eq!(*found, expected, "row {row}, column {col}");
            }
        }
    }
}
