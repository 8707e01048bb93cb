//! The fuzz targets of `storage/fuzz`, over their stored corpus and seeded changes of it.
//!
//! `FUZZ_SEED=n` runs the changes of one seed.

use std::path::Path;

use iroh_raft_storage::fuzzing::{decode, open_damaged};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    let files: Vec<_> = files.collect();
    assert!(!files.is_empty());
    files
}

fn run(target: &str, count: u64, call: impl Fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|data| call(data));
    let only = std::env::var("FUZZ_SEED").ok().map(|seed| seed.parse().expect("FUZZ_SEED is a number"));
    let seeds = only.map_or(0..count, |seed: u64| seed..seed + 1);
    for seed in seeds {
        println!("FUZZ_SEED={seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let mut data = corpus[random.random_range(0..corpus.len())].clone();
        for _ in 0..random.random_range(1..8) {
            match random.random_range(0..4) {
                0 => data.truncate(random.random_range(0..=data.len())),
                1 => data.extend((0..random.random_range(0..40)).map(|_| random.random::<u8>())),
                _ if data.is_empty() => {}
                _ => {
                    let at = random.random_range(0..data.len());
                    data[at] = random.random();
                }
            }
        }
        call(&data);
    }
}

#[test]
fn any_bytes_are_decoded() {
    run("block", 20_000, decode);
}

#[test]
fn any_damage_is_opened() {
    run("open", 1500, open_damaged);
}
