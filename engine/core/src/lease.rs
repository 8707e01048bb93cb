//! Leases: a leader that cannot have been deposed yet answers reads without asking anybody (Raft thesis 6.4.1).
//!
//! Two sides. A *voter* that takes a leader's heartbeat or append promises for [`Times::promise`] from then on,
//! by its own clock: no vote, no pre-vote and no campaign. A *leader* puts into each heartbeat when it sent it,
//! and gets that back with the answer. It holds the lease while a quorum (of both halves of a joint
//! configuration) has answered heartbeats sent less than [`Times::lease`] ago, by its own clock.
//!
//! Why that is safe. Let `d` bound the drift of every clock's rate, and `s` be the real time at which the oldest of
//! the heartbeats that the quorum answered was sent. Each of its voters took its heartbeat at `s` or later, so
//! it votes for nobody before `s + promise / (1 + d)`: its clock may be fast. Who is elected earlier lacks a
//! quorum. The leader's clock may be slow: when it has counted `lease`, at most `lease / (1 - d)` have really
//! passed. So `lease = promise * (1 - d) / (1 + d)`. Counting from the sending, and not from the answer, makes
//! the time on the wire, in queues and on disks part of what is counted. Wall clocks play no part.
//!
//! What would break a promise, and what is done about it:
//! - raft-rs' own lease (check-quorum) is counted in ticks, of which several can come at once, and is forgotten with
//!   the leader's name, which any message of a higher term wipes out. The promise is a time of its own.
//! - A restart forgets the promise: a replica that has taken part (its term is not 0: it cannot have answered a
//!   heartbeat before a term was durable) behaves as if it had heard a leader when it started.
//! - A leadership transfer makes its successor campaign at once, and the others vote in spite of their promises. The
//!   leader gives its lease up for the rest of its term before the order to campaign leaves: neither the order nor
//!   the requests for votes that follow from it say how old they are, so they can arrive, late, when a transfer
//!   has failed and the leader's next heartbeats are long answered.
//! - A replica with other settings promises less: the heartbeat says what it asks for, and a voter that does not
//!   promise as much answers without the stamp.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{NodeId, Timestamp};
use crate::io::ShardConfig;
use crate::mutants::{self, Mutant};

const MILLION: u128 = 1_000_000;

/// Bytes that a stamp takes in front of a heartbeat's context.
const STAMP_BYTES: usize = 16;
/// Length of a read's context: a stamped one is longer.
pub(crate) const ROUND_BYTES: usize = 24;

/// How long promises and leases last; none where leases are off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Times {
    /// A voter's, from the moment it heard the leader.
    pub(crate) promise: Duration,
    /// A leader's, from the moment it sent the heartbeat that was answered.
    pub(crate) lease: Duration,
}

impl Times {
    pub(crate) fn of(config: &ShardConfig) -> Option<Times> {
        let drift = u128::from(config.lease_reads?.drift_ppm_max);
        let promise = config.tick * config.lease_ticks;
        let lease = promise.as_nanos() * (MILLION - drift) / (MILLION + drift);
        let lease = Duration::from_nanos(u64::try_from(lease).unwrap_or(u64::MAX));
        Some(Times { promise, lease: if mutants::is(Mutant::DriftIgnored) { promise } else { lease } })
    }
}

/// What a leader puts in front of a heartbeat's context, and gets back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    /// When it was sent, by the leader's clock.
    pub(crate) sent: Timestamp,
    /// How long the receiver has to keep its promise.
    pub(crate) promise: Duration,
}

impl Stamp {
    /// The context with the stamp before it.
    pub(crate) fn put_before(self, context: &[u8]) -> Bytes {
        let promise = u64::try_from(self.promise.as_nanos()).unwrap_or(u64::MAX);
        [&self.sent.0.to_le_bytes(), &promise.to_le_bytes(), context].concat().into()
    }

    /// The stamp of a context that has one: those without are empty or those of one read.
    pub(crate) fn of(context: &[u8]) -> Option<Stamp> {
        if context.len() != STAMP_BYTES && context.len() != STAMP_BYTES + ROUND_BYTES {
            return None;
        }
        let (sent, rest) = context.split_first_chunk()?;
        let promise = Duration::from_nanos(u64::from_le_bytes(*rest.first_chunk()?));
        Some(Stamp { sent: Timestamp(u64::from_le_bytes(*sent)), promise })
    }

    /// Takes the stamp off a context that has one.
    pub(crate) fn take(context: &mut Bytes) -> Option<Stamp> {
        let stamp = Stamp::of(context)?;
        *context = context.slice(STAMP_BYTES..);
        Some(stamp)
    }
}

/// A voter's side: until when it votes for nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    /// When a leader was last heard; the start, while none was.
    silent_since: Timestamp,
    has_heard: bool,
    until: Timestamp,
}

impl Promise {
    /// That of a replica that starts; `has_taken_part` if it may have made one that it has forgotten.
    pub(crate) fn at_start(now: Timestamp, has_taken_part: bool, times: Option<Times>) -> Promise {
        let is_bound = has_taken_part && !mutants::is(Mutant::PromiseForgotten);
        let until = times.filter(|_| is_bound).map_or(Timestamp(0), |times| now.after(times.promise));
        Promise { silent_since: now, has_heard: false, until }
    }

    pub(crate) fn handle_leader(&mut self, now: Timestamp, times: Option<Times>) {
        (self.silent_since, self.has_heard) = (now, true);
        if let Some(times) = times {
            self.until = now.after(times.promise);
        }
    }

    pub(crate) fn is_kept(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// When a leader was last heard; `None` if not since the start.
    pub(crate) fn heard(&self) -> Option<Timestamp> {
        self.has_heard.then_some(self.silent_since)
    }

    /// Since when no leader was heard: the start at the earliest.
    pub(crate) fn silent_since(&self) -> Timestamp {
        self.silent_since
    }
}

/// A leader's side: what was answered in the term that it leads.
#[derive(Default, Debug)]
pub(crate) struct Lease {
    /// When the newest heartbeat that each replica has answered was sent.
    answered: BTreeMap<NodeId, Timestamp>,
    is_given_up: bool,
}

impl Lease {
    /// A replica has answered a heartbeat.
    pub(crate) fn handle_answer(&mut self, now: Timestamp, from: NodeId, sent: Timestamp) {
        let counted = if mutants::is(Mutant::LeaseFromAnswer) { now } else { sent };
        let newest = self.answered.entry(from).or_default();
        *newest = counted.max(*newest);
    }

    /// Somebody may be told to depose us: no lease in this term any more.
    pub(crate) fn give_up(&mut self) {
        self.is_given_up = !mutants::is(Mutant::LeaseSurvivesTransfer);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up
    }

    /// Replicas that are known to keep their promise still: when they are a quorum, with us, nobody else leads.
    pub(crate) fn promised(&self, now: Timestamp, times: Times) -> impl Iterator<Item = NodeId> + '_ {
        let is_kept = move |sent: Timestamp| now.since(sent) < times.lease;
        self.answered.iter().filter(move |(_, sent)| is_kept(**sent)).map(|(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::LeaseReads;

    const MILLIS: u64 = 1_000_000;

    fn times(drift_ppm_max: u32) -> Times {
        let lease_reads = Some(LeaseReads { drift_ppm_max });
        Times::of(&ShardConfig { lease_reads, ..ShardConfig::new(NodeId(1), 0) }).expect("leases are on")
    }

    #[test]
    fn the_lease_of_the_slowest_clock_ends_before_the_promise_of_the_fastest() {
        for drift in [1, 200, 10_000, 100_000, 499_999, 500_000] {
            let Times { promise, lease } = times(drift);
            assert_eq!(promise, Duration::from_millis(500));
            // In real time, as fractions of nanoseconds times a million.
            let lease_at_most = lease.as_nanos() * MILLION * (MILLION + u128::from(drift));
            let promise_at_least = promise.as_nanos() * MILLION * (MILLION - u128::from(drift));
            assert!(lease_at_most <= promise_at_least, "{drift} ppm: {lease:?}");
        }
        assert_eq!(times(100_000).lease, Duration::from_nanos(409_090_909));
        assert_eq!(Times::of(&ShardConfig::new(NodeId(1), 0)), None);
    }

    #[test]
    fn promises_count_from_the_newest_heartbeat_that_was_answered() {
        let times = times(1);
        let lease = u64::try_from(times.lease.as_nanos()).unwrap();
        let mut leader = Lease::default();
        let promised = |leader: &Lease, now| leader.promised(Timestamp(now), times).collect::<Vec<_>>();
        leader.handle_answer(Timestamp(1_400 * MILLIS), NodeId(2), Timestamp(1_000 * MILLIS));
        // An older answer, late, takes nothing away.
        leader.handle_answer(Timestamp(1_401 * MILLIS), NodeId(2), Timestamp(0));
        leader.handle_answer(Timestamp(1_401 * MILLIS), NodeId(3), Timestamp(1_200 * MILLIS));
        assert_eq!(promised(&leader, 1_000 * MILLIS + lease - 1), [NodeId(2), NodeId(3)]);
        assert_eq!(promised(&leader, 1_000 * MILLIS + lease), [NodeId(3)]);
        assert_eq!(promised(&leader, 1_200 * MILLIS + lease), []);
        assert!(!leader.is_given_up());
        leader.give_up();
        assert!(leader.is_given_up());
    }

    #[test]
    fn a_promise_starts_with_the_last_word_of_a_leader_or_with_the_process() {
        let times = Some(times(10_000));
        let start = Timestamp(7 * MILLIS);
        let mut promise = Promise::at_start(start, true, times);
        assert!(promise.is_kept(Timestamp(507 * MILLIS - 1)) && !promise.is_kept(Timestamp(507 * MILLIS)));
        promise.handle_leader(Timestamp(600 * MILLIS), times);
        assert!(promise.is_kept(Timestamp(1_099 * MILLIS)) && !promise.is_kept(Timestamp(1_100 * MILLIS)));
        assert_eq!(promise.heard(), Some(Timestamp(600 * MILLIS)));
        // A replica that never had a term has promised nothing; where leases are off nobody has.
        assert!(!Promise::at_start(start, false, times).is_kept(start));
        assert!(!Promise::at_start(start, true, None).is_kept(start));
    }

    #[test]
    fn stamps_stand_before_contexts_of_reads_or_alone() {
        let stamp = Stamp { sent: Timestamp(5), promise: Duration::from_millis(500) };
        for context in [&[][..], &[7; ROUND_BYTES]] {
            assert_eq!(Stamp::of(context), None);
            let mut stamped = stamp.put_before(context);
            assert_eq!(Stamp::take(&mut stamped), Some(stamp));
            assert_eq!(stamped, context);
        }
        assert_eq!(Stamp::of(&[0; STAMP_BYTES + 1]), None);
    }
}
