//! Reading registers, spills and warnings out of NVRTC's log (`--ptxas-options=-v`).

/// What one function costs, as ptxas reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceUsage {
    /// Name of the function: the `extern "C"` name for kernels, a mangled one for others.
    pub entry: String,
    /// Whether it is a kernel; otherwise it is a device function that was not inlined, and has no registers of its own here.
    pub kernel: bool,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of register spills written per thread.
    pub spill_stores: u32,
    /// Bytes of register spills read back per thread.
    pub spill_loads: u32,
    /// Stack frame in bytes per thread, with that of the functions it calls.
    pub stack_bytes: u32,
    /// Statically declared shared memory in bytes per block.
    pub shared_bytes: u32,
    /// Named barriers.
    pub barriers: u32,
}

impl ResourceUsage {
    /// Whether registers are spilled to local memory.
    pub fn spills(&self) -> bool {
        self.spill_stores > 0 || self.spill_loads > 0
    }
}

/// A warning of the compiler's front end or of ptxas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileWarning {
    /// The code when it has one: `C7514` (ptxas), `177-D` (front end).
    pub code: Option<String>,
    /// The line of the log that states it.
    pub message: String,
}

impl CompileWarning {
    /// ptxas warnings that mean a Hopper kernel lost its asynchrony: setmaxnreg ignored (C7508), wgmma serialized (C7511, C7514),
    /// waits injected (C7517, C7519).
    pub const SERIALIZING: [&'static str; 5] = ["C7508", "C7511", "C7514", "C7517", "C7519"];

    /// Whether it is one of [`Self::SERIALIZING`].
    pub fn serializes(&self) -> bool {
        self.code.as_deref().is_some_and(|code| Self::SERIALIZING.contains(&code))
    }
}

/// What the log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompileReport {
    /// One item a function, in the order of the log.
    pub usage: Vec<ResourceUsage>,
    /// Every warning, in the order of the log.
    pub warnings: Vec<CompileWarning>,
}

impl CompileReport {
    /// Reads a log. Lines that it does not know are passed over.
    pub fn parse(log: &str) -> CompileReport {
        let mut report = CompileReport::default();
        let mut current = None;
        for line in log.lines() {
            if let Some(name) = quoted_after(line, "Compiling entry function ") {
                let at = report.function(name);
                report.usage[at].kernel = true;
                current = Some(at);
            } else if let Some((_, name)) = line.split_once("Function properties for ") {
                current = Some(report.function(name.trim().trim_matches('\'')));
            } else if let Some(warning) = warning(line) {
                report.warnings.push(warning);
            } else if let Some(at) = current {
                report.usage[at].read_numbers(line);
            }
        }
        report
    }

    /// What `entry` costs, when the log names it.
    pub fn entry(&self, entry: &str) -> Option<&ResourceUsage> {
        self.usage.iter().find(|usage| usage.entry == entry)
    }

    fn function(&mut self, name: &str) -> usize {
        if let Some(at) = self.usage.iter().position(|usage| usage.entry == name) {
            return at;
        }
        self.usage.push(ResourceUsage { entry: name.to_owned(), ..ResourceUsage::default() });
        self.usage.len() - 1
    }
}

impl ResourceUsage {
    fn read_numbers(&mut self, line: &str) {
        // `ptxas info    : Used 32 registers, used 1 barriers, 2032 bytes cumulative stack size, 4096 bytes smem`
        // `ptxas         .     2032 bytes stack frame, 1924 bytes spill stores, 3020 bytes spill loads`
        for part in line.split(',') {
            let words: Vec<&str> = part.split_whitespace().collect();
            let Some(at) = words.iter().rposition(|word| word.bytes().all(|byte| byte.is_ascii_digit())) else {
                continue;
            };
            let Ok(number) = words[at].parse::<u32>() else { continue };
            match words[at + 1..] {
                ["registers"] => self.registers = number,
                ["barriers"] => self.barriers = number,
                ["bytes", "smem"] => self.shared_bytes = number,
                ["bytes", "stack", "frame"] | ["bytes", "cumulative", "stack", "size"] => {
                    self.stack_bytes = self.stack_bytes.max(number);
                }
                ["bytes", "spill", "stores"] => self.spill_stores = number,
                ["bytes", "spill", "loads"] => self.spill_loads = number,
                _ => {}
            }
        }
    }
}

fn quoted_after<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    line.split_once(before)?.1.strip_prefix('\'')?.split('\'').next()
}

/// `ptxas warning : (C7514) ...`, `ptxas info : (C7508) ...`, `file.cu(3): warning #177-D: ...`.
fn warning(line: &str) -> Option<CompileWarning> {
    let message = || line.trim().to_owned();
    if let Some(rest) = line.strip_prefix("ptxas") {
        let code = rest.split_once("(C").and_then(|(_, rest)| rest.split_once(')')).map(|(digits, _)| digits);
        let code = code.filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
        // Some of the codes that matter come as `info`, so a code alone makes it a warning.
        let is_warning = code.is_some() || rest.trim_start().starts_with("warning");
        return is_warning
            .then(|| CompileWarning { code: code.map(|digits| format!("C{digits}")), message: message() });
    }
    let (_, rest) = line.split_once(": warning")?;
    let code =
        rest.trim_start().strip_prefix('#').and_then(|rest| rest.split_once(':')).map(|(code, _)| code.to_owned());
    Some(CompileWarning { code, message: message() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two kernels and a device function, as NVRTC 13.0 reports them.
    const LOG: &str = "\
fam/k.cu(3): warning #177-D: variable \"unused\" was declared but never referenced
  int unused;
      ^

Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"

ptxas warning : Registers are spilled to local memory in function 'k2', 1924 bytes spill stores, 3020 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k2' for 'sm_90a'
ptxas info    : Function properties for k2
ptxas         .     2032 bytes stack frame, 1924 bytes spill stores, 3020 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 2064 bytes cumulative stack size
ptxas info    : Compile time = 136.440 ms
ptxas info    : Function properties for _Z3foof
ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum register requirements.
ptxas warning : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'k'
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 3 barriers, 4096 bytes smem, 360 bytes cmem[0]
";

    #[test]
    fn usage_is_read_per_function() {
        let report = CompileReport::parse(LOG);
        let names: Vec<_> = report.usage.iter().map(|usage| (usage.entry.as_str(), usage.kernel)).collect();
        assert_eq!(names, [("k2", true), ("_Z3foof", false), ("k", true)]);
        let k2 = report.entry("k2").unwrap();
        assert_eq!((k2.registers, k2.spill_stores, k2.spill_loads, k2.stack_bytes), (32, 1924, 3020, 2064));
        assert!(k2.spills());
        let k = report.entry("k").unwrap();
        assert_eq!((k.registers, k.barriers, k.shared_bytes, k.stack_bytes), (40, 3, 4096, 0));
        assert!(!k.spills());
        assert_eq!(report.entry("_Z3foof").unwrap().stack_bytes, 8);
        assert_eq!(report.entry("absent"), None);
    }

    #[test]
    fn warnings_keep_their_codes() {
        let report = CompileReport::parse(LOG);
        let codes: Vec<_> = report.warnings.iter().map(|warning| warning.code.as_deref()).collect();
        assert_eq!(codes, [Some("177-D"), None, Some("C7508"), Some("C7514")]);
        let serializing: Vec<_> = report.warnings.iter().map(CompileWarning::serializes).collect();
        assert_eq!(serializing, [false, false, true, true]);
    }

    #[test]
    fn an_empty_or_foreign_log_is_an_empty_report() {
        for log in ["", "hello\nworld, 3 bytes smem\n"] {
            assert_eq!(CompileReport::parse(log), CompileReport::default());
        }
    }
}
