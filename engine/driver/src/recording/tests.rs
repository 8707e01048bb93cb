use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, ConfState, GroupId, HardState, Index, LogStart, NodeId, Offset, Propose, Retention, Token,
    WallTime,
};

use super::*;

const GROUP: GroupId = GroupId(3);

/// Memory that takes so many bytes and fails then.
#[derive(Clone)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    bytes_max: usize,
}

impl Memory {
    fn new(bytes_max: usize) -> Memory {
        Memory { bytes: Arc::default(), bytes_max }
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stored = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if stored.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        stored.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a lone voter that takes a proposal every turn, and says how many were answered.
fn run(out: &Memory, bytes_max: u64, turns: u64) -> u64 {
    let config = ShardConfig::new(NodeId(1), 7);
    let group = GroupState {
        snapshot: None,
        group: GROUP,
        hard_state: HardState::default(),
        conf_state: ConfState { voters: vec![NodeId(1)], ..ConfState::default() },
        meta: Bytes::new(),
        retention: Retention::default(),
        is_durable: false,
        start: LogStart::default(),
        term_runs: Vec::new(),
        last: Index(0),
        next_offset: Offset(0),
        tail: Vec::new(),
        conf_changes: Vec::new(),
        damage: None,
        is_under_repair: false,
        joined_at: Default::default(),
        has_state_machine: false,
    };
    let start = Timestamp(5);
    let groups = vec![group];
    let (shard_id, last_seq) = (ShardId(0), FlushSeq(0));
    let origin = Origin { shard: shard_id, config: &config, last_seq, groups: &groups, now: start };
    let mut recorder = Recorder::new(Box::new(out.clone()), bytes_max, origin);
    let mut shard = Shard::new(config.clone(), last_seq, groups, start).unwrap();
    let mut outputs = Outputs::default();
    let (mut answered, mut flushed) = (0, None);
    for turn in 1..=turns {
        let now = start.after(Duration::from_millis(20 * turn));
        let block = RecordBlock::from_records(&[turn.to_le_bytes()]);
        let token = Token { origin: 0, request: turn };
        let deadline = now.after(Duration::from_secs(5));
        let propose = Propose { token, group: GROUP, block, run: None, answer: AnswerOn::Commit, deadline };
        let inputs = [Input::Wall(WallTime(turn)), Input::Propose(propose), Input::EndTurn];
        let persisted = Option::map(flushed.take(), |seq| Input::Persisted { seq });
        for input in persisted.into_iter().chain(inputs) {
            recorder.input(now, &input);
            shard.step(now, input, &mut outputs);
        }
        recorder.turn(now, &shard, &outputs);
        flushed = outputs.append.as_ref().map(|append| append.seq);
        answered += outputs
            .replies
            .iter()
            .filter(|reply| matches!(reply, iroh_raft_core::Reply::Appended { .. }))
            .count() as u64;
        outputs.clear();
    }
    answered
}

fn recorded(turns: u64) -> Vec<u8> {
    let memory = Memory::new(usize::MAX);
    assert!(run(&memory, 1 << 30, turns) > 0, "the run gets somewhere");
    memory.take()
}

fn replayed(bytes: &[u8]) -> Result<Report, ReplayError> {
    replay(Recording::open(bytes)?, |_, _| {})
}

fn place(error: &ReplayError) -> u64 {
    match error {
        ReplayError::Recording(RecordingError::Damaged { at }) => *at,
        ReplayError::Recording(RecordingError::Foreign | RecordingError::Version { .. }) => 0,
        other => panic!("no damage: {other}"),
    }
}

/// Where each frame begins.
fn frame_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![PREFIX_BYTES];
    while let Some(header) = bytes.get(starts[starts.len() - 1]..).filter(|rest| !rest.is_empty()) {
        let length = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
        starts.push(starts[starts.len() - 1] + FRAME_HEADER_BYTES + length);
    }
    starts
}

#[test]
fn a_recording_replays_to_the_same_outputs_and_is_told_in_words() {
    let bytes = recorded(200);
    let mut lines = Vec::new();
    let report = replay(Recording::open(&bytes[..]).unwrap(), |step, outputs| {
        lines.push(format!("{step} {}", Words(outputs)));
    });
    let report = report.unwrap();
    assert_eq!((report.turns, report.ending), (200, Ending::Closed));
    assert!(report.inputs >= 600, "{report:?}");
    assert!(lines[1].contains("group 3: propose 1 records, 8 bytes"), "{}", lines[1]);
    assert!(lines.iter().any(|line| line.contains("Appended")));
}

#[test]
fn every_flipped_bit_is_an_error_that_names_the_place() {
    let bytes = recorded(40);
    let starts = frame_starts(&bytes);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let frame = starts.iter().rev().find(|start| **start <= at).copied().unwrap_or(0);
        let error = replayed(&damaged).expect_err("damage is noticed");
        assert_eq!(place(&error), frame as u64, "byte {at}: {error}");
    }
}

#[test]
fn a_recording_that_was_cut_off_replays_up_to_there() {
    let bytes = recorded(40);
    let whole = replayed(&bytes).unwrap();
    let groups_end = frame_starts(&bytes)[2];
    for length in PREFIX_BYTES..bytes.len() {
        match replayed(&bytes[..length]) {
            Ok(report) => {
                assert_eq!(report.ending, Ending::Torn);
                assert!(length >= groups_end && report.turns <= whole.turns);
            }
            Err(ReplayError::Recording(RecordingError::NoStart { .. })) => assert!(length < groups_end),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_recording_keeps_its_bound_and_replays_up_to_there() {
    let whole = recorded(200).len() as u64;
    for bytes_max in [RECORDING_BYTES_MIN, RECORDING_BYTES_MIN + 1, whole - 1, whole] {
        let memory = Memory::new(usize::MAX);
        run(&memory, bytes_max, 200);
        let bytes = memory.take();
        let report = replayed(&bytes).unwrap();
        assert!(bytes.len() as u64 <= bytes_max && bytes.len() as u64 + 200 > bytes_max);
        let expected = if bytes_max == whole { Ending::Closed } else { Ending::Full };
        assert_eq!(report.ending, expected);
        assert!(report.turns > 10);
    }
}

#[test]
fn a_changed_input_diverges_at_the_turn_that_it_changes() {
    let bytes = recorded(200);
    let mut recording = Recording::open(&bytes[..]).unwrap();
    let starts = frame_starts(&bytes);
    let mut changed = bytes[..starts[2]].to_vec();
    let mut turn_changed = None;
    while let Some(Step { number, now, mut kind, .. }) = recording.next_step().unwrap() {
        match &mut kind {
            StepKind::Input(Input::Propose(propose)) if propose.token.request == 150 => {
                propose.block = RecordBlock::from_records(&[[0xff; 8]]);
                turn_changed = Some(number + 2);
            }
            _ => {}
        }
        match &kind {
            StepKind::Input(input) => push(&mut changed, &Frame::Input { now, input }),
            StepKind::Turn { digest } => push(&mut changed, &Frame::Turn { digest: *digest }),
        }
    }
    match replayed(&changed) {
        Err(ReplayError::Diverged(divergence)) => {
            assert_eq!(Some(divergence.step), turn_changed, "{divergence}");
        }
        other => panic!("no divergence: {other:?}"),
    }
}

#[test]
fn a_write_that_fails_ends_the_recording_alone() {
    let memory = Memory::new(6000);
    let whole = run(&Memory::new(usize::MAX), 1 << 30, 200);
    assert_eq!(run(&memory, 1 << 30, 200), whole, "the shard goes on");
    let report = replayed(&memory.take()).unwrap();
    assert_eq!(report.ending, Ending::Torn);
    assert!(report.turns > 10);
}

#[test]
fn a_length_over_the_bound_is_refused_before_anything_is_read() {
    let mut bytes = recorded(40)[..PREFIX_BYTES].to_vec();
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let check = crc32c::crc32c(&header[..8]);
    header[8..].copy_from_slice(&check.to_le_bytes());
    bytes.extend(header);
    let error = Recording::open(&bytes[..]).expect_err("too long");
    assert!(matches!(error, RecordingError::Malformed { at: 12, .. }), "{error}");
}
