//! CUDA sources in memory.

use sha2::{Digest, Sha256};

/// A CUDA source with the headers it may include. Both live in the binary; nothing is read from disk when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// Name in logs, errors and cache files, such as `siglip/loss`.
    pub name: &'static str,
    /// The text of the `.cu` file. Entry points are `extern "C" __global__`.
    pub source: &'static str,
    /// The family's own headers: (name as it is included, text). Those of [`crate::cuda::HEADERS`] are always there too, and
    /// give way to one of the same name here.
    pub headers: &'static [(&'static str, &'static str)],
}

impl Program {
    /// Every header that the source can include: the program's own, then the shared ones that those do not replace.
    pub fn all_headers(&self) -> impl Iterator<Item = (&'static str, &'static str)> + '_ {
        let shared = crate::cuda::HEADERS.iter().copied();
        let own = self.headers.iter().copied();
        own.chain(shared.filter(|(name, _)| !self.headers.iter().any(|(own, _)| own == name)))
    }
}

/// SHA-256 of the source and of all headers, as 64 hexadecimal digits: changes whenever the code that the GPU runs may change.
pub fn source_hash(program: &Program) -> String {
    let mut hash = FieldHash::new();
    hash_program(&mut hash, program);
    hash.hex()
}

/// Feeds everything of `program` that the compiler sees.
pub(crate) fn hash_program(hash: &mut FieldHash, program: &Program) {
    hash.field(program.name).field(program.source);
    for (name, text) in program.all_headers() {
        hash.field(name).field(text);
    }
}

/// SHA-256 over fields with their lengths, so that no two lists of fields hash alike.
pub(crate) struct FieldHash(Sha256);

impl FieldHash {
    pub(crate) fn new() -> Self {
        FieldHash(Sha256::new())
    }

    pub(crate) fn field(&mut self, text: &str) -> &mut Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
        self
    }

    pub(crate) fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program { name: "a", source: "b", headers: &[("c.cuh", "d")] };

    #[test]
    fn hash_follows_every_part() {
        let hash = source_hash(&PROGRAM);
        assert_eq!(hash.len(), 64);
        assert_eq!(hash, source_hash(&PROGRAM));
        let others = [
            Program { name: "x", ..PROGRAM },
            Program { source: "x", ..PROGRAM },
            Program { headers: &[("x.cuh", "d")], ..PROGRAM },
            Program { headers: &[("c.cuh", "x")], ..PROGRAM },
            Program { headers: &[], ..PROGRAM },
            // The same bytes, split elsewhere.
            Program { name: "ab", source: "", ..PROGRAM },
        ];
        for other in others {
            assert_ne!(hash, source_hash(&other), "{other:?}");
        }
    }

    #[test]
    fn own_headers_replace_shared_ones() {
        let own: Vec<_> = PROGRAM.all_headers().collect();
        assert_eq!(own[0], ("c.cuh", "d"));
        assert_eq!(own.len(), 1 + crate::cuda::HEADERS.len());
        if let Some(&(shared, _)) = crate::cuda::HEADERS.first() {
            let program = Program { headers: Box::leak(Box::new([(shared, "mine")])), ..PROGRAM };
            let texts: Vec<_> = program.all_headers().filter(|(name, _)| *name == shared).collect();
            assert_eq!(texts, [(shared, "mine")]);
        }
    }
}
