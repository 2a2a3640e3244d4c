//! Tiles of the 16-bit and of the 8-bit gradient products.

use kernel_core::sm90::TILE;

/// Columns of a tile: 192, which ask a sixth less of L2 than 128 do, unless the `sms` multiprocessors take longer over their waves of them.
/// `more`: what a tile takes beside its columns, as so many of them. `rows`: of a block's output, which is `dim` wide.
pub(crate) fn columns([rows, dim]: [usize; 2], more: usize, sms: usize) -> usize {
    let time = |columns: usize| (rows.div_ceil(TILE) * dim.div_ceil(columns)).div_ceil(sms) * (columns + more);
    if time(192) <= time(128) { 192 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_wide_where_their_waves_are_full() {
        for (rows, dim, expected) in
            [(8192, 768, 192), (16384, 768, 192), (5504, 768, 128), (128, 768, 128), (5632, 1152, 192), (128, 64, 128)]
        {
            assert_eq!(columns([rows, dim], 0, 132), expected, "{rows} x {dim}");
        }
    }

    #[test]
    fn tiles_that_cost_more_are_wide_but_where_narrow_ones_save_waves() {
        for (rows, dim, expected) in [(11_264, 768, 192), (8192, 768, 192), (128, 768, 128), (5504, 768, 128)] {
            assert_eq!(columns([rows, dim], 256, 132), expected, "{rows} x {dim}");
        }
    }
}
