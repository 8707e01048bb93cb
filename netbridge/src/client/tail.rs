//! Following the records of a group: a stream that outlives leaders, nodes and connections.
//!
//! A tail is open at one node at a time, whose replica hands out what is committed; when that node is lost, the
//! tail goes on at the next one with the record that is due. The consumer's credit bounds what waits here: a
//! node sends no more than was granted, and more is granted as records are taken. One that sends more is cut off.

use std::sync::Arc;
use std::time::Duration;

use iroh_raft_core::{GroupId, NodeId, Offset, RequestError, Retry};
use tokio::time::{Instant, sleep};

use super::call::{Ask, Outcome, Part, Sink, Target, Work};
use super::error::ClientError;
use super::records::Records;
use super::route::{Shared, spent};
use super::stream::{StreamReceiver, stream};
use super::{Client, TailOptions};
use crate::wire::ClientBody;

/// Bytes that may wait for a consumer at most.
pub(super) const CREDIT_BYTES_MAX: u32 = 8 << 20;
/// How long a node keeps a tail open: the longest that it grants. After that it is opened anew.
const OPEN_FOR: Duration = Duration::from_secs(3600);
/// How much longer the end of it is awaited.
const END_SLACK: Duration = Duration::from_secs(5);

/// A tail while it is open at a node.
#[derive(Debug)]
struct Open {
    name: u64,
    at: usize,
    granted_bytes: u64,
    taken_bytes: u64,
    receiver: StreamReceiver,
}

/// The records of a group as they are committed, in order, each once. See [`Client::tail`].
#[derive(Debug)]
pub struct Tail {
    client: Client,
    group: GroupId,
    next: Offset,
    options: TailOptions,
    /// The node that is asked, if not any: its place in the configuration.
    wanted: Option<usize>,
    open: Option<Open>,
    /// Nodes tried in a row without a record.
    failures: u32,
    /// While nothing comes, and no node keeps the tail open.
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    last: ClientError,
}

impl Tail {
    pub(super) fn new(
        client: Client,
        group: GroupId,
        from: Offset,
        options: TailOptions,
    ) -> Result<Tail, ClientError> {
        let wanted = options.node.map(|node| client.shared().place_of(node)).transpose()?;
        Ok(Tail { client, group, next: from, options, wanted, open: None, failures: 0, failing: None })
    }

    /// The next record that is due.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.next
    }

    /// Goes on with another record: after [`BeforeStart`](iroh_raft_core::RequestError::BeforeStart), say.
    pub fn seek(&mut self, to: Offset) {
        self.close();
        self.next = to;
    }

    /// The node that the tail is open at now.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.open.as_ref().map(|open| self.shared().nodes[open.at].address.node)
    }

    /// The next records, one at least: waits until there are some. Cancel safe: what was not returned comes
    /// with the next call.
    ///
    /// # Errors
    /// [`ClientError`]: what no other attempt would mend, or when no node keeps the tail open for as long as the
    /// client's deadline. A tail whose client's retries are spent waits for others as long. [`BeforeStart`](iroh_raft_core::RequestError::BeforeStart) says that the record due
    /// was trimmed, and where records begin. The tail may be asked again after any.
    pub async fn next(&mut self) -> Result<Records, ClientError> {
        loop {
            while self.open.is_none() {
                self.pause().await;
                // To go on elsewhere once it was lost is free, or many tails of a node that is gone could not all do it.
                if self.failures <= 1 || self.shared().pay_for_another() {
                    self.begin();
                } else {
                    self.wait_for_token()?;
                }
            }
            let Some(open) = &mut self.open else { return Err(ClientError::Closed) };
            let received = open.receiver.recv().await;
            let at = open.at;
            match received {
                // It is open, or was for as long as it may be.
                Some(Ok(Outcome::Records(records))) if records.is_empty() => {
                    (self.failures, self.failing) = (0, None);
                }
                Some(Ok(Outcome::Records(records))) if records.from() == self.next => {
                    (self.failures, self.failing) = (0, None);
                    self.take(&records);
                    return Ok(records);
                }
                Some(Err(error)) => self.fail(error)?,
                Some(Ok(_)) => {
                    let node = self.shared().nodes[at].address.node;
                    self.close();
                    return Err(ClientError::Protocol { node });
                }
                // It was open for as long as it may be.
                None => self.open = None,
            }
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        self.client.shared()
    }

    /// Records are the consumer's now: grants more once half of the credit is used.
    fn take(&mut self, records: &Records) {
        self.next = records.next();
        let (group, credit) = (self.group, u64::from(self.options.credit_bytes));
        let shared = self.client.shared();
        let Some(open) = &mut self.open else { return };
        open.taken_bytes += records.bytes() as u64;
        if open.granted_bytes.saturating_sub(open.taken_bytes) <= credit / 2 {
            open.granted_bytes = open.taken_bytes + credit;
            let body = ClientBody::GrantTail { tail: open.name, granted_bytes: open.granted_bytes };
            tell(shared, group, open.at, body, self.client.deadline);
        }
    }

    /// Another node may do what this one did not, unless nobody can.
    fn fail(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.open = None;
        self.failures += 1;
        let since = self.failing.take().map_or_else(Instant::now, |failing| failing.since);
        let is_over = since.elapsed() >= self.client.deadline;
        let unknown = ClientError::Request(RequestError::UnknownGroup);
        let is_elsewhere = self.wanted.is_none() && (self.failures as usize) < self.shared().nodes.len();
        let is_final = error.retry() == Retry::Never && !(error == unknown && is_elsewhere);
        if is_final || is_over {
            self.failures = 0;
            return Err(error);
        }
        self.failing = Some(Failing { since, last: error });
        Ok(())
    }

    /// The client may send nothing anew: this waits on, for as long as it would try.
    fn wait_for_token(&mut self) -> Result<(), ClientError> {
        let deadline = self.client.deadline;
        match self.failing.take_if(|failing| failing.since.elapsed() >= deadline) {
            None => Ok(()),
            Some(Failing { last, .. }) => {
                self.failures = 0;
                Err(spent(last))
            }
        }
    }

    async fn pause(&self) {
        if let Some(doublings) = self.failures.checked_sub(1) {
            let limits = &self.shared().limits;
            let pause = limits.retry_pause_min * (1 << doublings.min(16));
            sleep(pause.min(limits.retry_pause_max)).await;
        }
    }

    fn begin(&mut self) {
        let shared = self.client.shared();
        let at = self.wanted.unwrap_or_else(|| shared.tail_at(self.group, self.failures as usize));
        // What waits is its credit, and an answer that exceeds it.
        let frame_bytes_max = shared.limits.reply_frame.payload_bytes_max as usize;
        let (sender, receiver) = stream(self.options.credit_bytes as usize + frame_bytes_max);
        let name = shared.next_tail();
        let granted_bytes = self.options.credit_bytes;
        let body = ClientBody::Tail { tail: name, from: self.next, granted_bytes };
        let deadline = Instant::now() + OPEN_FOR + END_SLACK;
        let mut work = Work::new(self.group, Ask::Sealed(body), deadline, Target::Node(at));
        work.parts.push(Part { records: 0, charge: 0, sink: Sink::Stream(sender) });
        let granted_bytes = u64::from(granted_bytes);
        self.open = Some(Open { name, at, granted_bytes, taken_bytes: 0, receiver });
        shared.dispatch(work);
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            let body = ClientBody::EndTail { tail: open.name };
            tell(self.client.shared(), self.group, open.at, body, self.client.deadline);
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.close();
    }
}

/// Tells a node something about a tail; whoever does not hear it has lost the tail as well.
fn tell(shared: &Shared, group: GroupId, at: usize, body: ClientBody, deadline: Duration) {
    let (sender, _) = tokio::sync::oneshot::channel();
    let mut work = Work::new(group, Ask::Sealed(body), Instant::now() + deadline, Target::Node(at));
    work.parts.push(Part { records: 0, charge: 0, sink: Sink::One(sender) });
    shared.dispatch(work);
}
