//! Clients with sessions: they send what they append again and again, to several nodes at once, after every kind of unknown
//! outcome, long after it was answered, and after their session has expired.

use std::time::Duration;

use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, GroupCommand, NodeId, Owner, RequestError, RunOutcome, SESSION_RUNS_MAX, Sequence, SessionId,
    SessionRefusal,
};
use iroh_raft_driver::bank::{BankCommand, BankResponse};
use iroh_raft_driver::state_machine::Message;
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use madsim::task::spawn_local;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::bank::{self, OPENING, Purse};
use crate::checkers::sessions::Told;
use crate::checkers::{ensure, record_hash};
use crate::clients::{self, Trouble, ask, pick};
use crate::clock::{elapsed, sleep};
use crate::machine::{self, Change};
use crate::plan::{GroupPlan, within};
use crate::sim::Shared;

/// What a client does in a session at most.
const DEEDS_MAX: u32 = 150;
/// Attempts before a client looks around.
const ATTEMPTS_MAX: u32 = 12;
/// Chance of a second frame with the same, at the same time.
const TWICE: f64 = 0.3;

/// Records as they are sent, each time the same.
#[derive(Clone, Debug)]
struct Sent {
    first: Sequence,
    block: RecordBlock,
    answer: AnswerOn,
    /// The change that it is of a register, and when it was first asked for.
    change: Option<(u32, Change, Duration)>,
    /// What a bank has to answer.
    due: Option<BankResponse>,
}

struct Session {
    group: GroupPlan,
    id: SessionId,
    next: Sequence,
    sent: Vec<Sent>,
    purse: Purse,
    /// Whether the last one sent has still to be answered.
    is_open: bool,
    is_over: bool,
}

/// Opens one session after the other.
pub(crate) async fn run(sim: Shared) {
    let mut random = sim.random();
    while !sim.clients.borrow().is_over {
        sleep(within(&mut random, sim.plan.think)).await;
        if sim.clients.borrow().is_resting {
            continue;
        }
        let group = pick(&mut random, &sim.plan.groups).clone();
        // Another one for each attempt.
        let id = SessionId(random.random());
        let ttl_ms = u64::try_from(sim.plan.session_ttl.as_millis()).expect("a short time");
        let open = GroupCommand::OpenSession { session: id, owner: Owner(0), ttl_ms };
        match ask(&sim, &mut random, &group, ClientBody::Command(open)).await {
            Ok((_, ReplyBody::CommandDone { .. })) => sim.mark("session opened"),
            Ok((_, other)) => drop(clients::wrong::<()>(&sim, group.id, &other)),
            Err(_) => continue,
        }
        let (sent, purse) = Default::default();
        let mut session =
            Session { group, id, next: Sequence(0), sent, purse, is_open: false, is_over: false };
        session.live(&sim, &mut random).await;
    }
}

impl Session {
    async fn live(&mut self, sim: &Shared, random: &mut SmallRng) {
        for _ in 0..random.random_range(1..=DEEDS_MAX) {
            sleep(within(random, sim.plan.think)).await;
            if self.is_over || sim.clients.borrow().is_over {
                break;
            }
            if sim.clients.borrow().is_resting {
                continue;
            }
            match random.random_range(0..100) {
                _ if self.is_open => self.finish(sim, random).await,
                0..8 if self.group.is_bank => self.purse.look(sim, random, &self.group).await,
                0..60 => {
                    self.begin(sim, random);
                    self.finish(sim, random).await;
                }
                60..85 => self.repeat(sim, random).await,
                85..93 => self.ask_outcome(sim, random).await,
                93..96 => self.skip(sim, random).await,
                96..98 => {
                    sleep(sim.plan.session_ttl.mul_f64(random.random_range(0.5..1.2)).min(PAUSE_MAX)).await;
                }
                _ => {}
            }
        }
        if self.is_open {
            self.record_change(sim, Err(Trouble::Unknown));
        }
        if random.random_bool(0.5) {
            let close = GroupCommand::CloseSession { session: self.id, owner: Owner(0) };
            let _ = ask(sim, random, &self.group, ClientBody::Command(close)).await;
        }
    }

    /// Makes the next records.
    fn begin(&mut self, sim: &Shared, random: &mut SmallRng) {
        let mut due = None;
        let (records, answer, change) = if self.group.is_bank {
            let (command, response) = self.purse.next(sim, random);
            due = Some(response);
            (vec![command.encode()], AnswerOn::Apply, None)
        } else if self.group.has_machine {
            let register = clients::register(random);
            let value = clients::unique(sim);
            let expected = random.random_range(value.saturating_sub(20)..value);
            let change = if random.random_bool(0.5) {
                Change::Write { value }
            } else {
                Change::Swap { expected, value }
            };
            (vec![machine::encode(register, change)], AnswerOn::Apply, Some((register, change, elapsed())))
        } else {
            let records = (0..random.random_range(1..=4)).map(|_| clients::record(sim, random)).collect();
            (records, AnswerOn::Commit, None)
        };
        let hashes: Vec<u64> = records.iter().map(|record| record_hash(record)).collect();
        sim.checks.borrow_mut().commits.sessions.sent(self.group.id, &hashes);
        let block = RecordBlock::from_records(&records);
        self.sent.push(Sent { first: self.next, block, answer, change, due });
        self.is_open = true;
    }

    /// Sends the last records until there is an answer.
    async fn finish(&mut self, sim: &Shared, random: &mut SmallRng) {
        let last = self.sent.len() - 1;
        for attempt in 0..ATTEMPTS_MAX {
            if sim.clients.borrow().is_over || self.is_over {
                return;
            }
            if let Some(body) = self.send(sim, random, last).await {
                self.is_open = false;
                self.next.0 += u64::from(self.sent[last].block.count());
                sim.mark("session append answered");
                if attempt > 0 {
                    sim.mark("session append answered after a retry");
                }
                return self.record_change(sim, body);
            }
            sleep(within(random, sim.plan.think)).await;
        }
    }

    /// Puts a change into the history of its register, or holds a bank's answer against what is due.
    fn record_change(&self, sim: &Shared, outcome: Result<ReplyBody, Trouble>) {
        if let (Some(Sent { due: Some(due), .. }), Ok(answer)) = (self.sent.last(), &outcome) {
            return bank::answered(sim, &self.group, self.id, *due, answer);
        }
        let Some(Sent { change: Some((register, change, called)), .. }) = self.sent.last() else { return };
        clients::into_history(sim, &self.group, *register, *change, *called, outcome);
    }

    /// Sends something again that was answered, perhaps long ago.
    async fn repeat(&mut self, sim: &Shared, random: &mut SmallRng) {
        let Some(last) = self.sent.len().checked_sub(1) else { return };
        let any = random.random_range(0..=last);
        let back = *pick(random, &[0, 0, 1, any, SESSION_RUNS_MAX - 1, SESSION_RUNS_MAX]);
        let at = last.saturating_sub(back);
        if self.send(sim, random, at).await.is_some() {
            sim.mark("session append answered again");
        }
    }

    /// Sends records to some node, perhaps to two. The answer, if it says what became of them: their end, or that it is
    /// not known any more.
    async fn send(
        &mut self,
        sim: &Shared,
        random: &mut SmallRng,
        at: usize,
    ) -> Option<Result<ReplyBody, Trouble>> {
        let Sent { first, block, answer, .. } = self.sent[at].clone();
        let body = ClientBody::Append { block, answer, run: Some((self.id, first)) };
        if random.random_bool(TWICE) {
            let (sim, mut random, body) = (sim.clone(), sim.random(), body.clone());
            let (group, id) = (self.group.clone(), self.id);
            let node = self.node(&sim, &mut random);
            spawn_local(async move {
                if let Ok(answer) = clients::call(&sim, &mut random, node, group.id, body.clone()).await {
                    check(&sim, &group, id, &body, &answer);
                }
            });
        }
        let node = self.node(sim, random);
        let answer = clients::call(sim, random, node, self.group.id, body.clone()).await.ok()?;
        check(sim, &self.group, self.id, &body, &answer);
        self.learn(sim, node, &answer);
        let refusal = match answer {
            ReplyBody::Appended { .. } | ReplyBody::Responses { .. } => return Some(Ok(answer)),
            ReplyBody::Failed(RequestError::Session { refusal }) => refusal,
            _ => return None,
        };
        match refusal {
            // It is applied.
            SessionRefusal::ResponseGone { .. } => {
                sim.mark("session response gone");
                Some(Err(Trouble::Unknown))
            }
            SessionRefusal::Forgotten { .. } => {
                let newer = self.sent.len() - 1 - at;
                let checked =
                    ensure(newer >= SESSION_RUNS_MAX, "the last runs of a session are remembered", || {
                        format!("{} from {first} is forgotten, {newer} runs came after it", self.id)
                    });
                sim.checks.borrow_mut().note(checked);
                sim.mark("session append forgotten");
                None
            }
            SessionRefusal::Unknown => {
                self.is_over = true;
                sim.mark("session unknown");
                None
            }
            // A leader that was deposed and does not know it.
            _ => None,
        }
    }

    /// Now and then somebody who does not lead.
    fn node(&self, sim: &Shared, random: &mut SmallRng) -> NodeId {
        let hint = sim.clients.borrow().leaders.get(&self.group.id).copied();
        hint.filter(|_| random.random_bool(0.8)).unwrap_or_else(|| *pick(random, &self.group.hosts))
    }

    fn learn(&self, sim: &Shared, node: NodeId, answer: &ReplyBody) {
        let mut clients = sim.clients.borrow_mut();
        match answer {
            ReplyBody::Failed(RequestError::NotLeader { leader: Some(leader) }) => {
                clients.leaders.insert(self.group.id, *leader);
            }
            ReplyBody::Failed(RequestError::Session { .. }) => {}
            ReplyBody::Failed(_) => drop(clients.leaders.remove(&self.group.id)),
            _ => drop(clients.leaders.insert(self.group.id, node)),
        }
    }

    /// Asks what became of something.
    async fn ask_outcome(&mut self, sim: &Shared, random: &mut SmallRng) {
        let Some(last) = self.sent.len().checked_sub(1) else { return };
        let Sent { first, block, .. } =
            self.sent[random.random_range(last.saturating_sub(SESSION_RUNS_MAX)..=last)].clone();
        let within = random.random_range(0..block.count());
        let sequence = Sequence(first.0 + u64::from(within));
        let body = ClientBody::Outcome { session: self.id, sequence };
        let node = self.node(sim, random);
        let Ok(answer) = clients::call(sim, random, node, self.group.id, body).await else { return };
        let told = sim.checks.borrow().commits.sessions.place(self.id, first);
        let is_right = match (&answer, told) {
            (ReplyBody::Outcome(RunOutcome::Committed { offset, index, term }), Some(told)) => {
                (offset.0, *index, *term) == (told.first.0 + u64::from(within), told.index, told.term)
            }
            // It was told before it was asked.
            (ReplyBody::Outcome(RunOutcome::Pending | RunOutcome::NotThere { .. }), Some(_)) => false,
            _ => true,
        };
        let checked = ensure(is_right, "outcomes are what was answered", || {
            format!("node {node}: {} of {sequence} is {answer:?}, told was {told:?}", self.id)
        });
        sim.checks.borrow_mut().note(checked);
        if matches!(answer, ReplyBody::Outcome(_)) {
            sim.mark("session outcome told");
        }
    }

    /// Leaves something out: nobody may take that.
    async fn skip(&mut self, sim: &Shared, random: &mut SmallRng) {
        let value = clients::unique(sim);
        let record = match self.group.has_machine {
            true if self.group.is_bank => BankCommand::Open { account: value, balance: OPENING }.encode(),
            true => machine::encode(clients::register(random), Change::Write { value }),
            false => value.to_le_bytes().to_vec(),
        };
        let first = Sequence(self.next.0 + random.random_range(1..4));
        let (block, answer) = (RecordBlock::from_records(&[record]), AnswerOn::Commit);
        let body = ClientBody::Append { block, answer, run: Some((self.id, first)) };
        let node = self.node(sim, random);
        let Ok(answer) = clients::call(sim, random, node, self.group.id, body).await else { return };
        let checked = ensure(matches!(answer, ReplyBody::Failed(_)), "a session leaves nothing out", || {
            format!("node {node}: {} from {first} where {} is next: {answer:?}", self.id, self.next)
        });
        sim.checks.borrow_mut().note(checked);
        if matches!(
            answer,
            ReplyBody::Failed(RequestError::Session { refusal: SessionRefusal::OutOfOrder { .. } })
        ) {
            sim.mark("session append out of order");
        }
    }
}

/// Longest pause within a session.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// Holds an answer against the first one to the same.
fn check(sim: &Shared, group: &GroupPlan, id: SessionId, body: &ClientBody, answer: &ReplyBody) {
    let ClientBody::Append { block, run: Some((_, sequence)), .. } = body else { return };
    let (told, responses) = match answer {
        ReplyBody::Appended { first, count, index, term } => {
            (Told { first: *first, count: *count, index: *index, term: *term }, None)
        }
        ReplyBody::Responses { first, index, term, responses } => {
            let count = responses.count();
            (Told { first: *first, count, index: *index, term: *term }, Some(responses))
        }
        _ => return,
    };
    let hashes: Vec<u64> = block.records().map(record_hash).collect();
    let mut checks = sim.checks.borrow_mut();
    let is_known = checks.commits.sessions.place(id, *sequence).is_some();
    let checked = checks.commits.sessions.told(id, *sequence, told);
    checks.note(checked);
    if let Some(responses) = responses {
        let checked = checks.commits.sessions.responded(id, *sequence, responses.as_bytes());
        checks.note(checked);
    }
    drop(checks);
    if !is_known {
        clients::acknowledge(sim, group.id, told.first, told.count, &hashes);
    }
}
