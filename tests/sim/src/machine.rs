//! The state machine of the simulated groups: registers that can be written, compared and swapped, and read.

use std::collections::BTreeMap;

use iroh_raft_driver::state_machine::{ApplyContext, DecodeError, Machine};

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

#[derive(Default, Debug)]
pub(crate) struct Registers(BTreeMap<u32, u64>);

/// Asks for everything at once, for comparing replicas.
pub(crate) const ALL: &[u8] = b"all";

impl Machine for Registers {
    fn is_command(&self, command: &[u8]) -> bool {
        decode(command).is_some()
    }

    fn apply(&mut self, _: ApplyContext, command: &[u8]) -> Vec<u8> {
        let Some((register, change)) = decode(command) else { return Vec::new() };
        let held = self.0.entry(register).or_default();
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
            let pairs = self
                .0
                .iter()
                .flat_map(|(register, value)| register.to_le_bytes().into_iter().chain(value.to_le_bytes()));
            return Ok(pairs.collect());
        }
        let register = query.try_into().map(u32::from_le_bytes);
        let register = register.map_err(|_| DecodeError { bytes: query.len(), name: "register" })?;
        Ok(self.0.get(&register).copied().unwrap_or_default().to_le_bytes().to_vec())
    }
}
