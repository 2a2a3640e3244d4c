//! Without a driver everything that needs one is an error value. The only test of its process, because it changes the environment.

use kernel_core::probe::LIBRARY_PATH_VARIABLE;
use kernel_core::{Error, Gpu, MapType, Swizzle, TensorMap, TiledMap};

#[test]
fn an_absent_driver_is_an_error_value() {
    let empty = tempfile::tempdir().unwrap();
    // SAFETY: no other thread of this process reads or writes the environment.
    unsafe { std::env::set_var(LIBRARY_PATH_VARIABLE, empty.path()) };

    for error in [Gpu::new(0).unwrap_err(), Gpu::count().unwrap_err()] {
        assert!(matches!(error, Error::MissingLibrary { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("libcuda") && message.contains("install the NVIDIA driver"), "{message}");
    }

    let map = TiledMap {
        dtype: MapType::Bf16,
        address: 0x1000,
        dims: &[64, 64],
        strides: &[128],
        tile: &[64, 64],
        swizzle: Swizzle::B128,
        l2_promotion: false,
    };
    let error = TensorMap::tiled(&map).unwrap_err();
    assert!(matches!(error, Error::MissingLibrary { .. }), "{error}");
}
