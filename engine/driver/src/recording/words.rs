//! Steps and outputs in words, without users' records: what they hold is told by number and size.

use std::fmt::{self, Display, Formatter};

use iroh_raft_core::{
    Input, LogEntry, Outputs, PeerMessage, Reply, SnapshotEvent, SnapshotStep, SnapshotTask,
};

use super::reading::{Step, StepKind};

/// Outputs of a turn in words.
#[derive(Debug)]
pub struct Words<'a>(pub &'a Outputs);

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8} {:>14.6} ", self.number, self.now.0 as f64 / 1e9)?;
        match &self.kind {
            StepKind::Input(input) => write_input(f, input),
            StepKind::Turn { digest } => write!(f, "turn over, digest {digest:016x}"),
        }
    }
}

fn write_input(f: &mut Formatter<'_>, input: &Input) -> fmt::Result {
    match input {
        Input::EndTurn => write!(f, "end of turn"),
        Input::Message(message) => write_message(f, message),
        Input::Propose(propose) => write!(
            f,
            "group {}: propose {} records, {} bytes, answer on {:?}, {:?}",
            propose.group,
            propose.block.count(),
            propose.block.payload_bytes(),
            propose.answer,
            propose.token
        ),
        Input::Fetched { id, group, result: Ok(entries) } => {
            write!(f, "group {group}: fetched {}:", id.0)?;
            write_entries(f, entries)
        }
        Input::Snapshot { group, event: SnapshotEvent::Chunk { index, chunk, to, data } } => {
            let bytes = data.as_ref().map(|data| data.len());
            write!(f, "group {group}: chunk {chunk} of the snapshot at {index} for {to}, {bytes:?} bytes")
        }
        Input::Reopened { group, result: Ok(state) } => {
            write!(f, "group {group}: opened again, log to {}, damaged {:?}", state.last, state.damage)
        }
        // The others hold no records.
        other => write!(f, "{other:?}"),
    }
}

fn write_message(f: &mut Formatter<'_>, message: &PeerMessage) -> fmt::Result {
    let PeerMessage { kind, group, from, to, term, log_term, index, commit, reject, .. } = message;
    write!(f, "group {group}: {kind:?} from {from} to {to}, term {term}, index {index} of term {log_term}")?;
    write!(f, ", commit {commit}{}", if *reject { ", rejected" } else { "" })?;
    write_entries(f, &message.entries)
}

fn write_entries(f: &mut Formatter<'_>, entries: &[LogEntry]) -> fmt::Result {
    if let [first, .., last] | [first @ last] = entries {
        let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
        write!(f, ", entries {} to {} of term {}, {bytes} bytes", first.index, last.index, last.term)?;
    }
    Ok(())
}

impl Display for Words<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Outputs {
            append,
            sends,
            applies,
            fetches,
            reopens,
            snapshots,
            invites,
            compares,
            replies,
            events,
        } = self.0;
        if self.0.is_empty() {
            return write!(f, "nothing");
        }
        if let Some(append) = append {
            write!(f, "[flush {}", append.seq)?;
            for part in &append.groups {
                write!(f, "; group {}: {:?}, {:?}", part.group, part.hard_state, part.change)?;
                write_entries(f, &part.entries)?;
            }
            write!(f, "] ")?;
        }
        for send in sends {
            write!(f, "[send ")?;
            write_message(f, &send.message)?;
            write!(f, ", after flush {:?}] ", send.after.map(|seq| seq.0))?;
        }
        for apply in applies {
            write!(f, "[apply group {}, {} waiters", apply.group, apply.waiters.len())?;
            write_entries(f, &apply.entries)?;
            write!(f, "] ")?;
        }
        fetches.iter().try_for_each(|fetch| write!(f, "[{fetch:?}] "))?;
        reopens.iter().try_for_each(|reopen| write!(f, "[{reopen:?}] "))?;
        for SnapshotTask { group, step } in snapshots {
            match step {
                SnapshotStep::Write { index, chunk, data } => {
                    let bytes = data.len();
                    write!(
                        f,
                        "[write chunk {chunk} of group {group}'s snapshot at {index}, {bytes} bytes] "
                    )?;
                }
                other => write!(f, "[group {group}: {other:?}] ")?,
            }
        }
        invites.iter().try_for_each(|invite| write!(f, "[{invite:?}] "))?;
        compares.iter().try_for_each(|compare| write!(f, "[{compare:?}] "))?;
        for reply in replies {
            match reply {
                Reply::Records { token, group, from, entries, end, .. } => {
                    write!(f, "[records for {token:?} of group {group} from {from}, end {end}")?;
                    write_entries(f, entries)?;
                    write!(f, "] ")?;
                }
                other => write!(f, "[{other:?}] ")?,
            }
        }
        events.iter().try_for_each(|event| write!(f, "[{event:?}] "))
    }
}
