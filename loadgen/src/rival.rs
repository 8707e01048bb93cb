//! Other systems under the same load: by the same generator, with the same clock, through their own clients.
//!
//! A rival is either there already, or three processes of it are started on loopback, each with a folder of its own on
//! the disk that our nodes use. What it is told to do on an append, and what its answer promises, is in its own file.

pub(crate) mod etcd;
pub(crate) mod load;
pub(crate) mod nats;
pub(crate) mod process;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::ValueEnum;
use iroh_raft::Offset;
use iroh_raft::core::{Index, Term};
use iroh_raft::net::client::{Appended, ClientError, Completion};

use crate::quick::QuickError;
use process::Processes;

/// Servers of a rival that is started here: as many as our nodes.
pub(crate) const SERVERS: usize = 3;
/// Time for a rival to start and to have its leaders.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Time for one question while it starts; then it is asked anew.
const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// Pause before that.
const ASK_PAUSE: Duration = Duration::from_millis(100);
/// Time for an append, as of our client.
const APPEND_DEADLINE: Duration = Duration::from_secs(10);
/// What is said of servers that were started by somebody else.
const UNSEEN: &str = "what its servers are set to, which is not seen from here";

/// A system that is measured beside ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Rival {
    /// etcd: a key-value store.
    Etcd,
    /// NATS JetStream: streams of messages.
    Nats,
}

impl Rival {
    /// Its name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Rival::Etcd => "etcd",
            Rival::Nats => "NATS JetStream",
        }
    }

    /// The program of its server.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Rival::Etcd => "etcd",
            Rival::Nats => "nats-server",
        }
    }

    /// What to do when that is not there.
    pub(crate) fn how_to_install(self) -> &'static str {
        match self {
            Rival::Etcd => "on Debian `apt-get install etcd-server`, or name running servers with --etcd URL",
            Rival::Nats => "on Debian `apt-get install nats-server`, or name running servers with --nats URL",
        }
    }
}

/// Where a rival's servers come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// They run, and are reached by these addresses.
    Running(Vec<String>),
    /// They are processes of this program.
    Program(PathBuf),
}

/// A rival's servers. Dropping it kills those that were started here.
#[derive(Debug)]
pub(crate) struct Servers {
    urls: Vec<String>,
    processes: Option<Processes>,
    /// What an acknowledgement promises.
    promise: &'static str,
}

impl Servers {
    fn running(urls: Vec<String>) -> Servers {
        Servers { urls, processes: None, promise: UNSEEN }
    }
}

/// A rival that is ready for the load.
struct Connected<T> {
    target: T,
    version: String,
    first_error: FirstError,
}

/// What the first append that failed has met.
type FirstError = Arc<OnceLock<String>>;

/// How an append has ended, as the driver takes it. `answer`: a rival's own number of its first record, which nobody audits.
/// What became of one that failed is not known, whatever the error says.
fn completion(tag: u64, answer: Result<u64, impl ToString>, first_error: &OnceLock<String>) -> Completion {
    let result = match answer {
        Ok(number) => Ok(Appended { offset: Offset(number), index: Index(number), term: Term(0) }),
        Err(error) => {
            first_error.get_or_init(|| error.to_string());
            Err(ClientError::OutcomeUnknown)
        }
    };
    Completion { tag, result }
}

/// Why there are no figures of a rival.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RivalError {
    #[error(transparent)]
    Load(#[from] QuickError),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    #[error("server {number} has ended ({how}); the end of its log:{log}")]
    Ended { number: usize, how: String, log: String },
    #[error("it was not ready within {} s: {reason}", deadline.as_secs())]
    Late { deadline: Duration, reason: String },
}
