//! What the node is told, and what it needs of the machine by that: configuration, key, address, folder.

use std::net::UdpSocket;

use iroh_raft::storage::DataFolder;
use iroh_raft::{Identity, Preset};

use super::{Finding, Level, Remedy};
use crate::config::Sources;
use crate::config::settings::NodeConfig;

/// The configuration, with what is wrong with it; where it is wrong, the defaults are looked at.
pub(super) fn config(sources: &Sources) -> (NodeConfig, Vec<Finding>) {
    const NAME: &str = "configuration";
    let remedy = || Remedy {
        right: "one that can be started",
        cost: "the node does not start; below, the defaults are looked at",
        mend: "see above; `iroh-raft config explain` shows where each value comes from".to_owned(),
    };
    let bad = |error: crate::config::ConfigError| Finding::of(NAME, Level::Bad, error.to_string(), remedy());
    let explained = match sources.explain() {
        Ok(explained) => explained,
        Err(error) => return (NodeConfig::new(Preset::Production), vec![bad(error)]),
    };
    let config = explained.config.clone();
    if sources.file.is_none() {
        let found = "no file is named (--config): the defaults are looked at";
        return (config, vec![Finding::unknown(NAME, found)]);
    }
    match explained.finish() {
        Ok(config) => (config, vec![Finding::good(NAME, "it can be started")]),
        Err(error) => (config, vec![bad(error)]),
    }
}

pub(super) fn look(config: &NodeConfig) -> Vec<Finding> {
    vec![key(config), address(config)]
}

fn key(config: &NodeConfig) -> Finding {
    const NAME: &str = "key";
    let file = config.engine.key_file();
    let remedy = |mend: String| Remedy {
        right: "the node's own key, for its user alone",
        cost: "the node does not start",
        mend,
    };
    if !file.exists() {
        if DataFolder::is_used(&config.engine.data_dir) {
            let found = format!("{} is missing, and the data folder is not new", file.display());
            return Finding::of(
                NAME,
                Level::Bad,
                found,
                remedy("put the node's key back: the others know no other".to_owned()),
            );
        }
        return Finding::good(NAME, format!("{} will be made at the first start", file.display()));
    }
    match Identity::load(&file) {
        Ok(identity) => Finding::good(NAME, identity.endpoint_id().to_string()),
        Err(error) => Finding::of(
            NAME,
            Level::Bad,
            error.to_string(),
            remedy(format!("chmod 600 {}, if nobody else has had it", file.display())),
        ),
    }
}

fn address(config: &NodeConfig) -> Finding {
    const NAME: &str = "address";
    let bind = config.engine.bind;
    match UdpSocket::bind(bind) {
        Ok(_) => Finding::good(NAME, format!("{bind} is free")),
        // It may be this very node that has it.
        Err(error) if DataFolder::is_used(&config.engine.data_dir) => {
            Finding::unknown(NAME, format!("{bind} is taken ({error}): by this node, if it runs"))
        }
        Err(error) => Finding::of(
            NAME,
            Level::Bad,
            format!("{bind} cannot be bound: {error}"),
            Remedy {
                right: "an address of this machine that nobody has",
                cost: "the node does not start",
                mend: "stop what uses it (ss -ulpn), or choose another node.bind".to_owned(),
            },
        ),
    }
}
