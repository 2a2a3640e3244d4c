//! Element types of tensors.

use std::fmt;
use std::str::FromStr;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

use crate::error::Error;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// IEEE 754 half precision, 2 bytes: 11 significant bits, largest finite value 65504.
    F16,
    /// bfloat16, 2 bytes: 8 significant bits, the range of `f32`.
    Bf16,
}

impl DType {
    /// Every dtype, in declaration order.
    pub const ALL: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// The lower-case name: `f32`, `f16` or `bf16`. The same text [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        }
    }

    /// The distance from 1 to the next larger value: 2⁻²³, 2⁻¹⁰ or 2⁻⁷. Half of it bounds the relative rounding error.
    pub const fn epsilon(self) -> f32 {
        match self {
            DType::F32 => f32::EPSILON,
            DType::F16 => 1.0 / 1024.0,
            DType::Bf16 => 1.0 / 128.0,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    /// Reads `f32`, `f16` or `bf16`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other text.
    fn from_str(text: &str) -> Result<Self, Error> {
        DType::ALL
            .into_iter()
            .find(|dtype| dtype.name() == text)
            .ok_or_else(|| Error::Unsupported { what: format!("dtype {text:?}; expected f32, f16 or bf16") })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A Rust type that can be the element of a tensor: `f32`, [`half::f16`] or [`half::bf16`]. Sealed.
pub trait Element:
    sealed::Sealed + DeviceRepr + ValidAsZeroBits + Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static
{
    /// The dtype this type stands for.
    const DTYPE: DType;

    /// The value as `f32`; exact for every element type.
    fn to_f32(self) -> f32;

    /// The nearest value of this type, ties to even; out of range becomes infinity.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_sizes_match_the_rust_types() {
        for dtype in DType::ALL {
            assert_eq!(dtype.to_string().parse::<DType>().unwrap(), dtype);
        }
        assert_eq!(DType::F32.size_bytes(), size_of::<f32>());
        assert_eq!(DType::F16.size_bytes(), size_of::<f16>());
        assert_eq!(DType::Bf16.size_bytes(), size_of::<bf16>());
    }

    #[test]
    fn epsilon_is_the_gap_above_one() {
        assert_eq!(DType::F16.epsilon(), f16::EPSILON.to_f32());
        assert_eq!(DType::Bf16.epsilon(), bf16::EPSILON.to_f32());
        assert_eq!(DType::F32.epsilon(), f32::EPSILON);
    }

    #[test]
    fn unknown_name_says_what_was_expected() {
        let message = "float64".parse::<DType>().unwrap_err().to_string();
        assert!(message.contains("float64") && message.contains("f32, f16 or bf16"), "{message}");
    }

    #[test]
    fn conversion_rounds_to_nearest_even() {
        // 1 + 2^-8 lies halfway between 1 and the next bf16: ties go to the even one, 1.
        assert_eq!(<bf16 as Element>::from_f32(1.0 + 1.0 / 256.0).to_f32(), 1.0);
        assert_eq!(<f16 as Element>::from_f32(1e6), f16::INFINITY);
        assert_eq!(<f32 as Element>::from_f32(0.1), 0.1);
    }
}
