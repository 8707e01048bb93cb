//! Which messages about snapshots are taken. Whether they fit a transfer that is under way is for the transfer
//! to say: what does not is late, not wrong.

use super::{GroupView, NUMBER_MAX, Refusal, check_leader};
use crate::io::{PeerMessage, SNAPSHOT_CHUNK_BYTES};
use crate::mutants::{self, Mutant};
use crate::snapshot_wire::{parse_ack, parse_chunk, parse_offer};

/// A place that there can be, of no later term than the message.
fn check_place(message: &PeerMessage) -> Result<(), Refusal> {
    let (index, log_term, term) = (message.index, message.log_term, message.term);
    if index.0 == 0 || log_term.0 == 0 || log_term > term {
        return Err(Refusal::LogTerm { index, log_term, term });
    }
    Ok(())
}

pub(super) fn check_offer(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    check_leader(view, message)?;
    check_place(message)?;
    let malformed = Refusal::Snapshot { index: message.index };
    let snapshot = parse_offer(message).ok_or(malformed)?;
    // A group without a state machine has nothing to make of a body.
    if snapshot.head.offset.0 > NUMBER_MAX || (!view.has_state_machine && snapshot.body.bytes > 0) {
        return Err(malformed);
    }
    if message.term >= view.term && (view.start..=view.commit).contains(&message.index) {
        let (index, term, ours) = (message.index, message.log_term, view.log.term_at(message.index));
        if ours != term {
            return Err(Refusal::ConflictsWithCommitted { index, term, ours });
        }
    }
    Ok(())
}

pub(super) fn check_chunk(view: &GroupView<'_>, message: &PeerMessage) -> Result<(), Refusal> {
    check_leader(view, message)?;
    check_place(message)?;
    let chunk = parse_chunk(message).ok_or(Refusal::Snapshot { index: message.index })?;
    if chunk.data.is_empty() || chunk.data.len() > SNAPSHOT_CHUNK_BYTES {
        return Err(Refusal::Snapshot { index: message.index });
    }
    if crc32c::crc32c(&chunk.data) != chunk.crc && !mutants::is(Mutant::DigestUnchecked) {
        return Err(Refusal::SnapshotDigest { index: message.index, chunk: chunk.number });
    }
    Ok(())
}

pub(super) fn check_ack(message: &PeerMessage) -> Result<(), Refusal> {
    check_place(message)?;
    parse_ack(message).map(|_| ()).ok_or(Refusal::Snapshot { index: message.index })
}
