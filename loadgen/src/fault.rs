//! Faults of `loadgen quick`: nodes are gone for a while, or stand still, and nodes that lose their
//! disks are replaced by new ones, one after the other.
//!
//! They are driven from the loop that watches the clients, a step at a time; whatever takes long has a thread or a
//! process of its own.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
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
    /// What is done.
    pub(crate) kind: Kind,
    /// When, from the start of the measured time.
    pub(crate) at: Duration,
    /// How long it lasts; of no meaning for [`Kind::Wipe`].
    pub(crate) lasting: Duration,
    /// To whom.
    pub(crate) whom: Whom,
}

/// As it is given on the command line.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { kind, at, lasting, whom } = self;
        let kind = match kind {
            Kind::Kill => "kill",
            Kind::Stop => "stop",
            Kind::DiskStall => "disk-stall",
            Kind::Partition => "partition",
            Kind::Wipe => "wipe",
        };
        write!(f, "{kind}@{}ms", at.as_millis())?;
        if self.kind != Kind::Wipe {
            write!(f, "+{}ms", lasting.as_millis())?;
        }
        match whom {
            Whom::Leader => f.write_str(":leader"),
            Whom::All => f.write_str(":all"),
            Whom::Node(number) => write!(f, ":{number}"),
        }
    }
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

impl Whom {
    /// Which nodes (counted from 0) these are, by the groups that each leads.
    fn among(self, led: &[Vec<u32>]) -> Vec<usize> {
        match self {
            Whom::All => (0..led.len()).collect(),
            Whom::Node(number) => vec![usize::from(number) - 1],
            Whom::Leader => {
                let most = led.iter().enumerate().max_by_key(|(_, groups)| groups.len());
                most.map(|(node, _)| node).into_iter().collect()
            }
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let problem = || {
            format!(
                "{text} is no fault: write KIND@TIME, such as kill@5s or stop@2s+500ms:all, with kill (SIGKILL, and started again), \
                 stop (SIGSTOP), disk-stall (nothing reaches the journal), partition (nothing from other nodes, nor to them) or wipe (SIGKILL, the disk \
                 removed, and a new node in its place), how long it lasts (2s unless said; a wipe as long as it takes), and whom it meets: leader, \
                 all (but for wipe), or the number of a node"
            )
        };
        let (name, rest) = text.split_once('@').ok_or_else(problem)?;
        let kind = match name {
            "kill" => Kind::Kill,
            "stop" => Kind::Stop,
            "disk-stall" => Kind::DiskStall,
            "partition" => Kind::Partition,
            "wipe" => Kind::Wipe,
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
        if kind == Kind::Wipe && (times.contains('+') || whom == Whom::All) {
            return Err(problem());
        }
        Ok(Fault { kind, at, lasting, whom })
    }
}

/// What [`random`] draws from: whatever leaves the nodes as they were.
const OUTAGES: [Kind; 4] = [Kind::Kill, Kind::Stop, Kind::DiskStall, Kind::Partition];

/// Draws so many faults, to one node each, that begin one after the other in the measured time.
pub(crate) fn random(count: u32, nodes: u16, duration: Duration, seed: u64) -> Vec<Fault> {
    let mut draws = mix(seed ^ 0x5bd1_e995_9e37_79b9);
    let mut draw = |below: u64| {
        draws = mix(draws.wrapping_add(0x9e37_79b9_7f4a_7c15));
        draws % below
    };
    let part = duration / count.max(1);
    let fault = |number: u32| Fault {
        kind: OUTAGES[draw(OUTAGES.len() as u64) as usize],
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
    /// `replacements` nodes are replaced from the start of the measured time on, which is `warmup` after that of the load. A
    /// manager with this configuration changes the members.
    pub(crate) fn new(
        faults: &[Fault],
        replacements: u32,
        warmup: Duration,
        manager: ClientConfig,
    ) -> Faults {
        let (wipes, outages): (Vec<Fault>, Vec<Fault>) =
            faults.iter().partition(|fault| fault.kind == Kind::Wipe);
        let outage = |fault: Fault| Outage { fault, is_due: true, over: None, done: None };
        let mut due: Vec<Due> =
            wipes.iter().map(|wipe| Due { at: warmup + wipe.at, whom: Some(wipe.whom) }).collect();
        due.extend((0..replacements).map(|_| Due { at: warmup, whom: None }));
        due.sort_by_key(|due| due.at);
        let replace = Replace { due: due.into(), step: Step::Idle, done: Vec::new(), manager };
        Faults { outages: outages.into_iter().map(outage).collect(), replace }
    }

    /// Goes on; `now` is the time since the start of the load.
    pub(crate) fn drive(
        &mut self,
        cluster: &mut Cluster,
        now: Duration,
        warmup: Duration,
        watch: &mut Watch,
    ) -> Result<(), QuickError> {
        // What is over ends before another begins: taking back one partition takes back all.
        for outage in &mut self.outages {
            outage.end(cluster, now, watch)?;
        }
        for outage in &mut self.outages {
            outage.begin(cluster, now, warmup, watch)?;
        }
        self.replace.drive(cluster, now, warmup, watch)
    }

    /// Whether nothing is under way or to come.
    pub(crate) fn are_over(&self) -> bool {
        self.outages.iter().all(Outage::is_over) && self.replace.is_over()
    }

    /// The nodes that were away or were replaced with the groups that they led, in the order of time, and the nodes that
    /// were replaced.
    pub(crate) fn into_done(self) -> (Vec<(Killed, Vec<u32>)>, Vec<Replaced>) {
        let (wiped, replaced): (Vec<_>, Vec<_>) = self.replace.done.into_iter().unzip();
        let outages = self.outages.into_iter().filter_map(|outage| outage.done);
        let mut done: Vec<(Killed, Vec<u32>)> = outages.chain(wiped).collect();
        done.sort_by(|(one, _), (other, _)| one.at_s.total_cmp(&other.at_s));
        (done, replaced)
    }
}

/// What is done to nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// SIGKILL; they are started again later.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Stop,
    /// No write to a journal returns, until later.
    DiskStall,
    /// Nothing comes from other nodes or reaches them, until later.
    Partition,
    /// SIGKILL, the disk is removed, and a new node takes the place.
    Wipe,
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

    fn begin(
        &mut self,
        cluster: &mut Cluster,
        now: Duration,
        warmup: Duration,
        watch: &mut Watch,
    ) -> Result<(), QuickError> {
        let Fault { kind, at, lasting, whom } = self.fault;
        if self.is_due && now >= warmup + at {
            self.is_due = false;
            let over = warmup + at + lasting;
            let led = groups_led(cluster)?;
            let nodes = whom.among(&led);
            if kind == Kind::Partition {
                cluster.cut(&nodes)?;
            }
            for &node in &nodes {
                match kind {
                    Kind::Kill => cluster.kill_node(node)?,
                    Kind::Stop => cluster.stop_node(node)?,
                    Kind::DiskStall => {
                        if !cluster.hang_disk(node, true)? {
                            watch.say(&format!("node {} does not answer: its disk goes on", node + 1));
                        }
                    }
                    // All at once, above; and what has a step of its own.
                    Kind::Partition | Kind::Wipe => {}
                }
            }
            let groups: Vec<u32> = nodes.iter().flat_map(|node| led[*node].iter().copied()).collect();
            let numbers: Vec<u64> = nodes.iter().map(|node| *node as u64 + 1).collect();
            watch.say(&format!("{kind:?} to nodes {numbers:?}, which led {} groups", groups.len()));
            let killed = Killed {
                node: numbers.first().copied().unwrap_or(0),
                nodes: numbers,
                kind,
                groups_led: groups.len(),
                at_s: now.saturating_sub(warmup).as_secs_f64(),
                lasting_s: over.saturating_sub(now).as_secs_f64(),
            };
            self.done = Some((killed, groups));
            self.over = Some((over, nodes));
        }
        Ok(())
    }

    fn end(&mut self, cluster: &mut Cluster, now: Duration, watch: &mut Watch) -> Result<(), QuickError> {
        let kind = self.fault.kind;
        if let Some((at, nodes)) = self.over.take_if(|(at, _)| now >= *at) {
            if kind == Kind::Partition {
                cluster.heal()?;
            }
            for (done, &node) in nodes.iter().enumerate() {
                match kind {
                    Kind::Kill => cluster.start_node(node)?,
                    Kind::Stop => cluster.continue_node(node)?,
                    Kind::DiskStall => {
                        if !cluster.hang_disk(node, false)? {
                            // Another fault holds it: it is told as soon as it answers.
                            self.over = Some((at, nodes[done..].to_vec()));
                            break;
                        }
                    }
                    Kind::Partition | Kind::Wipe => {}
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
    due: VecDeque<Due>,
    step: Step,
    done: Vec<((Killed, Vec<u32>), Replaced)>,
    manager: ClientConfig,
}

/// A node that is to be replaced.
struct Due {
    /// From the start of the load, and not before the one before has been replaced.
    at: Duration,
    /// The next in turn unless said.
    whom: Option<Whom>,
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

struct Swap {
    old: NodeId,
    new: NodeId,
    /// What the old one led.
    groups: Vec<u32>,
    began: Instant,
    at: Duration,
    members: Duration,
}

impl Replace {
    fn is_over(&self) -> bool {
        self.due.is_empty() && matches!(self.step, Step::Idle)
    }

    fn drive(
        &mut self,
        cluster: &mut Cluster,
        now: Duration,
        warmup: Duration,
        watch: &mut Watch,
    ) -> Result<(), QuickError> {
        self.step = match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Idle if self.due.front().is_some_and(|due| now >= due.at) => {
                let whom = self.due.pop_front().and_then(|due| due.whom);
                let mut led = groups_led(cluster)?;
                let in_turn = self.done.len() % cluster.len();
                let node = whom.and_then(|whom| whom.among(&led).first().copied()).unwrap_or(in_turn);
                let began = Instant::now();
                let (old, new) = cluster.replace_node(node)?;
                watch.say(&format!("killed node {old} and its disk; node {new} takes its place"));
                let at = now.saturating_sub(warmup);
                let groups = std::mem::take(&mut led[node]);
                Step::Starting(Swap { old, new, groups, began, at, members: Duration::ZERO })
            }
            Step::Idle => Step::Idle,
            Step::Starting(swap) if cluster.is_ready()? => {
                cluster.introduce(swap.new)?;
                let groups = cluster.groups();
                let (manager, (sender, changed)) = (self.manager.clone(), sync_channel(1));
                let (old, new) = (swap.old, swap.new);
                let change = move || {
                    // Nobody takes it when the run has ended meanwhile.
                    let _ = sender.send(change_members(manager, groups, old, new));
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
                    let mut ends = BTreeMap::new();
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
                    let killed = Killed {
                        node: done.old,
                        nodes: vec![done.old],
                        kind: Kind::Wipe,
                        groups_led: swap.groups.len(),
                        at_s: done.at_s,
                        lasting_s: done.caught_up_s,
                    };
                    self.done.push(((killed, swap.groups), done));
                    Step::Idle
                }
            }
            Step::Starting(swap) if swap.began.elapsed() >= REPLACE_DEADLINE => {
                return Err(QuickError::NotReplaced { what: "a new node did not start", node: swap.new });
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
fn change_members(manager: ClientConfig, groups: u64, old: NodeId, new: NodeId) -> Result<(), QuickError> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let client = Client::connect(manager).await?;
        let change = |node, role| MemberChange { node, role };
        let learner = [change(new, MemberRole::Learner)];
        let voter = [change(new, MemberRole::Voter), change(old, MemberRole::Gone)];
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
        for kind in OUTAGES {
            assert!(all.iter().any(|fault| fault.kind == kind), "{all:?}");
        }
        let nodes = (1..=3).map(Whom::Node);
        assert!(nodes.into_iter().all(|whom| all.iter().any(|fault| fault.whom == whom)), "{all:?}");
    }

    #[test]
    fn faults_are_read_and_refused_with_what_is_right() {
        let ms = Duration::from_millis;
        for (text, kind, at, lasting, whom) in [
            ("kill@5s", Kind::Kill, ms(5000), DOWN, Whom::Leader),
            ("kill@1s:leader", Kind::Kill, ms(1000), DOWN, Whom::Leader),
            ("stop@2s+500ms:all", Kind::Stop, ms(2000), ms(500), Whom::All),
            ("stop@100ms:3", Kind::Stop, ms(100), DOWN, Whom::Node(3)),
            ("disk-stall@1s+2s:2", Kind::DiskStall, ms(1000), ms(2000), Whom::Node(2)),
            ("partition@1s+300ms", Kind::Partition, ms(1000), ms(300), Whom::Leader),
            ("wipe@1s:2", Kind::Wipe, ms(1000), DOWN, Whom::Node(2)),
        ] {
            let fault = Fault { kind, at, lasting, whom };
            assert_eq!(text.parse(), Ok(fault), "{text}");
            assert_eq!(fault.to_string().parse(), Ok(fault), "{text}");
        }
        for text in [
            "kill",
            "kill@",
            "crash@5s",
            "kill@5s:0",
            "kill@5s:nobody",
            "kill@5",
            "stop@1s+2:all",
            "wipe@1s+2s",
            "wipe@1s:all",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
        assert!("crash@5s".parse::<Fault>().unwrap_err().contains("kill@5s"));
    }
}
