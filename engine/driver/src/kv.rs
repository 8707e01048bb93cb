//! A key-value store as a state machine: the example that the tests and the README use.

#![expect(missing_docs, reason = "the archived types that rkyv derives have no documentation")]

mod buckets;

use crate::state_machine::{ApplyContext, Message, Restore, RestoreError, SnapshotView, StateMachine};

use buckets::Buckets;

/// A change of the store.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, PartialEq, Eq, Debug)]
pub enum KvCommand {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Sets a key only if its value is the expected one (`None`: only if it is absent).
    CompareAndSet {
        /// The key.
        key: String,
        /// The value it must have now.
        expected: Option<Vec<u8>>,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: String,
    },
}

/// What a change answers.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct KvResponse {
    /// Whether the store changed as asked; false only for a comparison that did not hold.
    pub is_done: bool,
    /// The value before the change.
    pub previous: Option<Vec<u8>>,
}

/// A question to the store.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, PartialEq, Eq, Debug)]
pub enum KvQuery {
    /// The value of a key.
    Value {
        /// The key.
        key: String,
    },
    /// A hash over all keys and values, equal on replicas that applied the same commands.
    Hash,
}

/// What a question answers.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, PartialEq, Eq, Debug)]
pub enum KvAnswer {
    /// The value, if the key is there.
    Value(Option<Vec<u8>>),
    /// The hash.
    Hash(u64),
}

/// A key-value store in memory, rebuilt at start from its last snapshot and the log after it.
#[derive(Clone, Default, Debug)]
pub struct KeyValue {
    values: Buckets,
}

impl StateMachine for KeyValue {
    type Command = KvCommand;
    type Response = KvResponse;
    type Query = KvQuery;
    type Answer = KvAnswer;

    fn apply(&mut self, _context: ApplyContext, command: <KvCommand as Message>::View<'_>) -> KvResponse {
        match command {
            ArchivedKvCommand::Put { key, value } => KvResponse {
                is_done: true,
                previous: self.values.insert(key.as_str(), value).map(|value| value.to_vec()),
            },
            ArchivedKvCommand::CompareAndSet { key, expected, value } => {
                let previous = self.values.get(key.as_str()).map(<[u8]>::to_vec);
                let is_done = previous.as_deref() == expected.as_ref().map(|value| value.as_slice());
                if is_done {
                    self.values.insert(key.as_str(), value);
                }
                KvResponse { is_done, previous }
            }
            ArchivedKvCommand::Delete { key } => {
                let previous = self.values.remove(key.as_str()).map(|value| value.to_vec());
                KvResponse { is_done: true, previous }
            }
        }
    }

    fn query(&self, query: <KvQuery as Message>::View<'_>) -> KvAnswer {
        match query {
            ArchivedKvQuery::Value { key } => {
                KvAnswer::Value(self.values.get(key.as_str()).map(<[u8]>::to_vec))
            }
            ArchivedKvQuery::Hash => KvAnswer::Hash(self.hash()),
        }
    }

    fn snapshot(&self) -> Option<Box<dyn SnapshotView>> {
        Some(self.values.freeze())
    }

    fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError> {
        self.values.restore(step)
    }
}

impl KeyValue {
    /// FNV-1a over lengths, keys and values: the same on every build and machine.
    fn hash(&self) -> u64 {
        let mix =
            |hash, bytes: &[u8]| buckets::fnv(buckets::fnv(hash, &(bytes.len() as u64).to_le_bytes()), bytes);
        let pairs = self.values.pairs();
        pairs.fold(buckets::FNV_BASIS, |hash, (key, value)| mix(mix(hash, key.as_bytes()), value))
    }
}

#[cfg(test)]
mod tests {
    use iroh_raft_core::{GroupId, Index, Offset, WallTime};

    use super::*;
    use crate::state_machine::Machine;

    fn apply(store: &mut KeyValue, command: &KvCommand) -> KvResponse {
        let context = ApplyContext { group: GroupId(1), index: Index(1), offset: Offset(0), at: WallTime(0) };
        KvResponse::decode(&Machine::apply(store, context, &command.encode())).unwrap()
    }

    #[test]
    fn commands_change_the_store_and_answer_what_was_there() {
        let mut store = KeyValue::default();
        let put = KvCommand::Put { key: "a".into(), value: b"1".to_vec() };
        assert_eq!(apply(&mut store, &put), KvResponse { is_done: true, previous: None });
        let swap = |expected: Option<&[u8]>| KvCommand::CompareAndSet {
            key: "a".into(),
            expected: expected.map(<[u8]>::to_vec),
            value: b"2".to_vec(),
        };
        assert!(!apply(&mut store, &swap(None)).is_done);
        assert!(apply(&mut store, &swap(Some(b"1"))).is_done);
        let removed = apply(&mut store, &KvCommand::Delete { key: "a".into() });
        assert_eq!(removed.previous.as_deref(), Some(&b"2"[..]));
        let answer = Machine::query(&store, &KvQuery::Value { key: "a".into() }.encode()).unwrap();
        assert_eq!(KvAnswer::decode(&answer), Ok(KvAnswer::Value(None)));
    }

    #[test]
    fn equal_stores_have_equal_snapshots_however_they_came_about() {
        let body = |store: &KeyValue| {
            let mut view = Machine::snapshot(store).unwrap();
            std::iter::from_fn(|| view.next_piece()).flatten().collect::<Vec<u8>>()
        };
        let put = |number: u32| KvCommand::Put { key: format!("key-{number}"), value: vec![7; 1000] };
        let delete = |number: u32| KvCommand::Delete { key: format!("key-{number}") };
        let (mut one, mut other, mut third) = (KeyValue::default(), KeyValue::default(), KeyValue::default());
        (0..1000).for_each(|number| drop(apply(&mut one, &put(number))));
        (0..1500).rev().for_each(|number| drop(apply(&mut other, &put(number))));
        (1000..1500).for_each(|number| drop(apply(&mut other, &delete(number))));
        assert_eq!(body(&one), body(&other));
        Machine::restore(&mut third, Restore::Begin).unwrap();
        body(&one).chunks(777).for_each(|bytes| Machine::restore(&mut third, Restore::Bytes(bytes)).unwrap());
        Machine::restore(&mut third, Restore::End).unwrap();
        assert_eq!(body(&third), body(&one));
    }

    #[test]
    fn bytes_that_are_no_command_are_known_as_such() {
        let store = KeyValue::default();
        assert!(!store.is_command(b"garbage"));
        assert!(store.is_command(&KvCommand::Delete { key: "k".into() }.encode()));
        assert!(Machine::query(&store, b"").is_err());
    }
}
