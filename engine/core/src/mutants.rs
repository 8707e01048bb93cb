//! Known bugs of Raft implementations that can be switched on one at a time, to see that the simulation finds them.
//!
//! They exist only in builds with `--cfg mutants`, which none without debug assertions can be: no release has them.

#[cfg(all(mutants, not(debug_assertions)))]
compile_error!("mutants are bugs: they are for builds with debug assertions only");

macro_rules! mutants {
    ($($name:ident = $text:literal,)*) => {
        /// A bug.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutant {
            $(#[doc = $text] $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)*];

            /// What is wrong, in a few words.
            #[must_use]
            pub fn describe(self) -> &'static str {
                match self {
                    $(Mutant::$name => $text,)*
                }
            }
        }
    };
}

mutants! {
    VoteNotPersisted = "a vote is not written to the disk",
    HardStateForgotten = "a restart forgets term and vote",
    VoteSentEarly = "answers leave before the flush that they speak of",
    CandidateSpeaksEarly = "a candidate asks for votes before its term is on the disk",
    DriverIgnoresGates = "the driver sends frames that wait for a flush",
    PersistedEarly = "a flush counts as durable once it is handed over",
    SyncSkipped = "the disk is never synced",
    SyncFailureIgnored = "a failed sync counts as done",
    FailureIgnored = "a flush that failed counts as durable",
    OlderTermCounted = "a leader commits entries of older terms by counting",
    LocalCommit = "a leader answers once an entry is in its own log",
    AnswerByIndex = "a request outlives the leadership, and is answered when its index is committed",
    LostLeaderAnswers = "open requests are answered as done when leadership is lost",
    VoteWithoutLog = "a vote is given whatever the candidate's log lacks",
    AcknowledgesTooMuch = "a follower acknowledges one entry more than it has",
    ReadWithoutRound = "a leader answers reads without asking anybody",
    ReadBeforeFirstCommit = "a new leader answers reads before it has committed anything in its term",
    ReadBeforeApplied = "a read is answered before the state machine has got so far",
    FollowerReadsItsCommit = "a follower answers forwarded reads with what it knows to be committed",
    LeaseFromAnswer = "a lease runs from a heartbeat's answer, not from its sending",
    LeaseSurvivesTransfer = "a leader that hands over keeps its lease",
    LeaseOfOne = "a leader has a lease without a quorum",
    DriftIgnored = "clocks are taken to run alike",
    PromiseForgotten = "a restarted replica votes at once, whomever it heard before",
    ClockBeforeRing = "a turn goes by the time at which it began, whatever arrived later",
    UncommittedApplied = "entries are applied before they are committed",
    ApplySkips = "the state machine now and then misses an entry",
    OffsetFromCommit = "a leader counts offsets from what is committed",
    LivenessByNumber = "quiet groups go by other nodes' shards of their own shard's number, wherever those have them",
    PlacementIgnored = "messages go to the shard of the same number, wherever the group is there",
    PlacementKept = "a node that comes back with its groups placed otherwise is taken to have them where it had them",
    PlacedBeforeMoved = "a folder says that its groups have other shards before they are there",
    MoveForgetsSnapshot = "groups that move to another shard leave their snapshot behind",
    MoveForgetsVote = "groups that move to another shard forget their vote",
    UncommittedMoved = "uncommitted entries go to the log file",
    CarryForgotten = "what a move left behind is not carried on",
    MarkIgnored = "the acknowledged mark is not compared at start",
    TermNeverGrows = "a candidate does not write its new term",
    Deaf = "appends from the leader do not put off an election",
    NeverCampaigns = "nobody campaigns",
    FetchForgotten = "entries that a follower lacks are not fetched",
    HungLeaderLeads = "a leader whose disk hangs leads on",
    HungDiskCampaigns = "a node whose disk hangs campaigns",
    TransferAnsweredEarly = "a transfer is answered before the other leads",
    TransferToTheDead = "leadership is handed to a replica that does not answer",
    SpreadRestless = "leaders are spread to whoever is next, however few there are to spread",
    QuietWhileLacking = "a group goes quiet although followers lack entries",
    QuietAndDeaf = "quiet groups do not notice that their leader's node is gone",
    QuietWithProposal = "a proposal does not wake a quiet leader",
    QuietRefusalIgnored = "a leader goes quiet although followers refused",
    LeaseSurvivesQuiet = "a leader that wakes takes the promises of its followers for kept meanwhile",
    LearnersCount = "learners count for commits",
    JointHalfCounts = "in a joint configuration the majority of the new voters commits alone",
    JointSkipped = "several members change at once, without a joint configuration",
    MembersDismissed = "whoever asks for votes with an old log is told that it is no member",
    TombstoneForgets = "a replica that leaves forgets its term and vote",
    TombstoneAdmitsAll = "a replica that left begins again for any invitation",
    LeavesUnasked = "a replica leaves once it applies an entry that removes it, whatever comes after that",
    JointForgotten = "only the leader that began a joint configuration ends it",
    SnapshotOutlivesReplica = "a replica that leaves keeps its snapshot for the one that begins in its place",
    ChangesForgotten = "a restart forgets the changes of members in its log",
    SnapshotAhead = "a snapshot is said to cover what is committed and not yet applied",
    SnapshotForgetsTable = "a snapshot that is installed leaves the table of cursors as it was",
    SnapshotForgetsMembers = "a snapshot names the members that the log began with",
    InstallKeepsLog = "a snapshot is installed and the old log stays on the disk",
    SnapshotFrozenLate = "a state machine is frozen after it was given entries that its snapshot does not say it covers",
    CompactionIgnoresSnapshot = "the log is compacted up to what is applied, whatever snapshots cover",
    ResumeLosesChunks = "a transfer goes on after chunks that are not on the disk, and the whole is not checked",
    DigestUnchecked = "neither chunks of snapshots nor the whole are compared with their digests",
    ChangeInForceEarly = "a leader puts a change of members in force before it is committed",
    FrozenWithLater = "a state that is compared has in it what was applied together with the entry that it is of",
    RestoreLosesEnd = "a state machine is restored without the last chunk of its snapshot",
    DamageRestored = "a damaged chunk of a snapshot is restored as it is",
    AskedMidway = "a state machine is asked in the middle of what it was given to apply",
    TailUncommitted = "a tail is sent what is not committed",
    TailSkipsToMemory = "a tail that is fed from the disk goes on with what is in memory",
    CommandUncommitted = "the leader puts cursors and trims in force at once, not once they are committed",
    TrimsAhead = "the first record that is kept counts as trimmed",
    GrantsAddUp = "a grant to a tail that comes twice counts twice",
    CursorGoesBack = "a late commit moves a cursor back",
    CursorsForgotten = "a restart forgets the table of cursors",
    SnapshotForgetsSessions = "a snapshot is installed without the client sessions that it carries",
    SessionTailIgnored = "a new leader does not know the sessions' records that it has not applied",
    SessionTailSurvives = "a leader judges by what it had in its log when it led before",
    ExpiryIgnored = "an append of a session that is not known is taken as one without",
    WindowOffByOne = "the newest run of a session does not count as known",
    RepeatAnsweredEarly = "a retry is answered at once, whether or not its records are committed",
    RunsCompactedUnwritten = "the log is compacted before what its sessions appended is written",
    RunsForgotten = "a restart forgets what sessions appended since their table was written",
    RecoveryKeepsTerm = "a recovered group goes on in the next term, which the lost may reach",
    RecoveryUncommitted = "the entry of a recovery is written, and not covered by the commit index",
    RecoveryOfTheLiving = "a group is recovered although it has a leader, and those named as lost live",
    LostNotDismissed = "those that were given up and come back are not told",
    RepairVotes = "a replica under repair votes",
    PastLeads = "a replica campaigns by members of the past, on its way through the log",
    PastVotes = "a replica that lost its log when it left votes for candidates that lack what it had",
    RepairCampaigns = "a replica under repair campaigns",
    RepairEndsEarly = "a repair is over once the leader has answered, whatever the replica has by then",
    RepairForgotten = "a restart forgets that a repair was under way",
    RepairKeepsDamage = "a repair leaves what follows the damage on the disk",
    RepairUnheard = "a leader goes on counting on what a replica under repair has lost",
    RepairAcknowledgesBound = "a replica under repair acknowledges its bound at once",
}

#[cfg(mutants)]
mod chosen {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Mutant;

    static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Switches a bug on, for the whole process.
    pub fn choose(mutant: Mutant) {
        CHOSEN.store(mutant as usize, Ordering::Relaxed);
    }

    /// Whether this bug is on.
    #[must_use]
    pub fn is(mutant: Mutant) -> bool {
        CHOSEN.load(Ordering::Relaxed) == mutant as usize
    }
}

#[cfg(mutants)]
pub use chosen::{choose, is};

/// Whether this bug is on: never.
#[cfg(not(mutants))]
#[inline(always)]
#[must_use]
pub const fn is(_: Mutant) -> bool {
    false
}
