//! Compiles and runs README's examples as documentation tests; holds nothing else. (Tests of documentation exist for libraries only.)

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
