//! The targets over their stored corpus and seeded changes of it (fuzz/corpus.rs of the repository).

#[path = "../../../../../fuzz/corpus.rs"]
mod corpus;

use std::collections::BTreeMap;

use bytes::Bytes;
use iroh_raft_core::batch::{BATCH_HEADER_BYTES, RUN_BYTES, RecordBlock, encode_batch};
use iroh_raft_core::group_command::GroupCommands;
use iroh_raft_core::{CursorName, GroupCommand, GroupMeta, Index, MessageKind, Offset, WallTime};

use super::{batch::batch, shard_inputs::shard_inputs, validator::validator};
use corpus::Random;

/// Inputs to begin with: chance, of different lengths.
fn first() -> Vec<Vec<u8>> {
    let mut random = Random::new(0);
    (1..=40).map(|tens| random.bytes(20 * tens)).collect()
}

fn counted<T: Ord>(counts: &mut BTreeMap<T, u64>, seen: impl IntoIterator<Item = T>) {
    seen.into_iter().for_each(|what| *counts.entry(what).or_default() += 1);
}

#[test]
fn no_inputs_break_a_shard() {
    if corpus::is_written() {
        corpus::grow("shard_inputs", first(), 20_000, shard_inputs);
    }
    let mut counts = BTreeMap::new();
    let is_all = corpus::run("shard_inputs", 2500, |data| counted(&mut counts, shard_inputs(data)));
    println!("{counts:#?}");
    let rare = [
        "cut seldom",
        "fenced seldom",
        "fetch seldom",
        "read ready often",
        "records often",
        "unknown often",
        "Leader takes AppendResponse",
        "Candidate takes RequestVoteResponse",
    ];
    for what in rare {
        assert!(
            !is_all || counts.get(what).is_some_and(|count| *count > 10),
            "hardly any {what}: {counts:#?}"
        );
    }
}

#[test]
fn what_the_validator_passes_breaks_no_group() {
    if corpus::is_written() {
        corpus::grow("validator", first(), 20_000, validator);
    }
    let mut counts = BTreeMap::new();
    let is_all = corpus::run("validator", 5000, |data| counted(&mut counts, validator(data)));
    println!("{counts:#?}");
    let all = MessageKind::ALL.into_iter();
    let is_of_snapshot = |kind: &MessageKind| {
        matches!(kind, MessageKind::Snapshot | MessageKind::SnapshotChunk | MessageKind::SnapshotAck)
    };
    for kind in all.filter(|kind| !is_of_snapshot(kind)) {
        let is_of_kind = |what: &str| what.ends_with(&format!(" takes {kind:?}"));
        let count: u64 = counts.iter().filter(|(what, _)| is_of_kind(what)).map(|(_, count)| *count).sum();
        assert!(!is_all || count > 100, "hardly any {kind:?} is taken: {counts:#?}");
    }
}

#[test]
fn any_bytes_are_a_batch_or_an_error() {
    if corpus::is_written() {
        write_batches();
    }
    let mut taken = [0_u64; 4];
    let is_all = corpus::run("batch", 50_000, |data| {
        for (count, is_taken) in taken.iter_mut().zip(batch(data)) {
            *count += u64::from(is_taken);
        }
    });
    println!("taken for batches, blocks, commands and tables: {taken:?}");
    // Changes that nothing lets through test little more than the first lines.
    assert!(!is_all || taken.iter().all(|count| *count > 1000), "{taken:?}");
}

fn write_batches() {
    let blocks = [
        RecordBlock::from_records(&[b"one"]),
        RecordBlock::from_records(&[&b""[..], b"two", b"", b"three"]),
        RecordBlock::from_records(&[[7; 9]; 20]),
    ];
    for (number, block) in blocks.iter().enumerate() {
        let data = [&block.count().to_le_bytes()[..], block.as_bytes()].concat();
        corpus::write("batch", &format!("block-{number}"), &data);
        let data = encode_batch(Offset(7), WallTime(99), [block, &blocks[0]].into_iter());
        corpus::write("batch", &format!("batch-{number}"), &data);
    }
    // The last offsets that there are, and some beyond.
    let near_the_end = |block| encode_batch(Offset(u64::MAX - 1), WallTime(99), [block].into_iter());
    corpus::write("batch", "batch-last-offsets", &near_the_end(&blocks[0]));
    corpus::write("batch", "batch-beyond-offsets", &near_the_end(&blocks[1]));
    write_commands();
    // The table of runs is for client sessions to come.
    let plain = encode_batch(Offset(7), WallTime(99), blocks.iter());
    let (header, rest) = plain.split_at(BATCH_HEADER_BYTES);
    let mut with_runs = [header, &[5; 2 * RUN_BYTES], rest].concat();
    with_runs[2] = 2;
    corpus::write("batch", "batch-with-runs", &Bytes::from(with_runs));
}

fn write_commands() {
    let name = |text: &'static str| CursorName::new(text).expect("a short name");
    let commands = [
        GroupCommand::CommitCursor { name: name("a"), offset: Offset(5) },
        GroupCommand::SetCursor { name: name("another consumer"), offset: Offset(u64::MAX) },
        GroupCommand::Trim { before: Offset(3) },
        GroupCommand::DropCursor { name: name("a") },
    ];
    for count in 1..=commands.len() {
        let entry = GroupCommands { at: WallTime(99), commands: commands[..count].to_vec() };
        corpus::write("batch", &format!("commands-{count}"), &entry.encode());
        let mut meta = GroupMeta::default();
        meta.apply(Index(7), &entry);
        corpus::write("batch", &format!("table-{count}"), &meta.encode());
    }
}
