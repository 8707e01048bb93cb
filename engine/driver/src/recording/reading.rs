//! Reading a recording, and having its run again.

use std::io::{self, Read};

use iroh_raft_core::{
    ConfigError, FlushSeq, GroupState, Input, Outputs, Shard, ShardConfig, ShardId, Timestamp,
};

use super::words::Words;
use super::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameOwned, MAGIC, PREFIX_BYTES, VERSION, digest};

/// Why a recording cannot be read. `at` counts bytes from its beginning to the frame concerned.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It does not begin as a recording does.
    #[error("not a recording: it does not begin with {:?}", String::from_utf8_lossy(&MAGIC))]
    Foreign,
    /// Written by a build with another format.
    #[error("a recording of version {version}; this build reads {VERSION}: use the build that wrote it")]
    Version {
        /// The version found.
        version: u32,
    },
    /// Bytes are not those that were written.
    #[error("the frame at byte {at} is damaged: its check does not hold")]
    Damaged {
        /// Where the frame begins.
        at: u64,
    },
    /// Sound bytes that this build cannot make sense of.
    #[error("the frame at byte {at} makes no sense to this build ({problem}): use the build that wrote it")]
    Malformed {
        /// Where the frame begins.
        at: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It ends before the state of all groups.
    #[error("it ends at byte {at}, before the state that the shard starts from: record with a higher bound")]
    NoStart {
        /// Where it ends.
        at: u64,
    },
    /// The medium failed.
    #[error("reading at byte {at} failed: {source}")]
    Io {
        /// How far it was read.
        at: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a replay did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The recording cannot be read.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The core refuses the recorded settings.
    #[error("the recorded settings are refused: {0}")]
    Config(#[from] ConfigError),
    /// The core said something else than in the recorded run.
    #[error(transparent)]
    Diverged(#[from] Divergence),
}

/// The first turn in which a replay said something else.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "step {step} at byte {at}: the turn's outputs have digest {replayed:016x}, recorded was {recorded:016x}; \
     the replay says: {outputs}"
)]
pub struct Divergence {
    /// Number of the step.
    pub step: u64,
    /// Where its frame begins.
    pub at: u64,
    /// Digest of what the recorded shard said.
    pub recorded: u64,
    /// Digest of what the replayed one said.
    pub replayed: u64,
    /// What that is, in words.
    pub outputs: String,
}

/// How a recording ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ending {
    /// With its shard.
    Closed,
    /// At its bound.
    Full,
    /// Without a mark: its process was killed, its disk was full, or the file was cut.
    Torn,
}

/// What a replay came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Inputs that the shard took.
    pub inputs: u64,
    /// Turns whose outputs were equal.
    pub turns: u64,
    /// How the recording ends.
    pub ending: Ending,
}

/// One step of a recorded run. Its `Display` says it in words, without users' records.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its number, from 1.
    pub number: u64,
    /// Where its frame begins, in bytes from the recording's beginning.
    pub at: u64,
    /// The shard's time.
    pub now: Timestamp,
    /// What happened.
    pub kind: StepKind,
}

/// What happened in a step.
#[derive(Clone, Debug)]
pub enum StepKind {
    /// The shard took this.
    Input(Input),
    /// A turn ended, with outputs of this digest.
    Turn {
        /// The digest.
        digest: u64,
    },
}

/// A recording that is being read.
#[derive(Debug)]
pub struct Recording<R> {
    frames: Frames<R>,
    /// Number of the shard.
    pub shard: ShardId,
    /// Settings of the shard.
    pub config: ShardConfig,
    /// Newest flush of its journal at its start.
    pub last_seq: FlushSeq,
    /// The groups that it started with.
    pub groups: Vec<GroupState>,
    /// Its first moment.
    pub start: Timestamp,
    now: Timestamp,
    steps: u64,
    ending: Option<Ending>,
}

impl<R: Read> Recording<R> {
    /// Reads the state from which the shard starts.
    ///
    /// # Errors
    /// [`RecordingError`] when there is none.
    pub fn open(input: R) -> Result<Recording<R>, RecordingError> {
        let mut frames = Frames { input, at: 0, buffer: Vec::new() };
        frames.check_prefix()?;
        let at = frames.at;
        let (shard, config, last_seq, start, count) = match frames.next()? {
            Some(Frame::Start { shard, config, last_seq, now, groups }) => {
                (shard, config, last_seq, now, groups)
            }
            Some(Frame::End { .. }) | None => return Err(RecordingError::NoStart { at }),
            Some(_) => return Err(RecordingError::Malformed { at, problem: "the start belongs here" }),
        };
        // Grows with what is there: a wrong count allocates nothing.
        let mut groups = Vec::new();
        for _ in 0..count {
            let at = frames.at;
            match frames.next()? {
                Some(Frame::Group(group)) => groups.push(group),
                Some(Frame::End { .. }) | None => return Err(RecordingError::NoStart { at }),
                Some(_) => return Err(RecordingError::Malformed { at, problem: "a group belongs here" }),
            }
        }
        Ok(Recording { frames, shard, config, last_seq, groups, start, now: start, steps: 0, ending: None })
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// [`RecordingError`], which names the place.
    pub fn next_step(&mut self) -> Result<Option<Step>, RecordingError> {
        if self.ending.is_some() {
            return Ok(None);
        }
        let at = self.frames.at;
        let kind = match self.frames.next()? {
            Some(Frame::Input { now, .. }) if now < self.now => {
                return Err(RecordingError::Malformed { at, problem: "time runs backwards" });
            }
            Some(Frame::Input { now, input }) => {
                self.now = now;
                StepKind::Input(input)
            }
            Some(Frame::Turn { digest }) => StepKind::Turn { digest },
            Some(Frame::End { is_full }) => {
                self.frames.check_end()?;
                self.ending = Some(if is_full { Ending::Full } else { Ending::Closed });
                return Ok(None);
            }
            Some(Frame::Start { .. } | Frame::Group(_)) => {
                return Err(RecordingError::Malformed { at, problem: "a second start" });
            }
            None => {
                self.ending = Some(Ending::Torn);
                return Ok(None);
            }
        };
        self.steps += 1;
        Ok(Some(Step { number: self.steps, at, now: self.now, kind }))
    }
}

/// Makes the shard of a recording, feeds it what was recorded and compares what it says in every turn.
/// `told` gets each step before it is taken, and what the shard has said since the last turn.
///
/// # Errors
/// [`ReplayError`]; a divergence names the first step that differs.
pub fn replay<R: Read>(
    mut recording: Recording<R>,
    mut told: impl FnMut(&Step, &Outputs),
) -> Result<Report, ReplayError> {
    let groups = std::mem::take(&mut recording.groups);
    let mut shard = Shard::new(recording.config.clone(), recording.last_seq, groups, recording.start)?;
    let (mut outputs, mut scratch) = (Outputs::default(), Vec::new());
    let mut report = Report { inputs: 0, turns: 0, ending: Ending::Torn };
    while let Some(step) = recording.next_step()? {
        told(&step, &outputs);
        let (number, at) = (step.number, step.at);
        match step.kind {
            StepKind::Input(Input::EndTurn) if outputs.append.is_some() => {
                let problem = "a turn ends twice";
                return Err(RecordingError::Malformed { at, problem }.into());
            }
            StepKind::Input(input) => {
                shard.step(step.now, input, &mut outputs);
                report.inputs += 1;
            }
            StepKind::Turn { digest: recorded } => {
                let replayed = digest(&outputs, &mut scratch);
                if replayed != recorded {
                    let outputs = Words(&outputs).to_string();
                    return Err(Divergence { step: number, at, recorded, replayed, outputs }.into());
                }
                outputs.clear();
                report.turns += 1;
            }
        }
    }
    report.ending = recording.ending.unwrap_or(Ending::Torn);
    Ok(report)
}

#[derive(Debug)]
struct Frames<R> {
    input: R,
    at: u64,
    buffer: Vec<u8>,
}

impl<R: Read> Frames<R> {
    /// Fills the buffer with so many bytes, or fewer at the end. Memory grows with what is there, not with
    /// what a length claims.
    fn fill(&mut self, bytes: usize) -> Result<bool, RecordingError> {
        self.buffer.clear();
        let read = self.input.by_ref().take(bytes as u64).read_to_end(&mut self.buffer);
        read.map_err(|source| RecordingError::Io { at: self.at, source })?;
        Ok(self.buffer.len() == bytes)
    }

    fn number(&self, at: usize) -> u32 {
        let bytes = self.buffer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    }

    fn check_prefix(&mut self) -> Result<(), RecordingError> {
        if !self.fill(PREFIX_BYTES)? || !self.buffer.starts_with(&MAGIC) {
            return Err(RecordingError::Foreign);
        }
        let version = self.number(MAGIC.len());
        if version != VERSION {
            return Err(RecordingError::Version { version });
        }
        self.at = PREFIX_BYTES as u64;
        Ok(())
    }

    fn check_end(&mut self) -> Result<(), RecordingError> {
        if self.fill(1)? {
            return Err(RecordingError::Malformed { at: self.at, problem: "something follows the end" });
        }
        Ok(())
    }

    /// The next frame; `None` when the bytes end before it does.
    fn next(&mut self) -> Result<Option<FrameOwned>, RecordingError> {
        let at = self.at;
        if !self.fill(FRAME_HEADER_BYTES)? {
            return Ok(None);
        }
        let (length, check) = (self.number(0) as usize, self.number(4));
        if crc32c::crc32c(&self.buffer[..8]) != self.number(8) {
            return Err(RecordingError::Damaged { at });
        }
        if length > FRAME_BYTES_MAX {
            return Err(RecordingError::Malformed { at, problem: "longer than any frame" });
        }
        if !self.fill(length)? {
            return Ok(None);
        }
        if crc32c::crc32c(&self.buffer) != check {
            return Err(RecordingError::Damaged { at });
        }
        self.at += (FRAME_HEADER_BYTES + length) as u64;
        match postcard::take_from_bytes(&self.buffer) {
            Ok((frame, [])) => Ok(Some(frame)),
            Ok(_) => Err(RecordingError::Malformed { at, problem: "longer than what it holds" }),
            Err(_) => Err(RecordingError::Malformed { at, problem: "not what a frame holds" }),
        }
    }
}
