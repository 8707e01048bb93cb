//! The network client: it finds leaders, gathers records into requests, and retries what is safe.
//!
//! Each node has one connection and one task; calls only put their work in line, so a call costs
//! no task. What is cheapest depends on the caller:
//!
//! - [`Client::append`] is one future per record, with one allocation for its answer.
//! - [`Client::append_batch`] is the same for a whole batch: all its records are acknowledged at once.
//! - [`Client::appender`] has no future per record at all: records go in with a number, and their
//!   ends come out in batches. This is the one for many records per second.
//!
//! Never done twice: an append that was sent and whose connection or time is lost ends with
//! [`ClientError::OutcomeUnknown`]. It is sent anew only when a node said that nothing was done.
//! Changes that may be repeated are sent anew, and end as unknown when time runs out meanwhile.
//! Appends that are under way together may be reordered by such a retry. A [`Session`] does retry them, and has them done
//! once.
//!
//! What is sent anew has a budget for the whole client ([`ClientLimits::retry_tokens_max`]): a cluster in trouble is not given
//! many times the load by those who wait for it.

mod budget;
mod call;
mod clock;
mod compare;
mod config;
mod drive;
mod error;
mod lines;
mod records;
mod route;
mod session;
mod stream;
mod tail;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, ConfState, Consistency, CursorName, GroupCommand, GroupId, GroupStatus, Index, MemberChange,
    NodeId, Offset, Recovered, RequestError, Term, WallTime,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::endpoint::{self, BindFailure, DialedOnly};
use crate::wire::{ClientBody, GROUPS_LISTED_MAX, Stages};

pub use crate::allow::PeerAddress;
pub use crate::wire::{Answer, HandedOver};
pub use call::{Appended, Completion, Found};
pub use compare::{Compared, StateComparison};
pub use config::{ClientConfig, ClientLimits, TailOptions};
pub use error::ClientError;
pub use iroh_raft_core::batch::Record;
pub use records::Records;
pub use session::{Session, SessionDone};
pub use tail::Tail;

use call::{Ask, CALL_BYTES, CompletionQueue, Outcome, Part, QueueUser, Sink, Target, Work};
use lines::Arrival;
use route::Shared;

/// A connection to a cluster. Clones share it; dropping the last one closes it.
#[derive(Clone, Debug)]
pub struct Client {
    handle: Arc<Handle>,
    deadline: Duration,
}

/// Closes the client when the last user of it is gone.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Client {
    /// Connects to the nodes; returns once the first one has welcomed this client. Runs one task per
    /// node on the caller's tokio runtime, which must have time and network enabled.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when a node does not want this client, [`ClientError::Unreachable`]
    /// when none answers within `connect_deadline`, [`ClientError::Endpoint`] when there is no node
    /// to connect to or no socket to be had.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let unusable = |reason: &str| ClientError::Endpoint { reason: reason.into() };
        if config.nodes.is_empty() {
            return Err(unusable("no nodes are given"));
        }
        let limits = &config.limits;
        if let Some(problem) = limits.problem() {
            return Err(unusable(problem));
        }
        let addr = config.bind.unwrap_or_else(|| bind_for(&config));
        let endpoint = endpoint::bind(&config.identity, addr, &[], limits.behavior(), DialedOnly)
            .await
            .map_err(|failure| match failure {
                BindFailure::InUse => unusable(&format!("UDP address {addr} is in use")),
                BindFailure::Other(reason) => unusable(&reason),
            })?;
        let deadline = limits.deadline;
        let until = Instant::now() + limits.connect_deadline;
        let shared = Shared::start(config, endpoint);
        let client = Client { handle: Arc::new(Handle { shared }), deadline };
        let shared = client.shared();
        match timeout_at(until, shared.first_welcome()).await {
            Ok(result) => result.map(|()| client),
            Err(_) => Err(ClientError::Unreachable { reason: shared.last_failure() }),
        }
    }

    /// The same client, whose calls wait for `deadline` instead of the configured time.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        Client { handle: self.handle.clone(), deadline }
    }

    /// The same client, whose calls wait for what is left until then.
    fn until(&self, end: Instant) -> Client {
        self.with_deadline(end.saturating_duration_since(Instant::now()))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Appends one record. Returns once a quorum has it on stable storage.
    ///
    /// # Errors
    /// [`ClientError`]; [`OutcomeUnknown`](ClientError::OutcomeUnknown) means that it may be there
    /// or not.
    pub async fn append(&self, group: GroupId, record: impl AsRef<[u8]>) -> Result<Appended, ClientError> {
        self.append_batch(group, &[record]).await
    }

    /// Appends records, in order and without a gap, all or none. Returns once a quorum has them on
    /// stable storage; the offset is that of the first.
    ///
    /// # Errors
    /// As [`append`](Client::append).
    pub async fn append_batch<R: AsRef<[u8]>>(
        &self,
        group: GroupId,
        records: &[R],
    ) -> Result<Appended, ClientError> {
        match self.send_records(group, records, AnswerOn::Commit).await? {
            Outcome::Appended(appended) => Ok(appended),
            _ => unreachable!("succeed() gives an append nothing else"),
        }
    }

    /// Appends records as [`append_batch`](Client::append_batch) does, in a request of their own, and says where the time went
    /// at the leader.
    ///
    /// # Errors
    /// As [`append`](Client::append); [`Invalid`](iroh_raft_core::RequestError::Invalid) without records.
    pub async fn append_timed<R: AsRef<[u8]>>(
        &self,
        group: GroupId,
        records: &[R],
    ) -> Result<(Appended, Stages), ClientError> {
        let body = ClientBody::TimedAppend { block: RecordBlock::from_records(records) };
        match self.ask(group, body, Target::Leader).await? {
            Outcome::Timed(appended, stages) => Ok((appended, stages)),
            _ => unreachable!("succeed() gives a timed append nothing else"),
        }
    }

    /// Proposes a command to the group's state machine, and returns its response once the command is
    /// on stable storage of a quorum and applied.
    ///
    /// # Errors
    /// As [`append`](Client::append).
    pub async fn propose(&self, group: GroupId, command: impl AsRef<[u8]>) -> Result<Bytes, ClientError> {
        match self.send_records(group, &[command], AnswerOn::Apply).await? {
            Outcome::Response(response) => Ok(response),
            _ => unreachable!("succeed() gives a proposal nothing else"),
        }
    }

    async fn send_records<R: AsRef<[u8]>>(
        &self,
        group: GroupId,
        records: &[R],
        answer: AnswerOn,
    ) -> Result<Outcome, ClientError> {
        let shared = self.shared();
        let deadline = Instant::now() + self.deadline;
        let charge = shared.charge(records)?;
        shared.take_room(charge, deadline).await?;
        let (sender, receiver) = oneshot::channel();
        shared.append(Arrival { group, answer, records, sink: Sink::One(sender), charge, deadline });
        // The tasks of the client end each call by its deadline, and all when they end.
        receiver.await.unwrap_or(Err(ClientError::Closed))
    }

    /// Asks the group's state machine where its leader is.
    ///
    /// # Errors
    /// [`ClientError`]; a query changes nothing, so it never ends as unknown.
    pub async fn query(
        &self,
        group: GroupId,
        query: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Answer, ClientError> {
        let body = ClientBody::Query { consistency, may_forward: false, query: query.into() };
        self.ask_machine(group, body, Target::Leader).await
    }

    /// Asks this node's replica of the group, whether it leads or not. For a linearizable answer, or one by a lease,
    /// a replica that does not lead asks the leader how far it has to be: that takes load off the leader's state
    /// machine, not off its rounds.
    ///
    /// # Errors
    /// As [`query`](Client::query).
    pub async fn query_at(
        &self,
        node: NodeId,
        group: GroupId,
        query: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Answer, ClientError> {
        let target = self.shared().node_at(node)?;
        let may_forward = consistency != Consistency::Local;
        let body = ClientBody::Query { consistency, may_forward, query: query.into() };
        self.ask_machine(group, body, target).await
    }

    async fn ask_machine(
        &self,
        group: GroupId,
        body: ClientBody,
        target: Target,
    ) -> Result<Answer, ClientError> {
        match self.ask(group, body, target).await? {
            Outcome::Answer(answer) => Ok(answer),
            _ => unreachable!("succeed() gives a query nothing else"),
        }
    }

    /// Reads committed records of this very replica: from `from` on, whole batches of `bytes_max` bytes
    /// in all, but at least one. Empty at the end of the log.
    ///
    /// # Errors
    /// [`ClientError`]; [`PastEnd`](iroh_raft_core::RequestError::PastEnd) when the replica has not
    /// come that far, [`BeforeStart`](iroh_raft_core::RequestError::BeforeStart) when the record was trimmed.
    pub async fn read(
        &self,
        node: NodeId,
        group: GroupId,
        from: Offset,
        bytes_max: u32,
    ) -> Result<Records, ClientError> {
        self.read_records(node, group, from, (bytes_max, u32::MAX), false).await
    }

    /// As [`read`](Client::read), with a bound on the records as well (those of the last batch may exceed it), and
    /// where there is no record yet it waits until there is one. When there is none within the client's deadline it is
    /// empty, with the end of the log, or [`ClientError::Deadline`]: the node looks once a tick, and may be later than the client.
    ///
    /// # Errors
    /// As [`read`](Client::read), but for `PastEnd`.
    pub async fn read_from(
        &self,
        node: NodeId,
        group: GroupId,
        from: Offset,
        bytes_max: u32,
        records_max: u32,
    ) -> Result<Records, ClientError> {
        self.read_records(node, group, from, (bytes_max, records_max.max(1)), true).await
    }

    async fn read_records(
        &self,
        node: NodeId,
        group: GroupId,
        from: Offset,
        (bytes_max, records_max): (u32, u32),
        is_waiting: bool,
    ) -> Result<Records, ClientError> {
        let target = self.shared().node_at(node)?;
        let body = ClientBody::ReadRecords { from, bytes_max, records_max, is_waiting };
        match self.ask(group, body, target).await? {
            Outcome::Records(records) => Ok(records),
            _ => unreachable!("succeed() gives a read nothing else"),
        }
    }

    /// Finds the first committed record of this very replica that was written at a time or later, by the leaders'
    /// clocks, which never run backwards within a group.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn find(&self, node: NodeId, group: GroupId, at: WallTime) -> Result<Found, ClientError> {
        let target = self.shared().node_at(node)?;
        match self.ask(group, ClientBody::Find { at }, target).await? {
            Outcome::Found(found) => Ok(found),
            _ => unreachable!("succeed() gives a search nothing else"),
        }
    }

    /// Follows a group's committed records from `from` on, in order, each once: as they are committed, without
    /// polling, at any node, across changes of leaders and lost connections.
    ///
    /// # Errors
    /// [`ClientError::UnknownNode`] when the node of the options is not configured.
    pub fn tail(&self, group: GroupId, from: Offset, options: TailOptions) -> Result<Tail, ClientError> {
        let credit_bytes = options.credit_bytes.clamp(1, tail::CREDIT_BYTES_MAX);
        Tail::new(self.clone(), group, from, TailOptions { credit_bytes, ..options })
    }

    /// Says that a consumer has done with all records before `offset`: its cursor is there, on a quorum's stable
    /// storage, or further if it was. Returns where it stands. Never beyond the committed end.
    ///
    /// # Errors
    /// [`ClientError`]; [`CursorsFull`](iroh_raft_core::RequestError::CursorsFull) for another consumer than there
    /// may be. After [`OutcomeUnknown`](ClientError::OutcomeUnknown) it may be done; doing it again is harmless.
    pub async fn commit_cursor(
        &self,
        group: GroupId,
        name: CursorName,
        offset: Offset,
    ) -> Result<Offset, ClientError> {
        self.command(group, GroupCommand::CommitCursor { name, offset }).await.map(Option::unwrap_or_default)
    }

    /// Puts a consumer's cursor somewhere, be it back.
    ///
    /// # Errors
    /// As [`commit_cursor`](Client::commit_cursor); [`OutcomeUnknown`](ClientError::OutcomeUnknown) as for an append.
    pub async fn set_cursor(
        &self,
        group: GroupId,
        name: CursorName,
        offset: Offset,
    ) -> Result<Offset, ClientError> {
        self.command(group, GroupCommand::SetCursor { name, offset }).await.map(Option::unwrap_or_default)
    }

    /// Forgets a consumer. One that is not known is no error.
    ///
    /// # Errors
    /// As [`set_cursor`](Client::set_cursor).
    pub async fn drop_cursor(&self, group: GroupId, name: CursorName) -> Result<(), ClientError> {
        self.command(group, GroupCommand::DropCursor { name }).await.map(drop)
    }

    /// Where a consumer's cursor stands, with all that was acknowledged before; `None` when it has none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cursor(&self, group: GroupId, name: CursorName) -> Result<Option<Offset>, ClientError> {
        match self.ask(group, ClientBody::FetchCursor { name }, Target::Leader).await? {
            Outcome::Offset(offset) => Ok(offset),
            _ => unreachable!("succeed() gives a cursor nothing else"),
        }
    }

    /// Lets go of all records before `before`, on all replicas. Returns the first record that is kept, which never
    /// moves back. Needs the right to manage.
    ///
    /// # Errors
    /// [`ClientError`]; [`PastEnd`](iroh_raft_core::RequestError::PastEnd) beyond what is committed. After
    /// [`OutcomeUnknown`](ClientError::OutcomeUnknown) it may be done; doing it again is harmless.
    pub async fn trim(&self, group: GroupId, before: Offset) -> Result<Offset, ClientError> {
        self.command(group, GroupCommand::Trim { before }).await.map(Option::unwrap_or_default)
    }

    async fn command(&self, group: GroupId, command: GroupCommand) -> Result<Option<Offset>, ClientError> {
        match self.ask(group, ClientBody::Command(command), Target::Leader).await? {
            Outcome::Offset(offset) => Ok(offset),
            _ => unreachable!("succeed() gives a command nothing else"),
        }
    }

    /// Changes the members of a group in one step, by joint consensus when more than one node is named
    /// (Raft thesis 4.3). Returns the members once they are in force; at once when they are already. Needs
    /// the right to manage.
    ///
    /// # Errors
    /// [`ClientError`]; [`Members`](iroh_raft_core::RequestError::Members) says why members stay as they
    /// are. After [`OutcomeUnknown`](ClientError::OutcomeUnknown) ask for the [`status`](Client::status).
    pub async fn change_members(
        &self,
        group: GroupId,
        changes: &[MemberChange],
    ) -> Result<Arc<ConfState>, ClientError> {
        let body = ClientBody::ChangeMembers { changes: changes.to_vec() };
        match self.ask(group, body, Target::Leader).await? {
            Outcome::Members(members) => Ok(members),
            _ => unreachable!("succeed() gives a change of members nothing else"),
        }
    }

    /// Begins a group with these voters, on the first of them that this client is connected to; the others hear
    /// of it. Returns once that replica is on its disk; the group elects a leader when a majority of them is up.
    /// Doing it again with the same voters is harmless. Needs the right to manage.
    ///
    /// A group's number is chosen by whoever creates it, and never used again: two groups of one number on
    /// different nodes would be taken for one.
    ///
    /// # Errors
    /// [`ClientError`]; [`GroupExists`](iroh_raft_core::RequestError::GroupExists) when there is one with other
    /// members, [`GroupRemoved`](iroh_raft_core::RequestError::GroupRemoved) when there was. After
    /// [`OutcomeUnknown`](ClientError::OutcomeUnknown) it may be done.
    pub async fn create_group(&self, group: GroupId, voters: &[NodeId]) -> Result<(), ClientError> {
        let connected = self.connected();
        let first = voters.iter().find(|voter| connected.contains(voter)).or(voters.first());
        let Some(first) = first else {
            let what = "a group has a voter";
            return Err(ClientError::Request(RequestError::Invalid { what }));
        };
        let target = self.shared().node_at(*first)?;
        let body = ClientBody::CreateGroup { voters: voters.to_vec() };
        self.ask(group, body, target).await.map(|_| ())
    }

    /// Removes a group for good, with all that it stored, on every node. Returns once that is committed; nodes
    /// that are away do it when they are back. Needs the right to manage.
    ///
    /// # Errors
    /// [`ClientError`]; after [`OutcomeUnknown`](ClientError::OutcomeUnknown) it may be done.
    pub async fn remove_group(&self, group: GroupId) -> Result<(), ClientError> {
        self.ask(group, ClientBody::RemoveGroup, Target::Leader).await.map(|_| ())
    }

    /// Opens this node's replica of a group again, which was taken out there
    /// ([`GroupStatus::is_quarantined`](iroh_raft_core::GroupStatus::is_quarantined)): as a start would find it on its disk, without
    /// one. What is damaged of it its leader gives it again. Needs the right to manage.
    ///
    /// # Errors
    /// [`ClientError`]; [`Quarantined`](iroh_raft_core::RequestError::Quarantined) when what its disk has is inconsistent,
    /// [`Invalid`](iroh_raft_core::RequestError::Invalid) when the replica is in service. After
    /// [`OutcomeUnknown`](ClientError::OutcomeUnknown) it may be done.
    pub async fn revive(&self, node: NodeId, group: GroupId) -> Result<(), ClientError> {
        let target = self.shared().node_at(node)?;
        self.ask(group, ClientBody::Revive, target).await.map(|_| ())
    }

    /// Recovers a group that lost its quorum for good: what this node has of it becomes the group, with this node as its
    /// only member. Returns what is left once that is durable. Members are added again in the ordinary way.
    ///
    /// **What the lost nodes have acknowledged beyond this replica's log is given up.** Ask all survivors for their
    /// [`status`](Client::status) first, and recover on the one whose log ends last, by term and then by index. `lost`:
    /// the nodes that are gone for good, so many that the other voters elect nobody. They must not be started
    /// again; those that are learn that they were given up. `last`: last index of the survivor and the term of that entry
    /// ([`last_term`](iroh_raft_core::GroupStatus::last_term)), as its status showed them. Needs the right to manage.
    ///
    /// # Errors
    /// [`ClientError`]; [`Recovery`](iroh_raft_core::RequestError::Recovery) says why it is refused, and what to do. After
    /// [`OutcomeUnknown`](ClientError::OutcomeUnknown) the status tells: its term is a million higher when it was done.
    pub async fn recover(
        &self,
        node: NodeId,
        group: GroupId,
        lost: &[NodeId],
        last: (Index, Term),
    ) -> Result<Recovered, ClientError> {
        let target = self.shared().node_at(node)?;
        let (last, last_term) = last;
        let body = ClientBody::Recover { lost: lost.to_vec(), last, last_term };
        match self.ask(group, body, target).await? {
            Outcome::Recovered(recovered) => Ok(recovered),
            _ => unreachable!("succeed() gives a recovery nothing else"),
        }
    }

    /// How this node's replica of the group stands.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self, node: NodeId, group: GroupId) -> Result<GroupStatus, ClientError> {
        let target = self.shared().node_at(node)?;
        match self.ask(group, ClientBody::Status, target).await? {
            Outcome::Status(status) => Ok(status),
            _ => unreachable!("succeed() gives a status nothing else"),
        }
    }

    /// The groups that have a replica on this node, in order of their numbers. Those that come or go meanwhile may be
    /// among them or not.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn groups(&self, node: NodeId) -> Result<Vec<GroupId>, ClientError> {
        let target = self.shared().node_at(node)?;
        let (mut groups, mut shard_count) = (Vec::new(), 1);
        let mut shard = 0;
        while shard < shard_count {
            // A group that nobody has, and that is on this shard therefore, as all are by their number that are not placed.
            let on_shard =
                GroupId((u64::MAX >> 1) / u64::from(shard_count) * u64::from(shard_count) + u64::from(shard));
            let mut after = GroupId(0);
            loop {
                let body = ClientBody::ListGroups { after, groups_max: GROUPS_LISTED_MAX };
                let listed = match self.ask(on_shard, body, target).await? {
                    Outcome::Groups(listed) => listed,
                    _ => unreachable!("succeed() gives a list nothing else"),
                };
                if listed.shard_count != shard_count {
                    // The first answer; or the node has another number of shards since it was started again.
                    (groups, shard_count, shard) = (Vec::new(), listed.shard_count, 0);
                    break;
                }
                after = listed.groups.last().copied().unwrap_or(after);
                groups.extend(listed.groups);
                if !listed.is_more {
                    shard += 1;
                    break;
                }
            }
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(groups)
    }

    /// Hands leadership of a group to this node's replica, or to the best one. Returns once another is known to lead. Needs
    /// the right to manage.
    ///
    /// # Errors
    /// [`ClientError`]; [`Transfer`](iroh_raft_core::RequestError::Transfer) says why it stays where it is. After
    /// [`OutcomeUnknown`](ClientError::OutcomeUnknown) ask for the [`status`](Client::status).
    pub async fn transfer_leader(
        &self,
        group: GroupId,
        to: Option<NodeId>,
    ) -> Result<HandedOver, ClientError> {
        match self.ask(group, ClientBody::TransferLeader { to }, Target::Leader).await? {
            Outcome::HandedOver(handed_over) => Ok(handed_over),
            _ => unreachable!("succeed() gives a transfer nothing else"),
        }
    }

    async fn ask(&self, group: GroupId, body: ClientBody, target: Target) -> Result<Outcome, ClientError> {
        let shared = self.shared();
        let deadline = Instant::now() + self.deadline;
        let (bytes, records) = match &body {
            ClientBody::Query { query, .. } => (query.len(), 0),
            ClientBody::Append { block, .. } | ClientBody::TimedAppend { block } => {
                (block.as_bytes().len(), block.count())
            }
            _ => (0, 0),
        };
        shared.check_size(bytes)?;
        let charge = bytes + CALL_BYTES;
        shared.take_room(charge, deadline).await?;
        let (sender, receiver) = oneshot::channel();
        let mut work = Work::new(group, Ask::Sealed(body), deadline, target);
        work.parts.push(Part { records, charge, sink: Sink::One(sender) });
        shared.dispatch(work);
        receiver.await.unwrap_or(Err(ClientError::Closed))
    }

    /// For many records per second: appends go in through the one, their ends come out in batches of
    /// the other. See [`Appender`].
    #[must_use]
    pub fn appender(&self) -> (Appender, Completions) {
        let queue = Arc::new(CompletionQueue::default());
        let appender = Appender { client: self.clone(), queue: QueueUser::new(queue.clone()) };
        (appender, Completions { client: self.clone(), queue })
    }

    /// The node that last was known to lead the group. May be out of date.
    #[must_use]
    pub fn leader_hint(&self, group: GroupId) -> Option<NodeId> {
        self.shared().leader_hint(group)
    }

    /// Nodes that this client is connected to now.
    #[must_use]
    pub fn connected(&self) -> Vec<NodeId> {
        self.shared().connected()
    }

    /// Ends all calls and connections, for all clones. What was sent ends as unknown.
    pub fn close(&self) {
        self.shared().close();
    }

    /// Returns once the nodes have heard of [`close`](Client::close), after a second at most. To be
    /// awaited before the runtime ends: afterwards nobody tells them.
    pub async fn closed(&self) {
        self.shared().end_endpoint().await;
    }
}

/// The cheap way in: a record costs a copy into its group's next request, and no task, future or
/// allocation of its own. Clones feed the same [`Completions`].
///
/// An append holds its room (its bytes and 64 more, of
/// [`in_flight_bytes_max`](ClientLimits::in_flight_bytes_max)) until its end was taken from the
/// [`Completions`]: somebody has to take them.
#[derive(Clone, Debug)]
pub struct Appender {
    client: Client,
    queue: QueueUser,
}

impl Appender {
    /// Puts one record in line. Its end comes out with `tag`.
    ///
    /// # Errors
    /// [`ClientError::Full`] when too much is in flight, [`ClientError::TooLarge`],
    /// [`ClientError::Closed`]. Nothing comes out then.
    pub fn try_append(&self, group: GroupId, record: impl AsRef<[u8]>, tag: u64) -> Result<(), ClientError> {
        self.try_append_batch(group, &[record], tag)
    }

    /// Puts records in line that are appended all or none; one end comes out for all of them.
    ///
    /// # Errors
    /// As [`try_append`](Appender::try_append).
    pub fn try_append_batch<R: AsRef<[u8]>>(
        &self,
        group: GroupId,
        records: &[R],
        tag: u64,
    ) -> Result<(), ClientError> {
        let shared = self.client.shared();
        let charge = shared.charge(records)?;
        shared.try_take_room(charge)?;
        self.put(group, records, tag, charge, Instant::now() + self.client.deadline);
        Ok(())
    }

    /// As [`try_append`](Appender::try_append), but waits for room.
    ///
    /// # Errors
    /// [`ClientError::Full`] when there was no room within the deadline, and as there.
    pub async fn append(
        &self,
        group: GroupId,
        record: impl AsRef<[u8]>,
        tag: u64,
    ) -> Result<(), ClientError> {
        let shared = self.client.shared();
        let records = [record];
        let charge = shared.charge(&records)?;
        let deadline = Instant::now() + self.client.deadline;
        shared.take_room(charge, deadline).await?;
        self.put(group, &records, tag, charge, deadline);
        Ok(())
    }

    fn put<R: AsRef<[u8]>>(&self, group: GroupId, records: &[R], tag: u64, charge: usize, deadline: Instant) {
        let sink = Sink::Many { queue: self.queue.clone(), tag };
        let answer = AnswerOn::Commit;
        self.client.shared().append(Arrival { group, answer, records, sink, charge, deadline });
    }
}

/// The ends of appends, in no particular order.
#[derive(Debug)]
pub struct Completions {
    client: Client,
    queue: Arc<CompletionQueue>,
}

impl Completions {
    /// Waits for at least one end and adds all there are to `out`. Returns how many: 0 when there
    /// are none, none are under way, and the last [`Appender`] is gone. Cancel safe.
    pub async fn recv(&mut self, out: &mut Vec<Completion>) -> usize {
        loop {
            let is_last = !self.queue.is_used();
            let count = self.try_recv(out);
            if count > 0 || is_last {
                return count;
            }
            self.queue.changed.notified().await;
        }
    }

    /// Adds all ends there are to `out`, without waiting. Returns how many.
    pub fn try_recv(&mut self, out: &mut Vec<Completion>) -> usize {
        let before = out.len();
        let freed = self.queue.take(out);
        self.client.shared().give_room(freed);
        out.len() - before
    }
}

fn bind_for(config: &ClientConfig) -> SocketAddr {
    let is_loopback = config.nodes.iter().all(|node| node.addr.ip().is_loopback());
    let is_v4 = config.nodes.iter().all(|node| node.addr.is_ipv4());
    let ip: IpAddr = match (is_v4, is_loopback) {
        (true, true) => Ipv4Addr::LOCALHOST.into(),
        (true, false) => Ipv4Addr::UNSPECIFIED.into(),
        (false, true) => Ipv6Addr::LOCALHOST.into(),
        (false, false) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}
