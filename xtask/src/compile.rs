//! `xtask compile`: every kernel for every architecture, without a GPU.

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use kernel_core::compile::{CompileReport, CompileWarning, ResourceUsage, compile_with_report_in, nvrtc_version};
use kernel_core::{Arch, CubinCache, Variant};
use rayon::prelude::*;

/// Compile every kernel for every architecture; fail on register spills where time is spent, and on lost asynchrony
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Architectures, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ARCH", default_values_t = Arch::ALL)]
    arch: Vec<Arch>,
    /// Families, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "FAMILY")]
    family: Vec<String>,
    /// Compile again what the cache holds
    #[arg(long)]
    fresh: bool,
    /// Print the compiler's logs
    #[arg(long)]
    verbose: bool,
}

/// How many lines of a fault the summary shows; a log can have hundreds.
const FAULT_LINES: usize = 12;

/// Every family with all of its kernels.
fn families() -> Vec<(&'static str, Vec<Variant>)> {
    vec![
        ("siglip", siglip_kernel::variants()),
        ("swiglu", swiglu_kernel::variants()),
        ("maxsim", maxsim_kernel::variants()),
    ]
}

/// What is compiled at once: kernels of one source with the same macros, for one architecture.
struct Unit {
    arch: Arch,
    variants: Vec<Variant>,
}

/// One kernel for one architecture, and what speaks against it.
struct Row {
    kernel: String,
    arch: Arch,
    usage: ResourceUsage,
    warnings: Vec<CompileWarning>,
    faults: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let (major, minor) = nvrtc_version().context("compiling needs NVRTC")?;
    let selected = select(families(), &args.family)?;
    let total: usize = selected.iter().map(Vec::len).sum();
    let units = units(selected.concat(), &args.arch);
    let covered: usize = units.iter().map(|unit| unit.variants.len()).sum();
    if units.is_empty() {
        bail!("nothing to compile: none of {total} kernels supports {}", join(&args.arch));
    }

    let cache = if args.fresh { CubinCache::disabled() } else { CubinCache::default_location() };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").context("the progress bar's template")?;
    let progress = ProgressBar::new(units.len() as u64).with_style(style);
    let results: Vec<(String, Vec<Row>)> = units
        .par_iter()
        .map(|unit| {
            let result = compile_unit(&cache, unit);
            progress.set_message(format!("{} {}", unit.variants[0].program.name, unit.arch));
            progress.inc(1);
            result
        })
        .collect();
    progress.finish_and_clear();

    if args.verbose {
        for (unit, (log, _)) in units.iter().zip(&results) {
            println!("{} for {}:\n{log}", label(&unit.variants[0]), unit.arch);
        }
    }
    let rows: Vec<Row> = results.into_iter().flat_map(|(_, rows)| rows).collect();
    println!("{}", table(&rows));
    println!(
        "NVRTC {major}.{minor}: {} kernels, {covered} builds for {}; {} not for their architecture",
        total,
        join(&args.arch),
        total * args.arch.len() - covered,
    );
    let failed = rows.iter().filter(|row| !row.faults.is_empty());
    let faults: Vec<String> = failed
        .map(|row| format!("{} for {}: {}", row.kernel, row.arch, beginning(&row.faults.join("; "), FAULT_LINES)))
        .collect();
    if !faults.is_empty() {
        bail!("{} of {covered} builds failed:\n{}", faults.len(), faults.join("\n"));
    }
    Ok(())
}

/// The kernels of the families that were asked for, or of all.
fn select(families: Vec<(&'static str, Vec<Variant>)>, wanted: &[String]) -> Result<Vec<Vec<Variant>>> {
    let names: Vec<&str> = families.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = wanted.iter().find(|family| !names.contains(&family.as_str())) {
        bail!("unknown family {unknown:?}; those with kernels are {}", names.join(", "));
    }
    let chosen =
        families.into_iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|family| family == name));
    Ok(chosen.map(|(_, variants)| variants).collect())
}

/// Groups the kernels that each architecture supports into units.
fn units(variants: Vec<Variant>, archs: &[Arch]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for variant in variants {
        for &arch in archs.iter().filter(|arch| variant.supports(**arch)) {
            let same = |unit: &&mut Unit| {
                let first = &unit.variants[0];
                unit.arch == arch && first.program == variant.program && first.defines == variant.defines
            };
            match units.iter_mut().find(same) {
                Some(unit) => unit.variants.push(variant.clone()),
                None => units.push(Unit { arch, variants: vec![variant.clone()] }),
            }
        }
    }
    units
}

/// The log (or the error) and one row a kernel.
fn compile_unit(cache: &CubinCache, unit: &Unit) -> (String, Vec<Row>) {
    let first = &unit.variants[0];
    match compile_with_report_in(cache, first.program, &unit.arch, &first.defines) {
        Ok(cubin) => {
            let report = cubin.report();
            let rows = unit.variants.iter().map(|variant| judge(variant, unit.arch, &report)).collect();
            (cubin.log, rows)
        }
        Err(error) => {
            let text = error.to_string();
            let row = |variant: &Variant| Row {
                kernel: label(variant),
                arch: unit.arch,
                usage: ResourceUsage::default(),
                warnings: Vec::new(),
                faults: vec![text.clone()],
            };
            let rows = unit.variants.iter().map(row).collect();
            (text, rows)
        }
    }
}

/// Reads a kernel's row out of its unit's report.
fn judge(variant: &Variant, arch: Arch, report: &CompileReport) -> Row {
    let mut faults = Vec::new();
    let usage = report.entry(variant.entry).filter(|usage| usage.kernel).cloned();
    match &usage {
        None => faults.push(format!("there is no kernel {:?} in the compiled program", variant.entry)),
        // Spills are shown for every kernel; one in which little time is spent may have them.
        Some(usage) if usage.spills() && variant.hot => {
            faults.push(format!("spills {} bytes out, {} bytes in", usage.spill_stores, usage.spill_loads));
        }
        Some(_) => {}
    }
    for function in report.usage.iter().filter(|usage| !usage.kernel && usage.spills() && variant.hot) {
        faults.push(format!("its program's device function {} spills", function.entry));
    }
    faults.extend(report.warnings.iter().filter(|warning| warning.serializes()).map(|warning| warning.message.clone()));
    Row { kernel: label(variant), arch, usage: usage.unwrap_or_default(), warnings: report.warnings.clone(), faults }
}

/// `siglip/logits: sigmoid_tile (TILE=128)`.
fn label(variant: &Variant) -> String {
    let macros: Vec<String> = variant.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let macros = if macros.is_empty() { String::new() } else { format!(" ({})", macros.join(" ")) };
    format!("{}: {}{macros}", variant.program.name, variant.entry)
}

/// The first `lines` lines, and how many were left out.
fn beginning(text: &str, lines: usize) -> String {
    let text = text.trim_end();
    match text.lines().count().checked_sub(lines) {
        None | Some(0) => text.to_owned(),
        Some(left) => {
            let shown: Vec<&str> = text.lines().take(lines).collect();
            format!("{}\n... {left} more lines with --verbose", shown.join("\n"))
        }
    }
}

fn join(archs: &[Arch]) -> String {
    archs.iter().map(Arch::to_string).collect::<Vec<_>>().join(", ")
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["kernel", "arch", "registers", "spilled", "stack", "static shared", "barriers", "warnings", ""]);
    for row in rows {
        let usage = &row.usage;
        let mut codes: Vec<&str> =
            row.warnings.iter().map(|warning| warning.code.as_deref().unwrap_or("other")).collect();
        codes.sort_unstable();
        codes.dedup();
        table.add_row([
            row.kernel.clone(),
            row.arch.to_string(),
            usage.registers.to_string(),
            format!("{}/{}", usage.spill_stores, usage.spill_loads),
            usage.stack_bytes.to_string(),
            usage.shared_bytes.to_string(),
            usage.barriers.to_string(),
            codes.join(" "),
            if row.faults.is_empty() { "ok" } else { "FAILED" }.to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(2).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_core::Program;

    static A: Program = Program { name: "a", source: "a", headers: &[] };
    static B: Program = Program { name: "b", source: "b", headers: &[] };

    fn variant(program: &'static Program, entry: &'static str, tile: &str, min_arch: Option<&'static str>) -> Variant {
        Variant { program, entry, defines: vec![("TILE", tile.to_owned())], hot: true, min_arch }
    }

    #[test]
    fn kernels_of_one_source_and_macros_are_compiled_once() {
        let variants = vec![
            variant(&A, "k", "64", None),
            variant(&A, "l", "64", None),
            variant(&A, "k", "128", None),
            variant(&B, "k", "64", Some("sm_90a")),
        ];
        let units = units(variants, &Arch::ALL);
        let sizes: Vec<usize> = units.iter().map(|unit| unit.variants.len()).collect();
        assert_eq!(sizes, [2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
        assert_eq!(units[10].arch, Arch::parse("sm_90a").unwrap());
    }

    #[test]
    fn unknown_families_are_named() {
        let families = || vec![("siglip", vec![variant(&A, "k", "64", None)]), ("swiglu", vec![])];
        let message = select(families(), &["siglip".into(), "maxsin".into()]).unwrap_err().to_string();
        assert!(message.contains("maxsin") && message.contains("siglip, swiglu"), "{message}");
        assert_eq!(select(families(), &["swiglu".into()]).unwrap(), [vec![]]);
        assert_eq!(select(families(), &[]).unwrap().len(), 2);
    }

    #[test]
    fn long_faults_are_cut() {
        assert_eq!(beginning("a\nb\n", 2), "a\nb");
        assert_eq!(beginning("a\nb\nc\nd", 2), "a\nb\n... 2 more lines with --verbose");
    }

    #[test]
    fn spills_lost_asynchrony_and_absent_kernels_are_faults() {
        let variant = variant(&A, "k", "64", None);
        let log = |body: &str| {
            let head = "ptxas info    : Compiling entry function 'k' for 'sm_80'\n";
            CompileReport::parse(&format!("{head}{body}"))
        };
        let faults = |report: &CompileReport| judge(&variant, Arch::ALL[0], report).faults;
        let clean = log(
            "ptxas  .  0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\na.cu(1): warning #177-D: x\n",
        );
        assert_eq!(faults(&clean), [""; 0]);
        let spilled = log("ptxas  .  8 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n");
        assert_eq!(faults(&spilled), ["spills 4 bytes out, 8 bytes in"]);
        let callee = log(
            "ptxas info : Function properties for f\n 0 bytes stack frame, 0 bytes spill stores, 8 bytes spill loads\n",
        );
        assert_eq!(faults(&callee).len(), 1);
        for code in CompileWarning::SERIALIZING {
            assert_eq!(
                faults(&log(&format!("ptxas info    : ({code}) Potential Performance Loss\n"))).len(),
                1,
                "{code}"
            );
        }
        assert!(faults(&CompileReport::default())[0].contains("no kernel \"k\""));
    }
}
