//! A running node: its threads, and the handle through which a process uses it.

mod numbers;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::Either;
use glommio::ExecutorJoinHandle;
use iroh_raft_core::batch::{BatchHeader, Record, RecordBlock, records_of};
use iroh_raft_core::{
    AnswerOn, BusyReason, ConfState, Consistency, CursorName, GroupCommand, GroupId, GroupStatus, Index,
    MemberChange, NodeId, Offset, Placement, Recovered, RequestError, ShardId, Term, WallTime,
};
use iroh_raft_netbridge::allow::PeerAddress;
use iroh_raft_netbridge::bridge::{Bridge, PeerList};
use iroh_raft_netbridge::identity::EndpointId;
use iroh_raft_netbridge::ring::{Doorbell, Producer, RingMeter};
use iroh_raft_netbridge::wire::{Answer, ClientBody, ReplyBody, Stages};
use iroh_raft_storage::{DataFolder, KnownNode, KnownNodes};

use crate::error::{EngineError, NodeError};
use crate::tail::Tail;
use crate::thread_book::ThreadBook;
use iroh_raft_driver::lines::{Command, HandedOver, LeadershipError, LeadershipReply};
use iroh_raft_driver::stats::ShardCounters;

pub use numbers::{EngineStats, RingReport};

/// Time that a dropped engine takes to stop in order.
const DROP_DEADLINE: Duration = Duration::from_secs(5);

/// Where records went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Offset of the first record; the others follow.
    pub first: Offset,
    /// Number of records.
    pub count: u32,
    /// Index of their entry.
    pub index: Index,
    /// Term of their entry.
    pub term: Term,
}

/// Records of a group's log, as one replica has them.
#[derive(Clone, Debug)]
pub struct Records {
    /// First record asked for.
    pub from: Offset,
    /// Offset after this replica's last committed record.
    pub end: Offset,
    next: Offset,
    batches: Vec<Bytes>,
}

impl Records {
    pub(crate) fn new(from: Offset, end: Offset, batches: Vec<Bytes>) -> Records {
        // Batches were checked when they entered the log.
        let last = batches.last().and_then(|data| BatchHeader::parse(data).ok());
        let next = last.map_or(from, |header| header.end());
        Records { from, end, next, batches }
    }

    /// The records from `from` on, read in place.
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        records_of(&self.batches).filter(|record| record.offset >= self.from)
    }

    /// Where to read on: the offset after the last record here.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Whether there is no record at or after the one asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Bytes of the batches.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(Bytes::len).sum()
    }
}

/// A running node. Clones are handles to the same one; any thread and any async runtime may use it.
///
/// When the last handle is dropped, the node stops in order within 5 seconds.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct ShardHandle {
    pub(crate) commands: Producer<Command>,
    pub(crate) counters: Arc<ShardCounters>,
    pub(crate) is_closed: Arc<AtomicBool>,
}

pub(crate) struct Inner {
    pub(crate) node: NodeId,
    pub(crate) placement: Placement,
    pub(crate) endpoint: EndpointId,
    pub(crate) address: SocketAddr,
    pub(crate) request_deadline: Duration,
    pub(crate) has_peers: bool,
    pub(crate) shards: Vec<ShardHandle>,
    pub(crate) rings: Vec<(&'static str, ShardId, RingMeter)>,
    pub(crate) book: Arc<ThreadBook>,
    pub(crate) bridge: Mutex<Option<Bridge>>,
    /// Held until all threads are gone: it holds the data folder's lock. Locked for as long as a write to the disk takes;
    /// neither `bridge` nor `threads` is meanwhile.
    pub(crate) nodes: Mutex<Option<KnownNodes>>,
    pub(crate) threads: Mutex<Option<Threads>>,
    pub(crate) failure: Arc<Failure>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("node", &self.node)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A shard's executor. Its channel closes when its loop has ended.
pub(crate) struct Executor {
    pub(crate) name: String,
    pub(crate) handle: ExecutorJoinHandle<()>,
    pub(crate) running: mpsc::Receiver<()>,
}

pub(crate) struct Threads {
    pub(crate) executors: Vec<Executor>,
    pub(crate) helpers: Vec<(String, JoinHandle<()>)>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) doorbells: Vec<Arc<Doorbell>>,
    /// Held until all threads are gone: it holds the data folder's lock.
    pub(crate) folder: DataFolder,
}

/// The first thing that broke, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    state: Mutex<FailureState>,
}

#[derive(Debug, Default)]
struct FailureState {
    error: Option<Arc<EngineError>>,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Failure {
    pub(crate) fn set(&self, error: EngineError) {
        tracing::error!(%error, "the node failed");
        let mut state = lock(&self.state);
        state.error.get_or_insert_with(|| Arc::new(error));
        for waiter in state.waiters.drain(..) {
            let _ = waiter.send(());
        }
    }
}

/// A poisoned lock guards plain data here: whoever panicked left it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub(crate) fn new(inner: Inner) -> Engine {
        Engine { inner: Arc::new(inner) }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// This node's public key: what peers and clients know it by.
    #[must_use]
    pub fn endpoint_id(&self) -> EndpointId {
        self.inner.endpoint
    }

    /// The UDP address of this node's endpoint.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.address
    }

    /// Appends records to a group, together and in order. Answered when a quorum has them on stable
    /// storage.
    ///
    /// # Errors
    /// [`RequestError`]; its `retry()` says whether sending again can put the records in twice.
    pub async fn append<R: AsRef<[u8]>>(
        &self,
        group: GroupId,
        records: &[R],
    ) -> Result<Appended, RequestError> {
        if records.is_empty() {
            return Err(RequestError::Invalid { what: "no records" });
        }
        self.append_block(group, RecordBlock::from_records(records)).await
    }

    /// As [`append`](Engine::append), of records that are packed already: whoever gathers them for a while saves a copy. A
    /// block has at least one record; its records and itself are bounded as those of `append`
    /// ([`TooLarge`](RequestError::TooLarge)).
    ///
    /// # Errors
    /// As [`append`](Engine::append).
    pub async fn append_block(&self, group: GroupId, block: RecordBlock) -> Result<Appended, RequestError> {
        match self.request(group, ClientBody::Append { block, answer: AnswerOn::Commit, run: None }).await? {
            ReplyBody::Appended { first, count, index, term } => Ok(Appended { first, count, index, term }),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// As [`append_block`](Engine::append_block), and says where the time went.
    ///
    /// # Errors
    /// As [`append`](Engine::append).
    pub async fn append_timed(
        &self,
        group: GroupId,
        block: RecordBlock,
    ) -> Result<(Appended, Stages), RequestError> {
        match self.request(group, ClientBody::TimedAppend { block }).await? {
            ReplyBody::TimedAppended { first, count, index, term, stages } => {
                Ok((Appended { first, count, index, term }, stages))
            }
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Proposes one command, as bytes, and waits for the state machine's response.
    ///
    /// # Errors
    /// [`RequestError`], as for [`append`](Engine::append).
    pub async fn propose(&self, group: GroupId, command: &[u8]) -> Result<Bytes, RequestError> {
        let block = RecordBlock::from_records(&[command]);
        match self.request(group, ClientBody::Append { block, answer: AnswerOn::Apply, run: None }).await? {
            ReplyBody::Responses { responses, .. } => {
                let response = responses.records().next().unwrap_or_default();
                Ok(Bytes::copy_from_slice(response))
            }
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Asks this node's replica of the state machine, whether it leads or not: a replica that does not asks the
    /// leader how far it has to be for a linearizable answer. A lease is the leader's: elsewhere a read of
    /// [`Consistency::Lease`] is a linearizable one.
    ///
    /// # Errors
    /// [`RequestError`]; asking again is always safe.
    pub async fn query(
        &self,
        group: GroupId,
        query: Bytes,
        consistency: Consistency,
    ) -> Result<Answer, RequestError> {
        let may_forward = consistency != Consistency::Local;
        match self.request(group, ClientBody::Query { consistency, may_forward, query }).await? {
            ReplyBody::Answer(answer) => Ok(answer),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Reads committed records of this node's replica, about `bytes_max` bytes of them.
    ///
    /// # Errors
    /// [`RequestError::PastEnd`] beyond the end, [`RequestError::BeforeStart`] for what was removed; others as everywhere.
    pub async fn read(&self, group: GroupId, from: Offset, bytes_max: u32) -> Result<Records, RequestError> {
        let (records_max, is_waiting) = (u32::MAX, false);
        self.read_records(group, ClientBody::ReadRecords { from, bytes_max, records_max, is_waiting }).await
    }

    /// As [`read`](Engine::read), with a bound on the records as well (those of the last batch may exceed it), and
    /// where there is no record yet it waits until there is one. Empty, with the end of the log, when there is
    /// none within the request's deadline.
    ///
    /// # Errors
    /// As [`read`](Engine::read), but for `PastEnd`.
    pub async fn read_from(
        &self,
        group: GroupId,
        from: Offset,
        bytes_max: u32,
        records_max: u32,
    ) -> Result<Records, RequestError> {
        let (records_max, is_waiting) = (records_max.max(1), true);
        self.read_records(group, ClientBody::ReadRecords { from, bytes_max, records_max, is_waiting }).await
    }

    async fn read_records(&self, group: GroupId, body: ClientBody) -> Result<Records, RequestError> {
        match self.request(group, body).await? {
            ReplyBody::Records { from, end, batches, .. } => Ok(Records::new(from, end, batches)),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Finds the first committed record of this node's replica that was written at a time or later, by the
    /// leaders' clocks; they never run backwards within a group. Returns the end of the log when there is none.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn find(&self, group: GroupId, at: WallTime) -> Result<Offset, RequestError> {
        match self.request(group, ClientBody::Find { at }).await? {
            ReplyBody::Found { offset, .. } => Ok(offset),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Follows the committed records of this node's replica from `from` on, in order, each once, without polling.
    /// `credit_bytes`, 1 to 8 MiB, may wait for the consumer, and one entry of the log; one that is slow is
    /// fed from the disk.
    #[must_use]
    pub fn tail(&self, group: GroupId, from: Offset, credit_bytes: u32) -> Tail {
        Tail::new(self.clone(), group, from, credit_bytes)
    }

    /// A command to the group itself: a consumer's cursor, or a trim. Only the leader does it. Returns where the
    /// cursor stands then, `None` when it is gone; of a trim the first record kept.
    ///
    /// # Errors
    /// [`RequestError::CursorsFull`] for another consumer than there may be, [`RequestError::PastEnd`] beyond what is
    /// committed; others as everywhere.
    pub async fn command(
        &self,
        group: GroupId,
        command: GroupCommand,
    ) -> Result<Option<Offset>, RequestError> {
        match self.request(group, ClientBody::Command(command)).await? {
            ReplyBody::CommandDone { offset, .. } => Ok(offset),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Where a consumer's cursor stands, with all that was acknowledged before; `None` when it has none. Only the
    /// leader says so.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn cursor(&self, group: GroupId, name: CursorName) -> Result<Option<Offset>, RequestError> {
        match self.request(group, ClientBody::FetchCursor { name }).await? {
            ReplyBody::Cursor(offset) => Ok(offset),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Hands leadership of a group that this node leads to another node; `None` chooses the best one (a voter
    /// that answers and has all that is committed, then by priority). Ok once it leads; new proposals wait until
    /// then, and those under way are answered first.
    ///
    /// # Errors
    /// [`LeadershipError`]: this node does not lead, the other one cannot, or did not take over within a lease
    /// and an election timeout.
    pub async fn transfer_leader(
        &self,
        group: GroupId,
        to: Option<NodeId>,
    ) -> Result<HandedOver, LeadershipError> {
        self.leadership(group, |reply| Command::TransferLeader { group, to, reply }).await
    }

    /// Stops leading a group: hands over to the best node, and if none takes over follows, and does not
    /// campaign for an election timeout.
    ///
    /// # Errors
    /// [`LeadershipError`]: this node does not lead, a transfer is under way, or it was elected anew meanwhile.
    pub async fn step_down(&self, group: GroupId) -> Result<HandedOver, LeadershipError> {
        self.leadership(group, |reply| Command::StepDown { group, reply }).await
    }

    /// Changes the members of a group in one step, by joint consensus when more than one node is named
    /// (Raft thesis 4.3). Answered once they are in force, at once when they are already. Only the leader
    /// does it.
    ///
    /// # Errors
    /// [`RequestError::Members`] says why they stay as they are; others as everywhere. When the outcome
    /// is unknown, [`statuses`](Engine::statuses) tell it.
    pub async fn change_members(
        &self,
        group: GroupId,
        changes: &[MemberChange],
    ) -> Result<Arc<ConfState>, RequestError> {
        match self.request(group, ClientBody::ChangeMembers { changes: changes.to_vec() }).await? {
            ReplyBody::MembersChanged { members, .. } => Ok(members),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Begins a group with these voters, of which this node is one; the others hear of it. Returns once the replica
    /// here is on its disk; the group elects a leader when a majority of the voters is up. Doing it again with
    /// the same voters, here or on another of them, is harmless.
    ///
    /// A group's number is chosen by whoever creates it, and never used again.
    ///
    /// # Errors
    /// [`RequestError::GroupExists`], [`RequestError::GroupRemoved`], [`RequestError::Invalid`] when this
    /// node is not among the voters; others as everywhere.
    pub async fn create_group(&self, group: GroupId, voters: &[NodeId]) -> Result<(), RequestError> {
        self.done(group, ClientBody::CreateGroup { voters: voters.to_vec() }).await
    }

    /// Removes a group for good, with all that it stored, on every node. Returns once that is committed; nodes that
    /// are away do it when they are back. Only the leader does it.
    ///
    /// # Errors
    /// [`RequestError`]; when the outcome is unknown, [`statuses`](Engine::statuses) tell it.
    pub async fn remove_group(&self, group: GroupId) -> Result<(), RequestError> {
        self.done(group, ClientBody::RemoveGroup).await
    }

    /// Opens the replica of a group on this node again, which was taken out ([`GroupStatus::is_quarantined`]): as a start
    /// would find it on its disk, without one. Its state machine begins anew, where its snapshot is. What is damaged
    /// of it its leader gives it again; replicas that were taken out for damage come back by themselves.
    ///
    /// # Errors
    /// [`RequestError::Quarantined`] when what the disk has is inconsistent, [`RequestError::Invalid`] when the replica is
    /// in service; others as everywhere.
    pub async fn revive(&self, group: GroupId) -> Result<(), RequestError> {
        self.done(group, ClientBody::Revive).await
    }

    /// Recovers a group that lost its quorum for good: what this node has of it becomes the group, with this node as its
    /// only member. Returns what is left once that is durable. Members are added again in the ordinary way
    /// ([`change_members`](Engine::change_members)).
    ///
    /// **What the lost nodes have acknowledged beyond this replica's log is given up.** Recover on the survivor whose
    /// log ends last, by term and then by index ([`statuses`](Engine::statuses)). `lost`: the nodes that are gone for
    /// good, so many that the other voters elect nobody; they must not be started again. `last`: the last index here and
    /// the term of that entry, as they were seen.
    ///
    /// # Errors
    /// [`RequestError::Recovery`] says why it is refused, and what to do; others as everywhere.
    pub async fn recover(
        &self,
        group: GroupId,
        lost: &[NodeId],
        last: (Index, Term),
    ) -> Result<Recovered, RequestError> {
        let (last, last_term) = last;
        let body = ClientBody::Recover { lost: lost.to_vec(), last, last_term };
        match self.request(group, body).await? {
            ReplyBody::Recovered(recovered) => Ok(recovered),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    async fn done(&self, group: GroupId, body: ClientBody) -> Result<(), RequestError> {
        match self.request(group, body).await? {
            ReplyBody::Done => Ok(()),
            _ => Err(RequestError::Invalid { what: "the shard answered something else" }),
        }
    }

    /// Makes another node known to this one, for good: its key may connect, and it is dialed. One that is known may
    /// get another address. Every node of the cluster has to be told; groups then take it in by
    /// [`change_members`](Engine::change_members). Blocks for one write to the disk.
    ///
    /// # Errors
    /// [`NodeError::Refused`] when its number or key is another's or was removed; [`NodeError::Storage`], after
    /// which nothing has changed in this process, but a start may find the change made: repeat the call, or any other of
    /// these two, which first puts on the disk what this process knows; [`NodeError::Stopped`].
    pub fn add_node(&self, peer: PeerAddress) -> Result<(), NodeError> {
        let known = KnownNode { key: *peer.endpoint.as_bytes(), addr: peer.addr, is_removed: false };
        self.change_nodes(|nodes, peers| peers.add(peer, || Ok(nodes.set(peer.node, known)?)))
    }

    /// Keeps another node out for good, as far as this one is concerned: its connection ends, and neither its number
    /// nor its key comes back. Take it out of its groups before. Returns whether it was known. Blocks for one
    /// write to the disk.
    ///
    /// # Errors
    /// As [`add_node`](Engine::add_node).
    pub fn remove_node(&self, node: NodeId) -> Result<bool, NodeError> {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.change_nodes(|nodes, peers| {
            peers.remove(node, |key| {
                Ok(nodes.set(node, KnownNode { key: *key.as_bytes(), addr: nowhere, is_removed: true })?)
            })
        })
    }

    /// Changes what this node knows of others, after what an earlier change left on the disk is settled.
    fn change_nodes<T>(
        &self,
        change: impl FnOnce(&mut KnownNodes, &PeerList) -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        let peers = lock(&self.inner.bridge).as_ref().ok_or(NodeError::Stopped)?.peers();
        let mut nodes = lock(&self.inner.nodes);
        let nodes = nodes.as_mut().ok_or(NodeError::Stopped)?;
        nodes.settle()?;
        change(nodes, &peers)
    }

    /// How the groups of this node stand, in order of group: all of them, or none.
    ///
    /// # Errors
    /// [`BusyReason::Ring`] as [`RequestError::Busy`] when a shard takes no command now; [`RequestError::ShuttingDown`] when
    /// one has ended; [`RequestError::Timeout`] when one has not answered within
    /// [`request_deadline`](crate::EngineConfig::request_deadline). Asking again is always safe.
    pub async fn statuses(&self) -> Result<Vec<GroupStatus>, RequestError> {
        let mut statuses = self.ask_shards(Command::Statuses).await?;
        statuses.sort_unstable_by_key(|status| status.group);
        Ok(statuses)
    }

    /// What all shards answer, together, or why one did not.
    async fn ask_shards<T>(
        &self,
        command: fn(oneshot::Sender<Vec<T>>) -> Command,
    ) -> Result<Vec<T>, RequestError> {
        let mut answers = Vec::new();
        for shard in &self.inner.shards {
            let (reply, answer) = oneshot::channel();
            shard.push(command(reply))?;
            answers.push(shard.answer(answer));
        }
        let answers = futures_util::future::join_all(answers);
        let answers = within(self.inner.request_deadline, answers).await.ok_or(RequestError::Timeout)?;
        let answers = answers.into_iter().collect::<Option<Vec<_>>>().ok_or(RequestError::ShuttingDown)?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// What broke this node, if something did. It then acknowledges nothing more in the shard
    /// concerned and has to be restarted.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<EngineError>> {
        lock(&self.inner.failure.state).error.clone()
    }

    /// Waits until something breaks this node, and says what.
    pub async fn failed(&self) -> Arc<EngineError> {
        loop {
            let waiter = {
                let mut state = lock(&self.inner.failure.state);
                if let Some(error) = &state.error {
                    return error.clone();
                }
                let (sender, waiter) = oneshot::channel();
                state.waiters.push(sender);
                waiter
            };
            let _ = waiter.await;
        }
    }

    /// Stops the node in order: hands leadership over, answers what is open, flushes, closes the
    /// connections, joins every thread.
    ///
    /// # Errors
    /// [`EngineError::ShutdownTimeout`] when threads are still running after `deadline`,
    /// [`EngineError::Panicked`] when one had died.
    pub async fn shutdown(self, deadline: Duration) -> Result<(), EngineError> {
        let until = Instant::now() + deadline;
        if self.inner.has_peers {
            self.hand_over(deadline / 4).await;
        }
        let (sender, done) = oneshot::channel();
        let inner = self.inner.clone();
        let name = String::from("shutdown");
        // Joining blocks; the caller's runtime must not.
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _ = sender.send(inner.stop(until.saturating_duration_since(Instant::now())));
            })
            .map_err(|source| EngineError::Thread { name: name.clone(), source })?;
        done.await.unwrap_or(Err(EngineError::Panicked { name }))
    }

    /// Asks every shard to give its leaderships away and waits for it, within the deadline.
    async fn hand_over(&self, deadline: Duration) {
        let alone: Vec<_> = self
            .inner
            .shards
            .iter()
            .filter_map(|shard| {
                let (reply, answer) = oneshot::channel();
                shard.commands.push(Command::HandOver(reply)).is_ok().then_some(answer)
            })
            .collect();
        // What does not answer in time is stopped as it is.
        let _ = within(deadline, futures_util::future::join_all(alone)).await;
    }

    pub(crate) async fn request(&self, group: GroupId, body: ClientBody) -> Result<ReplyBody, RequestError> {
        let deadline = self.inner.request_deadline;
        match self.call(group, |reply| Command::Request { group, deadline, body, reply }).await? {
            ReplyBody::Failed(error) => Err(error),
            body => Ok(body),
        }
    }

    async fn leadership(
        &self,
        group: GroupId,
        command: impl FnOnce(LeadershipReply) -> Command,
    ) -> Result<HandedOver, LeadershipError> {
        self.call(group, command).await?
    }

    /// Gives a command to a group's shard, and waits for what it answers.
    async fn call<T>(
        &self,
        group: GroupId,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        let shard = self.push(group, command(reply))?;
        shard.answer(answer).await.ok_or(RequestError::OutcomeUnknown { leader: None })
    }
}

impl ShardHandle {
    fn push(&self, command: Command) -> Result<(), RequestError> {
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(RequestError::ShuttingDown);
        }
        self.commands.push(command).map_err(|_| RequestError::busy(BusyReason::Ring))
    }

    /// What the shard answers to a command that it was given before; `None` when it has ended without.
    async fn answer<T>(&self, mut answer: oneshot::Receiver<T>) -> Option<T> {
        // The shard sets it before it empties the ring for the last time: it may have taken this one,
        // or left it there for good. Or it ended before it answered.
        if self.is_closed.load(Ordering::SeqCst) {
            answer.try_recv().ok().flatten()
        } else {
            answer.await.ok()
        }
    }
}

impl Engine {
    /// Gives a command to a group's shard.
    pub(crate) fn push(&self, group: GroupId, command: Command) -> Result<&ShardHandle, RequestError> {
        let shard = self.inner.placement.shard_of(group);
        let Some(shard) = self.inner.shards.get(usize::from(shard.0)) else {
            return Err(RequestError::UnknownGroup);
        };
        shard.push(command).map(|()| shard)
    }

    /// Says something to a group's shard whose answer nobody waits for.
    pub(crate) fn tell(&self, group: GroupId, body: ClientBody) -> Result<(), RequestError> {
        let (reply, _) = oneshot::channel();
        let deadline = self.inner.request_deadline;
        self.push(group, Command::Request { group, deadline, body, reply }).map(drop)
    }
}

impl Inner {
    /// Stops every thread, in the order in which data flows. Does nothing the second time.
    fn stop(&self, deadline: Duration) -> Result<(), EngineError> {
        let Some(threads) = lock(&self.threads).take() else { return Ok(()) };
        let until = Instant::now() + deadline;
        let left = || until.saturating_duration_since(Instant::now());
        for shard in &self.shards {
            // A full ring is drained within a turn; a dead shard is joined below all the same.
            let mut command = Command::Stop;
            while let Err(back) = shard.commands.push(command) {
                if left().is_zero() {
                    break;
                }
                command = back;
                std::thread::yield_now();
            }
        }
        let Threads { executors, helpers, stop, doorbells, folder } = threads;
        let mut late = Vec::new();
        let mut panicked = None;
        for Executor { name, handle, running } in executors {
            if running.recv_timeout(left()) == Err(mpsc::RecvTimeoutError::Timeout) {
                late.push(name);
            } else if handle.join().is_err() {
                panicked = Some(name);
            }
        }
        let bridge = lock(&self.bridge).take();
        if let Some(bridge) = bridge
            && let Err(error) = bridge.shutdown(left().max(Duration::from_millis(100)))
        {
            tracing::warn!(%error, "the bridge did not stop in order");
            late.push("bridge".into());
        }
        stop.store(true, Ordering::Release);
        doorbells.iter().for_each(|doorbell| {
            doorbell.ring();
        });
        for (name, helper) in helpers {
            if !wait_until(left(), || helper.is_finished()) {
                late.push(name);
            } else if helper.join().is_err() {
                panicked = Some(name);
            }
        }
        // A change of the known nodes that the disk does not end keeps them, and with them the folder's lock.
        let has_dropped_nodes = || match self.nodes.try_lock() {
            Ok(mut nodes) => {
                *nodes = None;
                true
            }
            Err(TryLockError::Poisoned(nodes)) => {
                *nodes.into_inner() = None;
                true
            }
            Err(TryLockError::WouldBlock) => false,
        };
        if !wait_until(left(), has_dropped_nodes) {
            late.push("a change of the known nodes".into());
        }
        drop(folder);
        match panicked {
            _ if !late.is_empty() => Err(EngineError::ShutdownTimeout { deadline, threads: late.join(", ") }),
            Some(name) => Err(EngineError::Panicked { name }),
            None => Ok(()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.stop(DROP_DEADLINE) {
            tracing::warn!(%error, "a dropped node did not stop in order");
        }
    }
}

/// What a future gives within a time; `None` when it takes longer, or when nothing can tell.
async fn within<T>(deadline: Duration, future: impl Future<Output = T>) -> Option<T> {
    // No runtime to lean on: a thread keeps the time.
    let (timeout, timed_out) = oneshot::channel();
    let timer = std::thread::Builder::new().name("deadline".into()).spawn(move || {
        std::thread::park_timeout(deadline);
        let _ = timeout.send(());
    });
    // Also when nobody waits any more.
    let _timer = Unpark(timer.ok()?.thread().clone());
    match futures_util::future::select(std::pin::pin!(future), timed_out).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

/// Ends a thread's wait when it is dropped.
struct Unpark(Thread);

impl Drop for Unpark {
    fn drop(&mut self) {
        self.0.unpark();
    }
}

/// Threads cannot be joined with a deadline: look until it is so, a millisecond apart.
fn wait_until(deadline: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + deadline;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
