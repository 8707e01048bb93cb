//! One run: what its parts share, and its course.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use iroh_raft_core::{NodeId, ShardId};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::checkers::linear::Histories;
use crate::checkers::{Checks, Violation};
use crate::clock::elapsed;
use crate::marks::Marks;
use crate::network::Network;
use crate::node::Machines;
use crate::plan::Plan;
use crate::{clients, finale, nemesis, node};

/// The shard that a run records, and where.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Each start of the node adds its number to the name.
    pub(crate) file: PathBuf,
    pub(crate) node: NodeId,
    pub(crate) shard: ShardId,
}

/// What the parts of a run share. One thread; nobody holds a borrow over an await.
pub(crate) struct Sim {
    pub(crate) plan: Plan,
    pub(crate) recorded: Option<Target>,
    pub(crate) checks: RefCell<Checks>,
    pub(crate) network: RefCell<Network>,
    pub(crate) nodes: RefCell<Machines>,
    pub(crate) clients: RefCell<clients::Clients>,
    pub(crate) histories: RefCell<Histories>,
    /// Faults that have struck and are not over.
    pub(crate) faults_open: Cell<u32>,
    /// Whether a leader is being deposed behind its back: one at a time.
    pub(crate) is_usurping: Cell<bool>,
    /// Whether a group has lost its quorum: one at a time.
    pub(crate) is_recovering: Cell<bool>,
    /// Where each part gets a generator of its own.
    seeds: RefCell<SmallRng>,
}

pub(crate) type Shared = Rc<Sim>;

impl Sim {
    fn new(plan: Plan, is_told: bool, recorded: Option<Target>) -> Sim {
        Sim {
            checks: RefCell::new(Checks::new(&plan, is_told)),
            network: RefCell::new(Network::new(&plan)),
            nodes: RefCell::new(Machines::new(&plan)),
            clients: RefCell::default(),
            histories: RefCell::default(),
            faults_open: Cell::new(0),
            is_usurping: Cell::new(false),
            is_recovering: Cell::new(false),
            seeds: RefCell::new(SmallRng::seed_from_u64(plan.seed ^ 0x7365_6564)),
            plan,
            recorded,
        }
    }

    /// A generator for a part of the run.
    pub(crate) fn random(&self) -> SmallRng {
        SmallRng::from_rng(&mut *self.seeds.borrow_mut())
    }

    pub(crate) fn mark(&self, mark: &'static str) {
        self.checks.borrow_mut().marks.add(mark, 1);
    }

    pub(crate) fn tell(&self, line: impl FnOnce() -> String) {
        self.checks.borrow_mut().tell(line);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.checks.borrow().violation.is_some()
    }
}

/// What came of a run.
#[derive(Clone, Default, Debug)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) told: Vec<String>,
    pub(crate) marks: Marks,
    pub(crate) digest: u64,
    pub(crate) simulated: Duration,
    pub(crate) elections: u64,
    pub(crate) faults: u64,
    pub(crate) disk_faults: u64,
    pub(crate) power_cuts: u64,
    pub(crate) partitions: u64,
    pub(crate) acknowledged: u64,
    pub(crate) operations: u64,
    pub(crate) undecided: u64,
}

/// Runs a plan, on a thread of its own: what the standard library draws once a thread is then the same in
/// every run.
pub(crate) fn run(plan: &Plan, is_told: bool, recorded: Option<Target>) -> Outcome {
    let plan = plan.clone();
    let thread = std::thread::Builder::new().name(format!("seed {}", plan.seed)).spawn(move || {
        let runtime = madsim::runtime::Runtime::with_seed_and_config(plan.seed, madsim::Config::default());
        runtime.block_on(course(plan, is_told, recorded))
    });
    let thread = thread.expect("a thread for the run");
    thread.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = text.unwrap_or_else(|| "of an unknown kind".to_owned());
        let violation = Some(Violation { invariant: "nothing panics", what });
        Outcome { violation, ..Outcome::default() }
    })
}

async fn course(plan: Plan, is_told: bool, recorded: Option<Target>) -> Outcome {
    let sim: Shared = Rc::new(Sim::new(plan, is_told, recorded));
    for id in sim.plan.node_ids() {
        node::boot(&sim, id);
    }
    let supervisor = madsim::task::spawn_local(node::supervise(sim.clone()));
    let clients = clients::spawn(&sim);
    nemesis::run(&sim).await;
    let undecided = finale::run(&sim, clients).await;
    supervisor.abort();
    let ids: Vec<NodeId> = sim.plan.node_ids().collect();
    ids.into_iter().for_each(|id| node::kill(&sim, id));
    let checks = sim.checks.borrow();
    let marks = checks.marks.clone();
    let sum = |names: &[&str]| names.iter().map(|name| marks.count(name)).sum::<u64>();
    let partitions = sum(&["partition", "link cut one way", "leader cut off", "leaders duel"]);
    let power_cuts = sum(&["power cut", "power cut inside a commit", "power cut of all nodes"]);
    let disk_faults = sum(&[
        "disk full",
        "disk lies: bit flipped",
        "disk lies: rolled back",
        "disk lies: write lost",
        "disk lies: write misdirected",
        "disk stalled",
        "flush failed",
    ]);
    let others = ["clock jumped", "link slowed", "node killed", "node paused", "leadership handed over"];
    Outcome {
        violation: checks.violation.clone(),
        told: checks.told().map(str::to_owned).collect(),
        digest: checks.trace.digest(),
        simulated: elapsed(),
        elections: checks.elected,
        faults: partitions + power_cuts + disk_faults + sum(&others),
        disk_faults,
        power_cuts,
        partitions,
        acknowledged: checks.acknowledged.count,
        operations: sim.clients.borrow().operations,
        undecided,
        marks: marks.clone(),
    }
}

/// Counts of several nodes' things by node.
pub(crate) type ByNode<T> = BTreeMap<NodeId, T>;
