//! The hash of the sources that this binary was built from (see `build.rs`).

/// Of kernel-core and all families together.
pub(crate) const ALL: &str = env!("SOURCE_HASH_ALL");

/// Of kernel-core and one family; `None` for a family that this binary does not know.
pub(crate) fn of_family(family: &str) -> Option<&'static str> {
    match family {
        "siglip" => Some(env!("SOURCE_HASH_SIGLIP")),
        "swiglu" => Some(env!("SOURCE_HASH_SWIGLU")),
        "maxsim" => Some(env!("SOURCE_HASH_MAXSIM")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_hashes_of_their_own() {
        let hashes: Vec<_> = ["siglip", "swiglu", "maxsim"].into_iter().filter_map(of_family).collect();
        assert_eq!(hashes.len(), 3);
        assert!(hashes.iter().all(|hash| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit())));
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && hashes[0] != ALL);
        assert_eq!(of_family("other"), None);
    }
}
