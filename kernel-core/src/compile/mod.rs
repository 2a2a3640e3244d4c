//! Sources to CUBIN.
