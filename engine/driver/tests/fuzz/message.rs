//! Any bytes as a message of a state machine: refused, or read in place and owned alike.

use std::collections::BTreeMap;

use iroh_raft_driver::state_machine::Message;

/// A bit of everything that a command may hold.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, PartialEq, Debug)]
pub(crate) enum Sample {
    Nothing,
    Text(String),
    Numbers { small: u8, large: u64, signed: i32, real: f64, is_set: bool, letter: char },
    Lists { bytes: Vec<u8>, texts: Vec<String>, pairs: Vec<(u16, Option<Box<str>>)> },
    Map(BTreeMap<String, Vec<u8>>),
}

/// Whether the bytes are a message.
pub(crate) fn message(data: &[u8]) -> bool {
    let is_viewed = Sample::view(data).is_ok();
    let decoded = Sample::decode(data);
    assert_eq!(decoded.is_ok(), is_viewed, "what is read in place can be owned");
    let Ok(sample) = decoded else { return false };
    let again = Sample::decode(&sample.encode()).expect("a message that was written here");
    // Not every number of a f64 equals itself.
    assert_eq!(again.encode(), sample.encode(), "what was taken is sent as it came");
    true
}
