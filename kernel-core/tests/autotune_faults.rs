//! The autotune cache under faults: damaged, unwritable and shared caches. None of it needs a GPU: timings are made up.

#[path = "common/child.rs"]
mod child;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kernel_core::autotune::{AutotuneCache, AutotuneMode, Timing, TuneKey};
use kernel_core::{DType, Error};

fn key(bucket: impl Into<String>) -> TuneKey {
    TuneKey {
        family: "siglip",
        gpu: "NVIDIA H200".into(),
        sm_count: 132,
        driver: 13000,
        source_hash: "abc".into(),
        dtype: DType::Bf16,
        bucket: bucket.into(),
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Tunes three candidates of which the second is fastest; returns the choice and how often something was measured.
fn tune(cache: &AutotuneCache, key: &TuneKey, mode: AutotuneMode) -> (usize, usize) {
    let measured = Cell::new(0);
    let choice = cache
        .tune(key, &names(&["a", "b", "c"]), mode, |at| {
            measured.set(measured.get() + 1);
            Ok([3.0, 1.0, 2.0][at])
        })
        .expect("no fault of the cache is an error");
    (choice, measured.get())
}

fn data_file(directory: &Path) -> PathBuf {
    let files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    let json: Vec<_> = files.iter().filter(|file| file.extension().is_some_and(|ext| ext == "json")).collect();
    assert_eq!(json.len(), 1, "{files:?}");
    json[0].clone()
}

#[test]
fn a_choice_is_measured_once_and_remembered_with_all_timings() {
    let root = tempfile::tempdir().unwrap();
    let cache = AutotuneCache::at(root.path().join("made/later"));
    assert_eq!(cache.get(&key("x"), &names(&["a", "b", "c"])), None);
    assert_eq!(tune(&cache, &key("x"), AutotuneMode::On), (1, 3));
    assert_eq!(tune(&cache, &key("x"), AutotuneMode::On), (1, 0), "the second time from the cache");
    assert_eq!(tune(&cache, &key("x"), AutotuneMode::Force), (1, 3), "measured again");
    assert_eq!(tune(&cache, &key("y"), AutotuneMode::On), (1, 3), "another bucket");
    let timings = cache.timings(&key("x"), &names(&["c", "b", "a"])).unwrap();
    assert_eq!(timings, [Timing::Ms(2.0), Timing::Ms(1.0), Timing::Ms(3.0)]);
    assert_eq!(cache.get(&key("x"), &names(&["b", "c", "a"])), Some(0), "the order of candidates does not matter");
    assert_eq!(cache.get(&key("x"), &names(&["a", "b"])), None, "another set of candidates");
}

#[test]
fn off_takes_the_first_and_leaves_no_trace() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("cache");
    let cache = AutotuneCache::at(&directory);
    assert_eq!(tune(&cache, &key("x"), AutotuneMode::Off), (0, 0));
    assert!(!directory.exists());
    let one = cache.tune(&key("x"), &names(&["only"]), AutotuneMode::On, |_| panic!("nothing to choose from"));
    assert_eq!(one.unwrap(), 0);
    let none = cache.tune(&key("x"), &[], AutotuneMode::Off, |_| Ok(1.0)).unwrap_err();
    assert!(matches!(none, Error::ZeroSize { .. }), "{none}");
}

#[test]
fn failing_candidates_are_passed_over_and_recorded() {
    let root = tempfile::tempdir().unwrap();
    let cache = AutotuneCache::at(root.path());
    let candidates = names(&["a", "b", "c", "d"]);
    let fail = |at: usize| Err(Error::Unsupported { what: format!("candidate {at}") });
    let measure = |at| match at {
        0 => fail(0),
        1 => Ok(f32::NAN),
        2 => Ok(-1.0),
        _ => Ok(7.0),
    };
    assert_eq!(cache.tune(&key("x"), &candidates, AutotuneMode::On, measure).unwrap(), 3);
    let timings = cache.timings(&key("x"), &candidates).unwrap();
    let Timing::Error(text) = &timings[0] else { panic!("{timings:?}") };
    assert!(text.contains("candidate 0"), "{text}");
    assert!(matches!(&timings[1..3], [Timing::Error(_), Timing::Error(_)]), "{timings:?}");

    let all = cache.tune(&key("y"), &candidates, AutotuneMode::On, fail).unwrap_err();
    assert!(all.to_string().contains("candidate 0"), "the first error: {all}");
    assert_eq!(cache.get(&key("y"), &candidates), None, "nothing is stored");
}

#[test]
fn damaged_files_are_a_miss_and_get_replaced() {
    let root = tempfile::tempdir().unwrap();
    let cache = AutotuneCache::at(root.path());
    tune(&cache, &key("x"), AutotuneMode::On);
    let file = data_file(root.path());
    let good = fs::read_to_string(&file).unwrap();
    let mut damaged: Vec<Vec<u8>> =
        (0..good.trim_end().len()).step_by(37).map(|length| good.as_bytes()[..length].to_vec()).collect();
    damaged.push(b"\xff\xfe not JSON".to_vec());
    damaged.push(b"[]".to_vec());
    damaged.push(good.replace("\"version\": 1", "\"version\": 2").into_bytes());
    damaged.push(good.replace("\"ms\"", "\"hours\"").into_bytes());
    for bytes in damaged {
        assert_ne!(bytes, good.as_bytes());
        fs::write(&file, &bytes).unwrap();
        assert_eq!(tune(&cache, &key("x"), AutotuneMode::On), (1, 3), "{:?}", String::from_utf8_lossy(&bytes));
        assert_eq!(fs::read_to_string(&file).unwrap(), good, "repaired");
    }
}

#[test]
fn unusable_places_still_give_a_choice_measured_once() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    // A directory where the data file belongs, and one where the lock belongs.
    let probe = root.path().join("probe");
    tune(&AutotuneCache::at(&probe), &key("x"), AutotuneMode::On);
    let data_name = data_file(&probe).file_name().unwrap().to_owned();
    let (as_data, as_lock) = (root.path().join("as_data"), root.path().join("as_lock"));
    fs::create_dir_all(as_data.join(&data_name).join("full")).unwrap();
    fs::create_dir_all(as_lock.join(Path::new(&data_name).with_extension("lock"))).unwrap();

    for directory in [file.clone(), file.join("below"), PathBuf::from("/dev/null/x"), as_data, as_lock] {
        let cache = AutotuneCache::at(&directory);
        assert_eq!(cache.get(&key("x"), &names(&["a", "b", "c"])), None);
        assert_eq!(tune(&cache, &key("x"), AutotuneMode::On), (1, 3), "{}", directory.display());
        assert_eq!(
            tune(&cache, &key("x"), AutotuneMode::On),
            (1, 0),
            "this process remembers: {}",
            directory.display()
        );
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a directory");
}

#[test]
#[cfg(unix)]
fn a_read_only_directory_still_gives_a_choice() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let cache = AutotuneCache::at(root.path());
    tune(&cache, &key("x"), AutotuneMode::On);
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o500)).unwrap();
    // What is stored is read; what cannot be stored (it can, for root) is chosen all the same.
    assert_eq!(tune(&cache, &key("x"), AutotuneMode::On), (1, 0));
    assert_eq!(tune(&cache, &key("y"), AutotuneMode::On), (1, 3));
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

const PROCESSES: usize = 3;
const KEYS: usize = 40;

/// Milliseconds that process `process` "measures": each is the fastest at its own candidate.
fn made_up_ms(process: usize, candidate: usize) -> f32 {
    10.0 + candidate as f32 - if candidate == process { 5.0 } else { 0.0 }
}

#[test]
fn processes_that_tune_at_once_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..PROCESSES)
        .map(|process| {
            let mut command = child::command("child_tunes");
            command.env("TEST_DIRECTORY", root.path()).env("TEST_PROCESS", process.to_string());
            command.spawn().expect("starting a child process")
        })
        .collect();
    fs::write(root.path().join("go"), "").unwrap();
    children.into_iter().for_each(child::expect_pass);

    let cache = AutotuneCache::at(root.path().join("cache"));
    let candidates = names(&["a", "b", "c"]);
    for at in 0..KEYS {
        for process in 0..PROCESSES {
            let timings = cache.timings(&key(format!("process {process} key {at}")), &candidates);
            let want: Vec<_> = (0..3).map(|candidate| Timing::Ms(made_up_ms(process, candidate))).collect();
            assert_eq!(timings, Some(want), "process {process} key {at}");
        }
        // The key that all forced to measure keeps one process's timings whole.
        let timings = cache.timings(&key(format!("shared {at}")), &candidates).expect("a shared key");
        let whole = (0..PROCESSES).any(|process| (0..3).all(|c| timings[c] == Timing::Ms(made_up_ms(process, c))));
        assert!(whole, "shared key {at}: {timings:?}");
    }
    let left: Vec<_> = fs::read_dir(cache.directory()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the data file and the lock: {left:?}");
}

#[test]
#[ignore = "the child process of processes_that_tune_at_once_lose_nothing"]
fn child_tunes() {
    let (Some(root), Ok(process)) = (std::env::var_os("TEST_DIRECTORY"), std::env::var("TEST_PROCESS")) else {
        eprintln!("skipped: child_tunes is run by processes_that_tune_at_once_lose_nothing");
        return;
    };
    let (root, process) = (PathBuf::from(root), process.parse::<usize>().unwrap());
    while !root.join("go").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let cache = AutotuneCache::at(root.join("cache"));
    let candidates = names(&["a", "b", "c"]);
    for at in 0..KEYS {
        let mine = key(format!("process {process} key {at}"));
        let choice = cache.tune(&mine, &candidates, AutotuneMode::On, |at| Ok(made_up_ms(process, at))).unwrap();
        assert_eq!(choice, process);
        let shared = key(format!("shared {at}"));
        cache.tune(&shared, &candidates, AutotuneMode::Force, |at| Ok(made_up_ms(process, at))).unwrap();
    }
}
