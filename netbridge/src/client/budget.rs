//! The retry budget of a client: how much all its calls together may send anew.
//!
//! What is sent anew is load that nobody asked for. Clients that repeat each call until its deadline multiply the load of a
//! cluster just when it can do least, and may keep it down after what was wrong is mended. So retries are paid for, with
//! tokens that requests earn which succeed at their first attempt: in the long run they add a part of what goes well, and a
//! floor, whatever fails. What was saved up carries the calls that are under way over an election.
//!
//! What counts is requests: one may carry the records of many calls.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::config::ClientLimits;

/// Parts of a token. As many as there are microseconds in a second, so that the floor of so many tokens a second is so many
/// parts a microsecond.
const TOKEN: u64 = 1_000_000;

/// What it costs to send something anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Price {
    /// It was at no node yet; or a node said at the first attempt who leads, or that it has no such group, and each says so
    /// once to a call: this adds to no load that makes it come again.
    Nothing,
    /// A tenth: the group has no leader that the node knows of. Such a refusal is no work, ends with the election, and comes to
    /// a call some 35 times while one runs: at the full price no budget would carry many calls through it.
    Election,
    /// A whole token: a node has, or may have, worked for it, or said that it can take no more.
    Whole,
}

/// A bucket of tokens, full at first.
#[derive(Debug)]
pub(super) struct RetryBudget {
    parts: AtomicU64,
    parts_max: u64,
    parts_per_success: u64,
    parts_per_us: u64,
    start: Instant,
    /// Up to when, in microseconds after `start`, the floor is paid in.
    paid_us: AtomicU64,
}

impl RetryBudget {
    pub(super) fn new(limits: &ClientLimits, start: Instant) -> RetryBudget {
        let parts_max = u64::from(limits.retry_tokens_max) * TOKEN;
        RetryBudget {
            parts: AtomicU64::new(parts_max),
            parts_max,
            parts_per_success: TOKEN / u64::from(limits.successes_per_retry),
            parts_per_us: limits.retries_per_s_min.into(),
            start,
            paid_us: AtomicU64::new(0),
        }
    }

    /// A request went well at its first attempt.
    pub(super) fn earn(&self) {
        self.put(self.parts_per_success);
    }

    /// Pays for sending something anew; `false` when there is not enough for it. Nothing is taken then.
    pub(super) fn pay(&self, price: Price, now: Instant) -> bool {
        let parts = match price {
            Price::Nothing => return true,
            Price::Election => TOKEN / 10,
            Price::Whole => TOKEN,
        };
        let elapsed = now.saturating_duration_since(self.start).as_micros();
        let now_us = u64::try_from(elapsed).unwrap_or(u64::MAX);
        // Of several at once each pays in a time of its own.
        let paid_us = self.paid_us.fetch_max(now_us, Ordering::Relaxed);
        self.put(now_us.saturating_sub(paid_us).saturating_mul(self.parts_per_us));
        self.update(|has| has.checked_sub(parts))
    }

    fn put(&self, parts: u64) {
        // Full is the rule, and then this only reads.
        self.update(|has| {
            (has < self.parts_max && parts > 0).then(|| has.saturating_add(parts).min(self.parts_max))
        });
    }

    /// Nothing else is guarded by the tokens: their order with other memory does not matter.
    fn update(&self, change: impl FnMut(u64) -> Option<u64>) -> bool {
        self.parts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn budget(tokens: u32, per_s: u32) -> (RetryBudget, Instant) {
        let limits = ClientLimits {
            retry_tokens_max: tokens,
            successes_per_retry: 10,
            retries_per_s_min: per_s,
            ..ClientLimits::default()
        };
        let start = Instant::now();
        (RetryBudget::new(&limits, start), start)
    }

    /// Retries until there are no tokens.
    fn spend(budget: &RetryBudget, price: Price, now: Instant) -> usize {
        std::iter::repeat_with(|| budget.pay(price, now))
            .take(1_000_000)
            .take_while(|is_paid| *is_paid)
            .count()
    }

    #[test]
    fn retries_are_those_saved_up_and_a_part_of_what_goes_well() {
        let (budget, now) = budget(5, 0);
        // It is full.
        (0..1000).for_each(|_| budget.earn());
        assert_eq!(spend(&budget, Price::Whole, now), 5);
        (0..39).for_each(|_| budget.earn());
        assert_eq!(spend(&budget, Price::Whole, now), 3);
        budget.earn();
        assert_eq!(spend(&budget, Price::Whole, now), 1);
        budget.earn();
        assert_eq!(spend(&budget, Price::Election, now), 1);
        assert!(budget.pay(Price::Nothing, now));
    }

    #[test]
    fn the_floor_is_paid_in_as_time_passes_and_never_beyond_the_bound() {
        let (budget, start) = budget(20, 10);
        assert_eq!(spend(&budget, Price::Whole, start), 20);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(spend(&budget, Price::Whole, at(1000)), 10);
        assert_eq!(spend(&budget, Price::Whole, at(1099)), 0);
        assert_eq!(spend(&budget, Price::Whole, at(1100)), 1);
        // An earlier time, from another thread: no token twice.
        assert_eq!(spend(&budget, Price::Whole, at(500)), 0);
        assert_eq!(spend(&budget, Price::Election, at(1600)), 50);
        assert_eq!(spend(&budget, Price::Whole, at(86_400_000)), 20);
    }

    #[test]
    fn as_it_comes_a_lone_call_gets_through_an_election_without_end() {
        let limits = ClientLimits::default();
        let start = Instant::now();
        let budget = RetryBudget::new(&limits, start);
        spend(&budget, Price::Whole, start);
        // Pauses are at least half as long as they could be.
        let pause = limits.retry_pause_max / 2;
        let refused = (1..10_000).filter(|n| !budget.pay(Price::Election, start + pause * *n)).count();
        assert_eq!(refused, 0);
    }
}
