//! Looking for libraries.
