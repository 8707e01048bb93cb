//! Passages of Raft and of the design, one test each.

use std::time::Duration;

use iroh_raft_core::batch::Batch;
use iroh_raft_core::{AnswerOn, GroupId, NodeId, Reply, RequestError, Role, TransferError};

use crate::harness::cluster::MILLIS;
use crate::harness::{Cluster, Group, Options};

const GROUP: GroupId = GroupId(1);

fn led(options: Options) -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(options);
    let leader = cluster.run_until_led(GROUP);
    (cluster, leader)
}

fn others(cluster: &Cluster, node: NodeId) -> Vec<NodeId> {
    cluster.nodes.keys().copied().filter(|other| *other != node).collect()
}

fn append(cluster: &mut Cluster, leader: NodeId, records: u64) {
    let token = cluster.propose(leader, GROUP, records, AnswerOn::Commit);
    cluster.run_until("an acknowledgement", |cluster| cluster.replies.contains_key(&token));
    assert!(matches!(cluster.replies[&token], Reply::Appended { .. }), "{:?}", cluster.replies[&token]);
}

/// Raft paper 5.2: a leader comes up by itself, and everybody learns who it is.
#[test]
fn a_leader_is_elected_and_known_to_all() {
    for seed in 0..20 {
        let (mut cluster, leader) = led(Options::new(seed));
        assert!(cluster.now < 2_000 * MILLIS, "after {} ms", cluster.now / MILLIS);
        cluster.run_for(Duration::from_millis(200));
        for node in 1..=3 {
            let status = cluster.status(NodeId(node), GROUP).unwrap();
            assert_eq!(
                (status.leader, status.term),
                (Some(leader), cluster.status(leader, GROUP).unwrap().term)
            );
        }
        cluster.settle();
    }
}

/// A dead leader is replaced within the longest election timeout and a round trip.
#[test]
fn a_dead_leader_is_replaced_in_time() {
    for seed in 0..50 {
        let (mut cluster, leader) = led(Options::new(seed));
        append(&mut cluster, leader, 3);
        let died = cluster.now;
        cluster.crash(leader);
        let next = cluster.run_until_led(GROUP);
        assert_ne!(next, leader);
        let gap = (cluster.now - died) / MILLIS;
        assert!(gap <= 1_000, "seed {seed}: {gap} ms without a leader");
        append(&mut cluster, next, 2);
        cluster.settle();
    }
}

/// Thesis 9.6: a replica that was cut off does not depose the leader when it comes back.
#[test]
fn pre_vote_keeps_a_returning_replica_from_disturbing() {
    let (mut cluster, leader) = led(Options::new(3));
    let outsider = others(&cluster, leader)[0];
    let term = cluster.status(leader, GROUP).unwrap().term;
    cluster.isolate(outsider);
    cluster.run_for(Duration::from_secs(10));
    assert_eq!(cluster.status(outsider, GROUP).unwrap().term, term);
    cluster.cut.clear();
    cluster.run_for(Duration::from_secs(3));
    assert_eq!(cluster.leader(GROUP), Some(leader));
    assert_eq!(cluster.status(leader, GROUP).unwrap().term, term);
}

/// Check-quorum (thesis 6.2), and raft 5.3: what a cut-off leader took is answered as unknown, and
/// the suffix it could not commit is cut, offsets included.
#[test]
fn a_cut_off_leader_steps_down_and_its_suffix_is_cut() {
    let (mut cluster, leader) = led(Options::new(4));
    append(&mut cluster, leader, 4);
    cluster.isolate(leader);
    let token = cluster.propose(leader, GROUP, 5, AnswerOn::Commit);
    cluster.run_until("the suffix on its disk", |cluster| cluster.stored(leader, GROUP).len() == 3);
    cluster.run_until("an answer", |cluster| cluster.replies.contains_key(&token));
    assert_eq!(cluster.error_of(token), Some(&RequestError::OutcomeUnknown { leader: None }));
    assert_eq!(cluster.status(leader, GROUP).unwrap().role, Role::Follower);

    let next = cluster.run_until_led(GROUP);
    append(&mut cluster, next, 2);
    cluster.cut.clear();
    cluster.settle();
    assert!(cluster.seen("cut") > 0);
    assert_eq!(cluster.status(leader, GROUP).unwrap().end.0, 6);
    let stored = cluster.stored(leader, GROUP).iter().filter(|entry| !entry.data.is_empty());
    let bases: Vec<u64> = stored.map(|entry| Batch::parse(&entry.data).unwrap().base().0).collect();
    assert_eq!(bases, [0, 4]);
}

/// Everything acknowledged survives the death of all nodes at once, with any tail in memory.
#[test]
fn acknowledged_records_survive_the_death_of_all() {
    for tail_max in [0, 1, 3, 100] {
        let mut options = Options::new(tail_max as u64);
        options.tail_max = tail_max;
        options.groups[0].has_state_machine = tail_max != 1;
        let (mut cluster, leader) = led(options);
        (1..8).for_each(|records| append(&mut cluster, leader, records));
        (1..=3).for_each(|node| cluster.crash(NodeId(node)));
        (1..=3).for_each(|node| cluster.start(NodeId(node)));
        let leader = cluster.run_until_led(GROUP);
        append(&mut cluster, leader, 1);
        cluster.settle();
        assert_eq!(cluster.status(leader, GROUP).unwrap().end.0, 29);
        let token = cluster.read_records(leader, GROUP, 2, usize::MAX);
        cluster.run_until("records", |cluster| cluster.replies.contains_key(&token));
        let Reply::Records { entries, end, .. } = &cluster.replies[&token] else { panic!() };
        assert_eq!((end.0, Batch::parse(&entries[0].data).unwrap().base().0), (29, 1));
    }
}

/// Thesis 10.2.1: a quorum of followers commits while the leader's own disk is still busy.
#[test]
fn an_acknowledgement_does_not_wait_for_the_leaders_disk() {
    let (mut cluster, leader) = led(Options::new(5));
    let stored = cluster.stored(leader, GROUP).len();
    cluster.stall(leader, true);
    append(&mut cluster, leader, 3);
    assert_eq!(cluster.stored(leader, GROUP).len(), stored);
    cluster.stall(leader, false);
    cluster.settle();
}

/// What is committed but not yet on this node's disk is nowhere else to be read.
#[test]
fn entries_stay_in_memory_until_they_are_durable_here() {
    let mut options = Options::new(18);
    options.config.window_bytes_max = 1;
    let (mut cluster, leader) = led(options);
    cluster.stall(leader, true);
    (0..5).for_each(|_| append(&mut cluster, leader, 3));
    let fetches = cluster.seen("fetch");
    let token = cluster.read_records(leader, GROUP, 0, usize::MAX);
    cluster.run_until("records", |cluster| cluster.replies.contains_key(&token));
    assert!(matches!(&cluster.replies[&token], Reply::Records { entries, .. } if entries.len() == 5));
    assert_eq!(cluster.seen("fetch"), fetches);
    cluster.stall(leader, false);
    cluster.settle();
}

#[test]
fn nothing_is_acknowledged_before_a_quorum_has_it_on_disk() {
    let (mut cluster, leader) = led(Options::new(6));
    let followers = others(&cluster, leader);
    followers.iter().for_each(|node| cluster.stall(*node, true));
    let token = cluster.propose(leader, GROUP, 3, AnswerOn::Commit);
    cluster.run_for(Duration::from_millis(500));
    assert!(!cluster.replies.contains_key(&token));
    cluster.stall(followers[1], false);
    cluster.run_until("an acknowledgement", |cluster| cluster.replies.contains_key(&token));
    assert!(matches!(cluster.replies[&token], Reply::Appended { .. }));
}

/// A lone voter wins its election within one call: still nothing of the new term may leave.
#[test]
fn a_lone_voter_speaks_only_once_its_term_is_durable() {
    let mut options = Options::new(7);
    options.groups = vec![Group { learners: vec![2, 3], ..Group::new(1, &[1]) }];
    let mut cluster = Cluster::new(options);
    cluster.run_for(Duration::from_millis(20));
    cluster.stall(NodeId(1), true);
    cluster.run_for(Duration::from_secs(3));
    assert_eq!(cluster.leader(GROUP), Some(NodeId(1)));
    assert_eq!(cluster.seen("send"), 0);
    cluster.stall(NodeId(1), false);
    cluster.run_for(Duration::from_millis(100));
    append(&mut cluster, NodeId(1), 2);
    cluster.settle();
}

/// A follower that slept is not to blame the leader before it has read its mail.
#[test]
fn a_long_pause_alone_does_not_start_an_election() {
    let (mut cluster, leader) = led(Options::new(8));
    cluster.run_for(Duration::from_millis(500));
    let term = cluster.status(leader, GROUP).unwrap().term;
    let sent = cluster.seen("send");
    let follower = others(&cluster, leader)[0];
    // Time jumps for this node alone; no message of the pause has been read yet.
    cluster.pause(follower, Duration::from_secs(30));
    assert_eq!(cluster.status(follower, GROUP).unwrap().role, Role::Follower);
    assert_eq!((cluster.seen("send"), cluster.status(follower, GROUP).unwrap().term), (sent, term));
}

#[test]
fn what_waits_in_a_turn_becomes_one_entry() {
    let (mut cluster, leader) = led(Options::new(9));
    let last = cluster.status(leader, GROUP).unwrap().last.0;
    let tokens: Vec<_> = (0..10).map(|_| cluster.propose(leader, GROUP, 2, AnswerOn::Commit)).collect();
    cluster.run_until("all", |cluster| tokens.iter().all(|token| cluster.replies.contains_key(token)));
    assert_eq!(cluster.status(leader, GROUP).unwrap().last.0, last + 1);
    let mut firsts = tokens.iter().map(|token| match &cluster.replies[token] {
        Reply::Appended { first, index, .. } => (first.0, index.0),
        other => panic!("{other:?}"),
    });
    assert!((0..10).all(|at| firsts.next() == Some((at * 2, last + 1))));
}

/// Thesis 6.4: a read sees every write that was acknowledged before it was asked.
#[test]
fn a_read_index_covers_all_acknowledged_writes() {
    let mut options = Options::new(10);
    options.groups[0].has_state_machine = true;
    let (mut cluster, leader) = led(options);
    for _ in 0..20 {
        append(&mut cluster, leader, 2);
        let commit = cluster.status(leader, GROUP).unwrap().commit;
        let token = cluster.read(leader, GROUP);
        cluster.run_until("a read", |cluster| cluster.replies.contains_key(&token));
        let Reply::ReadReady { freshness, .. } = cluster.replies[&token] else { panic!() };
        assert!(freshness.applied >= commit);
        assert!(cluster.nodes[&leader].applied[&GROUP].len() as u64 >= commit.0);
    }
}

/// A request that wants the state machine's response is handed over with the entry that holds it.
#[test]
fn an_answer_on_apply_comes_with_the_entry() {
    let mut options = Options::new(19);
    options.groups[0].has_state_machine = true;
    let (mut cluster, leader) = led(options);
    let tokens: Vec<_> =
        (1..6).map(|records| cluster.propose(leader, GROUP, records, AnswerOn::Apply)).collect();
    cluster.run_for(Duration::from_millis(50));
    assert_eq!(cluster.checker.acked.len(), tokens.len());
    cluster.settle();
}

#[test]
fn a_deposed_leader_serves_no_read() {
    let (mut cluster, old) = led(Options::new(11));
    append(&mut cluster, old, 1);
    cluster.isolate(old);
    let token = cluster.read(old, GROUP);
    cluster.run_until("an answer", |cluster| cluster.replies.contains_key(&token));
    assert_eq!(cluster.error_of(token), Some(&RequestError::NotLeader { leader: None }));
    let token = cluster.read(old, GROUP);
    assert_eq!(cluster.error_of(token), Some(&RequestError::NotLeader { leader: None }));
}

/// raft-rs drops reads silently until the leader has committed in its term: they wait here.
#[test]
fn a_read_before_the_first_commit_of_a_term_waits_for_it() {
    let mut cluster = Cluster::new(Options::new(12));
    cluster.run_until("a fresh leader", |cluster| cluster.leader(GROUP).is_some());
    let leader = cluster.leader(GROUP).unwrap();
    assert_eq!(cluster.status(leader, GROUP).unwrap().commit.0, 0);
    let token = cluster.read(leader, GROUP);
    cluster.run_until("a read", |cluster| cluster.replies.contains_key(&token));
    assert!(matches!(cluster.replies[&token], Reply::ReadReady { .. }));
}

/// Thesis 3.10. Proposals wait for the outcome of a transfer instead of failing.
#[test]
fn leadership_is_handed_over() {
    let (mut cluster, leader) = led(Options::new(13));
    append(&mut cluster, leader, 1);
    cluster.run_for(Duration::from_millis(100));
    let heir = others(&cluster, leader)[1];
    let moved = cluster.transfer(leader, GROUP, Some(heir));
    let token = cluster.propose(leader, GROUP, 1, AnswerOn::Commit);
    cluster.run_until("the heir", |cluster| cluster.leader(GROUP) == Some(heir));
    cluster.run_until("an answer", |cluster| cluster.replies.contains_key(&token));
    assert!(matches!(cluster.error_of(token), Some(RequestError::NotLeader { .. })));
    let term = cluster.status(heir, GROUP).unwrap().term;
    cluster.run_until("the outcome", |cluster| cluster.replies.contains_key(&moved));
    let done = Reply::LeadershipGiven { token: moved, group: GROUP, leader: Some(heir), term };
    assert_eq!(cluster.replies[&moved], done);
    append(&mut cluster, heir, 1);
}

#[test]
fn a_transfer_to_a_dead_node_ends_and_proposals_go_on() {
    let (mut cluster, leader) = led(Options::new(14));
    cluster.run_for(Duration::from_millis(100));
    let heir = others(&cluster, leader)[0];
    cluster.crash(heir);
    let moved = cluster.transfer(leader, GROUP, Some(heir));
    append(&mut cluster, leader, 1);
    assert_eq!(cluster.leader(GROUP), Some(leader));
    let error = TransferError::TimedOut { to: heir };
    assert_eq!(cluster.replies[&moved], Reply::NotTransferred { token: moved, group: GROUP, error });
}

/// A failed write is never retried: the shard is silent from then on, and the others go on.
#[test]
fn a_fenced_leader_answers_everything_and_never_speaks_again() {
    let (mut cluster, leader) = led(Options::new(15));
    let before = cluster.now;
    let proposed = cluster.propose(leader, GROUP, 1, AnswerOn::Commit);
    cluster.stall(others(&cluster, leader)[0], true);
    cluster.stall(others(&cluster, leader)[1], true);
    cluster.run_for(Duration::from_millis(5));
    let waiting = cluster.propose(leader, GROUP, 1, AnswerOn::Commit);
    let read = cluster.read(leader, GROUP);
    cluster.fail_disk(leader);
    assert_eq!(cluster.error_of(proposed), Some(&RequestError::OutcomeUnknown { leader: None }));
    assert_eq!(cluster.error_of(waiting), Some(&RequestError::Fenced));
    assert_eq!(cluster.error_of(read), Some(&RequestError::Fenced));
    let late = cluster.propose(leader, GROUP, 1, AnswerOn::Commit);
    assert_eq!(cluster.error_of(late), Some(&RequestError::Fenced));
    let status = cluster.status(leader, GROUP).unwrap();
    assert_eq!((status.role, status.leader), (Role::Follower, None));

    others(&cluster, leader).into_iter().for_each(|node| cluster.stall(node, false));
    cluster.run_until("another leader", |cluster| cluster.leader(GROUP).is_some_and(|next| next != leader));
    assert!(cluster.now > before);
    cluster.run_for(Duration::from_secs(1));
    cluster.crash(leader);
    cluster.settle();
}

/// What left memory comes from the durable log: for readers, state machines and slow followers.
#[test]
fn entries_that_left_memory_are_fetched() {
    let mut options = Options::new(16);
    options.config.window_bytes_max = 1;
    options.config.message_bytes_max = 300;
    options.groups[0].has_state_machine = true;
    let (mut cluster, leader) = led(options);
    let slow = others(&cluster, leader)[0];
    cluster.crash(slow);
    (0..40).for_each(|_| append(&mut cluster, leader, 3));
    let before = cluster.seen("fetch");
    let token = cluster.read_records(leader, GROUP, 10, 200);
    cluster.run_until("records", |cluster| cluster.replies.contains_key(&token));
    let Reply::Records { entries, .. } = &cluster.replies[&token] else { panic!() };
    assert_eq!(Batch::parse(&entries[0].data).unwrap().base().0, 9);
    assert!(cluster.seen("fetch") > before);
    cluster.start(slow);
    cluster.settle();
    assert!(cluster.seen("fetch") > before + 5, "the slow follower was served from disk");
}

#[test]
fn reads_of_records_know_the_end() {
    let (mut cluster, leader) = led(Options::new(17));
    append(&mut cluster, leader, 4);
    let [at_end, past_end] = [4, 5].map(|from| cluster.read_records(leader, GROUP, from, 100));
    cluster.run_for(Duration::from_millis(5));
    assert!(
        matches!(&cluster.replies[&at_end], Reply::Records { entries, end, .. } if entries.is_empty() && end.0 == 4)
    );
    assert!(matches!(cluster.error_of(past_end), Some(RequestError::PastEnd { end, .. }) if end.0 == 4));
}
