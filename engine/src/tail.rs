//! Following the records of a group on this node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_channel::mpsc;
use futures_util::StreamExt;
use iroh_raft_core::{GroupId, Offset, RequestError};
use iroh_raft_driver::lines::Command;
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};

use crate::engine::{Engine, Records};

/// Bytes that may wait for a consumer at most.
pub(crate) const CREDIT_BYTES_MAX: u32 = 8 << 20;
/// How long a tail stays open; after that it is opened anew.
const OPEN_FOR: Duration = Duration::from_secs(3600);

/// Names of the tails of this process.
static NAMES: AtomicU64 = AtomicU64::new(0);

/// A tail while its shard has it.
#[derive(Debug)]
struct Open {
    name: u64,
    granted_bytes: u64,
    taken_bytes: u64,
    receiver: mpsc::UnboundedReceiver<ReplyBody>,
}

/// The records of a group as this node's replica learns that they are committed, in order, each once. See
/// [`Engine::tail`].
#[derive(Debug)]
pub struct Tail {
    engine: Engine,
    group: GroupId,
    next: Offset,
    credit_bytes: u32,
    open: Option<Open>,
}

impl Tail {
    pub(crate) fn new(engine: Engine, group: GroupId, from: Offset, credit_bytes: u32) -> Tail {
        Tail { engine, group, next: from, credit_bytes: credit_bytes.clamp(1, CREDIT_BYTES_MAX), open: None }
    }

    /// The next record that is due.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.next
    }

    /// Goes on with another record: after [`RequestError::BeforeStart`], say.
    pub fn seek(&mut self, to: Offset) {
        self.close();
        self.next = to;
    }

    /// The next records, one at least: waits until there are some, whoever leads. Cancel safe: what was not
    /// returned comes with the next call.
    ///
    /// # Errors
    /// [`RequestError`], after which the tail may be asked again; [`RequestError::BeforeStart`] says that the record
    /// due was trimmed, and where records begin.
    pub async fn next(&mut self) -> Result<Records, RequestError> {
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                None => self.begin()?,
            };
            match open.receiver.next().await {
                Some(ReplyBody::Records { batches, .. }) if batches.is_empty() => {}
                Some(ReplyBody::Records { from, end, batches, .. }) => {
                    let records = Records::new(from, end, batches);
                    self.take(&records);
                    return Ok(records);
                }
                Some(ReplyBody::Failed(error)) => {
                    self.open = None;
                    return Err(error);
                }
                Some(_) => return Err(RequestError::Invalid { what: "the shard answered something else" }),
                // It was open for as long as it may be, or the node stops.
                None => self.open = None,
            }
        }
    }

    fn begin(&mut self) -> Result<&mut Open, RequestError> {
        let (reply, receiver) = mpsc::unbounded();
        let (group, from, granted_bytes) = (self.group, self.next, self.credit_bytes);
        let tail = NAMES.fetch_add(1, Ordering::Relaxed);
        let command = Command::Tail { group, deadline: OPEN_FOR, tail, from, granted_bytes, reply };
        let shard = self.engine.push(group, command)?;
        // The shard sets it before it empties the ring for the last time: it may never take this one.
        if shard.is_closed.load(Ordering::SeqCst) {
            return Err(RequestError::ShuttingDown);
        }
        let granted_bytes = u64::from(granted_bytes);
        Ok(self.open.insert(Open { name: tail, granted_bytes, taken_bytes: 0, receiver }))
    }

    /// Records are the consumer's now: grants more once half of the credit is used.
    fn take(&mut self, records: &Records) {
        self.next = records.next();
        let credit = u64::from(self.credit_bytes);
        let Some(open) = &mut self.open else { return };
        open.taken_bytes += records.bytes() as u64;
        if open.granted_bytes.saturating_sub(open.taken_bytes) <= credit / 2 {
            let granted_bytes = open.taken_bytes + credit;
            let body = ClientBody::GrantTail { tail: open.name, granted_bytes };
            // A ring that is full takes it after the next records.
            if self.engine.tell(self.group, body).is_ok() {
                open.granted_bytes = granted_bytes;
            } else if open.granted_bytes <= open.taken_bytes {
                // There will be no next records: begin anew.
                self.open = None;
            }
        }
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            // Not heard: the shard sees that nobody takes the next records.
            let _ = self.engine.tell(self.group, ClientBody::EndTail { tail: open.name });
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.close();
    }
}
