use std::time::Duration;

use super::check::LIMIT_BYTES_MAX;
use super::*;
use crate::batch::RecordBlock;
use crate::group_command::GroupCommand;
use crate::ids::{Index, Offset, Term};
use crate::io::{
    AnswerOn, ConfState, Consistency, FetchFrom, HardState, LeaseReads, LogDamage, Propose, Snapshot,
    SnapshotBody, SnapshotConfig, SnapshotHead, SnapshotStep, SnapshotTask, SpreadConfig, TermRun,
};

fn lone(group: u64) -> GroupState {
    GroupState::fresh(GroupId(group), ConfState { voters: vec![NodeId(1)], ..ConfState::default() }, false)
}

/// A shard of lone voters, each of which leads its group.
struct Fixture {
    shard: Shard,
    now: Timestamp,
    out: Outputs,
    requests: u64,
}

impl Fixture {
    fn new(states: Vec<GroupState>) -> Fixture {
        let config = ShardConfig { pending_bytes_max: 1000, ..ShardConfig::new(NodeId(1), 3) };
        let shard = Shard::new(config, FlushSeq(0), states, Timestamp(0)).unwrap();
        Fixture { shard, now: Timestamp(0), out: Outputs::default(), requests: 0 }
    }

    fn led(states: Vec<GroupState>) -> Fixture {
        let mut fixture = Fixture::new(states);
        (0..40).for_each(|_| fixture.turn());
        fixture.out.events.clear();
        fixture
    }

    /// A tick's time passes, a turn ends, and its flush becomes durable.
    fn turn(&mut self) {
        self.now = self.now.after(self.shard.config.tick);
        self.step(Input::EndTurn);
        if let Some(append) = self.out.append.take() {
            self.step(Input::Persisted { seq: append.seq });
        }
    }

    fn step(&mut self, input: Input) {
        self.shard.step(self.now, input, &mut self.out);
    }

    fn propose(&mut self, group: u64, bytes: usize) -> Token {
        self.requests += 1;
        let token = Token { origin: 0, request: self.requests };
        let block = RecordBlock::from_records(&[vec![0; bytes]]);
        let (answer, deadline) = (AnswerOn::Commit, self.now.after(Duration::from_secs(1)));
        self.step(Input::Propose(Propose {
            token,
            group: GroupId(group),
            block,
            run: None,
            answer,
            deadline,
        }));
        token
    }

    /// The answer to a request, if there is one; taken.
    fn answer(&mut self, token: Token) -> Option<Result<Reply, RequestError>> {
        let of = |reply: &Reply| match reply {
            Reply::Appended { token, .. }
            | Reply::Repeated { token, .. }
            | Reply::ReadReady { token, .. } => *token,
            Reply::Records { token, .. }
            | Reply::Found { token, .. }
            | Reply::CommandDone { token, .. }
            | Reply::MembersChanged { token, .. }
            | Reply::Opened { token, .. }
            | Reply::Removed { token, .. }
            | Reply::LeadershipGiven { token, .. }
            | Reply::NotTransferred { token, .. }
            | Reply::Recovered { token, .. }
            | Reply::Failed { token, .. } => *token,
        };
        let at = self.out.replies.iter().position(|reply| of(reply) == token)?;
        Some(match self.out.replies.remove(at) {
            Reply::Failed { error, .. } => Err(error),
            reply => Ok(reply),
        })
    }

    fn error(&mut self, token: Token) -> RequestError {
        self.answer(token).expect("it is answered").expect_err("it failed")
    }

    fn replica(&mut self, group: u64) -> &mut Replica {
        let at = self.shard.position(GroupId(group)).unwrap();
        match &mut self.shard.members[at] {
            Member::Live(replica) => replica,
            Member::Loading(_) | Member::Out(_) | Member::Left(_) => panic!("group {group} does not live"),
        }
    }

    fn quarantined(&mut self) -> Vec<(u64, String)> {
        let reasons = self.out.events.drain(..).filter_map(|event| match event {
            Event::Quarantined { group, reason } => Some((group.0, reason)),
            _ => None,
        });
        reasons.collect()
    }
}

#[test]
fn a_group_that_makes_raft_panic_is_taken_out_alone() {
    let mut fixture = Fixture::led(vec![lone(1), lone(2), lone(3)]);
    let [first, broken, third] = [1, 2, 3].map(|group| fixture.propose(group, 10));
    let read = Token { origin: 9, request: 0 };
    let deadline = fixture.now.after(Duration::from_secs(1));
    let consistency = Consistency::Linearizable;
    fixture.step(Input::Read { token: read, group: GroupId(2), consistency, may_forward: true, deadline });
    // raft-rs finds its commit index beyond its log and panics.
    fixture.replica(2).plant_commit_beyond_last();
    fixture.turn();
    assert!(matches!(fixture.answer(first), Some(Ok(Reply::Appended { .. }))));
    assert!(matches!(fixture.answer(third), Some(Ok(Reply::Appended { .. }))));
    assert!(matches!(fixture.error(broken), RequestError::OutcomeUnknown { .. } | RequestError::Quarantined));
    assert_eq!(fixture.error(read), RequestError::Quarantined);
    fixture.turn();
    let quarantined = fixture.quarantined();
    assert!(matches!(&quarantined[..], [(2, reason)] if !reason.is_empty()), "{quarantined:?}");
    let is_quarantined: Vec<bool> = fixture.shard.statuses().map(|status| status.is_quarantined).collect();
    assert_eq!(is_quarantined, [false, true, false]);
    let late = fixture.propose(2, 10);
    assert_eq!(fixture.error(late), RequestError::Quarantined);
    (0..50).for_each(|_| fixture.turn());
    let fine = fixture.propose(3, 10);
    fixture.turn();
    assert!(matches!(fixture.answer(fine), Some(Ok(_))));
    assert!(fixture.out.replies.is_empty() && fixture.quarantined().is_empty());
}

#[test]
fn what_a_panicking_group_said_in_that_call_is_withdrawn() {
    let mut fixture = Fixture::led(vec![lone(1), lone(2)]);
    let _ = [1, 2].map(|group| fixture.propose(group, 10));
    fixture.replica(2).plant_panic_after_turn();
    fixture.step(Input::EndTurn);
    let groups = fixture.out.append.take().unwrap().groups;
    assert_eq!(groups.iter().map(|append| append.group.0).collect::<Vec<_>>(), [1]);
    assert!(fixture.out.sends.iter().all(|send| send.message.group == GroupId(1)));
}

#[test]
fn an_inconsistent_group_is_quarantined_and_told_in_the_first_turn() {
    let mut odd = lone(2);
    odd.hard_state.commit = Index(7);
    let twice = ConfState { voters: vec![NodeId(1)], learners: vec![NodeId(1)], ..ConfState::default() };
    let mut fixture = Fixture::new(vec![lone(3), odd, GroupState { conf_state: twice, ..lone(1) }]);
    fixture.turn();
    let quarantined = fixture.quarantined();
    let groups: Vec<u64> = quarantined.iter().map(|(group, _)| *group).collect();
    assert_eq!(groups, [1, 2], "{quarantined:?}");
    assert!(quarantined[1].1.contains("commit index 7"), "{quarantined:?}");
    (0..40).for_each(|_| fixture.turn());
    assert_eq!(fixture.shard.status(GroupId(3)).unwrap().role, Role::Leader);
}

#[test]
fn requests_that_cannot_be_taken_say_why() {
    let mut fixture = Fixture::led(vec![lone(1)]);
    let unknown = fixture.propose(9, 10);
    assert_eq!(fixture.error(unknown), RequestError::UnknownGroup);
    let large = fixture.propose(1, 997);
    assert_eq!(fixture.error(large), RequestError::TooLarge { bytes: 1001, bytes_max: 1000 });
    let held = fixture.propose(1, 500);
    let busy = fixture.propose(1, 500);
    let reason = BusyReason::PendingBytes;
    assert_eq!(fixture.error(busy), RequestError::busy(reason));
    fixture.turn();
    assert!(matches!(fixture.answer(held), Some(Ok(Reply::Appended { count: 1, .. }))));
    let (group, token) = (GroupId(1), Token { origin: 5, request: 5 });
    let block = RecordBlock::from_records(&[b"x"]);
    let late = Propose { token, group, block, run: None, answer: AnswerOn::Commit, deadline: fixture.now };
    fixture.step(Input::Propose(late.clone()));
    assert_eq!(fixture.error(token), RequestError::Timeout);
    fixture.step(Input::Propose(Propose { answer: AnswerOn::Apply, ..late }));
    assert!(matches!(fixture.error(token), RequestError::Invalid { .. }));
}

#[test]
fn flushes_are_numbered_from_the_last_and_only_if_there_is_something_to_write() {
    let config = ShardConfig::new(NodeId(1), 3);
    let states = vec![lone(1), lone(2)];
    let mut shard = Shard::new(config, FlushSeq(41), states, Timestamp(0)).unwrap();
    let mut out = Outputs::default();
    shard.step(Timestamp(0), Input::EndTurn, &mut out);
    let append = out.append.take().unwrap();
    assert_eq!((append.seq, append.groups.len()), (FlushSeq(42), 2));
    assert!(append.groups.iter().all(|group| group.conf_state.is_some()));
    shard.step(Timestamp(0), Input::EndTurn, &mut out);
    assert_eq!(out.append, None);
    assert_eq!(shard.next_wakeup(), Some(Timestamp(50_000_000)));
}

#[test]
fn the_wall_clock_of_batches_never_runs_backwards() {
    let mut fixture = Fixture::led(vec![lone(1)]);
    let mut times = Vec::new();
    for wall in [1000, 400, 1001] {
        fixture.step(Input::Wall(WallTime(wall)));
        fixture.propose(1, 1);
        fixture.step(Input::EndTurn);
        let append = fixture.out.append.take().unwrap();
        let header = crate::batch::BatchHeader::parse(&append.groups[0].entries[0].data).unwrap();
        times.push(header.at.0);
    }
    assert_eq!(times, [1000, 1000, 1001]);
}

#[test]
fn a_new_leaders_clock_starts_where_the_log_ends() {
    let (mut state, entries) = with_short_tail();
    state.tail = entries;
    let mut fixture = Fixture::led(vec![state]);
    fixture.step(Input::Wall(WallTime(20)));
    fixture.propose(1, 1);
    fixture.step(Input::EndTurn);
    let append = fixture.out.append.take().unwrap();
    let header = crate::batch::BatchHeader::parse(&append.groups[0].entries[0].data).unwrap();
    assert_eq!((header.at, header.base), (WallTime(7000), Offset(10)));
}

/// Ten entries of one record in term 1; all but the last three have left memory.
fn with_short_tail() -> (GroupState, Vec<LogEntry>) {
    let entry = |index: u64| LogEntry {
        index: Index(index),
        term: Term(1),
        kind: crate::io::EntryKind::Normal,
        data: crate::batch::encode_batch(
            Offset(index - 1),
            WallTime(7000),
            [RecordBlock::from_records(&[b"r"])].iter(),
        ),
    };
    let entries: Vec<LogEntry> = (1..=10).map(entry).collect();
    let state = GroupState {
        hard_state: HardState { term: Term(1), vote: NodeId(1), commit: Index(2) },
        is_durable: true,
        start: Default::default(),
        damage: None,
        term_runs: vec![TermRun { first: Index(1), term: Term(1) }],
        last: Index(10),
        next_offset: Offset(10),
        tail: entries[7..].to_vec(),
        ..lone(1)
    };
    (state, entries)
}

#[test]
fn a_tail_that_does_not_reach_the_commit_index_is_completed_first() {
    let (state, entries) = with_short_tail();
    let mut fixture = Fixture::new(vec![state]);
    fixture.turn();
    let early = fixture.propose(1, 1);
    assert!(matches!(fixture.error(early), RequestError::Busy { .. }));
    for (from, to) in [(2, 4), (4, 7)] {
        let fetch = fixture.out.fetches.pop().unwrap();
        assert_eq!((fetch.from, fetch.to), (FetchFrom::Index(Index(from + 1)), Index(7)));
        let result = Ok(entries[from as usize..to].to_vec());
        fixture.step(Input::Fetched { id: fetch.id, group: fetch.group, result });
        fixture.turn();
    }
    assert!(fixture.out.fetches.is_empty());
    (0..40).for_each(|_| fixture.turn());
    let status = fixture.shard.status(GroupId(1)).unwrap();
    assert_eq!((status.role, status.end, status.commit), (Role::Leader, Offset(10), Index(11)));
}

#[test]
fn a_damaged_or_missing_log_takes_the_group_out() {
    let corrupt = FetchError::Corrupt { first: Index(3), last: Index(4) };
    for (error, tries) in [(corrupt, 1), (FetchError::Io, 1), (FetchError::Missing, 100)] {
        let (state, _) = with_short_tail();
        let mut fixture = Fixture::new(vec![state]);
        for at in 0..tries {
            fixture.turn();
            assert!(fixture.quarantined().is_empty(), "after {at} tries");
            let fetch = fixture.out.fetches.pop().unwrap();
            fixture.step(Input::Fetched { id: fetch.id, group: fetch.group, result: Err(error) });
        }
        fixture.turn();
        assert_eq!(fixture.quarantined().len(), 1, "{error}");
        assert!(fixture.out.fetches.is_empty());
    }
}

/// The reader was slow: who asked first is gone, and who asked next wants something else.
#[test]
fn fetched_records_that_nobody_waits_for_are_no_damage() {
    let (mut state, entries) = with_short_tail();
    state.hard_state.commit = Index(10);
    let mut fixture = Fixture::led(vec![state]);
    let read = |fixture: &mut Fixture, request: u64, from: u64, patience: Duration| {
        let token = Token { origin: 8, request };
        let deadline = fixture.now.after(patience);
        let (group, from) = (GroupId(1), Offset(from));
        fixture.step(Input::ReadRecords {
            token,
            group,
            from,
            bytes_max: 1,
            records_max: u32::MAX,
            is_waiting: false,
            deadline,
        });
        token
    };
    let short = fixture.shard.config.tick;
    let hasty = read(&mut fixture, 1, 0, short);
    let patient = read(&mut fixture, 2, 5, Duration::from_secs(60));
    fixture.step(Input::EndTurn);
    let first = fixture.out.fetches.pop().unwrap();
    assert_eq!(first.from, FetchFrom::Offset(Offset(0)));
    (0..3).for_each(|_| fixture.turn());
    assert_eq!(fixture.error(hasty), RequestError::Timeout);
    fixture.step(Input::Fetched { id: first.id, group: first.group, result: Ok(entries[..2].to_vec()) });
    fixture.turn();
    assert!(fixture.quarantined().is_empty());
    let second = fixture.out.fetches.pop().unwrap();
    assert_eq!(second.from, FetchFrom::Offset(Offset(5)));
    fixture.step(Input::Fetched { id: second.id, group: second.group, result: Ok(entries[5..6].to_vec()) });
    assert!(matches!(fixture.answer(patient), Some(Ok(Reply::Records { from: Offset(5), .. }))));
    // Other records than those asked for are damage all the same.
    read(&mut fixture, 3, 1, Duration::from_secs(60));
    fixture.turn();
    let third = fixture.out.fetches.pop().unwrap();
    fixture.step(Input::Fetched { id: third.id, group: third.group, result: Ok(entries[5..6].to_vec()) });
    fixture.turn();
    assert_eq!(fixture.quarantined().len(), 1);
}

#[test]
fn damage_that_a_scrub_found_takes_the_group_out() {
    let mut fixture = Fixture::new(vec![lone(1), lone(2)]);
    (0..40).for_each(|_| fixture.turn());
    let damage = LogDamage { first: Index(1), last: Index(1) };
    fixture.step(Input::Damaged { group: GroupId(1), damage });
    fixture.step(Input::Damaged { group: GroupId(1), damage });
    fixture.step(Input::Damaged { group: GroupId(9), damage });
    fixture.turn();
    let out: Vec<u64> = fixture.quarantined().into_iter().map(|(group, _)| group).collect();
    assert_eq!(out, [1]);
    let refused = fixture.propose(1, 1);
    assert_eq!(fixture.error(refused), RequestError::Quarantined);
    assert_eq!(fixture.shard.status(GroupId(2)).unwrap().role, Role::Leader);
}

#[test]
fn a_replica_whose_state_machine_panicked_is_out_until_somebody_wants_it_back() {
    let mut fixture = Fixture::led(vec![lone(1), lone(2)]);
    fixture.step(Input::MachinePanicked { group: GroupId(1) });
    fixture.step(Input::MachinePanicked { group: GroupId(9) });
    fixture.turn();
    assert_eq!(fixture.quarantined(), [(1, "its state machine panicked".to_owned())]);
    assert!(fixture.shard.status(GroupId(1)).unwrap().is_quarantined);
    let refused = fixture.propose(1, 1);
    assert_eq!(fixture.error(refused), RequestError::Quarantined);
    assert_eq!(fixture.shard.status(GroupId(2)).unwrap().role, Role::Leader);
    assert!(fixture.out.reopens.is_empty(), "the next state machine may panic over the same");
    fixture.step(Input::Revive { token: Token { origin: 9, request: 1 }, group: GroupId(1) });
    fixture.turn();
    let asked: Vec<GroupId> = fixture.out.reopens.iter().map(|reopen| reopen.group).collect();
    assert_eq!(asked, [GroupId(1)]);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let good = || ShardConfig::new(NodeId(1), 0);
    let refused = |config: &ShardConfig, states| {
        Shard::new(config.clone(), FlushSeq(0), states, Timestamp(0)).unwrap_err()
    };
    let none = Vec::new;
    assert_eq!(refused(&ShardConfig { node: NodeId(0), ..good() }, none()), ConfigError::NodeZero);
    assert_eq!(refused(&ShardConfig { tick: Duration::ZERO, ..good() }, none()), ConfigError::Tick);
    for heartbeat_ticks in [0, 10] {
        let error = ConfigError::HeartbeatTicks { heartbeat_ticks, lease_ticks: 10 };
        assert_eq!(refused(&ShardConfig { heartbeat_ticks, ..good() }, none()), error);
    }
    for (shortest, longest) in [(10, 18), (14, 13), (12, u32::MAX)] {
        let error = ConfigError::ElectionTicks { shortest, longest, lease_ticks: 10 };
        assert_eq!(refused(&ShardConfig { election_ticks: (shortest, longest), ..good() }, none()), error);
    }
    // A lease of a third of ten ticks is shorter than from one heartbeat to the next, here.
    for (drift_ppm_max, heartbeat_ticks) in [(0, 2), (500_001, 2), (u32::MAX, 2), (500_000, 4)] {
        let lease_reads = Some(LeaseReads { drift_ppm_max });
        let error = ConfigError::LeaseReads { drift_ppm_max, heartbeat_ticks, lease_ticks: 10 };
        assert_eq!(refused(&ShardConfig { lease_reads, heartbeat_ticks, ..good() }, none()), error);
    }
    let tick = Duration::from_millis(50);
    let error = refused(&ShardConfig { flush_stuck_after: Duration::ZERO, ..good() }, none());
    let (setting, value, value_min) = ("flush_stuck_after", Duration::ZERO, tick);
    assert_eq!(error, ConfigError::TooShort { setting, value, value_min });
    let spread = |interval, band| ShardConfig { spread: Some(SpreadConfig { interval, band }), ..good() };
    let (setting, value, value_min) = ("spread.interval", tick * 17, tick * 18);
    let error = ConfigError::TooShort { setting, value, value_min };
    assert_eq!(refused(&spread(value, 1), none()), error);
    assert_eq!(refused(&spread(value_min, 0), none()), ConfigError::Band);
    // Two chunks for each of four transfers, at 256 KiB a second.
    let snapshots =
        SnapshotConfig { send_bytes_per_second: 256 << 10, sending_max: 4, ..SnapshotConfig::default() };
    let snapshots = SnapshotConfig { stall_after: Duration::from_secs(7), ..snapshots };
    let (setting, value, value_min) = ("snapshots.stall_after", snapshots.stall_after, snapshots.pace());
    assert_eq!(value_min.as_secs_f64().round(), 8.0);
    let error = refused(&ShardConfig { snapshots, ..good() }, none());
    assert_eq!(error, ConfigError::TooShort { setting, value, value_min });
    for value in [0, usize::MAX] {
        let error = refused(&ShardConfig { pending_bytes_max: value, ..good() }, none());
        assert_eq!(
            error,
            ConfigError::Limit { setting: "pending_bytes_max", value, value_max: LIMIT_BYTES_MAX }
        );
    }
    assert_eq!(refused(&good(), vec![lone(0)]), ConfigError::GroupZero);
    assert_eq!(refused(&good(), vec![lone(4), lone(4)]), ConfigError::DuplicateGroup { group: GroupId(4) });
}

#[test]
fn memory_is_taken_from_those_who_hold_most() {
    assert_eq!(water_level(vec![10, 20, 70], 100), usize::MAX);
    assert_eq!(water_level(vec![10, 20, 70], 60), 30);
    assert_eq!(water_level(vec![50, 50], 60), 30);
    assert_eq!(water_level(vec![], 0), usize::MAX);
}

#[test]
fn replicas_of_a_large_shard_wake_one_after_the_other_or_when_spoken_to() {
    let groups = 300;
    let config = ShardConfig { waking_max: 10, ..ShardConfig::new(NodeId(1), 3) };
    let shard = Shard::new(config, FlushSeq(0), (1..=groups).map(lone).collect(), Timestamp(0)).unwrap();
    let mut fixture = Fixture { shard, now: Timestamp(0), out: Outputs::default(), requests: 0 };
    assert_eq!((fixture.shard.awake.len(), fixture.shard.dormant.len()), (10, 290));
    fixture.turn();
    assert_eq!(fixture.shard.awake.len(), 10 + 64);
    let token = fixture.propose(300, 1);
    assert!(matches!(fixture.answer(token), Some(Err(RequestError::NotLeader { .. }))));
    assert_eq!(fixture.shard.awake.len(), 10 + 64 + 1);
    assert!(!fixture.shard.dormant.contains(&299));
    (0..40).for_each(|_| fixture.turn());
    assert!(fixture.shard.dormant.is_empty());
    assert!(fixture.shard.statuses().all(|status| status.role == Role::Leader));
}

/// A replica of group 1 that follows node 2 in term 5.
fn following() -> GroupState {
    let members = ConfState { voters: vec![NodeId(1), NodeId(2)], ..ConfState::default() };
    let hard_state = HardState { term: Term(5), vote: NodeId(2), commit: Index(0) };
    GroupState { hard_state, is_durable: true, ..GroupState::fresh(GroupId(1), members, false) }
}

/// What a read is asked of the leader under.
fn context_of_a_read(fixture: &mut Fixture) -> bytes::Bytes {
    let heartbeat = PeerMessage::bare(MessageKind::Heartbeat, GroupId(1), (NodeId(2), NodeId(1)), Term(5));
    fixture.step(Input::Message(heartbeat));
    fixture.requests += 1;
    let token = Token { origin: 3, request: fixture.requests };
    let (deadline, consistency) = (fixture.now.after(Duration::from_secs(1)), Consistency::Linearizable);
    fixture.step(Input::Read { token, group: GroupId(1), consistency, may_forward: true, deadline });
    fixture.step(Input::EndTurn);
    let mut asked = fixture.out.sends.drain(..).filter(|send| send.message.kind == MessageKind::ReadIndex);
    asked.next().expect("the leader is asked").message.entries[0].data.clone()
}

/// Takes group 1 out, and back in from this state, without a flush in between.
fn revive(fixture: &mut Fixture, state: GroupState) {
    fixture.replica(1).plant_commit_beyond_last();
    let deadline = fixture.now.after(Duration::from_secs(1));
    let token = Token { origin: 3, request: 0 };
    fixture.step(Input::Find { token, group: GroupId(1), at: WallTime(1), deadline });
    // Taken out in the one turn, told in the next.
    (0..2).for_each(|_| fixture.step(Input::EndTurn));
    assert_eq!(fixture.quarantined().len(), 1);
    fixture.step(Input::Revive { token, group: GroupId(1) });
    fixture.step(Input::EndTurn);
    assert_eq!(fixture.out.reopens.drain(..).count(), 1);
    fixture.step(Input::Reopened { group: GroupId(1), result: Ok(Box::new(state)) });
}

#[test]
fn a_replica_that_begins_again_asks_under_other_names() {
    let mut fixture = Fixture::new(vec![following()]);
    let first = context_of_a_read(&mut fixture);
    let mut contexts = BTreeSet::from([first.clone()]);
    for _ in 0..2 {
        revive(&mut fixture, following());
        assert!(contexts.insert(context_of_a_read(&mut fixture)), "the same as before: {contexts:?}");
    }
    // In the place of one that left, with the seed of the first one.
    let left = GroupState { conf_state: ConfState::default(), ..following() };
    let mut fixture = Fixture::new(vec![left]);
    let (token, group, members) = (Token { origin: 3, request: 99 }, GroupId(1), following().conf_state);
    let (since, has_state_machine, retention) =
        (LogPosition { term: Term(1), index: Index(7) }, false, Default::default());
    fixture.step(Input::Open(Open { token, group, members, since, has_state_machine, retention }));
    assert_ne!(context_of_a_read(&mut fixture), first);
}

#[test]
fn who_waits_for_a_group_that_is_out_is_answered_when_the_shard_fences() {
    let mut fixture = Fixture::led(vec![lone(1), lone(2)]);
    fixture.replica(1).plant_commit_beyond_last();
    fixture.propose(1, 10);
    fixture.turn();
    fixture.out.replies.clear();
    let revived = Token { origin: 3, request: 1 };
    fixture.step(Input::Revive { token: revived, group: GroupId(1) });
    fixture.step(Input::PersistFailed);
    assert_eq!(fixture.error(revived), RequestError::Fenced);
    assert!(fixture.out.replies.is_empty());
}

/// A group that lost its quorum is recovered; its replica is out until it has been read again.
fn recovering() -> (Fixture, Token) {
    let members = ConfState { voters: [1, 2, 3].map(NodeId).to_vec(), ..ConfState::default() };
    let mut fixture = Fixture::new(vec![GroupState::fresh(GroupId(1), members, false)]);
    (0..60).for_each(|_| fixture.turn());
    fixture.out.replies.clear();
    let (token, group) = (Token { origin: 3, request: 1 }, GroupId(1));
    let GroupStatus { last, last_term, .. } = fixture.shard.status(group).unwrap();
    let deadline = fixture.now.after(Duration::from_secs(9));
    let lost = [2, 3].map(NodeId).to_vec();
    fixture.step(Input::Recover(Recover { token, group, lost, last, last_term, deadline }));
    fixture.step(Input::EndTurn);
    assert_eq!(fixture.answer(token), None);
    assert!(fixture.shard.status(group).unwrap().is_quarantined, "it begins again");
    (fixture, token)
}

#[test]
fn a_recovery_that_was_handed_over_may_be_done() {
    let unknown = RequestError::OutcomeUnknown { leader: None };
    let (mut fixture, token) = recovering();
    fixture.step(Input::PersistFailed);
    assert_eq!(fixture.error(token), unknown);

    let (mut fixture, token) = recovering();
    let append = fixture.out.append.take().expect("what is left of the group is written");
    fixture.step(Input::Persisted { seq: append.seq });
    fixture.step(Input::EndTurn);
    assert_eq!(fixture.out.reopens.len(), 1);
    fixture.step(Input::Reopened { group: GroupId(1), result: Err(FetchError::Io) });
    assert_eq!(fixture.error(token), unknown, "it is durable, whoever reads it");
    assert_eq!(fixture.answer(token), None);
}

#[test]
fn a_replica_in_disorder_answers_all_that_waits_and_takes_back_what_it_said() {
    let mut fixture = Fixture::led(vec![lone(1), lone(2)]);
    let (token, group) = (Token { origin: 9, request: 0 }, GroupId(2));
    let deadline = fixture.now.after(Duration::from_secs(1));
    fixture.step(Input::Command { token, group, command: GroupCommand::Compare, deadline });
    let (consistency, read) = (Consistency::Linearizable, Token { origin: 9, request: 1 });
    fixture.step(Input::EndTurn);
    let append = fixture.out.append.take().expect("the command is written");
    fixture.step(Input::Persisted { seq: append.seq });
    fixture.step(Input::Read { token: read, group, consistency, may_forward: true, deadline });
    fixture.replica(2).plant_miscounted_reads();
    fixture.replica(2).plant_panic_after_turn();
    fixture.step(Input::EndTurn);
    assert_eq!(fixture.error(read), RequestError::Quarantined);
    assert!(fixture.out.compares.is_empty(), "{:?}", fixture.out.compares);
    fixture.step(Input::EndTurn);
    assert_eq!(fixture.quarantined().len(), 1);
}

/// Whether a replica of the ten entries asks for its state from a snapshot of this entry, and its commit index then.
fn restored(index: u64, term: u64, terms: &[(u64, u64)]) -> (bool, Index) {
    let (mut state, entries) = with_short_tail();
    state.tail = entries;
    let run = |(first, term): &(u64, u64)| TermRun { first: Index(*first), term: Term(*term) };
    state.term_runs = terms.iter().map(run).collect();
    for entry in &mut state.tail {
        let after = state.term_runs.partition_point(|run| run.first <= entry.index);
        entry.term = state.term_runs[after - 1].term;
    }
    state.hard_state = HardState { term: Term(9), vote: NodeId(1), commit: Index(6) };
    let (offset, conf_state) = (Offset(index), state.conf_state.clone());
    let (index, term, table) = (Index(index), Term(term), bytes::Bytes::new());
    let head = SnapshotHead { index, term, offset, conf_state, table };
    let body = SnapshotBody { bytes: 1, checksum: 1 };
    (state.snapshot, state.has_state_machine) = (Some(Snapshot { head, body }), true);
    let mut fixture = Fixture::new(vec![state]);
    fixture.step(Input::EndTurn);
    assert!(fixture.quarantined().is_empty());
    let is_restore = |task: &SnapshotTask| matches!(task.step, SnapshotStep::Restore(_));
    let is_restored = fixture.out.snapshots.iter().any(is_restore);
    (is_restored, fixture.shard.status(GroupId(1)).unwrap().commit)
}

/// Terms never fall within a log: what contradicts those of its committed entries is of another one.
#[test]
fn a_snapshot_of_another_history_is_not_taken_for_that_of_the_log() {
    let terms = [(1, 1), (4, 3)];
    assert_eq!(restored(3, 1, &terms), (true, Index(6)));
    assert_eq!(restored(6, 3, &terms), (true, Index(6)));
    for other in [(3, 3), (4, 1), (6, 2)] {
        assert_eq!(restored(other.0, other.1, &terms), (false, Index(6)), "{other:?}");
    }
    // Ahead of what is known to be committed.
    assert_eq!(restored(8, 3, &terms), (true, Index(8)));
    assert_eq!(restored(20, 5, &terms), (true, Index(20)));
    assert_eq!(restored(20, 2, &terms), (false, Index(6)));
}
