//! The threads of networked clients: from their plan to what they know in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iroh_raft::net::client::{ClientConfig, ClientError, ClientLimits};
use tokio::sync::watch;

use crate::arrivals::{Arrivals, Pattern, Times};
use crate::driver::{self, DriverPlan, DriverResult};
use crate::follow::{self, FollowPlan, TailTotals};
use crate::followed::Followed;
use crate::lanes::Deal;
use crate::ledger::Ledger;
use crate::mix::{Mix, MixError};
use crate::mixed::Mixed;
use crate::progress::Progress;
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
    /// Requests a second in the open loop; `None` for the closed one.
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
    /// What of it is more than appends.
    pub(crate) mix: Mix,
}

impl LoadPlan {
    /// How records arrive in the open loop.
    pub(crate) fn pattern(&self) -> Option<Pattern> {
        self.per_s.map(|per_s| Pattern { per_s, arrivals: self.arrivals })
    }

    /// How many sessions it opens in these groups.
    ///
    /// # Errors
    /// [`MixError`] when it is not possible.
    pub(crate) fn check_mix(&self, targets: &[u32]) -> Result<u64, MixError> {
        let (clients_total, in_flight, skew) = (self.clients, self.in_flight, self.skew);
        self.mix.check(&Deal { clients: 0..clients_total, clients_total, in_flight, skew, targets })
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
        let records = format!("{} B records, {groups} groups{}", self.sizes, self.mix.title());
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

/// Where threads wait for each other: what they need first, connections and sessions, is no part of the load.
pub(crate) struct Gate {
    ready: SyncSender<()>,
    start: watch::Receiver<Option<Instant>>,
}

impl Gate {
    /// Says that this thread is ready, and waits for the start of the load. Returns it.
    ///
    /// # Errors
    /// [`ClientError::Closed`] when there will be none.
    pub(crate) async fn pass(mut self) -> Result<Instant, ClientError> {
        // It has room for every thread.
        _ = self.ready.try_send(());
        let start = self.start.wait_for(Option::is_some).await.map_err(|_| ClientError::Closed)?;
        start.ok_or(ClientError::Closed)
    }
}

type Thread<T> = JoinHandle<Result<T, QuickError>>;

/// The groups that are driven, and by whom.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    pub(crate) groups: Vec<u32>,
    /// Number of the first client in the records.
    pub(crate) first_client: u32,
    /// Whether others write to them, too.
    pub(crate) is_shared: bool,
}

/// Threads that drive clients, and one that follows what they do.
pub(crate) struct Clients {
    /// When the load began.
    pub(crate) start: Instant,
    threads: Vec<Thread<DriverResult>>,
    followers: Option<(Thread<TailTotals>, Arc<Followed>)>,
    /// The clients have ended: followers have to come to their end.
    are_done: Arc<AtomicBool>,
    pub(crate) progress: Receiver<Progress>,
    empty: (Ledger, Timeline),
    sessions: u64,
}

/// What the clients of all threads know in the end.
pub(crate) struct Known {
    /// Sealed.
    pub(crate) ledger: Ledger,
    pub(crate) timeline: Timeline,
    /// When requests were due in an open loop, by thread.
    pub(crate) times: Vec<Times>,
    pub(crate) mixed: Mixed,
    pub(crate) last_error: Option<String>,
}

impl Clients {
    /// Starts them. Returns once all are connected and have their sessions: then the load begins.
    ///
    /// # Errors
    /// [`QuickError`] when one cannot begin, or `stop` is set.
    pub(crate) fn start(
        plan: &LoadPlan,
        targets: Targets,
        client: &ClientConfig,
        stop: &Arc<AtomicBool>,
    ) -> Result<Clients, QuickError> {
        let sessions = plan.check_mix(&targets.groups)?;
        let threads = plan.client_threads.min(plan.clients);
        let groups = targets.groups.iter().copied().max().unwrap_or(0);
        let followed = (plan.mix.tails > 0).then(|| Arc::new(Followed::new(&targets.groups, plan.mix.tails)));
        let base = DriverPlan {
            clients: 0..plan.clients,
            clients_total: plan.clients,
            first_client: targets.first_client,
            groups,
            targets: targets.groups,
            skew: plan.skew,
            in_flight: plan.in_flight,
            times: None,
            sizes: plan.sizes.clone(),
            mix: plan.mix,
            seed: plan.seed,
            followed: followed.clone(),
            warmup: plan.warmup,
            duration: plan.duration,
        };
        let all = threads as usize + usize::from(followed.is_some());
        // Until it begins.
        let start = Instant::now();
        let (sender, progress) = sync_channel(base.window(start).intervals_max() * all);
        let (ready, readied) = sync_channel(all);
        let begin = watch::Sender::new(None);
        let gate = || Gate { ready: ready.clone(), start: begin.subscribe() };
        let mut clients = Clients {
            start,
            threads: Vec::new(),
            followers: None,
            are_done: Arc::default(),
            progress,
            empty: (Ledger::new(groups, plan.clients), Timeline::new(groups)),
            sessions,
        };
        if let Some(followed) = followed {
            let follow = FollowPlan {
                followed: followed.clone(),
                groups: base.targets.clone(),
                first_client: base.first_client,
                clients: plan.clients,
                is_shared: targets.is_shared,
                sizes: plan.sizes.clone(),
                warmup: plan.warmup,
                duration: plan.duration,
            };
            let (client, sender, gate) = (client.clone(), sender.clone(), gate());
            let (are_done, stop) = (clients.are_done.clone(), stop.clone());
            let work = async move |()| follow::follow(follow, client, sender, gate, &are_done, &stop).await;
            clients.followers = Some((spawn("followers".into(), || Ok(()), work)?, followed));
        }
        for thread in 0..threads {
            let own = DriverPlan {
                clients: plan.clients * thread / threads..plan.clients * (thread + 1) / threads,
                times: plan.pattern().map(|pattern| pattern.times(thread, threads, plan.end(), plan.seed)),
                ..base.clone()
            };
            let is_paced = own.times.is_some();
            let (client, sender, gates) = (client.clone(), sender.clone(), (gate(), stop.clone()));
            let pace = move || is_paced.then(Pacer::start).transpose().map_err(QuickError::Thread);
            let work = async move |pacer| Box::pin(driver::drive(own, pacer, client, sender, gates)).await;
            clients.threads.push(spawn(format!("clients-{thread}"), pace, work)?);
        }
        let mut waiting = all;
        while waiting > 0 {
            if stop.load(Ordering::Relaxed) {
                return Err(QuickError::Interrupted);
            }
            // One that ends here has met an error.
            clients.check_begun()?;
            waiting -= usize::from(readied.recv_timeout(LOOK).is_ok());
        }
        clients.start = Instant::now();
        // Those that have ended meanwhile tell of it by themselves.
        _ = begin.send(Some(clients.start));
        Ok(clients)
    }

    /// The error of a thread that has ended before the load began, if one has.
    fn check_begun(&mut self) -> Result<(), QuickError> {
        if let Some(at) = self.threads.iter().position(JoinHandle::is_finished) {
            self.threads.swap_remove(at).join().map_err(|_| QuickError::Panicked)??;
        }
        if let Some((thread, _)) = self.followers.take_if(|(thread, _)| thread.is_finished()) {
            thread.join().map_err(|_| QuickError::Panicked)??;
        }
        Ok(())
    }

    /// Number of threads that hand intervals over.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len() + usize::from(self.followers.is_some())
    }

    /// Whether one has ended. Only an error and Ctrl-C end one before its time.
    pub(crate) fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
            || self.followers.as_ref().is_some_and(|(thread, _)| thread.is_finished())
    }

    /// Waits for all of them; meanwhile `drive` is called again and again. What they said last stays in the channel that
    /// is returned.
    pub(crate) fn join(
        self,
        mut drive: impl FnMut() -> Result<(), QuickError>,
    ) -> Result<(Known, Receiver<Progress>), QuickError> {
        let (ledger, timeline) = self.empty;
        let mixed = Mixed { sessions: self.sessions, ..Mixed::default() };
        let mut known = Known { ledger, timeline, times: Vec::new(), mixed, last_error: None };
        for thread in self.threads {
            // Calls that are still open are answered or given up first; a killed node comes back meanwhile.
            let result = join(thread, &mut drive)?;
            known.ledger.merge(result.ledger);
            known.timeline.merge(result.timeline);
            known.times.extend(result.times);
            known.mixed.reads.merge(&result.reads);
            known.last_error = known.last_error.or(result.last_error.map(|error| error.to_string()));
        }
        known.ledger.seal();
        self.are_done.store(true, Ordering::Release);
        if let Some((thread, followed)) = self.followers {
            let mut totals = join(thread, &mut drive)?;
            totals.wrong += followed.wrong(&known.ledger);
            known.mixed.tails = Some(totals);
        }
        Ok((known, self.progress))
    }
}

fn join<T>(thread: Thread<T>, drive: &mut impl FnMut() -> Result<(), QuickError>) -> Result<T, QuickError> {
    while !thread.is_finished() {
        drive()?;
        std::thread::sleep(LOOK);
    }
    thread.join().map_err(|_| QuickError::Panicked)?
}

/// A thread with a runtime; `prepare` is called within it.
fn spawn<P, T: Send + 'static>(
    name: String,
    prepare: impl FnOnce() -> Result<P, QuickError> + Send + 'static,
    work: impl AsyncFnOnce(P) -> Result<T, ClientError> + Send + 'static,
) -> Result<Thread<T>, QuickError> {
    let run = move || {
        let runtime = runtime()?;
        let result = runtime.block_on(async { Ok(work(prepare()?).await?) });
        finish(&runtime);
        result
    };
    std::thread::Builder::new().name(name).spawn(run).map_err(QuickError::Thread)
}
