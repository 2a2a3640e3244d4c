//! Persistent cache of measured choices.
