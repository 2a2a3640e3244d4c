//! Shared device headers.

/// The headers that every program may include: (name as it is included, text).
pub const HEADERS: &[(&str, &str)] = &[];
