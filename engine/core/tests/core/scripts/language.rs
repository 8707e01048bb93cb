//! The commands of scripts. `tests/scripts/README.md` lists them.

use std::time::Duration;

use iroh_raft_core::{
    AnswerOn, ClientRun, Consistency, FetchError, GroupId, Index, Input, LeaseReads, LogDamage, NodeId,
    Owner, Placement, Sequence, ShardId, SpreadConfig,
};

use super::message::{parse_message, parse_number, parse_record, parse_session};
use super::trace::Detail;
use super::world::{Link, Links, Which, World};
use crate::harness::Group;

/// Runs one command.
pub(super) fn run(world: &mut World, line: &str) -> Result<(), String> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    // Where a command takes a group, it may stand anywhere.
    let is_group = |word: &&str| word.strip_prefix('g').is_some_and(|rest| rest.parse::<u64>().is_ok());
    let group = match words.iter().position(is_group) {
        Some(at) => GroupId(parse_number(&words.remove(at)[1..])?),
        None => GroupId(1),
    };
    let (name, rest) = words.split_first().ok_or("no command")?;
    match *name {
        "quietly" => world.with_detail(Detail::Nothing, |world| run(world, &line["quietly ".len()..])),
        "seed" | "set" | "nodes" | "group" | "cluster" => set_up(world, name, rest),
        "start" | "crash" | "tick" | "jump" | "run" | "campaign" | "elect" | "settle" => {
            live(world, name, group, rest)
        }
        "deliver" | "drop" | "duplicate" | "wire" | "inject" | "cut" | "partition" | "heal"
        | "unreachable" | "placed" => connect(world, name, group, rest),
        "hold" | "release" => hold(world, *name == "hold", rest),
        "persist" | "fail" | "damage" | "spoil" | "reopen" | "fetch" | "applied" | "snapshot" | "lose" => {
            store(world, name, group, rest)
        }
        "propose" | "command" | "read" | "lease" | "local" | "here" | "records" | "members" | "transfer"
        | "step-down" | "wait" | "tail" | "grant" | "end-tail" | "find" | "cursor" | "trim" | "create"
        | "compare" | "remove" | "recover" | "once" | "once-command" | "session" | "outcome" => {
            ask(world, name, group, rest)
        }
        "cursors" => {
            let ids = nodes_or_all(world, rest)?;
            world.print_cursors(&ids, group);
            Ok(())
        }
        "status" => {
            let ids = nodes_or_all(world, rest)?;
            world.print_status(&ids);
            Ok(())
        }
        "stored" => {
            let ids = nodes_or_all(world, rest)?;
            world.print_stored(&ids);
            Ok(())
        }
        other => Err(format!("there is no command {other:?}")),
    }
}

// Setting up

fn set_up(world: &mut World, name: &str, words: &[&str]) -> Result<(), String> {
    match (name, words) {
        ("seed", [seed]) => world.seed = parse_number(seed)?,
        ("set", ["spread_ms", interval, "band", band]) => {
            let interval = Duration::from_millis(parse_number(interval)?);
            world.config.spread = Some(SpreadConfig { interval, band: parse_number(band)? });
        }
        ("set", ["priority", id, priority]) => {
            world.config.priorities.push((node(id)?, parse_number(priority)?));
        }
        ("set", [setting, value]) => set(world, setting, parse_number(value)?)?,
        ("nodes", [count]) => (1..=parse_number(count)?).for_each(|id| world.add_node(NodeId(id))),
        ("group", [id, members @ ..]) => {
            let id = id.strip_suffix(':').ok_or("a group's number ends with a colon")?;
            let group = group(parse_number(id)?, members)?;
            world.groups.push(group);
        }
        // What most scripts begin with: so many nodes, all in group 1, all started.
        ("cluster", [count, rest @ ..]) => {
            let count = parse_number(count)?;
            (1..=count).for_each(|id| world.add_node(NodeId(id)));
            let voters: Vec<u64> = (1..=count).collect();
            world.groups.push(Group { has_state_machine: rest == ["machine"], ..Group::new(1, &voters) });
            world.with_detail(Detail::News, |world| {
                world.node_ids().into_iter().try_for_each(|id| world.start(id))?;
                world.settle()
            })?;
        }
        _ => return Err(format!("wrong words for {name}")),
    }
    Ok(())
}

/// `1 2 3`, then perhaps `learners 4 5`, `spares 6`, `machine`.
fn group(id: u64, members: &[&str]) -> Result<Group, String> {
    let mut group = Group::new(id, &[]);
    let mut place = "voters";
    for word in members {
        match *word {
            "learners" | "spares" => place = word,
            "machine" => group.has_state_machine = true,
            node => match place {
                "learners" => group.learners.push(parse_number(node)?),
                "spares" => group.spares.push(parse_number(node)?),
                _ => group.voters.push(parse_number(node)?),
            },
        }
    }
    Ok(group)
}

fn set(world: &mut World, setting: &str, value: usize) -> Result<(), String> {
    if setting == "drift_ppm_max" {
        let drift_ppm_max = u32::try_from(value).map_err(|error| error.to_string())?;
        world.config.lease_reads = Some(LeaseReads { drift_ppm_max });
        return Ok(());
    }
    let config = &mut world.config;
    let place = match setting {
        "entry_bytes_max" => &mut config.entry_bytes_max,
        "pending_bytes_max" => &mut config.pending_bytes_max,
        "shard_pending_bytes_max" => &mut config.shard_pending_bytes_max,
        "message_bytes_max" => &mut config.message_bytes_max,
        "inflight_messages_max" => &mut config.inflight_messages_max,
        "window_bytes_max" => &mut config.window_bytes_max,
        "reads_waiting_max" => &mut config.reads_waiting_max,
        "tail_max" => &mut world.tail_max,
        "quiet_ms" => {
            config.quiet_after = Some(Duration::from_millis(value as u64));
            return Ok(());
        }
        "body_chunks" => &mut world.body_chunks,
        "snapshot_entries" => {
            config.snapshots.entries = value as u64;
            return Ok(());
        }
        "snapshot_lag_entries" => {
            config.snapshots.lag_entries_max = value as u64;
            return Ok(());
        }
        "tails_max" => &mut config.tails_max,
        "keep_ms" => {
            world.retention.age_max = Some(Duration::from_millis(value as u64));
            return Ok(());
        }
        "keep_bytes" => {
            world.retention.bytes_max = Some(value as u64);
            return Ok(());
        }
        "wall_ms" => {
            world.wall = value as u64;
            return Ok(());
        }
        "sessions_per_owner_max" => {
            config.sessions_per_owner_max = u32::try_from(value).map_err(|error| error.to_string())?;
            return Ok(());
        }
        "flush_stuck_ms" => {
            config.flush_stuck_after = Duration::from_millis(value as u64);
            return Ok(());
        }
        _ => return Err(format!("there is no setting {setting:?}")),
    };
    *place = value;
    Ok(())
}

// Lives and time

fn live(world: &mut World, name: &str, group: GroupId, words: &[&str]) -> Result<(), String> {
    match (name, words) {
        ("start", ids) => nodes(ids)?.into_iter().try_for_each(|id| world.start(id)),
        ("crash", ids) => nodes(ids)?.into_iter().try_for_each(|id| world.crash(id)),
        ("tick", [id, count]) => world.tick(node(id)?, parse_number(count)?),
        ("jump", [id, time]) => world.jump(node(id)?, time_of(time)?),
        ("campaign", [id]) => world.campaign(node(id)?, group),
        ("run", [count]) => {
            let count = parse_number(count)?;
            world.with_detail(Detail::News, |world| world.run(count))
        }
        ("elect", [id]) => {
            let id = node(id)?;
            world.with_detail(Detail::News, |world| {
                world.campaign(id, group)?;
                world.settle()
            })
        }
        ("settle", []) => world.with_detail(Detail::News, World::settle),
        _ => Err(format!("wrong words for {name}")),
    }
}

fn node(word: &str) -> Result<NodeId, String> {
    Ok(NodeId(parse_number(word)?))
}

fn nodes(words: &[&str]) -> Result<Vec<NodeId>, String> {
    words.iter().map(|word| node(word)).collect()
}

fn nodes_or_all(world: &World, words: &[&str]) -> Result<Vec<NodeId>, String> {
    if words.is_empty() { Ok(world.node_ids()) } else { nodes(words) }
}

fn time_of(word: &str) -> Result<Duration, String> {
    match word.strip_suffix("ms") {
        Some(millis) => Ok(Duration::from_millis(parse_number(millis)?)),
        None => Err(format!("{word:?} is not a time in ms")),
    }
}

// Wires

/// `1->2`; a star stands for every node.
fn link(word: &str) -> Result<Links, String> {
    let (from, to) = word.split_once("->").ok_or_else(|| format!("{word:?} is not a link"))?;
    let end = |word: &str| if word == "*" { Ok(None) } else { node(word).map(Some) };
    Ok((end(from)?, end(to)?))
}

fn one_link(word: &str) -> Result<Link, String> {
    let (from, to) = link(word)?;
    from.zip(to).ok_or_else(|| format!("{word:?} is not one link"))
}

fn link_and_which(words: &[&str]) -> Result<(Links, Which), String> {
    match words {
        [] => Ok(((None, None), Which::All)),
        [word] => Ok((link(word)?, Which::All)),
        [word, "first"] => Ok((link(word)?, Which::First)),
        [word, "last"] => Ok((link(word)?, Which::Last)),
        _ => Err("a link, then first, last or nothing".to_owned()),
    }
}

fn connect(world: &mut World, name: &str, group: GroupId, words: &[&str]) -> Result<(), String> {
    match (name, words) {
        ("deliver", words) => {
            let (link, which) = link_and_which(words)?;
            return world.deliver(link, which);
        }
        ("drop", words) => {
            let (link, which) = link_and_which(words)?;
            world.drop_messages(link, which);
        }
        ("duplicate", words) => {
            let (link, which) = link_and_which(words)?;
            world.duplicate(link, which);
        }
        ("wire", []) => world.print_wire(),
        ("inject", [link, message @ ..]) => {
            return world.receive(parse_message(group, one_link(link)?, message)?);
        }
        ("cut", [link]) => {
            world.cut.insert(one_link(link)?);
        }
        ("partition", words) => partition(world, words)?,
        ("heal", []) => world.cut.clear(),
        ("placed", [id, peer, "shards", count, placed @ ..]) => {
            let placed = placed.iter().map(|pair| {
                let (group, shard) = pair.split_once(':').ok_or("a group and its shard, like 1:0")?;
                Ok((GroupId(parse_number(group)?), ShardId(parse_number(shard)?)))
            });
            let placed = placed.collect::<Result<_, String>>()?;
            let placement =
                Placement::new(parse_number(count)?, placed).map_err(|error| error.to_string())?;
            return world.feed(node(id)?, Input::Placement { node: node(peer)?, placement });
        }
        ("unreachable", [id, peer]) => {
            return world.feed(node(id)?, Input::Unreachable { node: node(peer)? });
        }
        _ => return Err(format!("wrong words for {name}")),
    }
    Ok(())
}

/// `1 2 | 3 4`: nodes of different sides lose what they send each other from now on, and no others.
fn partition(world: &mut World, words: &[&str]) -> Result<(), String> {
    world.cut.clear();
    let sides = words.split(|word| *word == "|").map(nodes).collect::<Result<Vec<_>, _>>()?;
    for (at, side) in sides.iter().enumerate() {
        let others = sides.iter().enumerate().filter(|(other, _)| *other != at).flat_map(|(_, side)| side);
        for to in others {
            world.cut.extend(side.iter().map(|from| (*from, *to)));
        }
    }
    Ok(())
}

fn hold(world: &mut World, is_held: bool, words: &[&str]) -> Result<(), String> {
    match words {
        ["disk", ids @ ..] => {
            let ids = nodes(ids)?;
            world.held_disks.retain(|id| !ids.contains(id));
            world.held_disks.extend(ids.into_iter().filter(|_| is_held));
        }
        ["link", links @ ..] => {
            let links = links.iter().map(|word| one_link(word)).collect::<Result<Vec<_>, _>>()?;
            world.held_links.retain(|link| !links.contains(link));
            world.held_links.extend(links.into_iter().filter(|_| is_held));
        }
        _ => return Err("hold or release disk or link".to_owned()),
    }
    Ok(())
}

// Disks and state machines

fn store(world: &mut World, name: &str, group: GroupId, words: &[&str]) -> Result<(), String> {
    match (name, words) {
        ("persist", [id]) => world.persist(node(id)?, usize::MAX),
        ("persist", [id, count]) => world.persist(node(id)?, parse_number(count)?),
        ("fail", ["disk", id]) => world.fail_disk(node(id)?),
        ("damage", [id, first, last]) => {
            let damage = LogDamage { first: Index(parse_number(first)?), last: Index(parse_number(last)?) };
            world.feed(node(id)?, Input::Damaged { group, damage })
        }
        ("spoil", [id, first, last]) => {
            let damage = LogDamage { first: Index(parse_number(first)?), last: Index(parse_number(last)?) };
            world.spoil(node(id)?, group, damage)
        }
        ("reopen", [id]) => world.reopen(node(id)?),
        ("fetch", [id]) => world.fetch(node(id)?, None),
        ("fetch", [id, "missing"]) => world.fetch(node(id)?, Some(FetchError::Missing)),
        ("fetch", [id, "corrupt"]) => {
            let (first, last) = (Index(1), Index(1));
            world.fetch(node(id)?, Some(FetchError::Corrupt { first, last }))
        }
        ("applied", [id]) => world.apply(node(id)?),
        ("snapshot", [id]) => world.snapshot(node(id)?),
        ("lose", ["snapshot", id]) => world.lose_snapshot(node(id)?, group),
        _ => Err(format!("wrong words for {name}")),
    }
}

// Clients

fn ask(world: &mut World, name: &str, group: GroupId, words: &[&str]) -> Result<(), String> {
    let (words, patience) = match words {
        [words @ .., "within", time] => (words, Some(time_of(time)?)),
        words => (words, None),
    };
    match (name, words) {
        ("propose" | "command", [id, records @ ..]) => {
            let request = |words: &[&str]| {
                Ok((None, words.iter().map(|word| parse_record(word)).collect::<Result<_, String>>()?))
            };
            let requests =
                records.split(|word| *word == "|").map(request).collect::<Result<Vec<_>, String>>()?;
            let answer = if name == "command" { AnswerOn::Apply } else { AnswerOn::Commit };
            world.propose(node(id)?, group, requests, answer, patience)
        }
        ("once" | "once-command", [id, session, requests @ ..]) => {
            let session = parse_session(session)?;
            let answer = if name == "once-command" { AnswerOn::Apply } else { AnswerOn::Commit };
            let request = |words: &[&str]| {
                let (first, records) = words.split_first().ok_or("a sequence and records")?;
                let first = Sequence(parse_number(first)?);
                let records = records.iter().map(|word| parse_record(word)).collect::<Result<_, String>>()?;
                Ok((Some(ClientRun { session, first, owner: Owner(0) }), records))
            };
            let requests =
                requests.split(|word| *word == "|").map(request).collect::<Result<Vec<_>, String>>()?;
            world.propose(node(id)?, group, requests, answer, patience)
        }
        ("session", [id, words @ ..]) => world.command(node(id)?, group, words, patience),
        ("outcome", [id, session, sequence]) => {
            let sequence = Sequence(parse_number(sequence)?);
            world.print_outcome(node(id)?, group, parse_session(session)?, sequence)
        }
        ("read" | "lease" | "local" | "here", [id, names @ ..]) => {
            let kind = match name {
                "local" => (Consistency::Local, false),
                "lease" => (Consistency::Lease, false),
                _ => (Consistency::Linearizable, name == "here"),
            };
            world.read(node(id)?, group, names, kind, patience)
        }
        ("members", [id, changes @ ..]) => world.change_members(node(id)?, group, changes, patience),
        ("create", [id, voters @ ..]) => {
            let voters = nodes(voters)?;
            world.create(node(id)?, group, voters)
        }
        ("recover", [id, "lost", lost @ .., "at", last]) => {
            world.recover(node(id)?, group, nodes(lost)?, last, patience)
        }
        ("remove", [id]) => world.remove(node(id)?, group, patience),
        ("records", [id, from]) => {
            world.read_records(node(id)?, group, parse_number(from)?, (usize::MAX, u32::MAX), None)
        }
        ("records", [id, from, "up-to", records]) => {
            let limits = (usize::MAX, parse_number(records)?);
            world.read_records(node(id)?, group, parse_number(from)?, limits, None)
        }
        ("wait", [id, from]) => {
            let patience = patience.ok_or("a read that waits has a deadline: within, and a time")?;
            let from = parse_number(from)?;
            world.read_records(node(id)?, group, from, (usize::MAX, u32::MAX), Some(patience))
        }
        ("tail", [id, name, from, bytes]) => {
            world.tail(node(id)?, group, name, (parse_number(from)?, parse_number(bytes)?), patience)
        }
        ("grant", [id, name, bytes]) => world.grant(node(id)?, group, name, Some(parse_number(bytes)?)),
        ("end-tail", [id, name]) => world.grant(node(id)?, group, name, None),
        ("find", [id, at]) => world.find(node(id)?, group, parse_number(at)?),
        ("cursor", [id, words @ ..]) => world.command(node(id)?, group, words, patience),
        ("compare", [id]) => world.command(node(id)?, group, &["compare"], patience),
        ("trim", [id, _]) => world.command(node(id)?, group, &["trim", words[1]], patience),
        ("transfer", [id]) => world.transfer(node(id)?, group, None),
        ("transfer", [id, to]) => world.transfer(node(id)?, group, Some(node(to)?)),
        ("step-down", [id]) => world.step_down(node(id)?, group),
        _ => Err(format!("wrong words for {name}")),
    }
}
