//! Peers that lie: whatever arrives, no group panics, and others never notice.

use bytes::Bytes;
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    AnswerOn, EntryKind, Event, FlushSeq, GroupId, Index, Input, LogEntry, MessageKind, NodeId, Offset,
    Outputs, PeerMessage, Propose, Reply, RequestError, Role, Shard, ShardConfig, Term, Timestamp, Token,
    WallTime,
};
use proptest::prelude::*;

use crate::harness::Group;

#[derive(Clone, Debug)]
enum Op {
    Message(PeerMessage),
    Tick(u64),
    Persisted,
    Propose,
    Turn,
}

fn entry() -> impl Strategy<Value = (u64, u64, u8, Bytes)> {
    let data = prop_oneof![
        3 => Just(Bytes::new()),
        6 => (0..6_u64, 1..3_usize).prop_map(|(base, count)| {
            let block = RecordBlock::from_records(&vec![b"x"; count]);
            encode_batch(Offset(base), WallTime(1), [block].iter())
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from),
    ];
    (0..2_u64, 0..2_u64, prop_oneof![20 => Just(0_u8), 1 => 1..3_u8], data)
}

/// Mostly well-formed messages, with numbers small enough to meet each other.
fn message() -> impl Strategy<Value = PeerMessage> {
    let near = || prop_oneof![30 => 0..7_u64, 1 => any::<u64>()];
    let context = prop_oneof![
        6 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(b"CampaignTransfer")),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Bytes::from),
    ];
    let numbers = (near(), near(), near(), near(), near(), near());
    let rest = (0..3_u64, any::<bool>(), context, proptest::collection::vec(entry(), 0..4), any::<i64>());
    (0..12_usize, 0..5_u64, numbers, rest, prop_oneof![9 => Just(0_u64), 1 => near()]).prop_map(
        |(kind, from, (term, log_term, index, commit, commit_term, hint), rest, snapshot)| {
            let (from, (to, reject, context, entries, priority)) = (NodeId(from), rest);
            let (mut at, mut of) = (index, log_term.min(term));
            let entries = entries.into_iter().map(|(skip, newer, kind, data)| {
                at = at.wrapping_add(1 + skip / 2 * (skip % 2));
                of = of.saturating_add(newer);
                let kind = EntryKind::from_u8(kind).unwrap();
                LogEntry { index: Index(at), term: Term(of.max(1)), kind, data }
            });
            PeerMessage {
                kind: MessageKind::ALL[kind],
                group: GroupId(1),
                from,
                to: NodeId(1 + to / 2),
                term: Term(term),
                log_term: Term(log_term),
                index: Index(index),
                commit: Index(commit),
                commit_term: Term(commit_term),
                reject,
                reject_hint: Index(hint),
                request_snapshot: Index(snapshot),
                priority,
                context,
                entries: entries.collect(),
            }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => message().prop_map(Op::Message),
        2 => (1..400_u64).prop_map(Op::Tick),
        2 => Just(Op::Persisted),
        1 => Just(Op::Propose),
        4 => Just(Op::Turn),
    ]
}

/// A shard, with everything that it is told and that it says.
struct Victim {
    shard: Shard,
    now: u64,
    seq: FlushSeq,
    requests: u64,
    out: Outputs,
}

impl Victim {
    fn new(voters: &[u64]) -> Victim {
        let states = vec![Group::new(1, voters).fresh(), Group::new(2, &[1]).fresh()];
        let config = ShardConfig::new(NodeId(1), 1);
        let shard = Shard::new(config, FlushSeq(0), states, Timestamp(0)).unwrap();
        Victim { shard, now: 0, seq: FlushSeq(0), requests: 0, out: Outputs::default() }
    }

    fn feed(&mut self, op: &Op) {
        let input = match op {
            Op::Message(message) => Input::Message(message.clone()),
            Op::Tick(millis) => {
                self.now += millis * 1_000_000;
                Input::EndTurn
            }
            Op::Persisted => Input::Persisted { seq: self.seq },
            Op::Propose => {
                self.requests += 1;
                Input::Propose(Propose {
                    token: Token { origin: 0, request: self.requests },
                    group: GroupId(1),
                    block: RecordBlock::from_records(&[b"mine"]),
                    run: None,
                    answer: AnswerOn::Commit,
                    deadline: Timestamp(u64::MAX),
                })
            }
            Op::Turn => Input::EndTurn,
        };
        self.out.clear();
        self.shard.step(Timestamp(self.now), input, &mut self.out);
        self.seq = self.out.append.as_ref().map_or(self.seq, |append| append.seq);
        let broken = self.out.events.iter().find(|event| matches!(event, Event::Quarantined { .. }));
        assert_eq!(broken, None, "after {op:?}");
    }

    /// Honest votes make it the leader, with a few entries that node 2 has too.
    fn make_leader(&mut self) {
        while self.shard.status(GroupId(1)).unwrap().role != Role::Leader {
            self.feed(&Op::Tick(50));
            let asked: Vec<PeerMessage> = self.out.sends.iter().map(|send| send.message.clone()).collect();
            self.feed(&Op::Persisted);
            for request in asked.into_iter().filter(|message| message.to == NodeId(2)) {
                let kind = match request.kind {
                    MessageKind::RequestPreVote => MessageKind::RequestPreVoteResponse,
                    MessageKind::RequestVote => MessageKind::RequestVoteResponse,
                    _ => continue,
                };
                let vote = PeerMessage { kind, from: NodeId(2), to: NodeId(1), ..bare(request.term) };
                self.feed(&Op::Message(vote));
            }
        }
        [Op::Propose, Op::Turn, Op::Propose, Op::Turn, Op::Persisted].iter().for_each(|op| self.feed(op));
        let (kind, index) = (MessageKind::AppendResponse, Index(2));
        self.feed(&Op::Message(PeerMessage { kind, index, from: NodeId(2), ..bare(Term(1)) }));
        assert_eq!(self.shard.status(GroupId(1)).unwrap().role, Role::Leader);
    }
}

fn bare(term: Term) -> PeerMessage {
    PeerMessage {
        kind: MessageKind::Heartbeat,
        group: GroupId(1),
        from: NodeId(2),
        to: NodeId(1),
        term,
        log_term: Term(0),
        index: Index(0),
        commit: Index(0),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Bytes::new(),
        entries: Vec::new(),
    }
}

/// A newer leader can depose this one, cut its entry and commit another there, all in one message.
#[test]
fn an_entry_that_is_cut_and_replaced_in_one_message_is_not_acknowledged() {
    let mut victim = Victim::new(&[1, 2, 3]);
    victim.make_leader();
    victim.feed(&Op::Propose);
    let last = victim.shard.status(GroupId(1)).unwrap().last;
    victim.feed(&Op::Turn);
    assert_eq!(victim.shard.status(GroupId(1)).unwrap().last, Index(last.0 + 1));
    let block = RecordBlock::from_records(&[b"theirs"]);
    let data = encode_batch(Offset(2), WallTime(1), [block].iter());
    let entry = LogEntry { index: Index(last.0 + 1), term: Term(2), kind: EntryKind::Normal, data };
    let (index, log_term, commit) = (last, Term(1), entry.index);
    let entries = vec![entry];
    let kind = MessageKind::Append;
    victim.feed(&Op::Message(PeerMessage { kind, index, log_term, commit, entries, ..bare(Term(2)) }));
    let error = RequestError::OutcomeUnknown { leader: Some(NodeId(2)) };
    // The request before it is committed by the same message: that one stands.
    let [Reply::Appended { index: Index(3), .. }, Reply::Failed { token, error: told, .. }] =
        &victim.out.replies[..]
    else {
        panic!("{:?}", victim.out.replies)
    };
    assert_eq!((token.request, told), (victim.requests, &error));
    victim.feed(&Op::Turn);
    let status = victim.shard.status(GroupId(1)).unwrap();
    assert_eq!((status.role, status.commit, status.end), (Role::Follower, commit, Offset(3)));
}

/// Nobody can have seen a request for votes whose flush is still on its way: raft-rs would take the
/// vote, become leader with a log that is not durable, and panic.
#[test]
fn a_vote_does_not_count_before_our_request_could_leave() {
    let mut victim = Victim::new(&[1, 2, 3]);
    [Op::Turn, Op::Persisted].iter().for_each(|op| victim.feed(op));
    let entries =
        vec![LogEntry { index: Index(1), term: Term(1), kind: EntryKind::Normal, data: Bytes::new() }];
    victim.feed(&Op::Message(PeerMessage { kind: MessageKind::Append, entries, ..bare(Term(1)) }));
    victim.feed(&Op::Turn);
    victim.feed(&Op::Message(PeerMessage { kind: MessageKind::TimeoutNow, ..bare(Term(1)) }));
    victim.feed(&Op::Turn);
    let role = |victim: &Victim| victim.shard.status(GroupId(1)).unwrap().role;
    assert_eq!(role(&victim), Role::Candidate);
    let vote = Op::Message(PeerMessage { kind: MessageKind::RequestVoteResponse, ..bare(Term(2)) });
    victim.feed(&vote);
    assert_eq!(role(&victim), Role::Candidate);
    victim.feed(&Op::Persisted);
    victim.feed(&vote);
    assert_eq!(role(&victim), Role::Leader);
}

/// raft-rs 0.7 would fall back to what the follower is known to have, and send it again from there.
#[test]
fn a_late_rejection_does_not_undo_a_match() {
    let mut victim = Victim::new(&[1, 2, 3]);
    victim.make_leader();
    victim.shard.step(Timestamp(victim.now), Input::Unreachable { node: NodeId(2) }, &mut victim.out);
    let (kind, index) = (MessageKind::AppendResponse, Index(2));
    victim.feed(&Op::Message(PeerMessage { kind, index, reject: true, ..bare(Term(1)) }));
    victim.feed(&Op::Propose);
    victim.feed(&Op::Turn);
    let appends = victim
        .out
        .sends
        .iter()
        .map(|send| &send.message)
        .filter(|message| message.kind == MessageKind::Append && message.to == NodeId(2));
    let from: Vec<u64> = appends.map(|message| message.index.0).collect();
    assert!(!from.is_empty() && from.iter().all(|index| *index >= 2), "{from:?}");
}

/// A lone voter wins its campaign within one call, and raft-rs then demands that its whole log is
/// durable.
#[test]
fn a_lone_voter_does_not_campaign_before_its_log_is_durable() {
    let mut victim = Victim::new(&[1]);
    victim.feed(&Op::Turn);
    victim.feed(&Op::Persisted);
    let entries =
        vec![LogEntry { index: Index(1), term: Term(1), kind: EntryKind::Normal, data: Bytes::new() }];
    let kind = MessageKind::Append;
    victim.feed(&Op::Message(PeerMessage { kind, entries, ..bare(Term(1)) }));
    let role = |victim: &Victim| victim.shard.status(GroupId(1)).unwrap().role;
    (0..100).for_each(|_| victim.feed(&Op::Tick(50)));
    assert_eq!(role(&victim), Role::Follower);
    victim.feed(&Op::Persisted);
    (0..100).for_each(|_| victim.feed(&Op::Tick(50)));
    assert_eq!(role(&victim), Role::Leader);
}

/// Nor when it is told to in the turn in which an entry came: that is on its way to no disk yet.
#[test]
fn a_lone_voter_does_not_campaign_in_the_turn_of_an_append() {
    let mut victim = Victim::new(&[1]);
    victim.feed(&Op::Turn);
    victim.feed(&Op::Persisted);
    let entries =
        vec![LogEntry { index: Index(1), term: Term(1), kind: EntryKind::Normal, data: Bytes::new() }];
    victim.feed(&Op::Message(PeerMessage { kind: MessageKind::Append, entries, ..bare(Term(1)) }));
    let campaign = Op::Message(PeerMessage { kind: MessageKind::TimeoutNow, ..bare(Term(1)) });
    victim.feed(&campaign);
    let role = |victim: &Victim| victim.shard.status(GroupId(1)).unwrap().role;
    assert_eq!(role(&victim), Role::Follower);
    [Op::Turn, Op::Persisted].iter().for_each(|op| victim.feed(op));
    victim.feed(&campaign);
    assert_eq!(role(&victim), Role::Leader);
}

fn run(ops: &[Op], voters: &[u64], leads: bool) {
    let mut victim = Victim::new(voters);
    if leads {
        victim.make_leader();
    }
    ops.iter().chain([&Op::Turn]).for_each(|op| victim.feed(op));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// On failure proptest prints the smallest sequence of inputs that fails; it replays as it stands.
    #[test]
    fn no_sequence_of_messages_breaks_a_group(ops in proptest::collection::vec(op(), 1..60)) {
        run(&ops, &[1, 2, 3], false);
    }

    #[test]
    fn no_sequence_of_messages_breaks_a_leader(ops in proptest::collection::vec(op(), 1..60)) {
        run(&ops, &[1, 2, 3], true);
    }

    #[test]
    fn no_sequence_of_messages_breaks_a_lone_voter(ops in proptest::collection::vec(op(), 1..60)) {
        run(&ops, &[1], false);
    }

    #[test]
    fn no_sequence_of_messages_breaks_a_replica_outside_the_voters(ops in proptest::collection::vec(op(), 1..40)) {
        run(&ops, &[2, 3], false);
    }
}
