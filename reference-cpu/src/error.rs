//! The crate's one error type.

/// What was wrong with a call, and what was expected. No function of this crate panics on its arguments.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument's shape does not fit the others.
    #[error("{what} has shape {found}, expected {expected}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// Its shape.
        found: String,
        /// The shape the other arguments ask for.
        expected: String,
    },
    /// A row stride is smaller than a row.
    #[error("{what} has a row stride of {found} elements, expected at least {minimum}")]
    Stride {
        /// The argument.
        what: &'static str,
        /// Its row stride in elements.
        found: usize,
        /// The length of its rows.
        minimum: usize,
    },
    /// A slice holds fewer elements than its shape and stride need.
    #[error("{what} holds {found} elements, expected at least {needed}")]
    Length {
        /// The argument.
        what: &'static str,
        /// Elements in the slice.
        found: usize,
        /// Elements that the shape and stride reach.
        needed: usize,
    },
    /// A size that must be positive is zero.
    #[error("{what} is zero, expected at least 1")]
    ZeroSize {
        /// The size.
        what: &'static str,
    },
    /// A scalar argument, or a scale made from scalar arguments, is NaN or infinite.
    #[error("{what} is {value}, expected a finite number")]
    NonFinite {
        /// The scalar.
        what: &'static str,
        /// Its value.
        value: f32,
    },
    /// Packed offsets do not start at 0, decrease, or reach past the tokens.
    #[error("{what}[{index}] is {found}, expected {expected}")]
    Offset {
        /// The offsets.
        what: &'static str,
        /// Position of the first wrong offset.
        index: usize,
        /// Its value.
        found: usize,
        /// What it should have been.
        expected: String,
    },
    /// An index names something that does not exist.
    #[error("{what}[{index}] is {found}, expected {expected}")]
    Index {
        /// The list that holds the index.
        what: &'static str,
        /// Position of the first wrong index.
        index: usize,
        /// Its value.
        found: i64,
        /// What it should have been.
        expected: String,
    },
}

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
