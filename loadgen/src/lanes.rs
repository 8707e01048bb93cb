//! Lanes: the share of one client in one group, and how requests in flight are dealt out to them.

use std::ops::Range;

use crate::skew::Skew;

/// What is dealt out.
#[derive(Clone, Debug)]
pub(crate) struct Deal<'a> {
    /// Numbers of the clients that get lanes.
    pub(crate) clients: Range<u32>,
    /// Number of all clients, of all threads.
    pub(crate) clients_total: u32,
    /// Requests in flight of each client.
    pub(crate) in_flight: u32,
    /// How these are spread over the groups.
    pub(crate) skew: Skew,
    /// The groups.
    pub(crate) targets: &'a [u32],
}

/// The share of one client in one group.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) client: u32,
    pub(crate) group: u32,
    /// Where requests that are due are dealt to it.
    pub(crate) slots: Vec<u64>,
    /// Requests that may be in flight.
    pub(crate) window: u32,
    pub(crate) in_flight: u32,
    /// Appends in flight: each is one or more of these requests.
    pub(crate) appends: u32,
    /// Requests sent.
    pub(crate) sent: u64,
    /// From which request on some read; `None` while there is nothing to be read.
    pub(crate) reads_from: Option<u64>,
    /// Offset after the highest one acknowledged to this client.
    pub(crate) floor: u64,
    /// Whether it waits in line for requests or rests.
    pub(crate) is_queued: bool,
}

impl Lane {
    fn new(client: u32, group: u32, slots: Vec<u64>, window: u32) -> Lane {
        let (in_flight, appends, sent, floor) = (0, 0, 0, 0);
        Lane {
            client,
            group,
            slots,
            window,
            in_flight,
            appends,
            sent,
            reads_from: None,
            floor,
            is_queued: true,
        }
    }
}

impl Deal<'_> {
    /// The lanes of these clients.
    pub(crate) fn lanes(&self) -> Vec<Lane> {
        if self.skew == Skew::Uniform { self.even_lanes() } else { self.skewed_lanes() }
    }

    /// Where all slots of all clients are dealt out, a lane has those of its client and group.
    fn skewed_lanes(&self) -> Vec<Lane> {
        let in_flight = u64::from(self.in_flight);
        let dealt = self.skew.deal(u64::from(self.clients_total) * in_flight, self.targets.len());
        let (count, mut lanes) = (self.clients.len() as u64, Vec::new());
        for (at, client) in (0..).zip(self.clients.clone()) {
            let mut slots = vec![Vec::new(); self.targets.len()];
            for slot in 0..in_flight {
                // Requests that follow each other belong to different clients.
                let target = dealt[(u64::from(client) * in_flight + slot) as usize];
                slots[target].push(slot * count + at);
            }
            let used = self.targets.iter().zip(slots).filter(|(_, slots)| !slots.is_empty());
            lanes.extend(used.map(|(group, slots)| {
                let window = slots.len() as u32;
                Lane::new(client, *group, slots, window)
            }));
        }
        lanes
    }

    /// Request `i` of all belongs to target `i` modulo their number.
    fn even_lanes(&self) -> Vec<Lane> {
        let mut lanes = Vec::new();
        for client in self.clients.clone() {
            let first = u64::from(client) * u64::from(self.in_flight);
            let targets = self.targets.len() as u64;
            let groups = (self.targets.len() as u32).min(self.in_flight);
            for share in 0..groups {
                let group = self.targets[((first + u64::from(share)) % targets) as usize];
                let window = self.in_flight / groups + u32::from(share < self.in_flight % groups);
                lanes.push(Lane::new(client, group, vec![lanes.len() as u64], window));
            }
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(clients: u32, in_flight: u32, groups: u32, skew: Skew) -> Vec<Lane> {
        let targets: Vec<u32> = (1..=groups).collect();
        Deal { clients: 0..clients, clients_total: clients, in_flight, skew, targets: &targets }.lanes()
    }

    #[test]
    fn records_in_flight_are_spread_evenly_over_the_groups() {
        for (clients, in_flight, groups) in [(8, 256, 8), (1, 1, 8), (3, 5, 4), (7, 1, 3), (2, 10, 64)] {
            let lanes = lanes(clients, in_flight, groups, Skew::Uniform);
            for client in 0..clients {
                let own = lanes.iter().filter(|lane| lane.client == client);
                assert_eq!(own.map(|lane| lane.window).sum::<u32>(), in_flight);
            }
            let of_group =
                |group| lanes.iter().filter(|lane| lane.group == group).map(|lane| lane.window).sum::<u32>();
            let loads: Vec<u32> = (1..=groups).map(of_group).collect();
            let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(most - least <= clients, "{loads:?}");
            let mut pairs: Vec<_> = lanes.iter().map(|lane| (lane.client, lane.group)).collect();
            pairs.sort_unstable();
            pairs.dedup();
            assert_eq!(pairs.len(), lanes.len(), "a client has one lane in a group");
        }
    }

    #[test]
    fn skewed_lanes_keep_what_each_client_has_in_flight() {
        let lanes = lanes(4, 100, 8, Skew::Zipf(1.0));
        for client in 0..4 {
            let own = lanes.iter().filter(|lane| lane.client == client);
            assert_eq!(own.map(|lane| lane.window).sum::<u32>(), 100);
        }
        let mut slots: Vec<u64> = lanes.iter().flat_map(|lane| lane.slots.clone()).collect();
        slots.sort_unstable();
        assert!(slots.into_iter().eq(0..400), "each slot belongs to one lane");
        let of_group =
            |group| lanes.iter().filter(|lane| lane.group == group).map(|lane| lane.window).sum::<u32>();
        assert!(of_group(1) > 6 * of_group(8), "{} and {}", of_group(1), of_group(8));
    }
}
