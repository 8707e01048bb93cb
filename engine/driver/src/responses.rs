//! Responses to commands of client sessions, so that a command that comes again gets the response that it had.
//!
//! They are a cache: made as commands are applied, on every replica alike, and gone with the process. Whoever asks for one
//! that is gone is told that the command was applied.

use std::collections::VecDeque;

use iroh_raft_core::Offset;
use iroh_raft_core::batch::RecordBlock;

/// Bytes of responses that are kept for a group at most. When full the oldest go.
const BYTES_MAX: usize = 1 << 20;
/// Of a kept response besides its bytes, about.
const KEPT_BYTES: usize = 64;

/// Those of one group.
#[derive(Default)]
pub(crate) struct Responses {
    /// By the offset of the first command, ascending.
    kept: VecDeque<(Offset, RecordBlock)>,
    bytes: usize,
}

impl Responses {
    /// The commands of a run are applied.
    pub(crate) fn push(&mut self, first: Offset, responses: &[Vec<u8>]) {
        if self.kept.back().is_some_and(|(last, _)| *last >= first) {
            // They are applied anew, from an earlier state on.
            *self = Responses::default();
        }
        let responses = RecordBlock::from_records(responses);
        self.bytes += bytes_of(&responses);
        self.kept.push_back((first, responses));
        while self.bytes > BYTES_MAX
            && let Some((_, oldest)) = self.kept.pop_front()
        {
            self.bytes -= bytes_of(&oldest);
        }
    }

    /// The responses to commands that were appended together.
    pub(crate) fn find(&self, first: Offset, count: u32) -> Option<RecordBlock> {
        let at = self.kept.binary_search_by_key(&first, |(offset, _)| *offset).ok()?;
        let (_, responses) = self.kept.get(at)?;
        Some(responses.clone()).filter(|responses| responses.count() == count)
    }
}

fn bytes_of(responses: &RecordBlock) -> usize {
    responses.as_bytes().len() + KEPT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_responses_go_first() {
        let mut responses = Responses::default();
        let large = vec![7; BYTES_MAX / 4];
        (0..6).for_each(|first| responses.push(Offset(first), std::slice::from_ref(&large)));
        let found: Vec<_> = (0..6).filter(|first| responses.find(Offset(*first), 1).is_some()).collect();
        assert_eq!(found, [3, 4, 5]);
        assert!(responses.find(Offset(5), 2).is_none());
        responses.push(Offset(2), &[vec![1], vec![2]]);
        assert!(responses.find(Offset(5), 1).is_none());
        let found = responses.find(Offset(2), 2).unwrap();
        assert_eq!(found.records().collect::<Vec<_>>(), [[1], [2]]);
    }
}
