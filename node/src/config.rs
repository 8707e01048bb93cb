//! What a node is told: defaults, a preset, a file, the environment, flags; each wins over those before. Every mistake is one
//! line that names the key, the value, what is wrong with it and what would be right.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use iroh_raft::net::allow::ClientGrant;
use iroh_raft::{EngineError, NodeId, Preset};
use serde::Serialize;
use toml::de::{DeTable, DeValue};

pub(crate) mod page;
pub(crate) mod settings;
pub(crate) mod shape;

use iroh_raft::net::cluster_file::{ClusterFile, ClusterFileError};
use settings::{NodeConfig, PRESETS, SETTINGS, find, nearest, variable};
use shape::{Shape, list};

const PRESET: &str = "preset";
const PREFIX: &str = "IROH_RAFT_";

/// Where values come from.
#[derive(Clone, Default, Debug)]
pub(crate) struct Sources {
    /// A TOML file.
    pub(crate) file: Option<PathBuf>,
    /// Variables of the environment; those of others are let be.
    pub(crate) environment: Vec<(String, String)>,
    /// Keys and values given on the command line.
    pub(crate) flags: Vec<(String, String)>,
}

/// Where the value of a setting comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Origin {
    /// Nobody said anything.
    Default,
    /// The preset is another one than the default.
    Preset(&'static str),
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// The command line.
    Flag,
    /// The cluster file, which says the cluster's name to whoever gives none.
    ClusterFile(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Preset(name) => write!(f, "preset {name}"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment(name) => write!(f, "{name}"),
            Origin::Flag => f.write_str("--set"),
            Origin::ClusterFile(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Something that cannot be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mistake {
    /// Where it was said; none where nobody did.
    pub(crate) origin: Option<Origin>,
    /// The key.
    pub(crate) key: String,
    /// The value; none where it is not about one.
    pub(crate) value: Option<String>,
    /// What is wrong, and what would be right.
    pub(crate) problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value:?}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// Why a node is not told what it should do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{} cannot be read ({source}): name the node's file with --config, or make one with `iroh-raft init`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}", lines(.0))]
    Mistakes(Vec<Mistake>),
    #[error(transparent)]
    Cluster(#[from] ClusterFileError),
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A configuration, and where each of its values comes from.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) config: NodeConfig,
    pub(crate) preset: &'static str,
    pub(crate) origins: BTreeMap<&'static str, Origin>,
}

/// A value that somebody gave.
struct Given {
    key: String,
    text: String,
    origin: Origin,
}

impl Sources {
    /// What the environment of this process and these flags say, with a file if there is one.
    pub(crate) fn new(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Sources {
        // Others may have any bytes; what is ours and is no text is no value of any setting.
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        Sources { file, environment: std::env::vars_os().filter_map(text).collect(), flags }
    }

    /// The configuration. Nothing is asked of the machine but the files that are named.
    pub(crate) fn explain(&self) -> Result<Explained, ConfigError> {
        let mut mistakes = Vec::new();
        let given = self.given(&mut mistakes)?;
        let mut preset = PRESETS[0];
        for Given { text, origin, .. } in given.iter().filter(|given| given.key == PRESET) {
            match PRESETS.iter().find(|(name, _)| name == text) {
                Some(found) => preset = *found,
                None => {
                    let names = PRESETS.map(|(name, _)| name).join(", ");
                    let problem = format!("not known: give one of {names}");
                    mistakes.push(Mistake::of(origin, PRESET, text, problem));
                }
            }
        }
        let (name, preset) = preset;
        let (mut config, usual) = (NodeConfig::new(preset), NodeConfig::new(Preset::default()));
        if let Some(file) = &self.file {
            // What the file does not name is beside it as well.
            config.cluster_file = beside(file, &config.cluster_file);
            config.engine.data_dir = beside(file, &config.engine.data_dir);
        }
        let origin = |setting: &settings::Setting| {
            let is_usual = setting.field.shape == Shape::Path
                || (setting.field.read)(&config) == (setting.field.read)(&usual);
            (setting.key, if is_usual { Origin::Default } else { Origin::Preset(name) })
        };
        let mut origins: BTreeMap<_, _> = SETTINGS.iter().map(origin).collect();
        for Given { key, text, origin } in given.into_iter().filter(|given| given.key != PRESET) {
            let Some(setting) = find(&key) else {
                let problem = format!("no such setting: did you mean {}?", nearest(&key));
                mistakes.push(Mistake { origin: Some(origin), key, value: None, problem });
                continue;
            };
            let text = match (&origin, setting.field.shape) {
                (Origin::File { path, .. }, Shape::Path) if !text.is_empty() => {
                    beside(path, Path::new(&text)).display().to_string()
                }
                _ => text,
            };
            match (setting.field.write)(&mut config, &text) {
                Ok(()) => _ = origins.insert(setting.key, origin),
                Err(problem) => mistakes.push(Mistake::of(&origin, setting.key, &text, problem)),
            }
        }
        if mistakes.is_empty() {
            let mut explained = Explained { config, preset: name, origins };
            explained.take_name();
            Ok(explained)
        } else {
            Err(ConfigError::Mistakes(mistakes))
        }
    }

    /// Everything that is said, weakest first.
    fn given(&self, mistakes: &mut Vec<Mistake>) -> Result<Vec<Given>, ConfigError> {
        let mut given = Vec::new();
        if let Some(path) = &self.file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            match read_file(path, &text) {
                Ok(values) => given.extend(values),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        for (name, text) in self.environment.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let setting = SETTINGS.iter().find(|setting| variable(setting.key) == *name);
            let key = match setting {
                Some(setting) => setting.key.to_owned(),
                None if *name == variable(PRESET) => PRESET.to_owned(),
                None => {
                    let meant = name[PREFIX.len()..].to_lowercase().replacen('_', ".", 1);
                    let problem = format!("no such setting: did you mean {}?", variable(nearest(&meant)));
                    mistakes.push(Mistake { origin: None, key: name.clone(), value: None, problem });
                    continue;
                }
            };
            given.push(Given { key, text: text.clone(), origin: Origin::Environment(name.clone()) });
        }
        let flags = self.flags.iter().cloned();
        given.extend(flags.map(|(key, text)| Given { key, text, origin: Origin::Flag }));
        Ok(given)
    }
}

impl Mistake {
    fn of(origin: &Origin, key: &str, value: &str, problem: String) -> Mistake {
        Mistake { origin: Some(origin.clone()), key: key.to_owned(), value: Some(value.to_owned()), problem }
    }
}

/// A path of a file is meant from where the file is.
fn beside(file: &Path, path: &Path) -> PathBuf {
    file.parent().unwrap_or_else(|| Path::new("")).join(path)
}

/// The values of a TOML file, with their lines.
fn read_file(path: &Path, text: &str) -> Result<Vec<Given>, Mistake> {
    let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let origin = |at: usize| Origin::File { path: path.to_path_buf(), line: line_of(at) };
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.lines().nth(line_of(at) - 1).unwrap_or_default().trim().to_owned();
        let problem = format!(
            "not TOML ({}): write `key = value` below a [section]",
            error.message().replace('\n', ", ")
        );
        Mistake { origin: Some(origin(at)), key: line, value: None, problem }
    })?;
    let mut given = Vec::new();
    let mut open: Vec<(String, &DeTable<'_>)> = vec![(String::new(), table.get_ref())];
    while let Some((prefix, table)) = open.pop() {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => open.push((format!("{key}."), inner)),
                leaf => {
                    let (text, origin) = (text_of(leaf, &text[value.span()]), origin(name.span().start));
                    given.push(Given { key, text, origin });
                }
            }
        }
    }
    Ok(given)
}

/// A value as text: of a list its items, of all else what stands there.
fn text_of(value: &DeValue<'_>, source: &str) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Array(items) => list(items.iter().map(|item| match item.get_ref() {
            DeValue::Integer(number) => number.to_string(),
            other => text_of(other, ""),
        })),
        _ => source.to_owned(),
    }
}

impl Explained {
    /// Takes the cluster's name from the cluster file if nobody said it. A file that cannot be read is no reason not to explain the
    /// rest: [`finish`](Explained::finish) says what is wrong with it.
    fn take_name(&mut self) {
        let path = &self.config.cluster_file;
        if self.origins.get("node.cluster") != Some(&Origin::Default) {
            return;
        }
        let Ok(file) = ClusterFile::read(path) else { return };
        let Ok(name) = file.name(path) else { return };
        self.config.cluster = name.to_owned();
        self.config.engine.cluster = iroh_raft::cluster_id(name);
        self.origins.insert("node.cluster", Origin::ClusterFile(path.clone()));
    }

    /// The configuration with who belongs to the cluster, checked as a whole.
    pub(crate) fn finish(mut self) -> Result<NodeConfig, ConfigError> {
        let mut mistakes = Vec::new();
        if self.config.engine.node == NodeId(0) {
            let problem =
                "missing: give this node a number from 1, of no other node of the cluster".to_owned();
            mistakes.push(Mistake { origin: None, key: "node.id".to_owned(), value: None, problem });
            return Err(ConfigError::Mistakes(mistakes));
        }
        let file = ClusterFile::read(&self.config.cluster_file)?;
        let name = file.name(&self.config.cluster_file)?;
        if name != self.config.cluster {
            return Err(ConfigError::Cluster(ClusterFileError::OtherCluster {
                path: self.config.cluster_file.clone(),
                found: name.to_owned(),
                wanted: self.config.cluster.clone(),
            }));
        }
        let own = self.config.engine.node;
        self.config.engine.peers = file.nodes.into_iter().filter(|node| node.node != own).collect();
        let clients: Vec<ClientGrant> = file.clients.into_iter().map(|(_, client)| client).collect();
        self.config.engine.clients = clients;
        match self.config.engine.check() {
            Ok(()) => Ok(self.config),
            Err(error) => Err(ConfigError::Mistakes(vec![self.whole(error)])),
        }
    }

    /// What the engine refuses, as the mistake of the setting that it names.
    fn whole(&self, error: EngineError) -> Mistake {
        let (name, problem) = match error {
            EngineError::Config { setting, problem } => (setting, problem),
            error => ("", error.to_string()),
        };
        let key = ENGINE_NAMES.iter().find(|(theirs, _)| *theirs == name).map_or(name, |(_, key)| key);
        let value = find(key).map(|setting| (setting.field.read)(&self.config));
        Mistake { origin: self.origins.get(key).cloned(), key: key.to_owned(), value, problem }
    }
}

/// What the engine calls settings that have another name here.
const ENGINE_NAMES: [(&str, &str); 10] = [
    ("node", "node.id"),
    ("shards", "shards.count"),
    ("placed", "shards.placed"),
    ("groups", "groups.count"),
    ("peers", "node.cluster_file"),
    ("voters", "groups.voters"),
    ("record_bytes_max", "groups.record_bytes_max"),
    ("bridge_threads", "bridge.threads"),
    ("scrub_period", "storage.scrub_period"),
    ("core", "raft"),
];

#[cfg(test)]
mod tests;
