//! The element types: f32, f16 and bf16.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A type of tensor elements: `f32`, [`half::f16`] or [`half::bf16`]. All arithmetic is done in f32.
pub trait Element: private::Sealed + Copy + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// "f32", "f16" or "bf16".
    const NAME: &'static str;

    /// Distance from 1 to the next larger value of the type.
    const EPSILON: f32;

    /// The value as f32, exactly.
    fn to_f32(self) -> f32;

    /// The nearest value of the type, ties to even.
    fn from_f32(value: f32) -> Self;

    /// Converts a slice to f32; both slices have the same length.
    #[doc(hidden)]
    fn widen(source: &[Self], target: &mut [f32]);

    /// Rounds a slice from f32; both slices have the same length.
    #[doc(hidden)]
    fn narrow(source: &[f32], target: &mut [Self]);

    /// The slice itself when the type is f32: what can be read in place needs no copy.
    #[doc(hidden)]
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }

    /// The slice itself when the type is f32: what can be summed in place needs no buffer.
    #[doc(hidden)]
    fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const EPSILON: f32 = f32::EPSILON;

    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(value: f32) -> Self {
        value
    }

    fn widen(source: &[Self], target: &mut [f32]) {
        target.copy_from_slice(source);
    }

    fn narrow(source: &[f32], target: &mut [Self]) {
        target.copy_from_slice(source);
    }

    fn as_f32(slice: &[Self]) -> Option<&[f32]> {
        Some(slice)
    }

    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]> {
        Some(slice)
    }
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const EPSILON: f32 = 9.765_625e-4;

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn widen(source: &[Self], target: &mut [f32]) {
        source.convert_to_f32_slice(target);
    }

    fn narrow(source: &[f32], target: &mut [Self]) {
        target.convert_from_f32_slice(source);
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const EPSILON: f32 = 7.812_5e-3;

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn widen(source: &[Self], target: &mut [f32]) {
        // A shift, unlike half's conversion, has no branch for NaN and vectorises.
        for (to, from) in target.iter_mut().zip(source) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }

    fn narrow(source: &[f32], target: &mut [Self]) {
        target.convert_from_f32_slice(source);
    }
}
