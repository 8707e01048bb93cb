//! Which shards each node has and where its groups are: drawn anew as it starts, where the plan says so. A start that
//! has to move groups first loses its power in the middle of that at times.

use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::{NodeId, Placement, ShardId};
use iroh_raft_netbridge::port::ToShard;
use iroh_raft_storage::fault::{Fault, FaultDisk, Operation, Trouble};
use iroh_raft_storage::{DataFolder, FolderIdentity, StorageError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::node::{CLUSTER, FOLDER};
use crate::plan::Plan;
use crate::sim::Shared;

/// Shards of a node at most.
const SHARDS_MAX: u16 = 3;
/// Changes of a move within which the power is cut.
const CUT_CHANGES: u64 = 120;

/// What a node is told at this start.
pub(crate) fn draw(plan: &Plan, id: NodeId, boot: u64, before: &Placement) -> Placement {
    let random = &mut SmallRng::seed_from_u64(plan.seed ^ id.0 << 40 ^ boot << 48 ^ 0x706c_6163);
    if !random.random_bool(plan.moves) {
        return before.clone();
    }
    let shards = random.random_range(1..=SHARDS_MAX);
    let groups = plan.groups.iter().filter(|_| random.random_bool(0.1)).map(|group| group.id);
    let groups: Vec<_> = groups.collect();
    let placed = groups.into_iter().map(|group| (group, ShardId(random.random_range(0..shards))));
    Placement::new(shards, placed.collect()).expect("shards that there are")
}

/// Opens a node's folder so that its groups are placed like this. Where that means to move some which cannot be moved, they stay
/// where they are; returns how they are placed.
pub(crate) fn open_folder(
    sim: &Shared,
    id: NodeId,
    disk: &FaultDisk,
    wanted: Placement,
) -> Result<(DataFolder, Placement), StorageError> {
    let stored = DataFolder::stored_placement(Path::new(FOLDER), disk)?;
    let Some(stored) = stored.filter(|stored| *stored != wanted) else {
        return Ok((open(id, disk, &wanted)?, wanted));
    };
    look(sim, id, disk, &stored)?;
    let mut random = sim.random();
    let is_cut = random.random_bool(0.3);
    if is_cut {
        let (operation, after) = (Operation::Change, random.random_range(0..CUT_CHANGES));
        disk.plant(Fault { kind: None, operation, after, times: 1, trouble: Trouble::Cut });
    }
    let opened = open(id, disk, &wanted);
    if disk.is_dead() {
        sim.mark("power cut inside a move to other shards");
    } else if is_cut {
        disk.heal();
    }
    match opened {
        Ok(folder) => {
            sim.mark("groups moved to other shards");
            sim.checks.borrow_mut().moved(id, &wanted);
            Ok((folder, wanted))
        }
        Err(
            error @ (StorageError::NotMoved { .. }
            | StorageError::CopyUnreadable { .. }
            | StorageError::CopyDamaged { .. }
            | StorageError::NoSpaceToMove { .. }),
        ) if !disk.is_dead() => {
            sim.tell(|| format!("node {id} keeps its shards: {error}"));
            sim.mark("groups not moved");
            Ok((open(id, disk, &stored)?, stored))
        }
        Err(error) => Err(error),
    }
}

fn open(id: NodeId, disk: &FaultDisk, placement: &Placement) -> Result<DataFolder, StorageError> {
    let identity = FolderIdentity { cluster: CLUSTER, node: id, placement: placement.clone() };
    DataFolder::open_on(Path::new(FOLDER), identity, Arc::new(disk.clone()))
}

/// Lets the checkers see what is there before it moves.
fn look(sim: &Shared, id: NodeId, disk: &FaultDisk, stored: &Placement) -> Result<(), StorageError> {
    let mut folder = open(id, disk, stored)?;
    for shard in stored.shards() {
        let found = folder.open_shard_for_reading(shard)?;
        sim.checks.borrow_mut().looked(id, shard, found.last_seq, &found.groups);
    }
    // Wherever they are after the next start.
    sim.checks.borrow_mut().moved(id, stored);
    Ok(())
}

/// Two nodes are connected from the first frame between them that arrives, and have told each other how their groups are
/// placed.
pub(crate) fn connect(sim: &Shared, one: NodeId, other: NodeId) {
    let mut nodes = sim.nodes.borrow_mut();
    if !nodes.is_up(one) || !nodes.is_up(other) {
        return;
    }
    for (of, to) in [(one, other), (other, one)] {
        let boot = nodes.boot_of(of);
        if nodes.told(to, of) == boot {
            continue;
        }
        let placement = nodes.placement(of).clone();
        let tell = || ToShard::Placement { node: of, placement: placement.clone() };
        // A ring that is full is tried again with the next frame.
        if nodes.ports(to).iter().filter(|port| port.push(tell()).is_err()).count() == 0 {
            nodes.set_told(to, of, boot);
        }
    }
}
