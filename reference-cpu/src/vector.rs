//! Elementwise f32 functions written so that the compiler vectorises them, and the macro that compiles a loop for the vector
//! units that the machine turns out to have.
//!
//! `FMA` says whether a fused multiply-add is one instruction; where it is not, `mul_add` would be a slow library call.

/// `a * b + c`.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` for `x <= 0`, to about 1e-7 relative; 0 below -87.3, NaN for NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; the series of exp(r) to r⁷ leaves 5e-9.
#[inline(always)]
pub(crate) fn exp_negative<const FMA: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    // Adding 1.5·2²³ rounds to an integer and leaves it in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // `<` is false for NaN, which goes through to the series.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let shifted = mul_add::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -LN2_LOW, mul_add::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = 1.0 / 5040.0;
    p = mul_add::<FMA>(p, r, 1.0 / 720.0);
    p = mul_add::<FMA>(p, r, 1.0 / 120.0);
    p = mul_add::<FMA>(p, r, 1.0 / 24.0);
    p = mul_add::<FMA>(p, r, 1.0 / 6.0);
    p = mul_add::<FMA>(p, r, 0.5);
    p = mul_add::<FMA>(p, r, 1.0);
    p = mul_add::<FMA>(p, r, 1.0);
    // 2ⁿ from its exponent bits: n is in -126..=0.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { p * power }
}

/// `ln(1 + e)` for `0 <= e <= 1`, to about 1e-7 relative: 2·atanh(s) with s = e / (2 + e) ≤ 1/3, its series to s¹⁵.
#[inline(always)]
pub(crate) fn log1p_unit<const FMA: bool>(e: f32) -> f32 {
    let s = e / (2.0 + e);
    let q = s * s;
    let mut p = 1.0 / 15.0;
    p = mul_add::<FMA>(p, q, 1.0 / 13.0);
    p = mul_add::<FMA>(p, q, 1.0 / 11.0);
    p = mul_add::<FMA>(p, q, 1.0 / 9.0);
    p = mul_add::<FMA>(p, q, 1.0 / 7.0);
    p = mul_add::<FMA>(p, q, 1.0 / 5.0);
    p = mul_add::<FMA>(p, q, 1.0 / 3.0);
    let twice = s + s;
    mul_add::<FMA>(p, twice * q, twice)
}

/// `(ln(1 + exp(z)), 1 / (1 + exp(-z)))`, neither of which overflows or loses its small values.
#[inline(always)]
pub(crate) fn softplus_sigmoid<const FMA: bool>(z: f32) -> (f32, f32) {
    let e = exp_negative::<FMA>(-z.abs());
    let inverse = 1.0 / (1.0 + e);
    let softplus = if z > 0.0 { z } else { 0.0 } + log1p_unit::<FMA>(e);
    (softplus, if z > 0.0 { inverse } else { e * inverse })
}

/// `(sigmoid(z), sigmoid(-z))`, neither of which overflows or loses its small values.
#[inline(always)]
pub(crate) fn sigmoids<const FMA: bool>(z: f32) -> (f32, f32) {
    let e = exp_negative::<FMA>(-z.abs());
    let large = 1.0 / (1.0 + e);
    let small = e * large;
    if z > 0.0 { (large, small) } else { (small, large) }
}

/// Defines a function that runs `$body::<FMA, ..>` compiled for AVX-512 or AVX2 when the processor has it. `$body` is
/// `#[inline(always)]`, so that its loops are compiled anew in each.
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn with_avx512($($arg: $type),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn with_avx2($($arg: $type),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    if is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                    {
                        // SAFETY: the processor has every feature that the function is compiled for.
                        return unsafe { with_avx512($($arg),*) };
                    }
                    // SAFETY: as above.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// Partial sums kept apart, so that the additions vectorise.
const LANES: usize = 16;

multiversion! {
    /// Σ values, in f64.
    pub(crate) fn sum(values: &[f32]) -> f64 = sum_body
}

#[inline(always)]
fn sum_body<const FMA: bool>(values: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f64::from(value);
    }
    lanes.iter().sum()
}

multiversion! {
    /// Σ a·b, in f64, where the products are exact.
    pub(crate) fn dot_product(a: &[f32], b: &[f32]) -> f64 = dot_product_body
}

#[inline(always)]
fn dot_product_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let (mut left, mut right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (x, y) in (&mut left).zip(&mut right) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f64::from(x) * f64::from(y);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(left.remainder()).zip(right.remainder()) {
        *lane += f64::from(x) * f64::from(y);
    }
    lanes.iter().sum()
}

multiversion! {
    /// The largest value, NaN when any is NaN, -∞ of none.
    pub(crate) fn maximum(values: &[f32]) -> f32 = maximum_body
}

#[inline(always)]
fn maximum_body<const FMA: bool>(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // A sum of x - x would do, were it not for infinities; the flags are kept as integers so that they vectorise.
    let mut nans = [0u32; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for ((lane, nan), &value) in lanes.iter_mut().zip(&mut nans).zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
            *nan |= u32::from(value.is_nan());
        }
    }
    for ((lane, nan), &value) in lanes.iter_mut().zip(&mut nans).zip(chunks.remainder()) {
        *lane = if value > *lane { value } else { *lane };
        *nan |= u32::from(value.is_nan());
    }
    if nans.contains(&1) { f32::NAN } else { lanes.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(found: f32, exact: f64) -> f64 {
        if exact == 0.0 { f64::from(found).abs() } else { (f64::from(found) - exact).abs() / exact.abs() }
    }

    fn worst<const FMA: bool>() -> (f64, f64, f64) {
        let (mut exp, mut softplus, mut sigmoid) = (0f64, 0f64, 0f64);
        for i in 0..=200_000 {
            let z = (i as f32 - 100_000.0) * 4e-4;
            let x = f64::from(z);
            exp = exp.max(relative(exp_negative::<FMA>(-z.abs()), (-x.abs()).exp()));
            let (s, g) = softplus_sigmoid::<FMA>(z);
            softplus = softplus.max(relative(s, x.max(0.0) + (-x.abs()).exp().ln_1p()));
            let exact = if x > 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) };
            sigmoid = sigmoid.max(relative(g, exact));
        }
        (exp, softplus, sigmoid)
    }

    #[test]
    fn elementwise_functions_keep_f32_accuracy() {
        for (exp, softplus, sigmoid) in [worst::<false>(), worst::<true>()] {
            assert!(exp < 2e-7, "exp {exp:e}");
            assert!(softplus < 4e-7, "softplus {softplus:e}");
            assert!(sigmoid < 4e-7, "sigmoid {sigmoid:e}");
        }
    }

    #[test]
    fn reductions() {
        let values: Vec<f32> = (0..53).map(|i| ((i * 31) % 53) as f32 - 60.0).collect();
        assert_eq!(maximum(&values), -8.0);
        assert_eq!(maximum(&[]), f32::NEG_INFINITY);
        assert_eq!(sum(&values), values.iter().map(|&v| f64::from(v)).sum::<f64>());
        assert_eq!(dot_product(&values, &values), values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>());
        for i in 0..values.len() {
            let mut broken = values.clone();
            broken[i] = f32::NAN;
            assert!(maximum(&broken).is_nan() && sum(&broken).is_nan());
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(exp_negative::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_negative::<false>(0.0), 1.0);
        assert!(exp_negative::<false>(f32::NAN).is_nan());
        assert_eq!(softplus_sigmoid::<false>(-1e4), (0.0, 0.0));
        assert_eq!(softplus_sigmoid::<false>(1e4), (1e4, 1.0));
        assert_eq!(softplus_sigmoid::<false>(f32::INFINITY), (f32::INFINITY, 1.0));
        let (softplus, sigmoid) = softplus_sigmoid::<false>(f32::NAN);
        assert!(softplus.is_nan() && sigmoid.is_nan());
    }
}
