//! Groups, their members and their leaders.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_raft::core::ConfState;
use iroh_raft::net::client::ClientError;
use iroh_raft::{GroupId, MemberChange, MemberRole, NodeId, RequestError, Retry};
use serde::Serialize;

use crate::cli::{Access, GroupCommand, LeaderCommand, MemberArgs, MemberCommand};
use crate::cluster::{Connected, with};
use crate::say::{Failure, say};
use crate::status;

/// Pause before a change is asked for again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Done {
    group: u64,
    done: &'static str,
}

#[derive(Serialize)]
struct Members {
    group: u64,
    voters: Vec<u64>,
    learners: Vec<u64>,
}

#[derive(Serialize)]
struct Led {
    group: u64,
    leader: Option<u64>,
    term: u64,
}

/// `iroh-raft group`.
pub(crate) fn group(access: &Access, command: &GroupCommand, json: bool) -> Result<ExitCode, Failure> {
    match command {
        GroupCommand::List => status::run(access, None, json),
        GroupCommand::Describe { group } => status::run(access, Some(*group), json),
        GroupCommand::Create { group, voters } => create(access, *group, voters, json),
        GroupCommand::Remove { group, yes: false } => Err(Failure::Refused(format!(
            "group {group} and all its records would be gone for good: say --yes"
        ))),
        GroupCommand::Remove { group, yes: true } => {
            with(access, async |cluster| Ok(cluster.client.remove_group(GroupId(*group)).await?))?;
            say(json, &Done { group: *group, done: "removed" }, |done| {
                format!("group {} is removed", done.group)
            });
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn create(access: &Access, group: u64, voters: &[u64], json: bool) -> Result<ExitCode, Failure> {
    if group == 0 {
        return Err(Failure::Refused("group 0: groups count from 1".into()));
    }
    with(access, async |cluster| {
        let all = cluster.file.nodes.iter().map(|node| node.node);
        let voters: Vec<NodeId> =
            if voters.is_empty() { all.collect() } else { voters.iter().copied().map(NodeId).collect() };
        Ok(cluster.client.create_group(GroupId(group), &voters).await?)
    })?;
    say(json, &Done { group, done: "created" }, |done| format!("group {} is there", done.group));
    Ok(ExitCode::SUCCESS)
}

/// `iroh-raft member`.
pub(crate) fn member(access: &Access, command: &MemberCommand, json: bool) -> Result<ExitCode, Failure> {
    let (MemberArgs { group, node }, role) = match command {
        MemberCommand::Add(args) => (args, MemberRole::Learner),
        MemberCommand::Promote(args) => (args, MemberRole::Voter),
        MemberCommand::Remove(args) => (args, MemberRole::Gone),
    };
    let change = MemberChange { node: NodeId(*node), role };
    let members =
        with(access, async |cluster| change_members(access, cluster, GroupId(*group), change).await)?;
    let ConfState { voters, learners, .. } = &*members;
    let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
    let members = Members { group: *group, voters: numbers(voters), learners: numbers(learners) };
    say(json, &members, |members| {
        format!("group {}: voters {:?}, learners {:?}", members.group, members.voters, members.learners)
    });
    Ok(ExitCode::SUCCESS)
}

/// Changes a member. What is refused only for now, for a learner that has not caught up, say, is asked for again within the
/// deadline.
async fn change_members(
    access: &Access,
    cluster: &Connected,
    group: GroupId,
    change: MemberChange,
) -> Result<Arc<ConfState>, Failure> {
    let until = Instant::now() + access.deadline;
    loop {
        match cluster.client.change_members(group, &[change]).await {
            Err(ClientError::Request(RequestError::Members { refusal }))
                if refusal.retry() == Retry::Safe && Instant::now() < until =>
            {
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            result => return Ok(result?),
        }
    }
}

/// `iroh-raft leader`.
pub(crate) fn leader(access: &Access, command: &LeaderCommand, json: bool) -> Result<ExitCode, Failure> {
    let LeaderCommand::Transfer { group, to } = command;
    let handed_over = with(access, async |cluster| {
        Ok(cluster.client.transfer_leader(GroupId(*group), to.map(NodeId)).await?)
    })?;
    let led = Led { group: *group, leader: handed_over.leader.map(|node| node.0), term: handed_over.term.0 };
    say(json, &led, |led| match led.leader {
        Some(leader) => format!("group {} is led by node {leader} in term {}", led.group, led.term),
        None => format!("group {} has no leader after term {}", led.group, led.term),
    });
    Ok(ExitCode::SUCCESS)
}
