//! What of a load is more than appends: reads of records, followers and sessions.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::lanes::Deal;

/// Followers of all groups: each is a request under way at a node, which grants a client twice as many.
const FOLLOWERS_MAX: u64 = 8192;
/// Sessions of all groups: each is opened in a round of its own, and takes up to 2 KiB on every replica.
const SESSIONS_MAX: u64 = 16_384;
/// Sessions of one client's key in a group: the nodes' own default bound (`sessions_per_owner_max`).
const SESSIONS_OF_GROUP_MAX: usize = 16;
/// The longest time that nodes let a session go unused, by default.
const SESSION_TTL_MAX: Duration = Duration::from_secs(86_400);
/// How much longer than the load a session lives that is not closed.
const SESSION_SLACK: Duration = Duration::from_secs(600);

/// Whose replica a record is read from.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum ReadKind {
    /// That of the node that last was known to lead.
    #[default]
    Leader,
    /// Those of all nodes, in turn.
    Local,
}

impl FromStr for ReadKind {
    type Err = String;

    fn from_str(text: &str) -> Result<ReadKind, String> {
        match text {
            "leader" => Ok(ReadKind::Leader),
            "local" => Ok(ReadKind::Local),
            "linearizable" | "lease" => Err(format!(
                "{text} reads are of state machines, which `loadgen reads` measures: records are read with leader or local"
            )),
            _ => Err(format!(
                "{text} is no way to read records: write leader (the replica that leads) or local (all in turn)"
            )),
        }
    }
}

impl fmt::Display for ReadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReadKind::Leader => "leader",
            ReadKind::Local => "local",
        })
    }
}

/// A part of all requests.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=0.99).contains(&share) => Ok(share),
        _ => Err(format!(
            "{text} is no part of the requests: write 0 to 0.99, for what is read has to be appended"
        )),
    }
}

#[derive(Args, Clone, Copy, PartialEq, Debug)]
pub(crate) struct Mix {
    /// Part of the requests that read, 0 to 0.99: each asks for one record that clients of its thread have had acknowledged in the group,
    /// any of them alike, and compares it. It takes a place in flight, and in the open loop it is due like an append. The answer is
    /// the whole batch that has the record.
    #[arg(long, default_value_t = 0.0, value_name = "PART", value_parser = share)]
    pub(crate) reads: f64,
    /// Whose replica is read: leader (of the node that last was known to lead), or local (of all nodes in turn). One that does
    /// not have the record yet says so, and others are asked.
    #[arg(long, default_value_t, value_name = "KIND")]
    pub(crate) read_kind: ReadKind,
    /// Followers of each group while the load runs, on a thread of their own: how many records they get, how long after these were
    /// sent (or due), and whether each comes once and in order.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub(crate) tails: u32,
    /// Clients append in sessions: one for each client in each of its groups, with one append under way at a time, of as many
    /// records as it may have in flight there. What is not answered is asked for again, and done once.
    #[arg(long)]
    pub(crate) sessions: bool,
}

impl Default for Mix {
    /// Appends alone.
    fn default() -> Mix {
        Mix { reads: 0.0, read_kind: ReadKind::default(), tails: 0, sessions: false }
    }
}

/// Why a load cannot be mixed so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum MixError {
    #[error(
        "--tails {tails} of {groups} groups are {} followers, {FOLLOWERS_MAX} at most: lower --tails, or take fewer groups",
        u64::from(*tails) * *groups as u64
    )]
    Followers { tails: u32, groups: usize },
    #[error(
        "--sessions opens one for each client in each of its groups, here {sessions}, {SESSIONS_MAX} at most: lower --clients, or take fewer groups"
    )]
    Sessions { sessions: u64 },
    #[error(
        "--sessions opens one for each client in each of its groups, and a group takes {SESSIONS_OF_GROUP_MAX} of one key, here {sessions}: set --clients {SESSIONS_OF_GROUP_MAX} or lower, and have more --in-flight"
    )]
    SessionsOfGroup { sessions: usize },
}

impl Mix {
    /// Whether all of it is plain appends.
    pub(crate) fn is_plain(&self) -> bool {
        self.reads == 0.0 && self.tails == 0 && !self.sessions
    }

    /// How many sessions there will be.
    ///
    /// # Errors
    /// [`MixError`] when that, or the number of followers, is above a bound.
    pub(crate) fn check(&self, deal: &Deal<'_>) -> Result<u64, MixError> {
        let groups = deal.targets.len();
        if u64::from(self.tails) * groups as u64 > FOLLOWERS_MAX {
            return Err(MixError::Followers { tails: self.tails, groups });
        }
        if !self.sessions {
            return Ok(0);
        }
        // With a skew a client may be in fewer groups; then these are the most it can be.
        let sessions = u64::from(deal.clients_total) * u64::from(deal.in_flight).min(groups as u64);
        if sessions > SESSIONS_MAX {
            return Err(MixError::Sessions { sessions });
        }
        let lanes = deal.lanes();
        let highest = deal.targets.iter().copied().max().unwrap_or(0) as usize;
        let mut of_group = vec![0; highest + 1];
        lanes.iter().for_each(|lane| of_group[lane.group as usize] += 1);
        match of_group.into_iter().max() {
            Some(sessions) if sessions > SESSIONS_OF_GROUP_MAX => Err(MixError::SessionsOfGroup { sessions }),
            _ => Ok(lanes.len() as u64),
        }
    }

    /// How long a session may go unused in a load of this length.
    pub(crate) fn session_ttl(load: Duration) -> Duration {
        (load + SESSION_SLACK).min(SESSION_TTL_MAX)
    }

    /// What the live view's head says of it.
    pub(crate) fn title(&self) -> String {
        let mut title = String::new();
        if self.reads > 0.0 {
            title += &format!(", {:.0} % reads ({})", 100.0 * self.reads, self.read_kind);
        }
        if self.tails > 0 {
            title += &format!(", {} tails a group", self.tails);
        }
        if self.sessions {
            title += ", in sessions";
        }
        title
    }
}

/// The mix of a run, as it was asked for.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct MixConfig {
    /// Part of the requests.
    pub(crate) reads: f64,
    /// Null without reads.
    pub(crate) read_kind: Option<String>,
    /// Of each group.
    pub(crate) tails: u32,
    pub(crate) is_in_sessions: bool,
}

impl MixConfig {
    pub(crate) fn of(mix: &Mix) -> MixConfig {
        MixConfig {
            reads: mix.reads,
            read_kind: (mix.reads > 0.0).then(|| mix.read_kind.to_string()),
            tails: mix.tails,
            is_in_sessions: mix.sessions,
        }
    }
}
