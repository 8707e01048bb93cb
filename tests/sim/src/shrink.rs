//! Makes a failing run smaller: fewer groups, faults, clients and seconds, as long as the same rule breaks.

use std::fmt;
use std::time::Duration;

use clap::Args;

use crate::nemesis::FaultKind;
use crate::plan::Plan;
use crate::sim;

/// What is taken away from the plan that a seed draws.
#[derive(Args, Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Less {
    /// With `--seed`: only so many of its groups.
    #[arg(long, requires = "seed")]
    groups: Option<usize>,
    /// With `--seed`: faults for so many milliseconds only.
    #[arg(long, requires = "seed")]
    chaos_ms: Option<u64>,
    /// With `--seed`: only so many clients.
    #[arg(long, requires = "seed")]
    writers: Option<u64>,
    /// With `--seed`: without these kinds of fault.
    #[arg(long, requires = "seed", value_delimiter = ',')]
    without: Vec<FaultKind>,
    /// With `--seed`: frames are neither lost, doubled, damaged nor overtaken.
    #[arg(long, requires = "seed")]
    calm: bool,
    /// With `--seed`: leaves a node cut off when the faults stop, so that the end must fail.
    #[arg(long, requires = "seed")]
    leave_cut: bool,
}

impl fmt::Display for Less {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(groups) = self.groups {
            write!(formatter, " --groups {groups}")?;
        }
        if let Some(chaos_ms) = self.chaos_ms {
            write!(formatter, " --chaos-ms {chaos_ms}")?;
        }
        if let Some(writers) = self.writers {
            write!(formatter, " --writers {writers}")?;
        }
        if !self.without.is_empty() {
            let names: Vec<String> = self.without.iter().map(|kind| format!("{kind:?}")).collect();
            write!(formatter, " --without {}", names.join(","))?;
        }
        if self.calm {
            write!(formatter, " --calm")?;
        }
        if self.leave_cut {
            write!(formatter, " --leave-cut")?;
        }
        Ok(())
    }
}

impl Less {
    /// The plan of a seed without what is taken away.
    pub(crate) fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan::draw(seed);
        if let Some(groups) = self.groups {
            plan.groups.truncate(groups.max(1));
        }
        if let Some(chaos_ms) = self.chaos_ms {
            plan.chaos = Duration::from_millis(chaos_ms);
        }
        if let Some(writers) = self.writers {
            plan.writers = writers;
        }
        plan.leaves_cut = self.leave_cut;
        for (kind, weight) in &mut plan.faults {
            if self.without.contains(kind) {
                *weight = 0;
            }
        }
        if self.calm {
            (plan.loss, plan.duplicates, plan.corruption, plan.is_reordering) = (0, 0, 0, false);
        }
        plan
    }

    /// Everything that takes away a little more.
    fn smaller(&self, plan: &Plan) -> Vec<Less> {
        let groups = plan.groups.len();
        let chaos_ms = u64::try_from(plan.chaos.as_millis()).unwrap_or(u64::MAX);
        let mut all = Vec::new();
        for fewer in [groups / 2, groups - 1] {
            all.extend((fewer > 0 && fewer < groups).then(|| Less { groups: Some(fewer), ..self.clone() }));
        }
        for shorter in [chaos_ms / 2, chaos_ms * 9 / 10] {
            all.extend((shorter > 100).then(|| Less { chaos_ms: Some(shorter), ..self.clone() }));
        }
        let fewer = plan.writers - 1;
        all.extend((fewer > 0).then(|| Less { writers: Some(fewer), ..self.clone() }));
        for (kind, weight) in &plan.faults {
            let mut less = self.clone();
            less.without.push(*kind);
            all.extend((*weight > 0).then_some(less));
        }
        all.extend((!self.calm).then(|| Less { calm: true, ..self.clone() }));
        all
    }
}

/// Takes away from a failing run what it does not need to fail; `None` if it does not fail.
pub(crate) fn shrink(seed: u64, mut less: Less) -> Option<Less> {
    let invariant = sim::run(&less.plan(seed), false, None).violation?.invariant;
    loop {
        let plan = less.plan(seed);
        let fails = |less: &Less| {
            let violation = sim::run(&less.plan(seed), false, None).violation;
            violation.is_some_and(|violation| violation.invariant == invariant)
        };
        match less.smaller(&plan).into_iter().find(fails) {
            Some(smaller) => {
                println!("still \"{invariant}\":{smaller}");
                less = smaller;
            }
            None => return Some(less),
        }
    }
}
