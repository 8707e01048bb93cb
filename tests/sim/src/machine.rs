//! The state machine of the simulated groups: registers that can be written, compared and swapped, and read.

use std::collections::BTreeMap;

use iroh_raft_driver::state_machine::{
    ApplyContext, DecodeError, Machine, Restore, RestoreError, SnapshotView,
};

/// A change of one register. Values are unique over a run; 0 is that of a register never written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Write { value: u64 },
    Swap { expected: u64, value: u64 },
}

/// Encodes a command: what, register, two values.
pub(crate) fn encode(register: u32, change: Change) -> Vec<u8> {
    let (kind, first, second) = match change {
        Change::Write { value } => (0, value, 0),
        Change::Swap { expected, value } => (1, expected, value),
    };
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&register.to_le_bytes());
    bytes.extend_from_slice(&first.to_le_bytes());
    bytes.extend_from_slice(&second.to_le_bytes());
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Option<(u32, Change)> {
    let (kind, rest) = bytes.split_first()?;
    let (register, rest) = rest.split_first_chunk()?;
    let (first, rest) = rest.split_first_chunk()?;
    let second: &[u8; 8] = rest.try_into().ok()?;
    let (first, second) = (u64::from_le_bytes(*first), u64::from_le_bytes(*second));
    let change = match kind {
        0 => Change::Write { value: first },
        1 => Change::Swap { expected: first, value: second },
        _ => return None,
    };
    Some((u32::from_le_bytes(*register), change))
}

/// Reads the value before the change, which is the response, or the value asked for.
pub(crate) fn value_of(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// Registers, and how many bytes of nothing their snapshots have besides, so that these take several chunks.
#[derive(Default, Debug)]
pub(crate) struct Registers {
    values: BTreeMap<u32, u64>,
    filler_bytes: usize,
    /// What came of a snapshot so far.
    body: Vec<u8>,
}

impl Registers {
    pub(crate) fn new(filler_bytes: usize) -> Registers {
        Registers { filler_bytes, ..Registers::default() }
    }

    fn pairs(&self) -> Vec<u8> {
        let bytes = |(register, value): (&u32, &u64)| {
            register.to_le_bytes().into_iter().chain(value.to_le_bytes()).collect::<Vec<u8>>()
        };
        self.values.iter().flat_map(bytes).collect()
    }

    /// The pairs, their number, and filler that differs from byte to byte.
    fn encode(&self) -> Vec<u8> {
        let mut body = (self.values.len() as u32).to_le_bytes().to_vec();
        body.extend(self.pairs());
        body.extend((0..self.filler_bytes).map(filler));
        body
    }

    fn decode(&mut self, body: &[u8]) -> Option<()> {
        let (count, mut rest) = body.split_first_chunk()?;
        for _ in 0..u32::from_le_bytes(*count) {
            let (register, after) = rest.split_first_chunk()?;
            let (value, after) = after.split_first_chunk()?;
            self.values.insert(u32::from_le_bytes(*register), u64::from_le_bytes(*value));
            rest = after;
        }
        let is_filler =
            rest.len() == self.filler_bytes && rest.iter().copied().eq((0..rest.len()).map(filler));
        is_filler.then_some(())
    }
}

fn filler(at: usize) -> u8 {
    (at / 251 + at) as u8
}

/// A state that was written down as it was frozen: small enough here.
struct Written(Vec<u8>);

impl SnapshotView for Written {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        let rest = self.0.split_off(self.0.len().min(PIECE_BYTES));
        let piece = std::mem::replace(&mut self.0, rest);
        (!piece.is_empty()).then_some(piece)
    }
}

/// Bytes of a piece of a snapshot.
const PIECE_BYTES: usize = 100_000;

/// Asks for everything at once, for comparing replicas.
pub(crate) const ALL: &[u8] = b"all";

impl Machine for Registers {
    fn is_command(&self, command: &[u8]) -> bool {
        decode(command).is_some()
    }

    fn apply(&mut self, _: ApplyContext, command: &[u8]) -> Vec<u8> {
        let Some((register, change)) = decode(command) else { return Vec::new() };
        let held = self.values.entry(register).or_default();
        let before = *held;
        match change {
            Change::Write { value } => *held = value,
            Change::Swap { expected, value } if before == expected => *held = value,
            Change::Swap { .. } => {}
        }
        before.to_le_bytes().to_vec()
    }

    fn query(&self, query: &[u8]) -> Result<Vec<u8>, DecodeError> {
        if query == ALL {
            return Ok(self.pairs());
        }
        let register = query.try_into().map(u32::from_le_bytes);
        let register = register.map_err(|_| DecodeError { bytes: query.len(), name: "register" })?;
        Ok(self.values.get(&register).copied().unwrap_or_default().to_le_bytes().to_vec())
    }

    fn snapshot(&self) -> Option<Box<dyn SnapshotView>> {
        Some(Box::new(Written(self.encode())))
    }

    fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError> {
        match step {
            Restore::Begin => *self = Registers::new(self.filler_bytes),
            Restore::Bytes(bytes) => self.body.extend_from_slice(bytes),
            Restore::End => {
                let body = std::mem::take(&mut self.body);
                self.decode(&body).ok_or(RestoreError { problem: "not what was written down" })?;
            }
        }
        Ok(())
    }
}
