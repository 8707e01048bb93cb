//! The stored corpus of a fuzz target, and seeded changes of it: how ordinary tests run what
//! cargo-fuzz runs. The tests of each crate include this file by its path.
//!
//! `FUZZ_SEED=7` runs one seed, `FUZZ_SEED=1000..90000` many; `FUZZ_CORPUS=write` stores the corpus of a
//! target anew. An input that fails is kept in a file, which the failure names: copied into the corpus, it
//! is run for ever.
#![allow(clippy::disallowed_methods, reason = "a test's own files and settings: no shard reads them")]

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A small seeded generator (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.number() as u8).collect()
    }
}

fn folder(target: &str) -> PathBuf {
    let mut folders =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("fuzz/corpus"));
    folders.find(|folder| folder.is_dir()).expect("the repository has a fuzz/corpus").join(target)
}

/// Name and bytes of each file of a target.
pub(crate) fn read(target: &str) -> Vec<(String, Vec<u8>)> {
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = std::fs::read_dir(folder(target)).unwrap().map(file).collect();
    // The seeds mean the same everywhere.
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    files
}

/// Whether the corpus is to be stored anew.
pub(crate) fn is_written() -> bool {
    std::env::var("FUZZ_CORPUS").is_ok_and(|what| what == "write")
}

/// Stores a file of the corpus.
pub(crate) fn write(target: &str, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(folder(target)).unwrap();
    std::fs::write(folder(target).join(name), bytes).unwrap();
}

/// Changes bytes; one time in four also how many there are.
fn change(random: &mut Random, corpus: &[Vec<u8>], data: &mut Vec<u8>) {
    if random.below(4) == 0 {
        let at = random.below(data.len() + 1);
        let upto = at + random.below((data.len() - at).min(40) + 1);
        let count = random.below(40);
        match random.below(4) {
            0 => {
                data.truncate(at);
                data.extend(random.bytes(count));
            }
            1 => drop(data.splice(at..upto, random.bytes(count))),
            2 => {
                let again = data[at..upto].to_vec();
                data.splice(upto..upto, again);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                let piece = &other[from..(from + count).min(other.len())];
                data.splice(at..upto, piece.iter().copied());
            }
        }
    }
    for _ in 0..random.below(7) + 1 {
        if data.is_empty() {
            return;
        }
        let at = random.below(data.len());
        let near_the_end = u64::MAX - random.number() % 8;
        let numbers = [0, 1, near_the_end, u64::from(u32::MAX), 1 << 31, random.number()];
        let number = numbers[random.below(numbers.len())].to_le_bytes();
        let bytes = [1, 1, 2, 4, 8][random.below(5)].min(data.len() - at);
        data[at..at + bytes].copy_from_slice(&number[..bytes]);
    }
}

/// Says how to have a failure again, and keeps the input that failed.
struct Witness<'a> {
    target: &'a str,
    what: String,
    data: &'a [u8],
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-failed", self.target));
            let kept = std::fs::write(&path, self.data);
            println!(
                "{} of {} failed; its input is kept in {}: {kept:?}",
                self.what,
                self.target,
                path.display()
            );
        }
    }
}

fn seeds(default: Range<u64>) -> (Range<u64>, bool) {
    let Ok(asked) = std::env::var("FUZZ_SEED") else { return (default, true) };
    let number = |text: &str| text.parse().expect("FUZZ_SEED is a number or a range of numbers");
    let range = match asked.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&asked)..number(&asked) + 1,
    };
    (range, false)
}

/// Runs the corpus and the changes of `count` seeds. Whether these ran, and not those of `FUZZ_SEED`.
pub(crate) fn run(target: &str, count: u64, mut call: impl FnMut(&[u8])) -> bool {
    let files = read(target);
    for (name, data) in &files {
        let _witness = Witness { target, what: format!("file {name}"), data };
        call(data);
    }
    let corpus: Vec<Vec<u8>> = files.into_iter().map(|(_, data)| data).collect();
    let (seeds, is_default) = seeds(0..count);
    for seed in seeds {
        let mut random = Random::new(seed);
        let mut data = corpus[random.below(corpus.len())].clone();
        change(&mut random, &corpus, &mut data);
        let _witness = Witness { target, what: format!("FUZZ_SEED={seed}"), data: &data };
        call(&data);
    }
    is_default
}

/// Stores a corpus found by chance: a few of `count` inputs, each changed from ones before that showed
/// something new, that together show all that any of them did.
#[allow(dead_code, reason = "targets whose corpus is encoded from values do without")]
pub(crate) fn grow(
    target: &str,
    first: Vec<Vec<u8>>,
    count: u64,
    mut shows: impl FnMut(&[u8]) -> BTreeSet<String>,
) {
    let mut corpus = first;
    let mut missing = BTreeSet::new();
    let mut found: Vec<(Vec<u8>, BTreeSet<String>)> = Vec::new();
    for seed in 0..count {
        let mut random = Random::new(seed);
        let mut data = corpus[random.below(corpus.len())].clone();
        change(&mut random, &corpus, &mut data);
        let witness = Witness { target, what: format!("growth at {seed}"), data: &data };
        let shown = shows(&data);
        drop(witness);
        if !shown.is_subset(&missing) {
            missing.extend(shown.iter().cloned());
            corpus.push(data.clone());
            found.push((data, shown));
        }
    }
    println!("{target}: {} inputs show {} things", found.len(), missing.len());
    // Those found before; what has a name of its own was put there by somebody.
    let files = std::fs::read_dir(folder(target)).into_iter().flatten().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.to_string_lossy().ends_with(|last: char| last.is_ascii_digit())) {
        std::fs::remove_file(path).unwrap();
    }
    let new = |shown: &BTreeSet<String>, missing: &BTreeSet<String>| shown.intersection(missing).count();
    for number in 0.. {
        found.sort_by_key(|(data, shown)| (new(shown, &missing), usize::MAX - data.len()));
        let Some((data, shown)) = found.pop().filter(|(_, shown)| new(shown, &missing) > 0) else { break };
        write(target, &format!("{number:03}"), &data);
        missing.retain(|what| !shown.contains(what));
    }
}
