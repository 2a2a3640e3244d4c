// Order in which a persistent grid walks the tiles of one output matrix.
#pragma once
#include "base.cuh"

// Tiles are visited in bands of `band` tile rows, column by column within a band, so that the tiles in flight at one time share
// their operands in L2. The assignment is static: the same grid always computes the same tiles in the same order.
struct TileOrder {
  u32 rows, cols, band;  // in tiles
  DEV u32 count() const { return rows * cols; }
  struct Tile {
    u32 row, col;
  };
  DEV Tile at(u32 index) const {
    const u32 per_band = band * cols, first = index / per_band, rest = index - first * per_band;
    const u32 height = min_of(band, rows - first * band);
    return {first * band + rest % height, rest / height};
  }
};
