//! The threads of networked clients: from their plan to what they know in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iroh_raft::net::client::{ClientConfig, ClientLimits};

use crate::arrivals::{Arrivals, Pattern, Times};
use crate::driver::{self, DriverPlan, DriverResult, Progress};
use crate::ledger::Ledger;
use crate::quick::{LOOK, QuickError};
use crate::recorder::{Interval, Timeline};
use crate::report::{OpenLoop, count};
use crate::schedule::Pacer;
use crate::sizes::RecordSizes;
use crate::skew::Skew;

/// Time for clients to say goodbye to the nodes.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// Bytes that a record in flight costs the client beside itself.
const IN_FLIGHT_OVERHEAD_BYTES: usize = 128;

/// A load, whatever it meets.
#[derive(Clone, Debug)]
pub(crate) struct LoadPlan {
    pub(crate) clients: u32,
    pub(crate) in_flight: u32,
    pub(crate) client_threads: u32,
    /// Records a second in the open loop; `None` for the closed one.
    pub(crate) per_s: Option<u32>,
    /// How they arrive in it.
    pub(crate) arrivals: Arrivals,
    /// Bytes of a record.
    pub(crate) sizes: RecordSizes,
    /// How load is spread over the groups.
    pub(crate) skew: Skew,
    /// Of all that is drawn.
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
    pub(crate) warmup: Duration,
    /// How long the clients' connections may be silent; `None` for the client's own time.
    pub(crate) idle_timeout: Option<Duration>,
}

impl LoadPlan {
    /// How records arrive in the open loop.
    pub(crate) fn pattern(&self) -> Option<Pattern> {
        self.per_s.map(|per_s| Pattern { per_s, arrivals: self.arrivals })
    }

    /// When it ends, from its start.
    pub(crate) fn end(&self) -> Duration {
        self.warmup + self.duration
    }

    /// How it kept to its schedule, if it had one.
    pub(crate) fn open_loop(&self, times: &[Times], measured: &Interval) -> Option<OpenLoop> {
        let per_s = self.per_s?;
        // What was answered in the measured time was due as much earlier as answers take. Where arrivals are not even, that
        // is another number than was due in the measured time itself.
        let answer = Duration::from_micros(measured.latencies.value_at_quantile(0.5));
        let by = |at: Duration| times.iter().map(|times| times.by(at.saturating_sub(answer))).sum::<u64>();
        let due = by(self.end()).saturating_sub(by(self.warmup));
        Some(OpenLoop::of(per_s, due, measured))
    }

    /// Limits of a client that has all of it in flight.
    pub(crate) fn limits(&self) -> ClientLimits {
        let records = self.clients as usize * self.in_flight as usize;
        let mut limits = ClientLimits::default();
        let bytes = records * (self.sizes.max() + IN_FLIGHT_OVERHEAD_BYTES);
        limits.in_flight_bytes_max = limits.in_flight_bytes_max.max(bytes);
        limits.idle_timeout = self.idle_timeout.unwrap_or(limits.idle_timeout);
        limits
    }

    /// What the live view is headed by.
    pub(crate) fn title(&self, groups: usize) -> String {
        let records = format!("{} B records, {groups} groups", self.sizes);
        match self.pattern() {
            Some(Pattern { per_s, arrivals }) => {
                format!("open loop, {}/s ({arrivals}), {records}", count(per_s.into()))
            }
            None => {
                format!("closed loop, {} clients x {} in flight, {records}", self.clients, self.in_flight)
            }
        }
    }
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, QuickError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(QuickError::Thread)
}

/// Lets the tasks of clients that were closed come to their end.
pub(crate) fn finish(runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        let tasks = tokio::runtime::Handle::current().metrics();
        let until = Instant::now() + CLOSE_DEADLINE;
        while tasks.num_alive_tasks() > 0 && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    });
}

/// Runs a future to its end, or until `stop` is set.
pub(crate) fn interruptible<T>(
    runtime: &tokio::runtime::Runtime,
    work: impl Future<Output = T>,
    stop: &AtomicBool,
) -> Result<T, QuickError> {
    runtime.block_on(async {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK * 10, &mut work).await {
                return Ok(done);
            }
            if stop.load(Ordering::Relaxed) {
                return Err(QuickError::Interrupted);
            }
        }
    })
}

type Thread = JoinHandle<Result<DriverResult, QuickError>>;

/// Threads that drive clients.
pub(crate) struct Clients {
    threads: Vec<Thread>,
    pub(crate) progress: Receiver<Progress>,
    empty: (Ledger, Timeline),
}

/// What the clients of all threads know in the end.
pub(crate) struct Known {
    /// Sealed.
    pub(crate) ledger: Ledger,
    pub(crate) timeline: Timeline,
    /// When records were due in an open loop, by thread.
    pub(crate) times: Vec<Times>,
    pub(crate) last_error: Option<String>,
}

impl Clients {
    /// Starts them. `targets`: the groups that they write to; `first_client`: its number in the records.
    pub(crate) fn start(
        plan: &LoadPlan,
        targets: Vec<u32>,
        first_client: u32,
        client: &ClientConfig,
        start: Instant,
        stop: &Arc<AtomicBool>,
    ) -> Result<Clients, QuickError> {
        let threads = plan.client_threads.min(plan.clients);
        let groups = targets.iter().copied().max().unwrap_or(0);
        let base = DriverPlan {
            clients: 0..plan.clients,
            clients_total: plan.clients,
            first_client,
            groups,
            targets,
            skew: plan.skew,
            in_flight: plan.in_flight,
            times: None,
            sizes: plan.sizes.clone(),
            start,
            warmup: plan.warmup,
            duration: plan.duration,
        };
        let (sender, progress) = sync_channel(base.intervals_max() * threads as usize);
        let mut clients = Clients {
            threads: Vec::new(),
            progress,
            empty: (Ledger::new(groups, plan.clients), Timeline::new(groups)),
        };
        for thread in 0..threads {
            let own = DriverPlan {
                clients: plan.clients * thread / threads..plan.clients * (thread + 1) / threads,
                times: plan.pattern().map(|pattern| pattern.times(thread, threads, plan.end(), plan.seed)),
                ..base.clone()
            };
            clients.threads.push(spawn(thread, own, client.clone(), sender.clone(), stop.clone())?);
        }
        Ok(clients)
    }

    /// Number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Whether one has ended. Only an error and Ctrl-C end one before its time.
    pub(crate) fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits for all of them; meanwhile `drive` is called again and again. What they said last stays in the channel that
    /// is returned.
    pub(crate) fn join(
        self,
        mut drive: impl FnMut() -> Result<(), QuickError>,
    ) -> Result<(Known, Receiver<Progress>), QuickError> {
        let (ledger, timeline) = self.empty;
        let mut known = Known { ledger, timeline, times: Vec::new(), last_error: None };
        for thread in self.threads {
            // Calls that are still open are answered or given up first; a killed node comes back meanwhile.
            while !thread.is_finished() {
                drive()?;
                std::thread::sleep(LOOK);
            }
            let result = thread.join().map_err(|_| QuickError::Panicked)??;
            known.ledger.merge(result.ledger);
            known.timeline.merge(result.timeline);
            known.times.extend(result.times);
            known.last_error = known.last_error.or(result.last_error.map(|error| error.to_string()));
        }
        known.ledger.seal();
        Ok((known, self.progress))
    }
}

fn spawn(
    thread: u32,
    plan: DriverPlan,
    client: ClientConfig,
    progress: SyncSender<Progress>,
    stop: Arc<AtomicBool>,
) -> Result<Thread, QuickError> {
    let run = move || {
        let runtime = runtime()?;
        let result = runtime.block_on(async {
            let pacer =
                plan.times.as_ref().map(|_| Pacer::start()).transpose().map_err(QuickError::Thread)?;
            Ok(driver::drive(plan, pacer, client, progress, stop).await?)
        });
        finish(&runtime);
        result
    };
    std::thread::Builder::new().name(format!("clients-{thread}")).spawn(run).map_err(QuickError::Thread)
}
