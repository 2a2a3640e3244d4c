//! GPU architectures as the compiler names them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Which instructions beyond the architecture's common set the code may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Features {
    /// None (`sm_80`): the code also runs on later devices of the same major version.
    Common,
    /// Those of the family (`sm_100f`): runs on later devices of the same major version that share them.
    Family,
    /// All of this architecture (`sm_90a`): runs on this compute capability only. wgmma and setmaxnreg need it.
    Exact,
}

/// A real GPU architecture such as `sm_90a`: what a CUBIN is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    number: u32,
    features: Features,
}

impl Arch {
    /// The architectures that the kernels are compiled for in checks: Ampere, Ada, Hopper and both Blackwells.
    pub const ALL: [Arch; 5] = [
        Arch { number: 80, features: Features::Common },
        Arch { number: 89, features: Features::Common },
        Arch { number: 90, features: Features::Exact },
        Arch { number: 100, features: Features::Exact },
        Arch { number: 120, features: Features::Common },
    ];

    /// Reads a name such as `sm_80`, `sm_90a` or `sm_100f`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other text, and for anything below `sm_50`.
    pub fn parse(name: &str) -> Result<Arch> {
        let bad = || Error::Unsupported {
            what: format!(
                "architecture {name:?}; expected sm_<number> with an optional a or f, such as sm_80 or sm_90a"
            ),
        };
        let rest = name.strip_prefix("sm_").ok_or_else(bad)?;
        let (digits, features) = if let Some(digits) = rest.strip_suffix('a') {
            (digits, Features::Exact)
        } else if let Some(digits) = rest.strip_suffix('f') {
            (digits, Features::Family)
        } else {
            (rest, Features::Common)
        };
        if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u32 = digits.parse().map_err(|_| bad())?;
        if number < 50 { Err(bad()) } else { Ok(Arch { number, features }) }
    }

    /// The architecture to compile for on a device of this compute capability, given as (major, minor).
    ///
    /// Hopper (9.x) and the data-centre Blackwells (10.x, 11.x) get their exact feature set, which wgmma and tcgen05 need; all
    /// others the common one.
    pub fn from_capability((major, minor): (u32, u32)) -> Arch {
        let features = if (9..=11).contains(&major) { Features::Exact } else { Features::Common };
        Arch { number: major * 10 + minor, features }
    }

    /// The compute capability as one number: 80 for `sm_80`, 120 for `sm_120`.
    pub fn number(self) -> u32 {
        self.number
    }

    /// The compute capability as (major, minor).
    pub fn capability(self) -> (u32, u32) {
        (self.number / 10, self.number % 10)
    }

    /// The feature set that the name asks for.
    pub fn features(self) -> Features {
        self.features
    }

    /// Whether code compiled for it may use Hopper's wgmma and setmaxnreg: `sm_90a` only.
    pub fn has_wgmma(self) -> bool {
        self.number == 90 && self.features == Features::Exact
    }

    /// Whether code that needs `minimum` can be compiled for this architecture.
    ///
    /// `sm_80` is met by everything from 8.0 up; `sm_100f` by the same major version from 10.0 up, with family or exact
    /// features; `sm_90a` by `sm_90a` alone, because exact features exist nowhere else.
    pub fn meets(self, minimum: Arch) -> bool {
        match minimum.features {
            Features::Common => self.number >= minimum.number,
            Features::Family => {
                self.features != Features::Common
                    && self.number / 10 == minimum.number / 10
                    && self.number >= minimum.number
            }
            Features::Exact => self == minimum,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.features {
            Features::Common => "",
            Features::Family => "f",
            Features::Exact => "a",
        };
        f.pad(&format!("sm_{}{suffix}", self.number))
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(name: &str) -> Result<Arch> {
        Arch::parse(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arch(name: &str) -> Arch {
        Arch::parse(name).unwrap()
    }

    #[test]
    fn names_round_trip() {
        let names: Vec<String> = Arch::ALL.iter().map(Arch::to_string).collect();
        assert_eq!(names, ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120"]);
        for name in names.iter().map(String::as_str).chain(["sm_86", "sm_100f"]) {
            assert_eq!(arch(name).to_string(), name);
        }
    }

    #[test]
    fn bad_names_say_what_was_expected() {
        for name in
            ["", "sm_", "sm_a", "90a", "compute_90", "sm_90x", "sm_9", "sm_+90", "sm_99999", "sm_ 90", "sm_90aa"]
        {
            let message = Arch::parse(name).expect_err(name).to_string();
            assert!(message.contains(&format!("{name:?}")) && message.contains("sm_90a"), "{message}");
        }
    }

    #[test]
    fn capabilities_choose_the_feature_set() {
        let cases = [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_86"),
            ((8, 9), "sm_89"),
            ((9, 0), "sm_90a"),
            ((10, 0), "sm_100a"),
            ((10, 3), "sm_103a"),
            ((12, 0), "sm_120"),
        ];
        for (capability, name) in cases {
            assert_eq!(Arch::from_capability(capability), arch(name));
            assert_eq!(arch(name).capability(), capability);
        }
    }

    #[test]
    fn only_sm_90a_has_wgmma() {
        let with: Vec<Arch> = Arch::ALL.into_iter().filter(|arch| arch.has_wgmma()).collect();
        assert_eq!(with, [arch("sm_90a")]);
        assert!(!arch("sm_90").has_wgmma());
    }

    #[test]
    fn exact_features_are_met_by_the_same_architecture_alone() {
        assert!(arch("sm_90a").meets(arch("sm_90a")) && arch("sm_90a").meets(arch("sm_80")));
        assert!(!arch("sm_100a").meets(arch("sm_90a")) && !arch("sm_90").meets(arch("sm_90a")));
        assert!(!arch("sm_80").meets(arch("sm_89")));
        assert!(arch("sm_103a").meets(arch("sm_100f")) && !arch("sm_103").meets(arch("sm_100f")));
        assert!(!arch("sm_120").meets(arch("sm_100f")));
    }
}
