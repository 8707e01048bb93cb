//! The targets over their stored corpus and seeded changes of it (fuzz/corpus.rs of the repository).

#[path = "../../../../fuzz/allocated.rs"]
mod allocated;
#[path = "../../../../fuzz/corpus.rs"]
mod corpus;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    AnswerOn, ConfState, Consistency, CursorName, EntryKind, FetchError, FetchId, FlushSeq, GroupCommand,
    GroupId, GroupState, HardState, Index, Input, LogDamage, LogEntry, MessageKind, NodeId, Offset, Outputs,
    PeerMessage, Propose, Shard, ShardConfig, ShardId, Term, TermRun, Timestamp, Token, WallTime,
};
use iroh_raft_driver::Observer;
use iroh_raft_driver::recording::{Origin, Recorder};
use iroh_raft_driver::state_machine::Message;

use crate::message::{Sample, message};
use crate::recording::{read, recording, sealed};

#[global_allocator]
static ALLOCATOR: allocated::Watched = allocated::Watched;

#[test]
fn any_bytes_are_a_recording_or_an_error() {
    if corpus::is_written() {
        write_recordings();
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let is_all = corpus::run("recording", 10_000, |data| {
        let sealed = sealed(data);
        let (bytes, _) = allocated::largest(|| read(&sealed, &mut BTreeSet::new()).is_ok());
        // serde takes a length's word for at most a MiB.
        assert!(bytes <= 16 * data.len() + (1 << 20), "{bytes} bytes for a recording of {}", data.len());
        recording(data).into_iter().for_each(|what| *counts.entry(what).or_default() += 1);
    });
    println!("{counts:#?}");
    let all = ["Input Fetched", "Input Message", "Input Propose", "Input ReadRecords", "replayed, Closed"];
    for what in all {
        let count = counts.get(what).copied().unwrap_or_default();
        assert!(!is_all || count > 100, "hardly any {what}: {counts:#?}");
    }
}

#[test]
fn any_bytes_are_a_message_or_an_error() {
    if corpus::is_written() {
        write_messages();
    }
    let mut taken = 0_u64;
    let is_all = corpus::run("message", 50_000, |data| {
        let (bytes, is_taken) = allocated::largest(|| message(data));
        assert!(bytes <= 16 * data.len() + (1 << 10), "{bytes} bytes for a message of {}", data.len());
        taken += u64::from(is_taken);
    });
    println!("taken: {taken}");
    assert!(!is_all || taken > 1000, "{taken}");
}

fn write_messages() {
    let text = |text: &str| text.to_owned();
    let samples = [
        ("nothing", Sample::Nothing),
        ("short-text", Sample::Text(text("short"))),
        ("long-text", Sample::Text("ä long one".repeat(9))),
        ("numbers", Sample::Numbers { small: 1, large: 2, signed: -3, real: 4.5, is_set: true, letter: 'é' }),
        (
            "lists",
            Sample::Lists {
                bytes: vec![7; 30],
                texts: vec![text("one"), text("two of more than eight bytes")],
                pairs: vec![(1, None), (2, Some("three".into()))],
            },
        ),
        ("map", Sample::Map((0..20_u8).map(|key| (format!("key {key}"), vec![key; 3])).collect())),
    ];
    for (name, sample) in samples {
        corpus::write("message", name, &sample.encode());
    }
}

const GROUP: GroupId = GroupId(3);

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A shard that is recorded.
struct Recorded {
    shard: Shard,
    recorder: Recorder,
    outputs: Outputs,
    now: Timestamp,
}

impl Recorded {
    fn new(memory: &Memory, bytes_max: u64, groups: Vec<GroupState>) -> Recorded {
        let (config, last_seq, now) = (ShardConfig::new(NodeId(1), 7), FlushSeq(4), Timestamp(5));
        let origin = Origin { shard: ShardId(0), config: &config, last_seq, groups: &groups, now };
        let recorder = Recorder::new(Box::new(memory.clone()), bytes_max, origin);
        let shard = Shard::new(config.clone(), last_seq, groups, now).unwrap();
        Recorded { shard, recorder, outputs: Outputs::default(), now }
    }

    /// A turn with these inputs. What it wants durable is so in the next.
    fn turn(&mut self, inputs: Vec<Input>) {
        self.now = self.now.after(Duration::from_millis(60));
        let flushed = self.outputs.append.take().map(|append| Input::Persisted { seq: append.seq });
        self.outputs.clear();
        for input in flushed.into_iter().chain(inputs).chain([Input::Wall(WallTime(9)), Input::EndTurn]) {
            self.recorder.input(self.now, &input);
            self.shard.step(self.now, input, &mut self.outputs);
        }
        self.recorder.turn(self.now, &self.shard, &self.outputs);
    }
}

fn state(voters: &[u64], entries: u64) -> GroupState {
    let voters = voters.iter().copied().map(NodeId).collect();
    let conf_state = ConfState { voters, ..ConfState::default() };
    let tail: Vec<LogEntry> = (1..=entries).map(entry).collect();
    GroupState {
        hard_state: HardState { term: Term(entries.min(1)), vote: NodeId(0), commit: Index(entries / 2) },
        is_durable: entries > 0,
        term_runs: tail
            .first()
            .map(|entry| TermRun { first: entry.index, term: entry.term })
            .into_iter()
            .collect(),
        last: Index(entries),
        next_offset: Offset(entries),
        tail: tail.into_iter().skip(1).collect(),
        ..GroupState::fresh(GROUP, conf_state, false)
    }
}

fn entry(index: u64) -> LogEntry {
    let block = RecordBlock::from_records(&[b"record"]);
    let data = encode_batch(Offset(index - 1), WallTime(1), [&block].into_iter());
    LogEntry { index: Index(index), term: Term(1), kind: EntryKind::Normal, data }
}

fn append(index: u64) -> Input {
    Input::Message(PeerMessage {
        kind: MessageKind::Append,
        group: GROUP,
        from: NodeId(2),
        to: NodeId(1),
        term: Term(1),
        log_term: Term(1),
        index: Index(index),
        commit: Index(index),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Bytes::from_static(b"context"),
        entries: vec![entry(index + 1)],
    })
}

/// Runs that take every kind of input, and that end in every way.
fn write_recordings() {
    let memory = Memory::default();
    let token = |request| Token { origin: 0, request };
    let deadline = Timestamp(1 << 40);
    let propose = |request| {
        let block = RecordBlock::from_records(&[b"record"]);
        Input::Propose(Propose {
            token: token(request),
            group: GROUP,
            block,
            run: None,
            answer: AnswerOn::Commit,
            deadline,
        })
    };
    let read = |request| Input::Read {
        token: token(request),
        group: GROUP,
        consistency: Consistency::Lease,
        may_forward: true,
        deadline,
    };
    // A lone voter becomes leader.
    let mut leader = Recorded::new(&memory, 1 << 20, vec![state(&[1], 0)]);
    (0..25).for_each(|_| leader.turn(Vec::new()));
    leader.turn(vec![propose(1), read(2)]);
    let transfer = |request, to| Input::TransferLeader { token: token(request), group: GROUP, to };
    leader.turn(vec![Input::Unreachable { node: NodeId(2) }, transfer(5, None)]);
    leader.turn(vec![Input::StepDown { token: token(6), group: GROUP }]);
    leader.turn(vec![Input::ReadRecords {
        token: token(3),
        group: GROUP,
        from: Offset(0),
        bytes_max: 99,
        records_max: u32::MAX,
        is_waiting: false,
        deadline,
    }]);
    let name = CursorName::new("consumer").expect("a short name");
    let command = GroupCommand::CommitCursor { name, offset: Offset(0) };
    let tail = token(7);
    leader.turn(vec![
        Input::Command { token: token(8), group: GROUP, command, deadline },
        Input::Tail { token: tail, group: GROUP, from: Offset(0), granted_bytes: 1, deadline },
        Input::Find { token: token(9), group: GROUP, at: WallTime(1), deadline },
    ]);
    leader.turn(vec![Input::GrantTail { token: tail, group: GROUP, granted_bytes: 99 }]);
    leader.turn(vec![Input::EndTail { token: tail, group: GROUP }]);
    leader.turn(vec![Input::PersistFailed, propose(4)]);
    drop(leader);
    corpus::write("recording", "leader", &memory.take());
    // A follower with a log of which not all is in memory.
    let other = GroupState { group: GroupId(4), has_state_machine: true, ..state(&[1, 2, 3], 6) };
    let mut follower = Recorded::new(&memory, 1 << 20, vec![state(&[1, 2, 3], 6), other]);
    follower.turn(vec![append(6), append(7)]);
    follower.turn(vec![
        Input::ReadRecords {
            token: token(1),
            group: GROUP,
            from: Offset(0),
            bytes_max: 99,
            records_max: u32::MAX,
            is_waiting: false,
            deadline,
        },
        Input::Applied { group: GroupId(4), index: Index(1) },
    ]);
    for fetch in std::mem::take(&mut follower.outputs.fetches) {
        let result = if fetch.group == GROUP { Ok(vec![entry(1)]) } else { Err(FetchError::Missing) };
        follower.turn(vec![Input::Fetched { id: fetch.id, group: fetch.group, result }]);
    }
    let damage = LogDamage { first: Index(1), last: Index(2) };
    follower.turn(vec![Input::Damaged { group: GROUP, damage }, propose(2)]);
    drop(follower);
    let whole = memory.take();
    corpus::write("recording", "follower", &whole);
    corpus::write("recording", "torn", &whole[..whole.len() - 30]);
    // One input each: most of a longer run is about others.
    let inputs = [
        ("wall", Input::Wall(WallTime(1))),
        ("append", append(6)),
        ("propose", propose(1)),
        ("read", read(1)),
        ("fetched", Input::Fetched { id: FetchId(1), group: GROUP, result: Ok(vec![entry(1), entry(2)]) }),
        ("applied", Input::Applied { group: GROUP, index: Index(3) }),
        ("transfer", transfer(1, Some(NodeId(2)))),
    ];
    for (name, input) in inputs {
        Recorded::new(&memory, 1 << 20, vec![state(&[1, 2, 3], 6)]).turn(vec![input]);
        corpus::write("recording", name, &memory.take());
    }
    let mut full = Recorded::new(&memory, 4096, vec![state(&[1], 0)]);
    (0..40).for_each(|_| full.turn(Vec::new()));
    drop(full);
    corpus::write("recording", "full", &memory.take());
}
