//! Setting up: nodes, clients, and what a node is told.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use iroh_raft::net::allow::{ClientGrant, PeerAddress};
use iroh_raft::{Identity, NodeId, Preset};
use serde::Serialize;

use crate::cli::{Access, ClientKeyArgs, ConfigCommand, InitArgs};
use crate::config::settings::{NodeConfig, PRESETS, find, nearest};
use crate::config::{Sources, page};
use crate::say::{Failure, say, table};
use iroh_raft::net::cluster_file::{ClusterFile, parse_rights};

/// Name of a node's file in its folder.
pub(crate) const NODE_FILE: &str = "node.toml";
const KEY_FILE: &str = "node.key";
const DATA: &str = "data";

/// A node as it was set up.
#[derive(Debug, Serialize)]
pub(crate) struct NewNode {
    pub(crate) node: u64,
    pub(crate) key: String,
    pub(crate) address: String,
    pub(crate) config: PathBuf,
    pub(crate) cluster_file: PathBuf,
}

/// A client as it was listed.
#[derive(Debug, Serialize)]
pub(crate) struct NewClient {
    name: String,
    key: String,
    key_file: PathBuf,
    cluster_file: PathBuf,
}

/// `iroh-raft init`.
pub(crate) fn node(args: &InitArgs, json: bool) -> Result<ExitCode, Failure> {
    let new = set_up(args)?;
    say(json, &new, |new| {
        format!(
            "node {} has the key {}\n{} lists it; start it with\n  iroh-raft start --config {}",
            new.node,
            new.key,
            new.cluster_file.display(),
            new.config.display()
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// Makes key, folder and file of a node, and lists it in the cluster file.
pub(crate) fn set_up(args: &InitArgs) -> Result<NewNode, Failure> {
    let refuse = |why: String| Err(Failure::Refused(why));
    if args.node == 0 {
        return refuse(
            "--node 0: nodes count from 1; choose a number that no node of the cluster has or had".into(),
        );
    }
    if args.address.port() == 0 || args.address.ip().is_unspecified() {
        return refuse(format!(
            "--address {}: the others could not reach it; give the address and port that they see, and --set node.bind= what to listen on",
            args.address
        ));
    }
    let Some((preset_name, preset)) = PRESETS.into_iter().find(|(name, _)| *name == args.preset) else {
        let names = PRESETS.map(|(name, _)| name).join(", ");
        return refuse(format!("--preset {}: not known; give one of {names}", args.preset));
    };
    if args.cluster.as_ref().is_some_and(|name| name.trim().is_empty() || name.contains(['#', '\n'])) {
        return refuse("--cluster: give a name, without #".into());
    }
    let path = args.dir.join(NODE_FILE);
    if path.exists() {
        return refuse(format!(
            "{} is there already: choose another --dir, or change that file",
            path.display()
        ));
    }
    if args.cluster.is_none() {
        // Without a name it would be of no use to anybody.
        let there = args.cluster_file.exists().then(|| ClusterFile::read(&args.cluster_file)).transpose()?;
        there.unwrap_or_default().name(&args.cluster_file)?;
    }
    let (config, chosen) = chosen(args, preset)?;
    std::fs::create_dir_all(&args.dir)
        .map_err(Failure::io(format!("{} cannot be made", args.dir.display())))?;
    let key = Identity::load_or_create(args.dir.join(KEY_FILE))?.endpoint_id();
    let address = PeerAddress { node: NodeId(args.node), endpoint: key, addr: args.address };
    let listed = ClusterFile { name: args.cluster.clone(), nodes: vec![address], ..ClusterFile::default() };
    listed.add_to(&args.cluster_file)?;
    write_new(&path, &page::node_file(&config, preset_name, &chosen))?;
    Ok(NewNode {
        node: args.node,
        key: key.to_string(),
        address: args.address.to_string(),
        config: path,
        cluster_file: args.cluster_file.clone(),
    })
}

/// The settings of a new node, and which of them were chosen.
fn chosen(args: &InitArgs, preset: Preset) -> Result<(NodeConfig, Vec<&'static str>), Failure> {
    let cluster_file = std::path::absolute(&args.cluster_file)
        .map_err(Failure::io(format!("{} is no path", args.cluster_file.display())))?;
    let own = [
        ("node.id", args.node.to_string()),
        ("node.cluster_file", cluster_file.display().to_string()),
        ("node.data_dir", DATA.to_owned()),
        ("node.key_file", KEY_FILE.to_owned()),
        ("node.bind", args.address.to_string()),
    ];
    let own = own.map(|(key, text)| (key.to_owned(), text));
    let (mut config, mut chosen) = (NodeConfig::new(preset), Vec::new());
    for (key, text) in own.iter().chain(&args.settings) {
        let setting = find(key).ok_or_else(|| {
            Failure::Refused(format!("--set {key}: no such setting; did you mean {}?", nearest(key)))
        })?;
        (setting.field.write)(&mut config, text)
            .map_err(|problem| Failure::Refused(format!("--set {key} = {text:?}: {problem}")))?;
        chosen.push(setting.key);
    }
    Ok((config, chosen))
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(Failure::io(format!("{} cannot be written", path.display())))
}

/// `iroh-raft client-key`.
pub(crate) fn client(args: &ClientKeyArgs, access: &Access, json: bool) -> Result<ExitCode, Failure> {
    let new = list_client(args, access)?;
    say(json, &new, |new| {
        format!(
            "client {} has the key {}; nodes that run know it once they are started again",
            new.name, new.key
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// Makes a client's key, and lists it in the cluster file.
pub(crate) fn list_client(args: &ClientKeyArgs, access: &Access) -> Result<NewClient, Failure> {
    let rights = parse_rights(&args.rights)
        .map_err(|problem| Failure::Refused(format!("--rights {}: {problem}", args.rights)))?;
    if args.name.is_empty() || args.name.contains(|c: char| c.is_whitespace() || c == '=' || c == '#') {
        return Err(Failure::Refused(format!("--name {:?}: give one word, without = and #", args.name)));
    }
    let key = Identity::load_or_create(&access.key)?.endpoint_id();
    let grant = ClientGrant { endpoint: key, rights };
    let listed = ClusterFile { clients: vec![(args.name.clone(), grant)], ..ClusterFile::default() };
    listed.add_to(&access.cluster_file)?;
    Ok(NewClient {
        name: args.name.clone(),
        key: key.to_string(),
        key_file: access.key.clone(),
        cluster_file: access.cluster_file.clone(),
    })
}

/// `iroh-raft config`.
pub(crate) fn config(command: &ConfigCommand, json: bool) -> Result<ExitCode, Failure> {
    match command {
        ConfigCommand::Reference => {
            out!("{}", page::reference(&NodeConfig::new(Preset::Production)).trim_end());
        }
        #[cfg(feature = "metrics-page")]
        ConfigCommand::Metrics => out!("{}", crate::metrics_page::reference().trim_end()),
        ConfigCommand::Check(args) => {
            let sources = Sources::new(args.config.clone(), args.settings.clone());
            let config = sources.explain()?.finish()?;
            say(json, &config.engine.node.0, |node| format!("node {node} can be started with this"));
        }
        ConfigCommand::Explain(args) => {
            let explained = Sources::new(args.config.clone(), args.settings.clone()).explain()?;
            let lines = page::explanation(&explained);
            if json {
                lines.iter().for_each(|line| say(true, line, |_| String::new()));
            } else {
                let cells = |line: &page::Line| {
                    vec![line.key.to_owned(), line.value.clone(), line.origin.to_string()]
                };
                let rows: Vec<_> = lines.iter().map(cells).collect();
                out!("preset {}", explained.preset);
                out!("{}", table(&["setting", "value", "from"], &rows));
            }
            // What is wrong as a whole is said here as well, after what was asked for.
            explained.finish()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
