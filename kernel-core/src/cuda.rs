//! Shared device headers.
