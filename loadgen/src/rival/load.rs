//! One load on one rival: the driver of our own clients, with another target.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{APPEND_DEADLINE, Connected, READY_DEADLINE, Rival, RivalError, Servers, Source, etcd, nats};
use crate::clients::{self, LoadPlan};
use crate::driver::{self, DriverPlan, DriverResult};
use crate::machine::{self, Device};
use crate::mix::Mix;
use crate::progress::Progress;
use crate::quick::{Folder, LOOK, QuickError, QuickPlan};
use crate::recorder::Interval;
use crate::report::{Latency, core_us, ratio};
use crate::schedule::Pacer;
use crate::target::Target;
use crate::versus::outcome::{Measured, System};
use crate::watch::Watch;

/// Runs the load of `plan` once, on servers of its own or on those that are there.
///
/// # Errors
/// [`RivalError`] when there are no figures; processes are gone then, too, and their logs are kept.
pub(crate) fn measure(
    rival: Rival,
    source: &Source,
    plan: &QuickPlan,
    stop: &Arc<AtomicBool>,
) -> Result<(System, Measured), RivalError> {
    let folder = Folder::open(None)?;
    let result = on_servers(rival, source, plan, folder.path(), stop);
    match &result {
        Ok(_) | Err(RivalError::Load(QuickError::Interrupted)) => {}
        Err(_) => folder.keep(),
    }
    result
}

fn on_servers(
    rival: Rival,
    source: &Source,
    plan: &QuickPlan,
    folder: &Path,
    stop: &Arc<AtomicBool>,
) -> Result<(System, Measured), RivalError> {
    let mut servers = match (source, rival) {
        (Source::Running(urls), _) => Servers::running(urls.clone()),
        (Source::Program(program), Rival::Etcd) => etcd::start(program, folder)?,
        (Source::Program(program), Rival::Nats) => nats::start(program, folder)?,
    };
    eprintln!("{}: {}", rival.name(), servers.urls.join(", "));
    let urls = servers.urls.clone();
    let in_flight = plan.load.clients as usize * plan.load.in_flight as usize;
    let (version, measured) = match rival {
        Rival::Etcd => {
            let connect = etcd::connect(urls, plan.load.clients, plan.cluster.record_bytes);
            drive(plan, &mut servers, folder, connect, stop)?
        }
        Rival::Nats => {
            let connect = nats::connect(urls, plan.cluster.groups, in_flight);
            drive(plan, &mut servers, folder, connect, stop)?
        }
    };
    let promise = servers.promise.to_owned();
    Ok((System { name: rival.name().to_owned(), version, promise }, measured))
}

/// What was read at the start and at the end of the measured window.
#[derive(Default)]
struct Sample {
    servers_cpu: Option<Duration>,
    generator_cpu: Duration,
    device_flushes: Option<u64>,
}

impl Sample {
    fn take(servers: &Servers, device: Option<&Device>) -> Sample {
        let cpu = |pid| machine::cpu_time(pid).unwrap_or_default();
        Sample {
            servers_cpu: servers.processes.as_ref().map(|processes| processes.pids().map(cpu).sum()),
            generator_cpu: cpu(std::process::id()),
            device_flushes: device.and_then(Device::flushes),
        }
    }
}

fn drive<T: Target + Send + 'static>(
    plan: &QuickPlan,
    servers: &mut Servers,
    folder: &Path,
    connect: impl Future<Output = Result<Connected<T>, RivalError>>,
    stop: &Arc<AtomicBool>,
) -> Result<(String, Measured), RivalError> {
    let runtime = clients::runtime()?;
    let Connected { target, version, first_error } = wait_ready(&runtime, connect, servers, stop)?;
    // Those of servers elsewhere are unknown.
    let device = servers.processes.as_ref().and_then(|_| Device::under(folder));
    let start = Instant::now();
    let load = &plan.load;
    let driven = DriverPlan {
        clients: 0..load.clients,
        clients_total: load.clients,
        first_client: 0,
        groups: plan.cluster.groups,
        targets: (1..=plan.cluster.groups).collect(),
        in_flight: load.in_flight,
        skew: load.skew,
        times: load.pattern().map(|pattern| pattern.times(0, 1, load.end(), load.seed)),
        sizes: load.sizes.clone(),
        mix: Mix::default(),
        seed: load.seed,
        followed: None,
        warmup: load.warmup,
        duration: load.duration,
    };
    let window = driven.window(start);
    let (sender, progress) = sync_channel(window.intervals_max());
    let is_over = Arc::new(AtomicBool::new(false));
    let is_over_there = is_over.clone();
    let run = move || {
        runtime.block_on(async {
            let pacer =
                driven.times.as_ref().map(|_| Pacer::start()).transpose().map_err(QuickError::Thread)?;
            let pacer = pacer.as_ref();
            let ends = (APPEND_DEADLINE, sender, &*is_over_there);
            driver::drive_target(driven, window, pacer, target, ends).await.map_err(QuickError::Client)
        })
    };
    let thread = std::thread::Builder::new().name("clients-0".into()).spawn(run);
    let clients = RivalClients { thread: thread.map_err(QuickError::Thread)?, progress, start };
    let mut watch = Watch::new(1, false, load.title(plan.cluster.groups as usize), load.end());
    let samples = watch_load(load, &clients, servers, device.as_ref(), &mut watch, stop);
    // What goes wrong with one rival is no burden on the next.
    is_over.store(true, Ordering::Relaxed);
    let result = clients.thread.join().map_err(|_| QuickError::Panicked)?;
    let ((before, after), result) = (samples?, result?);
    clients.progress.try_iter().for_each(|progress| _ = watch.handle(progress));
    if let Some(error) = first_error.get() {
        eprintln!("first error: {error}");
    }
    Ok((version, measured(load, &watch.measured, &result, &before, &after)))
}

/// The thread of a rival's clients.
struct RivalClients {
    thread: JoinHandle<Result<DriverResult, QuickError>>,
    progress: Receiver<Progress>,
    start: Instant,
}

/// Watches a load to its end; returns what was read at both ends of the measured window.
fn watch_load(
    load: &LoadPlan,
    clients: &RivalClients,
    servers: &mut Servers,
    device: Option<&Device>,
    watch: &mut Watch,
    stop: &AtomicBool,
) -> Result<(Sample, Sample), RivalError> {
    let (warmup, end) = (load.warmup, load.end());
    let (mut before, mut after) = (None, None);
    // Before the end only an error ends the thread; after it, it waits for answers, with a deadline.
    while !(clients.thread.is_finished() && (after.is_some() || clients.start.elapsed() < end)) {
        if stop.load(Ordering::Relaxed) {
            return Err(QuickError::Interrupted.into());
        }
        if let Some(processes) = &mut servers.processes {
            processes.check()?;
        }
        let now = clients.start.elapsed();
        if before.is_none() && now >= warmup {
            before = Some(Sample::take(servers, device));
        }
        if after.is_none() && now >= end {
            after = Some(Sample::take(servers, device));
        }
        // The edges of the window are met as exactly as a thread can wake.
        let now = clients.start.elapsed();
        let edges = [warmup, end].into_iter().filter(|edge| *edge > now);
        let look = edges.map(|edge| edge - now).chain([LOOK]).min().unwrap_or(LOOK);
        // Without progress nothing is new, or the thread has ended, which is seen above.
        if let Ok(progress) = clients.progress.recv_timeout(look) {
            watch.handle(progress);
        }
    }
    Ok((before.unwrap_or_default(), after.unwrap_or_default()))
}

fn measured(
    load: &LoadPlan,
    seen: &Interval,
    result: &DriverResult,
    before: &Sample,
    after: &Sample,
) -> Measured {
    let totals = result.ledger.totals();
    let seconds = load.duration.as_secs_f64();
    let generator = after.generator_cpu.saturating_sub(before.generator_cpu);
    let servers = after.servers_cpu.zip(before.servers_cpu);
    let all = servers.map(|(after, before)| after.saturating_sub(before) + generator);
    let flushes = after.device_flushes.zip(before.device_flushes);
    Measured {
        records_per_s: ratio(seen.acked() as f64, seconds),
        latency_us: Latency::of(&seen.latencies),
        failed_records: totals.refused,
        unknown_records: totals.unknown,
        core_us_per_record: all.map(|cpu| core_us(cpu, seen.acked())),
        generator_cores: generator.as_secs_f64() / seconds,
        device_flushes_per_s: flushes.map(|(after, before)| after.saturating_sub(before) as f64 / seconds),
        is_schedule_kept: load.open_loop(result.times.as_slice(), seen).map(|open| open.is_schedule_kept),
    }
}

/// Waits until the rival takes requests, and looks whether its servers live meanwhile.
fn wait_ready<C>(
    runtime: &tokio::runtime::Runtime,
    connect: impl Future<Output = Result<C, RivalError>>,
    servers: &mut Servers,
    stop: &AtomicBool,
) -> Result<C, RivalError> {
    let until = Instant::now() + 2 * READY_DEADLINE;
    runtime.block_on(async {
        let mut connect = std::pin::pin!(connect);
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK, &mut connect).await {
                return done;
            }
            if stop.load(Ordering::Relaxed) {
                return Err(QuickError::Interrupted.into());
            }
            if let Some(processes) = &mut servers.processes {
                processes.check()?;
            }
            // It has a deadline of its own; this one is for a call in it that has none.
            if Instant::now() >= until {
                let reason = "a call did not end".to_owned();
                return Err(RivalError::Late { deadline: 2 * READY_DEADLINE, reason });
            }
        }
    })
}
