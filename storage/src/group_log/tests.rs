use iroh_raft_core::Term;
use proptest::prelude::*;

use super::*;

const PLACE: PartPlace = PartPlace { position: 64, data_position: 96 };

fn hot(first: u64, base: u64, block: u64, count: u32) -> Span {
    let (first, base, block) = (Index(first), Offset(base), FlushSeq(block));
    Span { first, base, block, place: PLACE, count, data_bytes: 10 }
}

fn source_at(log: &GroupLog, index: u64) -> Source {
    log.plan_by_index(Index(index), Index(index), 1).unwrap().sources[0]
}

proptest! {
    /// Against a plain list of (block, records) for each entry, with moves and compactions between.
    #[test]
    fn every_index_and_offset_is_found_where_it_stands(
        steps in prop::collection::vec((0_u64..6, prop::collection::vec(0_u64..3, 1..5), 0_u64..8, 0_u64..4), 1..20),
    ) {
        let mut log = GroupLog::default();
        let mut entries: Vec<(u64, u64)> = Vec::new();
        for (block, (back, records, moved, compacted)) in (1..).zip(steps) {
            let kept = (entries.len() as u64).saturating_sub(back).max(log.moved().0);
            entries.truncate(kept as usize);
            let base: u64 = entries.iter().map(|(_, records)| records).sum();
            let end = base + records.iter().sum::<u64>();
            log.append(hot(kept + 1, base, block, records.len() as u32), Offset(end));
            entries.extend(records.into_iter().map(|records| (block, records)));
            prop_assert_eq!(log.next_offset(), Offset(end));
            let offset_after = |index: u64| {
                Offset(entries.iter().take(index as usize).map(|(_, records)| records).sum())
            };
            let to = (log.moved().0 + moved).min(entries.len() as u64);
            if to > log.moved().0 {
                let first = log.moved().next();
                let span = ColdSpan { first, last: Index(to), base: log.moved_end(), bytes: 10, checksum: 0 };
                log.take_moved(vec![span], offset_after(to));
                prop_assert_eq!((log.moved(), log.moved_end()), (Index(to), offset_after(to)));
            }
            let start = (log.start().index.0 + compacted).min(entries.len() as u64);
            log.change(LogChange::CompactTo(LogStart { index: Index(start), term: Term(1), offset: offset_after(start) }));
            prop_assert_eq!(log.last().0, entries.len() as u64);
            prop_assert!(log.plan_by_index(log.start().index, log.last(), 1).is_none());
            prop_assert!(log.plan_by_index(log.last().next(), log.last(), 1).is_none());
            let mut offset = 0;
            for (index, (block, records)) in (1..).zip(&entries) {
                let is_there = index > log.start().index.0;
                if is_there {
                    match source_at(&log, index) {
                        Source::Log(span) => prop_assert!(span.first.0 <= index && index <= span.last.0),
                        Source::Journal(span) => prop_assert!(span.block.0 == *block && index > log.moved().0),
                    }
                }
                for record in offset..offset + records {
                    let plan = log.plan_by_offset(Offset(record), log.last(), 1);
                    prop_assert_eq!(plan.is_some(), is_there, "record {}", record);
                    if let Some(plan) = plan {
                        prop_assert_eq!(plan.sources[0], source_at(&log, index), "record {}", record);
                    }
                }
                offset += records;
            }
            prop_assert!(log.plan_by_offset(Offset(offset), log.last(), 1).is_none());
        }
    }
}

#[test]
fn what_was_carried_takes_the_place_of_what_was_there() {
    let mut log = GroupLog::default();
    for index in 1..=4 {
        log.append(hot(index, index - 1, index, 1), Offset(index));
    }
    assert_eq!(log.hot_up_to(FlushSeq(2)).count(), 2);
    log.replace_carried(hot(1, 0, 5, 2));
    assert_eq!(source_at(&log, 2), Source::Journal(hot(1, 0, 5, 2)));
    assert_eq!(source_at(&log, 3), Source::Journal(hot(3, 2, 3, 1)));
    // The carried ones precede entries of older blocks, and go with them.
    assert_eq!(log.hot_up_to(FlushSeq(3)).count(), 2);
    assert_eq!(log.hot_up_to(FlushSeq(2)).count(), 0);
}
