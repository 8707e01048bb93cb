//! Which threads a node runs, and what they have cost, as the system counts it: nothing is counted where the work is done.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a thread of a node has cost since it started.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ThreadCost {
    /// `shard-N`, `writer-N`, `bridge`, `mover`, `reader` or `snapshots`.
    pub name: String,
    /// CPU time.
    pub cpu: Duration,
    /// Times that it gave up its CPU to wait.
    pub sleeps: u64,
    /// System calls of the read family, and `None` where the system does not tell.
    pub read_calls: Option<u64>,
    /// System calls of the write family: of a writer, pieces written; of a shard or a bridge, threads woken.
    pub write_calls: Option<u64>,
}

/// The threads of a node.
#[derive(Debug, Default)]
pub(crate) struct ThreadBook(Mutex<Vec<(String, i32)>>);

impl ThreadBook {
    /// The calling thread is one of the node's.
    pub(crate) fn enter(&self, name: &str) {
        let entry = (name.to_owned(), rustix::thread::gettid().as_raw_pid());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// What each that still runs has cost.
    pub(crate) fn costs(&self) -> Vec<ThreadCost> {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        threads.iter().filter_map(|(name, thread)| cost(name, *thread)).collect()
    }
}

/// What a thread of this process has cost; `None` when it is gone.
pub(crate) fn cost(name: &str, thread: i32) -> Option<ThreadCost> {
    let folder = Path::new("/proc/self/task").join(thread.to_string());
    let schedule = fs::read_to_string(folder.join("schedstat")).ok()?;
    let cpu_ns = schedule.split_whitespace().next()?.parse().ok()?;
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let io = fs::read_to_string(folder.join("io")).unwrap_or_default();
    Some(ThreadCost {
        name: name.to_owned(),
        cpu: Duration::from_nanos(cpu_ns),
        sleeps: field(&status, "voluntary_ctxt_switches:")?,
        read_calls: field(&io, "syscr:"),
        write_calls: field(&io, "syscw:"),
    })
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_works_costs_and_one_that_is_gone_is_not_named() {
        let book = ThreadBook::default();
        std::thread::scope(|scope| scope.spawn(|| book.enter("gone")).join().unwrap());
        book.enter("here");
        let before = book.costs().into_iter().find(|cost| cost.name == "here").unwrap();
        let started = Instant::now();
        let used = || {
            let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::try_from(used).unwrap()
        };
        let began = used();
        while used() - began < Duration::from_millis(20) {
            assert!(started.elapsed() < Duration::from_secs(60), "this thread gets no CPU");
        }
        let costs = book.costs();
        let [after] = &costs[..] else { panic!("{costs:?}") };
        assert_eq!(after.name, "here");
        assert!(after.cpu - before.cpu >= Duration::from_millis(15), "{before:?} {after:?}");
        assert!(after.read_calls >= before.read_calls);
    }
}
