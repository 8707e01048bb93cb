//! How nodes and groups stand, as each of them says itself.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::join_all;
use iroh_raft::net::client::Client;
use iroh_raft::{GroupId, GroupStatus, NodeId, Role};
use serde::Serialize;

use crate::cli::{Access, LogCommand};
use crate::cluster::{Connected, with};
use crate::say::{Failure, say, table};

/// How long a node may take to say how it stands: one that does not is said to be away.
pub(crate) const NODE_DEADLINE: Duration = Duration::from_secs(2);
/// Groups of which a node is asked at a time.
const ASKED_MAX: usize = 1024;

/// How a node stands.
#[derive(Debug, Serialize)]
struct NodeReport {
    node: u64,
    address: String,
    /// Why it cannot be asked; nothing where it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    groups: usize,
    leads: usize,
    /// Groups that were taken out of service there.
    quarantined: usize,
    under_repair: usize,
    is_disk_hung: bool,
}

/// How a group stands, as all its replicas that can be asked say together.
#[derive(Debug, Serialize)]
struct GroupReport {
    group: u64,
    leader: Option<u64>,
    term: u64,
    voters: Vec<u64>,
    learners: Vec<u64>,
    /// Committed records: from this one, up to before `end`.
    first: u64,
    end: u64,
    /// Replicas that can be asked, and are in service.
    replicas: usize,
}

/// A replica.
#[derive(Debug, Serialize)]
struct ReplicaReport {
    node: u64,
    role: &'static str,
    leader: Option<u64>,
    term: u64,
    first: u64,
    end: u64,
    commit: u64,
    applied: u64,
    last: u64,
    last_term: u64,
    is_quiet: bool,
    is_quarantined: bool,
    is_under_repair: bool,
    is_disk_hung: bool,
}

/// What a node answers: its replicas, or why it does not.
struct Answered {
    node: NodeId,
    address: String,
    replicas: Result<Vec<GroupStatus>, String>,
}

/// `iroh-raft status`.
pub(crate) fn run(access: &Access, group: Option<u64>, json: bool) -> Result<ExitCode, Failure> {
    let answered = with(access, async |cluster| Ok(ask(cluster, group.map(GroupId)).await))?;
    let groups = groups_of(&answered);
    let is_whole = answered.iter().all(|node| node.replicas.is_ok())
        && groups.iter().all(|group| group.leader.is_some());
    match group {
        Some(number) => describe(&answered, &groups, number, json)?,
        None => overview(&answered, &groups, json),
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `iroh-raft log info`.
pub(crate) fn log(access: &Access, command: &LogCommand, json: bool) -> Result<ExitCode, Failure> {
    let LogCommand::Info { group } = command;
    run(access, Some(*group), json)
}

/// Asks all nodes at once.
async fn ask(cluster: &Connected, group: Option<GroupId>) -> Vec<Answered> {
    let client = cluster.client.with_deadline(NODE_DEADLINE);
    join_all(cluster.file.nodes.iter().map(|address| async {
        let replicas = ask_node(&client, address.node, group).await;
        Answered { node: address.node, address: address.addr.to_string(), replicas }
    }))
    .await
}

async fn ask_node(client: &Client, node: NodeId, group: Option<GroupId>) -> Result<Vec<GroupStatus>, String> {
    let groups = client.groups(node).await.map_err(|error| error.to_string())?;
    let wanted: Vec<GroupId> =
        groups.into_iter().filter(|found| group.is_none_or(|group| group == *found)).collect();
    let mut replicas = Vec::with_capacity(wanted.len());
    for some in wanted.chunks(ASKED_MAX) {
        let statuses = join_all(some.iter().map(|group| client.status(node, *group))).await;
        // A group that has gone meanwhile is none.
        for status in statuses {
            match status {
                Ok(status) => replicas.push(status),
                Err(iroh_raft::net::client::ClientError::Request(iroh_raft::RequestError::UnknownGroup)) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
    Ok(replicas)
}

/// What the replicas of each group say together. Who says that he leads in the highest term is the leader; a
/// replica that has heard of none in that term says nothing.
fn groups_of(answered: &[Answered]) -> Vec<GroupReport> {
    let mut by_group: BTreeMap<u64, Vec<(NodeId, &GroupStatus)>> = BTreeMap::new();
    for Answered { node, replicas, .. } in answered {
        for status in replicas.iter().flatten() {
            by_group.entry(status.group.0).or_default().push((*node, status));
        }
    }
    let away: BTreeSet<NodeId> =
        answered.iter().filter(|node| node.replicas.is_err()).map(|node| node.node).collect();
    by_group.into_iter().map(|(group, replicas)| group_of(group, &replicas, &away)).collect()
}

fn group_of(group: u64, replicas: &[(NodeId, &GroupStatus)], away: &BTreeSet<NodeId>) -> GroupReport {
    let leads = replicas
        .iter()
        .filter(|(_, status)| status.role == Role::Leader)
        .max_by_key(|(_, status)| status.term);
    let term = replicas.iter().map(|(_, status)| status.term).max().unwrap_or_default();
    let leader = match leads {
        Some((node, status)) if status.term == term => Some(*node),
        // Those that can be asked follow one that cannot: it may be slow. One that can be asked and does not say that it leads does not.
        _ => {
            let followed = replicas
                .iter()
                .filter(|(_, status)| status.term == term)
                .find_map(|(_, status)| status.leader);
            followed.filter(|leader| away.contains(leader))
        }
    };
    // The members that the one who is furthest has in force.
    let furthest = replicas
        .iter()
        .max_by_key(|(_, status)| (status.members_since, status.commit))
        .map(|(_, status)| *status);
    let numbers = |nodes: Option<&Vec<NodeId>>| nodes.into_iter().flatten().map(|node| node.0).collect();
    GroupReport {
        group,
        leader: leader.map(|node| node.0),
        term: term.0,
        voters: numbers(furthest.map(|status| &status.members.voters)),
        learners: numbers(furthest.map(|status| &status.members.learners)),
        first: replicas.iter().map(|(_, status)| status.first.0).max().unwrap_or(0),
        end: replicas.iter().map(|(_, status)| status.end.0).max().unwrap_or(0),
        replicas: replicas.iter().filter(|(_, status)| !status.is_quarantined).count(),
    }
}

fn report_of(answered: &Answered) -> NodeReport {
    let replicas = answered.replicas.as_deref().unwrap_or_default();
    let count = |is: fn(&GroupStatus) -> bool| replicas.iter().filter(|status| is(status)).count();
    NodeReport {
        node: answered.node.0,
        address: answered.address.clone(),
        problem: answered.replicas.as_ref().err().cloned(),
        groups: replicas.len(),
        leads: count(|status| status.role == Role::Leader),
        quarantined: count(|status| status.is_quarantined),
        under_repair: count(|status| status.is_under_repair),
        is_disk_hung: count(|status| status.is_disk_hung) > 0,
    }
}

fn overview(answered: &[Answered], groups: &[GroupReport], json: bool) {
    let nodes: Vec<NodeReport> = answered.iter().map(report_of).collect();
    if json {
        nodes.iter().for_each(|node| say(true, node, |_| String::new()));
        groups.iter().for_each(|group| say(true, group, |_| String::new()));
        return;
    }
    let row = |node: &NodeReport| {
        let state = match &node.problem {
            Some(problem) => format!("away: {problem}"),
            None if node.is_disk_hung => "its disk hangs".to_owned(),
            None if node.quarantined > 0 => format!("{} groups out of service", node.quarantined),
            None if node.under_repair > 0 => format!("{} groups under repair", node.under_repair),
            None => "up".to_owned(),
        };
        vec![
            node.node.to_string(),
            node.address.clone(),
            node.groups.to_string(),
            node.leads.to_string(),
            state,
        ]
    };
    out!(
        "{}\n",
        table(&["node", "address", "groups", "leads", "state"], &nodes.iter().map(row).collect::<Vec<_>>())
    );
    let rows: Vec<_> = groups.iter().map(group_row).collect();
    out!("{}", table(&GROUP_HEAD, &rows));
}

const GROUP_HEAD: [&str; 7] = ["group", "leader", "term", "voters", "learners", "records", "in service"];

fn group_row(group: &GroupReport) -> Vec<String> {
    let join = |nodes: &[u64]| nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    vec![
        group.group.to_string(),
        group.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
        group.term.to_string(),
        join(&group.voters),
        join(&group.learners),
        format!("{}..{}", group.first, group.end),
        format!("{} of {}", group.replicas, group.voters.len() + group.learners.len()),
    ]
}

fn describe(answered: &[Answered], groups: &[GroupReport], number: u64, json: bool) -> Result<(), Failure> {
    let Some(group) = groups.first() else {
        let away: Vec<_> =
            answered.iter().filter(|node| node.replicas.is_err()).map(|node| node.node.0).collect();
        let note = if away.is_empty() { String::new() } else { format!(" (nodes {away:?} cannot be asked)") };
        return Err(Failure::Refused(format!(
            "no node has a replica of group {number}{note}: `iroh-raft group list` shows those there are"
        )));
    };
    let replicas: Vec<ReplicaReport> = answered
        .iter()
        .flat_map(|node| node.replicas.iter().flatten().map(|status| replica_of(node.node, status)))
        .collect();
    if json {
        say(true, group, |_| String::new());
        replicas.iter().for_each(|replica| say(true, replica, |_| String::new()));
        return Ok(());
    }
    out!("{}\n", table(&GROUP_HEAD, &[group_row(group)]));
    let row = |replica: &ReplicaReport| {
        let is = [
            (replica.is_quarantined, "out of service"),
            (replica.is_under_repair, "under repair"),
            (replica.is_disk_hung, "disk hangs"),
            (replica.is_quiet, "quiet"),
        ];
        let is: Vec<_> = is.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
        vec![
            replica.node.to_string(),
            replica.role.to_owned(),
            replica.term.to_string(),
            format!("{}..{}", replica.first, replica.end),
            replica.commit.to_string(),
            replica.applied.to_string(),
            format!("{} in term {}", replica.last, replica.last_term),
            is.join(", "),
        ]
    };
    let head = ["node", "role", "term", "records", "committed", "applied", "last entry", "is"];
    out!("{}", table(&head, &replicas.iter().map(row).collect::<Vec<_>>()));
    for node in answered {
        if let Err(problem) = &node.replicas {
            out!("node {} is away: {problem}", node.node);
        }
    }
    Ok(())
}

fn replica_of(node: NodeId, status: &GroupStatus) -> ReplicaReport {
    ReplicaReport {
        node: node.0,
        role: match status.role {
            Role::Leader => "leader",
            Role::Follower if status.members.learners.contains(&node) => "learner",
            Role::Follower => "follower",
            Role::PreCandidate | Role::Candidate => "candidate",
        },
        leader: status.leader.map(|node| node.0),
        term: status.term.0,
        first: status.first.0,
        end: status.end.0,
        commit: status.commit.0,
        applied: status.applied.0,
        last: status.last.0,
        last_term: status.last_term.0,
        is_quiet: status.is_quiet,
        is_quarantined: status.is_quarantined,
        is_under_repair: status.is_under_repair,
        is_disk_hung: status.is_disk_hung,
    }
}
