//! Whether a node is well, judged from what was found. Red is what an operator has to look at; what is noted is not as it should be
//! either, and the node does its work all the same.

use serde::Serialize;

use super::machine::Disk;
use super::sample::{Groups, Some8};
use crate::config::shape::show_bytes;

/// What is judged.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    pub(super) is_draining: bool,
    /// What broke the node.
    pub(super) failure: Option<String>,
    /// How its groups stand, or why that is not known.
    pub(super) groups: &'a Result<Groups, String>,
    pub(super) peers_known: u64,
    pub(super) peers_connected: u64,
    pub(super) disk: Option<Disk>,
    /// Free bytes below which new work is refused.
    pub(super) free_bytes_min: u64,
    /// Free bytes below which it soon may be: what `doctor` asks for.
    pub(super) free_bytes_wanted: u64,
}

/// A part of a node that is well or is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Part {
    Node,
    Consensus,
    Storage,
    Network,
    Resources,
}

impl Part {
    pub(super) const ALL: [Part; 5] =
        [Part::Node, Part::Consensus, Part::Storage, Part::Network, Part::Resources];

    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Node => "node",
            Part::Consensus => "consensus",
            Part::Storage => "storage",
            Part::Network => "network",
            Part::Resources => "resources",
        }
    }
}

/// What is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) part: Part,
    pub(super) what: String,
}

/// How a node is.
#[derive(Clone, Default, Debug)]
pub(super) struct Health {
    pub(super) node: u64,
    /// Why it is not well.
    pub(super) reasons: Vec<Finding>,
    pub(super) notes: Vec<Finding>,
}

impl Health {
    pub(super) fn is_ok(&self) -> bool {
        self.reasons.is_empty()
    }

    pub(super) fn is_part_ok(&self, part: Part) -> bool {
        self.reasons.iter().all(|reason| reason.part != part)
    }

    pub(super) fn to_json(&self) -> String {
        let status = if self.is_ok() { "ok" } else { "failing" };
        let Health { node, reasons, notes } = self;
        let json = serde_json::json!({ "status": status, "node": node, "reasons": reasons, "notes": notes });
        format!("{json}\n")
    }

    /// The judgement.
    pub(super) fn of(node: u64, facts: &Facts<'_>) -> Health {
        let mut health = Health { node, ..Health::default() };
        if facts.is_draining {
            health.red(Part::Node, "it stops: it hands over, and writes what is open".to_owned());
        }
        if let Some(failure) = &facts.failure {
            health.red(Part::Storage, failure.clone());
        }
        match facts.groups {
            Ok(groups) => health.judge_groups(groups),
            Err(problem) => {
                let what = format!("a shard does not say how its groups stand: {problem}");
                health.red(Part::Consensus, what);
            }
        }
        health.judge_network(facts);
        health.judge_disk(facts);
        health
    }

    fn judge_groups(&mut self, groups: &Groups) {
        if groups.is_disk_hung {
            self.red(
                Part::Storage,
                "a flush takes longer than storage.flush_stuck_after: the disk hangs".to_owned(),
            );
        }
        let states: [(&Some8, &str); 3] = [
            (&groups.quarantined, "out of service after a broken invariant"),
            (&groups.under_repair, "under repair: not all that was acknowledged here is back yet"),
            (&groups.leaderless, "without a leader that is known here"),
        ];
        for (groups, state) in states.into_iter().filter(|(groups, _)| groups.count > 0) {
            self.red(Part::Consensus, format!("{groups} {state}"));
        }
    }

    fn judge_network(&mut self, facts: &Facts<'_>) {
        let (known, connected) = (facts.peers_known, facts.peers_connected);
        let what = || format!("{connected} of {known} other nodes connected");
        if 2 * (connected + 1) <= known + 1 {
            self.red(Part::Network, format!("{}: with them this node is no majority", what()));
        } else if connected < known {
            self.note(Part::Network, what());
        }
    }

    fn judge_disk(&mut self, facts: &Facts<'_>) {
        let Some(Disk { free_bytes, .. }) = facts.disk else {
            return self.note(Part::Resources, "the disk does not say how much of it is free".to_owned());
        };
        let free = format!("{} MiB of the disk are free", free_bytes >> 20);
        if free_bytes < facts.free_bytes_min {
            let min = show_bytes(facts.free_bytes_min);
            self.red(
                Part::Resources,
                format!("{free}, less than storage.free_bytes_min ({min}): new work is refused"),
            );
        } else if free_bytes < facts.free_bytes_wanted {
            self.note(
                Part::Resources,
                format!("{free}: less than storage.free_bytes_min and a journal for each shard"),
            );
        }
    }

    fn red(&mut self, part: Part, what: String) {
        self.reasons.push(Finding { part, what });
    }

    fn note(&mut self, part: Part, what: String) {
        self.notes.push(Finding { part, what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Disk = Disk { free_bytes: 10 << 30, size_bytes: 20 << 30 };

    fn judged(groups: &Result<Groups, String>, change: impl FnOnce(&mut Facts<'_>)) -> Health {
        let mut facts = Facts {
            is_draining: false,
            failure: None,
            groups,
            peers_known: 2,
            peers_connected: 2,
            disk: Some(WELL),
            free_bytes_min: 1 << 30,
            free_bytes_wanted: 2 << 30,
        };
        change(&mut facts);
        Health::of(7, &facts)
    }

    fn nothing(_: &mut Facts<'_>) {}

    #[test]
    fn a_node_that_is_well_has_nothing_to_say() {
        let health = judged(&Ok(Groups::default()), nothing);
        assert_eq!(health.to_json(), "{\"node\":7,\"notes\":[],\"reasons\":[],\"status\":\"ok\"}\n");
    }

    #[test]
    fn each_part_that_is_broken_is_red_and_said() {
        let well = Ok(Groups::default());
        let broken = |groups: Groups| judged(&Ok(groups), nothing);
        let some = || {
            let mut some = Some8::default();
            (1..=20).for_each(|group| some.add(group));
            some
        };
        for (health, part, says) in [
            (judged(&well, |facts| facts.is_draining = true), Part::Node, "it stops"),
            (judged(&well, |facts| facts.failure = Some("torn".to_owned())), Part::Storage, "torn"),
            (judged(&Err("timeout".to_owned()), nothing), Part::Consensus, "timeout"),
            (broken(Groups { is_disk_hung: true, ..Groups::default() }), Part::Storage, "hangs"),
            (
                broken(Groups { leaderless: some(), ..Groups::default() }),
                Part::Consensus,
                "20 groups (1, 2, 3, 4, 5, 6, 7, 8, ...) without a leader",
            ),
            (broken(Groups { quarantined: some(), ..Groups::default() }), Part::Consensus, "out of service"),
            (broken(Groups { under_repair: some(), ..Groups::default() }), Part::Consensus, "under repair"),
            (judged(&well, |facts| facts.peers_connected = 0), Part::Network, "0 of 2 other nodes"),
            (
                judged(&well, |facts| facts.disk = Some(Disk { free_bytes: 5 << 20, ..WELL })),
                Part::Resources,
                "5 MiB of the disk are free, less than storage.free_bytes_min (1GiB)",
            ),
        ] {
            let [Finding { part: found, what }] = &health.reasons[..] else { panic!("{health:?}") };
            assert!(*found == part && what.contains(says), "{health:?}");
            let json: serde_json::Value = serde_json::from_str(&health.to_json()).unwrap();
            assert_eq!(
                (&json["status"], &json["reasons"][0]["part"]),
                (&"failing".into(), &part.name().into())
            );
            for other in Part::ALL {
                assert_eq!(health.is_part_ok(other), other != part, "{health:?}");
            }
        }
    }

    #[test]
    fn what_the_node_can_do_without_is_noted() {
        let well = Ok(Groups::default());
        for (health, part) in [
            (judged(&well, |facts| facts.peers_connected = 1), Part::Network),
            (judged(&well, |facts| facts.disk = None), Part::Resources),
            (judged(&well, |facts| facts.disk = Some(Disk { free_bytes: 3 << 29, ..WELL })), Part::Resources),
        ] {
            assert!(health.is_ok() && health.notes.len() == 1 && health.notes[0].part == part, "{health:?}");
        }
        // Who is alone needs nobody; one of two needs the other, two of four a third.
        for (known, connected, is_ok) in
            [(0, 0, true), (1, 0, false), (1, 1, true), (3, 1, false), (3, 2, true)]
        {
            let health = judged(&well, |facts| {
                facts.peers_known = known;
                facts.peers_connected = connected;
            });
            assert_eq!(health.is_ok(), is_ok, "{connected} of {known}");
        }
    }
}
