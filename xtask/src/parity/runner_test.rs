use super::*;

const OPS: &[&str] = &["even", "all"];

fn group(bar: &ProgressBar, seed: u64) -> Group<'_> {
    Group { family: "siglip", dtype: "f32".into(), route: "here".into(), ops: OPS, cases: 50, seed, on_gpu: true, bar }
}

fn error(size: f64) -> Deviation {
    Deviation { max_rel: size, l2_rel: size / 2.0 }
}

/// Errors grow with the case; the even cases count in a line of their own.
fn check(limit: u32) -> impl Fn(&u32) -> Result<Vec<Measured>, String> {
    move |case| {
        let tolerance = Deviation::both(if *case < limit { 1.0 } else { 0.0 });
        let measured = |op| Measured { op, what: "x", deviation: error(f64::from(*case) / 1000.0), tolerance };
        Ok(if case.is_multiple_of(2) { vec![measured("even"), measured("all")] } else { vec![measured("all")] })
    }
}

#[test]
fn tallies_each_operation_and_repeats_itself() {
    let bar = ProgressBar::hidden();
    let (lines, failure) = group(&bar, 3).run(&(1u32..1000), check(1000));
    assert!(failure.is_none());
    assert_eq!(lines[1].cases, 50);
    assert!(lines[0].cases > 5 && lines[0].cases < 45, "{}", lines[0].cases);
    assert!(lines.iter().all(|line| line.passed && line.reproducible && line.tolerance == 1.0));
    let (again, _) = group(&bar, 3).run(&(1u32..1000), check(1000));
    assert_eq!(lines[1].worst, again[1].worst);
    let (other, _) = group(&bar, 4).run(&(1u32..1000), check(1000));
    assert_ne!(lines[1].worst, other[1].worst, "another seed draws other cases");
}

#[test]
fn a_failure_names_seed_and_smallest_case() {
    let bar = ProgressBar::hidden();
    let (lines, failure) = group(&bar, 3).run(&(1u32..1000), check(500));
    let failure = failure.unwrap();
    assert!(failure.contains("smallest case that fails: 500") && failure.contains("--seed 3"), "{failure}");
    assert!(!lines[1].passed && !lines[1].reproducible);
}

#[test]
fn a_case_that_breaks_fails_every_line() {
    let bar = ProgressBar::hidden();
    let (lines, failure) = group(&bar, 3).run(&(1u32..1000), |_| Err("the launch failed".to_owned()));
    assert!(failure.unwrap().contains("the launch failed"));
    assert!(lines.iter().all(|line| !line.passed));
}

#[test]
fn both_measures_must_pass() {
    let measured = |max_rel, l2_rel| Measured {
        op: "all",
        what: "x",
        deviation: Deviation { max_rel, l2_rel },
        tolerance: Deviation { max_rel: 2.0, l2_rel: 1.0 },
    };
    assert!(measured(1.5, 0.5).passes() && !measured(2.5, 0.5).passes() && !measured(1.5, 1.5).passes());
    assert!(!measured(f64::NAN, 0.0).passes() && !measured(0.0, f64::NAN).passes());
}
