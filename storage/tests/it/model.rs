//! Random flushes, reads and restarts against a model in memory.
//!
//! proptest prints the failing case in its smallest form and stores its seed under
//! `proptest-regressions`, from where it is run first ever after.

use iroh_raft_core::{
    Append, GroupAppend, GroupId, HardState, Index, LogChange, LogDamage, LogPosition, LogStart, Offset, Term,
};
use iroh_raft_storage::{DataFolder, OpenShard};
use proptest::prelude::*;

use crate::common::*;

/// What one group does in one flush.
#[derive(Clone, Debug)]
pub(crate) struct PartPlan {
    pub(crate) group: u64,
    /// How many of the last entries are voided.
    pub(crate) back: u64,
    /// Records of each new entry; `None` for a conf change.
    pub(crate) entries: Vec<Option<u64>>,
    /// How far the commit index goes towards the end of the log, if there is a hard state.
    pub(crate) commit: Option<u64>,
    pub(crate) has_conf_state: bool,
    pub(crate) has_meta: bool,
    pub(crate) change: Option<ChangePlan>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum ChangePlan {
    /// So many entries from the front of the log, if that many are committed.
    Compact(u64),
    /// So far past the end of the log.
    StartAfter(u64),
    Remove,
}

#[derive(Clone, Debug)]
enum Step {
    /// One commit of several flushes.
    Flush(Vec<Vec<PartPlan>>),
    /// What is committed in the oldest blocks goes to the log file.
    Move,
    /// The log file gives back the space it does not need.
    Compact,
    /// Entries of a group, from so many before its end on, are said to be damaged: a repair begins, or another one.
    Repair(u64, u64),
    /// The repair of a group is over.
    Repaired(u64),
    /// Stop in order, start again.
    Reopen,
    /// The process is killed; what it had written stays.
    Kill,
    /// Killed after the newest commit was synced and before its mark was written.
    KillBeforeMark,
}

fn change() -> impl Strategy<Value = Option<ChangePlan>> {
    prop_oneof![
        20 => Just(None),
        4 => (0_u64..6).prop_map(|count| Some(ChangePlan::Compact(count))),
        1 => (1_u64..5).prop_map(|past| Some(ChangePlan::StartAfter(past))),
        1 => Just(Some(ChangePlan::Remove)),
    ]
}

fn part() -> impl Strategy<Value = PartPlan> {
    let records = prop_oneof![8 => (0_u64..4).prop_map(Some), 1 => Just(Some(300)), 1 => Just(None)];
    let entries = prop::collection::vec(records, 0..5);
    let back = prop_oneof![3 => Just(0_u64), 2 => 1_u64..12];
    let commit = prop::option::of(0_u64..8);
    let states = (prop::bool::weighted(0.1), prop::bool::weighted(0.3));
    (0_u64..4, back, entries, commit, states, change()).prop_map(
        |(group, back, entries, commit, (has_conf_state, has_meta), change)| PartPlan {
            group: group + 1,
            back,
            entries,
            commit,
            has_conf_state,
            has_meta,
            change,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let flush = prop::collection::vec(prop::collection::vec(part(), 0..4), 1..4);
    prop_oneof![
        12 => flush.prop_map(Step::Flush),
        4 => Just(Step::Move),
        1 => Just(Step::Compact),
        2 => (1_u64..5, 0_u64..12).prop_map(|(group, back)| Step::Repair(group, back)),
        1 => (1_u64..5).prop_map(Step::Repaired),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        1 => Just(Step::KillBeforeMark),
    ]
}

/// Turns plans into flushes that continue the model, and lets the model take them.
pub(crate) fn make_batch(model: &mut Model, flushes: &[Vec<PartPlan>]) -> Vec<Append> {
    let mut batch = Vec::new();
    for plans in flushes {
        let seq = model.last_seq + 1;
        let mut groups: Vec<GroupAppend> = Vec::new();
        for plan in plans {
            // A flush names each group once.
            if groups.iter().any(|part| part.group == GroupId(plan.group)) {
                continue;
            }
            groups.push(make_part(model, plan, seq));
        }
        let append = append(seq, groups);
        model.take(&append);
        batch.push(append);
    }
    batch
}

fn make_part(model: &Model, plan: &PartPlan, term: u64) -> GroupAppend {
    let mut known = model.groups.get(&GroupId(plan.group)).cloned().unwrap_or_default();
    let mut part = entries_only(plan.group, Vec::new());
    part.change = plan.change.and_then(|change| match change {
        ChangePlan::Compact(count) => {
            let index = (known.start.index.0 + count).min(known.hard_state.commit.0).min(known.last());
            (index >= known.start.index.0).then(|| LogChange::CompactTo(known.place_of(index)))
        }
        ChangePlan::StartAfter(past) => {
            let index = Index(known.last().max(known.hard_state.commit.0) + past);
            Some(LogChange::StartAfter(LogStart {
                index,
                term: Term(term),
                offset: Offset(known.next_offset() + past),
            }))
        }
        ChangePlan::Remove => Some(LogChange::Remove),
    });
    match part.change {
        Some(LogChange::StartAfter(start)) => {
            known = ModelGroup { start, hard_state: known.hard_state, ..ModelGroup::default() };
        }
        Some(LogChange::Remove) => known = ModelGroup::default(),
        _ => {}
    }
    // What is committed stays.
    let floor = known.hard_state.commit.0.max(known.start.index.0).min(known.last());
    let kept = known.last().saturating_sub(plan.back).max(floor);
    let mut offset = known.offset_at(kept + 1);
    for (index, records) in (kept + 1..).zip(&plan.entries) {
        part.entries.push(match records {
            Some(records) => entry(index, term, offset, *records),
            None => conf_change(index, term),
        });
        offset += records.unwrap_or(0);
    }
    let last = part.entries.last().map_or(known.last(), |entry| entry.index.0);
    let is_new = matches!(part.change, Some(LogChange::Remove | LogChange::StartAfter(_)));
    part.hard_state =
        plan.commit.or(is_new.then_some(0)).filter(|_| !part.entries.is_empty() || !is_new).map(|commit| {
            hard_state(term, (known.hard_state.commit.0.max(known.start.index.0) + commit).min(last))
        });
    part.conf_state = plan.has_conf_state.then(|| conf_state(&[term, plan.group]));
    let joined_at = LogPosition { term: Term(term), index: Index(plan.group) };
    part.joined_at = (plan.has_conf_state && term.is_multiple_of(2)).then_some(joined_at);
    part.meta = plan.has_meta.then(|| format!("table of flush {term}").into());
    part
}

/// A node whose folder moves to a copy whenever it is killed.
struct Node {
    temporary: tempfile::TempDir,
    copies: u32,
    open: Option<(DataFolder, OpenShard)>,
    mark_before: Vec<u8>,
}

impl Node {
    fn path(&self) -> std::path::PathBuf {
        self.temporary.path().join(self.copies.to_string())
    }

    fn start(&mut self) -> &mut OpenShard {
        self.open = Some(open(&self.path()).unwrap());
        &mut self.open.as_mut().unwrap().1
    }

    fn kill(&mut self) {
        let from = self.path();
        self.copies += 1;
        copy_folder(&from, &self.path());
        self.open = None;
        std::fs::remove_dir_all(from).unwrap();
    }
}

fn run(steps: &[Step]) {
    let mut model = Model::default();
    let temporary = tempfile::tempdir().unwrap();
    let mut node = Node { temporary, copies: 0, open: None, mark_before: Vec::new() };
    node.start();
    node.mark_before = std::fs::read(mark_of(&node.path())).unwrap();
    for step in steps {
        match step {
            Step::Flush(flushes) => {
                node.mark_before = std::fs::read(mark_of(&node.path())).unwrap();
                let batch = make_batch(&mut model, flushes);
                let shard = &mut node.open.as_mut().unwrap().1;
                assert_eq!(shard.writer.run_once(&batch).unwrap().last.0, model.last_seq);
                for group in model.groups.keys() {
                    model.check_reads(&shard.reader, *group);
                }
            }
            Step::Move => {
                let shard = &mut node.open.as_mut().unwrap().1;
                shard.mover.run_once().unwrap();
                for group in model.groups.keys() {
                    model.check_reads(&shard.reader, *group);
                }
            }
            Step::Compact => {
                let shard = &mut node.open.as_mut().unwrap().1;
                shard.mover.compact().unwrap();
                for group in model.groups.keys() {
                    model.check_reads(&shard.reader, *group);
                }
            }
            Step::Repair(group, back) => {
                let shard = &mut node.open.as_mut().unwrap().1;
                begin_repair(&mut model, shard, GroupId(*group), *back);
            }
            Step::Repaired(group) => {
                let part = GroupAppend { under_repair: Some(false), ..entries_only(*group, Vec::new()) };
                let batch = append(model.last_seq + 1, vec![part]);
                model.take(&batch);
                node.open.as_mut().unwrap().1.writer.run_once(&[batch]).unwrap();
            }
            Step::Reopen => {
                node.open = None;
                model.check(node.start());
            }
            Step::Kill => {
                node.kill();
                model.check(node.start());
            }
            Step::KillBeforeMark => {
                node.kill();
                std::fs::write(mark_of(&node.path()), &node.mark_before).unwrap();
                model.check(node.start());
            }
        }
    }
    node.open = None;
    model.check(node.start());
}

/// What a shard does with a group whose entries turn out to be damaged: its state is read without them, and the log cut there.
fn begin_repair(model: &mut Model, shard: &mut OpenShard, group: GroupId, back: u64) {
    let Some(known) = model.groups.get(&group) else { return };
    let (first, last) = (Index(known.last().saturating_sub(back).max(1)), Index(known.last()));
    if first > last || first <= known.start.index {
        return;
    }
    let state = shard.reader.reopen(group, Some(LogDamage { first, last })).unwrap();
    assert_eq!(state.damage, Some(LogDamage { first: state.last.next(), last }));
    assert!(state.last < first && state.last >= known.start.index);
    let place = known.place_of(state.last.0);
    assert_eq!(place.offset, state.next_offset);
    let commit = known.hard_state.commit.min(place.index);
    let part = GroupAppend {
        change: Some(LogChange::CutAfter(place)),
        hard_state: Some(HardState { commit, ..known.hard_state }),
        under_repair: Some(true),
        ..entries_only(group.0, Vec::new())
    };
    let batch = append(model.last_seq + 1, vec![part]);
    model.take(&batch);
    shard.writer.run_once(&[batch]).unwrap();
    model.check_reads(&shard.reader, group);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_found_again(steps in prop::collection::vec(step(), 1..40)) {
        run(&steps);
    }
}
