//! Every kernel that a family can launch, for checks and hashes.

use crate::arch::Arch;
use crate::program::Program;

/// One kernel as it is compiled: a program, the entry point, and the macros it is compiled with.
///
/// Each family lists all of its variants, so that they can be compiled for every architecture without a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The source.
    pub program: &'static Program,
    /// The `extern "C"` name of the kernel.
    pub entry: &'static str,
    /// Macros, as (name, value).
    pub defines: Vec<(&'static str, String)>,
    /// Whether time is spent in it: a hot kernel must not spill registers.
    pub hot: bool,
    /// The architecture it needs, such as `sm_80` (that or later) or `sm_90a` (that alone); `None` when any will do.
    pub min_arch: Option<&'static str>,
}

impl Variant {
    /// Whether the kernel can be compiled for `arch`. A `min_arch` that is no architecture is met by none.
    pub fn supports(&self, arch: Arch) -> bool {
        match self.min_arch {
            None => true,
            Some(name) => Arch::parse(name).is_ok_and(|minimum| arch.meets(minimum)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supports_follows_min_arch() {
        static PROGRAM: Program = Program { name: "p", source: "", headers: &[] };
        let variant = |min_arch| Variant { program: &PROGRAM, entry: "k", defines: vec![], hot: true, min_arch };
        let supported = |min_arch| Arch::ALL.into_iter().filter(|arch| variant(min_arch).supports(*arch)).count();
        assert_eq!(supported(None), 5);
        assert_eq!(supported(Some("sm_80")), 5);
        assert_eq!(supported(Some("sm_89")), 4);
        assert_eq!(supported(Some("sm_90a")), 1);
        assert_eq!(supported(Some("nonsense")), 0);
    }
}
