//! Measured row chunks: measured once, remembered, and right.

use siglip_kernel::kernel_core::half::bf16;
use siglip_kernel::kernel_core::{AutotuneCache, AutotuneMode};
use siglip_kernel::{Chunk, Options, tune_in};

use crate::case::{Case, Host, run};
use crate::support::{gpu, say};

#[test]
fn tuned_once_and_remembered() {
    let Some(gpu) = gpu() else { return };
    let folder = std::env::temp_dir().join(format!("siglip-tune-{}", std::process::id()));
    let cache = AutotuneCache::at(&folder);
    let case = Case::new(16_500, 16_500, 128);
    let problem = case.problem::<bf16>();
    let tuned = |mode| tune_in(&cache, mode, &gpu, &problem, Options::default()).unwrap();
    assert_eq!(tuned(AutotuneMode::Off), Options::default());
    assert!(!folder.exists(), "nothing was measured");

    let first = tuned(AutotuneMode::On);
    let written = || -> Vec<Vec<u8>> {
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
    };
    let timings = written();
    assert!(timings.iter().any(|file| !file.is_empty()), "nothing was remembered");
    // Another cache of the same folder, as a later process has it. New measurements would have other timings.
    let again = tune_in(&AutotuneCache::at(&folder), AutotuneMode::On, &gpu, &problem, Options::default()).unwrap();
    assert_eq!((first, timings), (again, written()));
    say(&format!("{:?} of the default and one more", first.chunk));

    // A choice, and one that a plan takes.
    let host = Host::<bf16>::unit(&case, 43);
    let (by_rule, by_measurement) = (run(&gpu, &case, &host), run(&gpu, &Case { options: first, ..case }, &host));
    let (a, b) = (by_rule.unwrap().loss, by_measurement.unwrap().loss);
    assert!((a - b).abs() <= 1e-5 * a, "{a} and {b}");
    let given = Options { chunk: Chunk::Rows(300), ..Options::default() };
    assert_eq!(tune_in(&cache, AutotuneMode::Force, &gpu, &problem, given).unwrap(), given);
    std::fs::remove_dir_all(&folder).unwrap();
}
