//! The tails that are open on a shard, by the names that their consumers gave them.

use std::collections::BTreeMap;

use iroh_raft_core::{GroupId, Token};

/// Bounded by the tails that the core takes: one that it refuses is answered, and forgotten with that.
#[derive(Default)]
pub(crate) struct Tails(BTreeMap<Token, (u64, GroupId)>);

impl Tails {
    /// Adds a tail; not, if its request number or its name is in use.
    pub(crate) fn insert(&mut self, token: Token, tail: u64, group: GroupId) -> bool {
        let is_new = !self.0.contains_key(&token) && self.find(token.origin, tail).is_none();
        if is_new {
            self.0.insert(token, (tail, group));
        }
        is_new
    }

    /// The tail of a consumer with this name.
    pub(crate) fn find(&self, origin: u64, tail: u64) -> Option<(Token, GroupId)> {
        let mut tails = self.of(origin).filter(|(_, (name, _))| *name == tail);
        tails.next().map(|(token, (_, group))| (*token, *group))
    }

    fn of(&self, origin: u64) -> impl Iterator<Item = (&Token, &(u64, GroupId))> {
        self.0.range(Token { origin, request: 0 }..=Token { origin, request: u64::MAX })
    }

    pub(crate) fn remove(&mut self, token: Token) {
        self.0.remove(&token);
    }

    /// Takes out the tails of a consumer that is gone.
    pub(crate) fn take_all(&mut self, origin: u64) -> Vec<(Token, GroupId)> {
        let tails: Vec<_> = self.of(origin).map(|(token, (_, group))| (*token, *group)).collect();
        tails.iter().for_each(|(token, _)| self.remove(*token));
        tails
    }
}
