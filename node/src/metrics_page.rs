//! What a node shows on a loopback address: `GET /metrics` for Prometheus, `GET /health` for whoever watches over it.
//!
//! Everything runs on the runtime that waits for signals, never on a thread of the engine. Counters are read where they stand; only
//! what the shards alone know is asked of them, once a second at most and with a deadline, however many look.

mod health;
mod http;
mod machine;
mod names;
mod recorder;
mod sample;
mod text;

use std::net::SocketAddr;
use std::sync::Arc;

use iroh_raft::Engine;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::config::settings::NodeConfig;
use crate::say::Failure;
use http::{Reply, Site, Status};
use recorder::Recorder;
use sample::{About, Sampler};

pub(crate) use names::reference;

/// A page that nobody gets yet: what comes meanwhile waits until the node is up.
#[derive(Debug)]
pub(crate) struct Page {
    listener: TcpListener,
    address: SocketAddr,
    recorder: Arc<Recorder>,
    about: About,
}

/// A page that is served; dropped, it is closed.
#[derive(Debug)]
pub(crate) struct Serving {
    pages: Arc<Pages>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Pages {
    recorder: Arc<Recorder>,
    sampler: Sampler,
}

impl Page {
    /// Takes the address, and from now on what storage counts; `None` where no page is wanted.
    pub(crate) async fn bind(config: &NodeConfig) -> Result<Option<Page>, Failure> {
        let Some(wanted) = config.metrics_listen else { return Ok(None) };
        let refused = |error: std::io::Error| {
            Failure::Refused(format!(
                "metrics.listen = \"{wanted}\": {error}: choose another port, or 0 for one that is free"
            ))
        };
        let listener = TcpListener::bind(wanted).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let recorder = Arc::new(Recorder::default());
        metrics::set_global_recorder(recorder.clone())
            .map_err(|error| Failure::Refused(format!("metrics.listen: {error}")))?;
        Ok(Some(Page { listener, address, recorder, about: About::of(config) }))
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on.
    pub(crate) fn serve(self, engine: Engine) -> Serving {
        let sampler = Sampler::new(engine, self.about);
        let pages = Arc::new(Pages { recorder: self.recorder, sampler });
        let mut tasks = JoinSet::new();
        tasks.spawn(http::serve(self.listener, pages.clone()));
        Serving { pages, _tasks: tasks }
    }
}

impl Serving {
    /// The node stops: it is not well from now on.
    pub(crate) fn drain(&self) {
        self.pages.sampler.drain();
    }
}

const INDEX: &str = "iroh-raft\n\n/metrics  for Prometheus\n/health   200 while the node is well, else 503 with the reasons\n";

impl Site for Pages {
    async fn reply(&self, path: &str) -> Option<Reply> {
        let text = |body| Reply { status: Status::Ok, kind: "text/plain; charset=utf-8", body };
        match path {
            "/" => Some(text(INDEX.to_owned())),
            "/metrics" => {
                let sample = self.sampler.take().await;
                let body = text::page(&sample, &self.recorder.look());
                Some(Reply { status: Status::Ok, kind: "text/plain; version=0.0.4; charset=utf-8", body })
            }
            "/health" => {
                let health = self.sampler.take().await.health;
                let status = if health.is_ok() { Status::Ok } else { Status::Unavailable };
                Some(Reply { status, kind: "application/json", body: health.to_json() })
            }
            _ => None,
        }
    }
}
