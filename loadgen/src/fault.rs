//! Faults of `loadgen quick`: nodes are gone for a while, or stand still, and nodes that lose their
//! disks are replaced by new ones, one after the other.
//!
//! They are driven from the loop that watches the clients, a step at a time; whatever takes long has a thread or a
//! process of its own.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use iroh_raft::net::client::{Client, ClientConfig, ClientError};
use iroh_raft::{GroupId, MemberChange, MemberRole, NodeId};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::clients::{finish, runtime};
use crate::cluster::{Cluster, ClusterError};
use crate::quick::{LOOK, QuickError};
use crate::record::mix;
use crate::report::{Killed, Replaced};
use crate::watch::Watch;

/// How long a killed or stopped node stays down, unless said otherwise.
const DOWN: Duration = Duration::from_secs(2);
/// Time for the groups of one node to be moved to its successor.
const REPLACE_DEADLINE: Duration = Duration::from_secs(60);
/// How often the successor is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A fault that is to come: `kill@5s`, `stop@2s+500ms:all`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    /// What is sent.
    pub(crate) signal: Signal,
    /// When, from the start of the measured time.
    pub(crate) at: Duration,
    /// How long it lasts.
    pub(crate) lasting: Duration,
    /// To whom.
    pub(crate) whom: Whom,
}

/// Whom a fault meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whom {
    /// The node that leads most groups.
    Leader,
    /// All nodes.
    All,
    /// The node with this number.
    Node(u16),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let problem = || {
            format!(
                "{text} is no fault: write KIND@TIME, such as kill@5s or stop@2s+500ms:all, with kill (SIGKILL, and started again), \
                 stop (SIGSTOP) or disk-stall (nothing reaches the journal), how long it lasts (2s unless said), and whom it meets: leader, all, or the number of a node"
            )
        };
        let (kind, rest) = text.split_once('@').ok_or_else(problem)?;
        let signal = match kind {
            "kill" => Signal::Kill,
            "stop" => Signal::Stop,
            "disk-stall" => Signal::DiskStall,
            _ => return Err(problem()),
        };
        let (times, whom) = rest.split_once(':').unwrap_or((rest, "leader"));
        let whom = match whom {
            "leader" => Whom::Leader,
            "all" => Whom::All,
            number => Whom::Node(number.parse().ok().filter(|number| *number > 0).ok_or_else(problem)?),
        };
        let (at, lasting) = match times.split_once('+') {
            Some((at, lasting)) => (crate::duration(at)?, crate::duration(lasting)?),
            None => (crate::duration(times)?, DOWN),
        };
        Ok(Fault { signal, at, lasting, whom })
    }
}

/// Draws so many faults, to one node each, that begin one after the other in the measured time.
pub(crate) fn random(count: u32, nodes: u16, duration: Duration, seed: u64) -> Vec<Fault> {
    let mut draws = mix(seed ^ 0x5bd1_e995_9e37_79b9);
    let mut draw = |below: u64| {
        draws = mix(draws.wrapping_add(0x9e37_79b9_7f4a_7c15));
        draws % below
    };
    let part = duration / count.max(1);
    let fault = |number: u32| Fault {
        signal: [Signal::Kill, Signal::Stop, Signal::DiskStall][draw(3) as usize],
        // The first half of its part of the time, so that the node is back before the next.
        at: part * number + part * (draw(250) as u32) / 1000,
        lasting: part * (100 + draw(400) as u32) / 1000,
        whom: Whom::Node(1 + draw(nodes.into()) as u16),
    };
    (0..count).map(fault).collect()
}

/// The faults of a run.
pub(crate) struct Faults {
    outages: Vec<Outage>,
    replace: Replace,
}

impl Faults {
    /// Nodes are replaced from the start of the measured time on, which is `warmup` after that of the load, by a manager
    /// with this configuration.
    pub(crate) fn new(
        faults: &[Fault],
        replacements: u32,
        warmup: Duration,
        manager: ClientConfig,
    ) -> Faults {
        let outage = |fault: &Fault| Outage { fault: *fault, is_due: true, over: None, done: None };
        let replace =
            Replace { left: replacements, from: warmup, step: Step::Idle, done: Vec::new(), manager };
        Faults { outages: faults.iter().map(outage).collect(), replace }
    }

    /// Goes on; `now` is the time since the start of the load.
    pub(crate) fn drive(
        &mut self,
        cluster: &mut Cluster,
        now: Duration,
        warmup: Duration,
        watch: &mut Watch,
    ) -> Result<(), QuickError> {
        for outage in &mut self.outages {
            outage.drive(cluster, now, warmup, watch)?;
        }
        self.replace.drive(cluster, now, warmup, watch)
    }

    /// Whether nothing is under way or to come.
    pub(crate) fn are_over(&self) -> bool {
        self.outages.iter().all(Outage::is_over) && self.replace.is_over()
    }

    /// The nodes that were away with the groups that they led, and the nodes that were replaced.
    pub(crate) fn into_done(self) -> (Vec<(Killed, Vec<u32>)>, Vec<Replaced>) {
        (self.outages.into_iter().filter_map(|outage| outage.done).collect(), self.replace.done)
    }
}

/// What is sent to nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Signal {
    /// SIGKILL; they are started again later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Stop,
    /// No write to a journal returns, until later.
    DiskStall,
}

/// Nodes are gone for a while.
struct Outage {
    fault: Fault,
    is_due: bool,
    /// When they come back, and which.
    over: Option<(Duration, Vec<usize>)>,
    done: Option<(Killed, Vec<u32>)>,
}

impl Outage {
    fn is_over(&self) -> bool {
        !self.is_due && self.over.is_none()
    }

    fn drive(
        &mut self,
        cluster: &mut Cluster,
        now: Duration,
        warmup: Duration,
        watch: &mut Watch,
    ) -> Result<(), QuickError> {
        let Fault { signal, at, lasting, whom } = self.fault;
        if self.is_due && now >= warmup + at {
            self.is_due = false;
            let led = groups_led(cluster)?;
            let nodes: Vec<usize> = match whom {
                Whom::All => (0..led.len()).collect(),
                Whom::Node(number) => vec![usize::from(number) - 1],
                Whom::Leader => {
                    let most = led.iter().enumerate().max_by_key(|(_, groups)| groups.len());
                    most.map(|(node, _)| node).into_iter().collect()
                }
            };
            for &node in &nodes {
                match signal {
                    Signal::Kill => cluster.kill_node(node)?,
                    Signal::Stop => cluster.stop_node(node)?,
                    Signal::DiskStall => {
                        if !cluster.hang_disk(node, true)? {
                            watch.say(&format!("node {} does not answer: its disk goes on", node + 1));
                        }
                    }
                }
            }
            let groups: Vec<u32> = nodes.iter().flat_map(|node| led[*node].iter().copied()).collect();
            let numbers: Vec<u64> = nodes.iter().map(|node| *node as u64 + 1).collect();
            watch.say(&format!("{signal:?} to nodes {numbers:?}, which led {} groups", groups.len()));
            let killed = Killed {
                node: numbers.first().copied().unwrap_or(0),
                nodes: numbers,
                signal,
                groups_led: groups.len(),
                at_s: now.saturating_sub(warmup).as_secs_f64(),
                lasting_s: lasting.as_secs_f64(),
            };
            self.done = Some((killed, groups));
            self.over = Some((now + lasting, nodes));
        }
        if let Some((at, nodes)) = self.over.take_if(|(at, _)| now >= *at) {
            for (done, &node) in nodes.iter().enumerate() {
                match signal {
                    Signal::Kill => cluster.start_node(node)?,
                    Signal::Stop => cluster.continue_node(node)?,
                    Signal::DiskStall => {
                        if !cluster.hang_disk(node, false)? {
                            // Another fault holds it: it is told as soon as it answers.
                            self.over = Some((at, nodes[done..].to_vec()));
                            break;
                        }
                    }
                }
                watch.say(&format!("node {} is back", node + 1));
            }
        }
        Ok(())
    }
}

/// The groups that each node leads.
fn groups_led(cluster: &mut Cluster) -> Result<Vec<Vec<u32>>, ClusterError> {
    let statuses = cluster.statuses()?;
    let led = statuses.iter().map(|status| {
        let replicas = status.iter().flat_map(|status| &status.groups);
        replicas
            .filter(|replica| replica.is_leader)
            .filter_map(|replica| u32::try_from(replica.group).ok())
            .collect()
    });
    Ok(led.collect())
}

/// Nodes are killed with their disks, in turn, each as its predecessor has been replaced.
struct Replace {
    left: u32,
    from: Duration,
    step: Step,
    done: Vec<Replaced>,
    manager: ClientConfig,
}

enum Step {
    Idle,
    /// The old one is gone, the new one starts.
    Starting(Swap),
    /// The groups change their members.
    Changing(Swap, Receiver<Result<(), QuickError>>),
    /// The new one takes what it has not: by group, the end that some other replica had.
    CatchingUp(Swap, Vec<(u64, u64)>, Instant),
}

#[derive(Clone, Copy)]
struct Swap {
    old: NodeId,
    new: NodeId,
    began: Instant,
    at: Duration,
    members: Duration,
}

impl Replace {
    fn is_over(&self) -> bool {
        self.left == 0 && matches!(self.step, Step::Idle)
    }

    fn drive(
        &mut self,
        cluster: &mut Cluster,
        now: Duration,
        warmup: Duration,
        watch: &mut Watch,
    ) -> Result<(), QuickError> {
        self.step = match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Idle if self.left > 0 && now >= self.from => {
                self.left -= 1;
                let began = Instant::now();
                let (old, new) = cluster.replace_node(self.done.len() % cluster.len())?;
                watch.say(&format!("killed node {old} and its disk; node {new} takes its place"));
                let at = now.saturating_sub(warmup);
                Step::Starting(Swap { old, new, began, at, members: Duration::ZERO })
            }
            Step::Idle => Step::Idle,
            Step::Starting(swap) if cluster.is_ready()? => {
                cluster.introduce(swap.new)?;
                let groups = cluster.groups();
                let (manager, (sender, changed)) = (self.manager.clone(), sync_channel(1));
                let change = move || {
                    // Nobody takes it when the run has ended meanwhile.
                    let _ = sender.send(change_members(manager, groups, swap));
                };
                let thread = std::thread::Builder::new().name("manager".into()).spawn(change);
                thread.map_err(QuickError::Thread)?;
                Step::Changing(swap, changed)
            }
            Step::Changing(mut swap, changed) => match changed.try_recv() {
                Err(TryRecvError::Empty) => Step::Changing(swap, changed),
                Err(TryRecvError::Disconnected) => return Err(QuickError::Panicked),
                Ok(result) => {
                    result?;
                    swap.members = swap.began.elapsed();
                    let statuses = cluster.statuses()?;
                    let mut ends = std::collections::BTreeMap::new();
                    for replica in statuses.iter().flatten().flat_map(|status| &status.groups) {
                        let end: &mut u64 = ends.entry(replica.group).or_default();
                        *end = replica.end.max(*end);
                    }
                    Step::CatchingUp(swap, ends.into_iter().collect(), Instant::now())
                }
            },
            Step::CatchingUp(swap, ends, look) if Instant::now() >= look => {
                if swap.began.elapsed() >= 2 * REPLACE_DEADLINE {
                    let what = "a new node did not catch up";
                    return Err(QuickError::NotReplaced { what, node: swap.new });
                }
                if !has_all(cluster, swap.new, &ends)? {
                    Step::CatchingUp(swap, ends, Instant::now() + ASK_EVERY)
                } else {
                    cluster.forget(swap.old)?;
                    let done = Replaced {
                        old: swap.old.0,
                        new: swap.new.0,
                        at_s: swap.at.as_secs_f64(),
                        members_s: swap.members.as_secs_f64(),
                        caught_up_s: swap.began.elapsed().as_secs_f64(),
                    };
                    watch.say(&format!(
                        "node {} is in after {:.1} s, and has all after {:.1} s",
                        done.new, done.members_s, done.caught_up_s
                    ));
                    self.done.push(done);
                    Step::Idle
                }
            }
            step @ (Step::Starting(_) | Step::CatchingUp(..)) => step,
        };
        Ok(())
    }
}

/// Whether a node has committed so much of every group.
fn has_all(cluster: &mut Cluster, node: NodeId, ends: &[(u64, u64)]) -> Result<bool, ClusterError> {
    let Some(status) = cluster.status(node)? else { return Ok(false) };
    let has = |(group, end): &(u64, u64)| {
        status.groups.iter().any(|replica| replica.group == *group && replica.end >= *end)
    };
    Ok(ends.iter().all(has))
}

/// Makes the new node a learner of every group, and then a voter in place of the old one.
fn change_members(manager: ClientConfig, groups: u64, swap: Swap) -> Result<(), QuickError> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let client = Client::connect(manager).await?;
        let change = |node, role| MemberChange { node, role };
        let learner = [change(swap.new, MemberRole::Learner)];
        let voter = [change(swap.new, MemberRole::Voter), change(swap.old, MemberRole::Gone)];
        for step in [Arc::from(&learner[..]), Arc::from(&voter[..])] {
            change_all(&client, groups, &step).await?;
        }
        client.close();
        client.closed().await;
        Ok::<_, ClientError>(())
    });
    finish(&runtime);
    Ok(result?)
}

async fn change_all(client: &Client, groups: u64, changes: &Arc<[MemberChange]>) -> Result<(), ClientError> {
    let until = Instant::now() + REPLACE_DEADLINE;
    let mut tasks = JoinSet::new();
    for group in 1..=groups {
        let (client, changes) = (client.clone(), changes.clone());
        tasks.spawn(async move {
            // A change that is in force already is no error, so one whose outcome is unknown is asked for again;
            // one that is refused may have to wait for another leader, or for the new node.
            loop {
                match client.change_members(GroupId(group), &changes).await {
                    Ok(_) => return Ok(()),
                    Err(error) if Instant::now() >= until => return Err(error),
                    Err(_) => tokio::time::sleep(LOOK).await,
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|_| ClientError::Closed)??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_faults_follow_from_their_seed_and_one_another() {
        let (all, duration) = (random(20, 3, Duration::from_secs(40), 7), Duration::from_secs(40));
        assert_eq!(all, random(20, 3, duration, 7));
        assert_ne!(all, random(20, 3, duration, 8));
        for pair in all.windows(2) {
            assert!(pair[0].at + pair[0].lasting <= pair[1].at, "{pair:?}");
        }
        for signal in [Signal::Kill, Signal::Stop, Signal::DiskStall] {
            assert!(all.iter().any(|fault| fault.signal == signal), "{all:?}");
        }
        let nodes = (1..=3).map(Whom::Node);
        assert!(nodes.into_iter().all(|whom| all.iter().any(|fault| fault.whom == whom)), "{all:?}");
    }

    #[test]
    fn faults_are_read_and_refused_with_what_is_right() {
        let ms = Duration::from_millis;
        for (text, signal, at, lasting, whom) in [
            ("kill@5s", Signal::Kill, ms(5000), DOWN, Whom::Leader),
            ("kill@1s:leader", Signal::Kill, ms(1000), DOWN, Whom::Leader),
            ("stop@2s+500ms:all", Signal::Stop, ms(2000), ms(500), Whom::All),
            ("stop@100ms:3", Signal::Stop, ms(100), DOWN, Whom::Node(3)),
            ("disk-stall@1s+2s:2", Signal::DiskStall, ms(1000), ms(2000), Whom::Node(2)),
        ] {
            assert_eq!(text.parse(), Ok(Fault { signal, at, lasting, whom }), "{text}");
        }
        for text in ["kill", "kill@", "crash@5s", "kill@5s:0", "kill@5s:nobody", "kill@5", "stop@1s+2:all"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
        assert!("crash@5s".parse::<Fault>().unwrap_err().contains("kill@5s"));
    }
}
