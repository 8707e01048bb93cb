//! Recovery of groups on this shard ([`crate::recovery`]): taken up as a turn ends, written with its flush, in force
//! when the group begins again from its disk.

use super::{Member, Shard};
use crate::error::{BusyReason, RequestError};
use crate::ids::Timestamp;
use crate::io::{Event, Outputs, Recover, Reply};

/// Groups that may wait to be recovered at once.
const RECOVERIES_MAX: usize = 1024;

impl Shard {
    /// An operator wants a group recovered from the replica here.
    pub(super) fn handle_recover(&mut self, recover: Recover, out: &mut Outputs) {
        if self.recoveries.len() < RECOVERIES_MAX {
            self.recoveries.push(recover);
        } else {
            let (token, group) = (recover.token, recover.group);
            out.replies.push(Reply::Failed {
                token,
                group,
                error: RequestError::busy(BusyReason::Recoveries),
            });
        }
    }

    /// The turn ends: takes up what can be taken up by now.
    pub(super) fn recover_groups(&mut self, now: Timestamp, out: &mut Outputs) {
        for recover in std::mem::take(&mut self.recoveries) {
            let (token, group) = (recover.token, recover.group);
            match self.try_recover(now, &recover, out) {
                Ok(true) => {}
                Ok(false) => self.recoveries.push(recover),
                Err(error) => out.replies.push(Reply::Failed { token, group, error }),
            }
        }
    }

    /// The shard is fenced: what has not begun never will.
    pub(super) fn fail_recoveries(&mut self, out: &mut Outputs) {
        let failed =
            |Recover { token, group, .. }| Reply::Failed { token, group, error: RequestError::Fenced };
        out.replies.extend(self.recoveries.drain(..).map(failed));
    }

    /// Whether a recovery has begun; not before what its replica has said is durable.
    fn try_recover(
        &mut self,
        now: Timestamp,
        recover: &Recover,
        out: &mut Outputs,
    ) -> Result<bool, RequestError> {
        let group = recover.group;
        let at = match self.position(group).map(|at| (at, &self.members[at])) {
            Some((at, Member::Live(_))) => at,
            Some((_, Member::Out(_))) => return Err(RequestError::Quarantined),
            Some((_, Member::Loading(_))) => return Err(RequestError::busy(BusyReason::Starting)),
            Some((_, Member::Left(_))) | None => return Err(RequestError::UnknownGroup),
        };
        if recover.deadline <= now {
            return Err(RequestError::Timeout);
        }
        // One that panics is taken out, and does nothing.
        let mut outcome = Err(RequestError::Quarantined);
        self.call(now, at, out, |replica, turn| outcome = replica.handle_recover(turn, recover));
        let Some(recovered) = outcome? else { return Ok(false) };
        let (lost, last, term) = (recover.lost.clone(), recover.last, recovered.term);
        out.events.push(Event::QuorumRecovered { group, lost, last, term });
        self.begin_again(now, at, recover.token, recovered);
        Ok(true)
    }
}
