//! The O_DIRECT backend: against a model, under redb, and beside the buffered one on the same file.

use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::ShardId;
use iroh_raft_storage::{DataFolder, DirectDisk, Disk, FileDisk, FileKind};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;

use crate::common::*;

fn open(path: &Path, kind: FileKind, is_new: bool) -> Box<dyn StorageBackend> {
    DirectDisk.open(path, kind, is_new).unwrap()
}

fn seed() -> u64 {
    let seed = std::env::var("DIRECT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| SmallRng::from_os_rng().random());
    println!("DIRECT_SEED={seed}");
    seed
}

/// What redb does to a file, and what it does not: any offset, any length, before and after a sync.
#[test]
fn it_holds_what_was_written_to_it() {
    let mut random = SmallRng::seed_from_u64(seed());
    let temporary = tempfile::tempdir().unwrap();
    for kind in [FileKind::Journal, FileKind::Log] {
        let path = temporary.path().join(format!("{kind:?}"));
        let mut file = open(&path, kind, true);
        let mut model: Vec<u8> = Vec::new();
        for step in 0..2000 {
            let pages = model.len() / 4096;
            match random.random_range(0..100) {
                0..4 => {
                    let pages = random.random_range(1..600);
                    file.set_len(pages * 4096).unwrap();
                    model.resize(pages as usize * 4096, 0);
                }
                4..30 => file.sync_data().unwrap(),
                30..32 => {
                    file.sync_data().unwrap();
                    file.close().unwrap();
                    file = open(&path, kind, false);
                }
                _ if pages == 0 => {}
                32..60 => {
                    let at = random.random_range(0..pages) * 4096;
                    let most = if random.random_bool(0.1) { 300 } else { 8 };
                    let bytes = (random.random_range(1..=most) * 4096).min(model.len() - at);
                    write(&*file, &mut model, at, bytes, &mut random);
                }
                60..75 => {
                    let at = random.random_range(0..model.len());
                    let bytes = random.random_range(1..20_000).min(model.len() - at);
                    write(&*file, &mut model, at, bytes, &mut random);
                }
                _ => {
                    let at = random.random_range(0..model.len());
                    let bytes = random.random_range(1..50_000).min(model.len() - at);
                    let mut out = vec![0; bytes];
                    file.read(at as u64, &mut out).unwrap();
                    assert!(out == model[at..at + bytes], "step {step}: {bytes} bytes at {at}");
                }
            }
            assert_eq!(file.len().unwrap(), model.len() as u64);
        }
        file.sync_data().unwrap();
        drop(file);
        assert!(std::fs::read(&path).unwrap() == model);
    }
}

fn write(file: &dyn StorageBackend, model: &mut [u8], at: usize, bytes: usize, random: &mut SmallRng) {
    let data: Vec<u8> = (0..bytes).map(|_| random.random()).collect();
    file.write(at as u64, &data).unwrap();
    model[at..at + bytes].copy_from_slice(&data);
}

#[test]
fn beyond_the_end_is_an_error() {
    let temporary = tempfile::tempdir().unwrap();
    let file = open(&temporary.path().join("file"), FileKind::Journal, true);
    file.set_len(8192).unwrap();
    let mut page = [0; 4096];
    file.read(4096, &mut page).unwrap();
    assert!(file.read(4097, &mut page).is_err());
    assert!(file.read(u64::MAX - 5, &mut page).is_err());
    // A writer that does that is not to be believed any more.
    assert!(file.write(8192, &page).is_err());
    assert!(file.write(0, &page).is_err() && file.sync_data().is_err() && file.set_len(0).is_err());
    file.read(0, &mut page).unwrap();
    assert_eq!(page, [0; 4096]);
}

#[test]
fn nothing_is_written_after_a_failure() {
    let temporary = tempfile::tempdir().unwrap();
    let file = open(&temporary.path().join("file"), FileKind::Journal, true);
    // More than any disk has.
    let error = file.set_len(1 << 60).unwrap_err();
    let same = |again: std::io::Result<()>| {
        let again = again.unwrap_err();
        assert_eq!((again.kind(), again.raw_os_error()), (error.kind(), error.raw_os_error()));
    };
    same(file.write(0, &[]));
    same(file.sync_data());
    same(file.set_len(0));
}

#[test]
fn each_backend_reads_what_the_other_wrote() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("node");
    let mut model = Model::default();
    let mut seq = 0;
    let disks: [Arc<dyn Disk>; 2] = [Arc::new(DirectDisk), Arc::new(FileDisk)];
    for round in 0..6 {
        let mut folder = DataFolder::open_on(&path, IDENTITY, disks[round % 2].clone()).unwrap();
        let mut shard = folder.open_shard(ShardId(0), OPTIONS).unwrap();
        model.check(&shard);
        for _ in 0..40 {
            seq += 1;
            let part = iroh_raft_core::GroupAppend {
                hard_state: Some(hard_state(1, seq)),
                ..entries_only(1, vec![entry(seq, 1, (seq - 1) * 30, 30)])
            };
            let append = append(seq, vec![part]);
            let report = shard.writer.run_once(std::slice::from_ref(&append)).unwrap();
            model.take(&append);
            if report.is_move_due {
                shard.mover.run_once().unwrap();
            }
        }
    }
}
