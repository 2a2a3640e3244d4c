//! The functions that allocate give what a plan gives.

use siglip_kernel::cpu::Element;
use siglip_kernel::{Error, Inputs, MatrixView, Plan, Positives, Scalar, kernel_core};

use crate::case::{Case, Device, Host};
use crate::support::{bits, gpu, per_dtype};

fn allocating_calls<T: Element>() {
    let Some(gpu) = gpu() else { return };
    let case = Case { positives: Positives::Diagonal { offset: -3 }, upstream: 2.5, ..Case::new(200, 333, 56) };
    let host = Host::<T>::unit(&case, 3);
    let mut plan = Plan::new(&gpu, case.problem::<T>(), case.options).unwrap();
    let mut device = Device::new(&gpu, case, &host);
    let expected = device.run(&gpu, &mut plan, &host).unwrap();
    let (inputs, _, upstream) = device.views();
    let loss = siglip_kernel::forward(&gpu, &inputs, case.positives).unwrap();
    assert_eq!(gpu.download(&loss).unwrap()[0].to_bits(), expected.forward.to_bits());
    let found = siglip_kernel::forward_backward(&gpu, &inputs, case.positives, &upstream).unwrap();
    let same = |found: &[T], expected: &[T]| found.iter().map(|x| bits(*x)).eq(expected.iter().map(|x| bits(*x)));
    assert_eq!(gpu.download(&found.loss).unwrap(), [expected.loss]);
    assert!(same(&gpu.download(&found.d_img).unwrap(), &expected.d_img));
    assert!(same(&gpu.download(&found.d_txt).unwrap(), &expected.d_txt));
    assert_eq!(gpu.download(&found.d_log_temp).unwrap(), [expected.d_log_temp]);
    assert_eq!(gpu.download(&found.d_bias).unwrap(), [expected.d_bias]);
}

/// One set of embeddings against itself: inputs may share memory.
fn inputs_may_be_one<T: Element>() {
    let Some(gpu) = gpu() else { return };
    let case = Case::new(150, 150, 48);
    let host = Host::<T>::unit(&case, 5);
    let (first, second) = (gpu.upload(&host.img).unwrap(), gpu.upload(&host.img).unwrap());
    let loss = |other| {
        let inputs = Inputs {
            img: MatrixView::new("img", &first, [150, 48]).unwrap(),
            txt: MatrixView::new("txt", other, [150, 48]).unwrap(),
            log_temp: Scalar::Host(1.0),
            bias: Scalar::Host(-1.0),
        };
        let loss = siglip_kernel::forward(&gpu, &inputs, Positives::Matching).unwrap();
        gpu.download(&loss).unwrap()[0]
    };
    assert_eq!(loss(&first), loss(&second));
}

/// Rows of different lengths are named.
fn dims_must_agree<T: Element>() {
    let Some(gpu) = gpu() else { return };
    let data = gpu.alloc::<T>(160).unwrap();
    let inputs = Inputs {
        img: MatrixView::new("img", &data, [10, 16]).unwrap(),
        txt: MatrixView::new("txt", &data, [20, 8]).unwrap(),
        log_temp: Scalar::Host(1.0),
        bias: Scalar::Host(-1.0),
    };
    let error = siglip_kernel::forward(&gpu, &inputs, Positives::None).unwrap_err();
    assert!(matches!(&error, Error::Gpu(kernel_core::Error::Shape { what: "txt", .. })), "{error}");
    let error = siglip_kernel::forward_backward(&gpu, &inputs, Positives::None, &Scalar::Host(1.0)).unwrap_err();
    assert!(matches!(&error, Error::Gpu(kernel_core::Error::Shape { what: "txt", .. })), "{error}");
}

per_dtype!(allocating_calls, inputs_may_be_one, dims_must_agree);
