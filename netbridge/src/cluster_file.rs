//! The cluster file: who belongs to a cluster, the same text for all nodes and clients.
//!
//! ```text
//! cluster = orders
//! node 1 = KEY@10.0.0.1:4701
//! client billing = KEY append+read
//! ```

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use iroh::EndpointId;
use iroh_raft_core::NodeId;

use crate::allow::{ClientGrant, PeerAddress};
use crate::port::Rights;

/// What the file says.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ClusterFile {
    /// The cluster's name.
    pub name: Option<String>,
    /// Its nodes.
    pub nodes: Vec<PeerAddress>,
    /// Its clients, with their names.
    pub clients: Vec<(String, ClientGrant)>,
}

/// Why a cluster file is none.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// There is no such file, or it cannot be read.
    #[error("{} cannot be read ({source}): name the cluster file, which `iroh-raft init` writes", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line says nothing that is known.
    #[error("{}:{line}: {text:?}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What it says.
        text: String,
        /// What is wrong with that, and what would be right.
        problem: String,
    },
    /// The cluster has no name.
    #[error("{} has no line `cluster = NAME`: add it, or give `init` --cluster NAME", path.display())]
    NoName {
        /// The file.
        path: PathBuf,
    },
    /// It is of another cluster than the one that something is added to.
    #[error("{} is the cluster {found}, not {wanted}: choose another file, or that name", path.display())]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// Its cluster.
        found: String,
        /// The other one.
        wanted: String,
    },
    /// A client is there with other rights.
    #[error("{} has that key as client {name} with the rights {rights}: change that line, and start the nodes again", path.display())]
    OtherRights {
        /// The file.
        path: PathBuf,
        /// The client's name there.
        name: String,
        /// Its rights there.
        rights: String,
    },
    /// A node of that number is there with another key or address.
    #[error("{} has node {node} already, as {found}: choose another number, or remove that line", path.display())]
    NodeTwice {
        /// The file.
        path: PathBuf,
        /// The number.
        node: NodeId,
        /// Its key and address there.
        found: String,
    },
}

const HEAD: &str = "# Who belongs to the cluster, for all its nodes and clients. `iroh-raft init` adds lines; nodes read it at\n\
                    # their start, and once more when they get SIGHUP.\n";
const LINES: &str = "a line is `cluster = NAME`, `node NUMBER = KEY@ADDRESS` or `client NAME = KEY RIGHTS`";

impl ClusterFile {
    /// Reads a file.
    ///
    /// # Errors
    /// That it cannot be read, or the first line that is wrong.
    pub fn read(path: &Path) -> Result<ClusterFile, ClusterFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ClusterFileError::Read { path: path.to_path_buf(), source })?;
        ClusterFile::parse(&text).map_err(|(line, text, problem)| ClusterFileError::Line {
            path: path.to_path_buf(),
            line,
            text,
            problem,
        })
    }

    /// The cluster's name, which a client needs. `path`: for the error.
    ///
    /// # Errors
    /// [`ClusterFileError::NoName`].
    pub fn name(&self, path: &Path) -> Result<&str, ClusterFileError> {
        self.name.as_deref().ok_or_else(|| ClusterFileError::NoName { path: path.to_path_buf() })
    }

    fn parse(text: &str) -> Result<ClusterFile, (usize, String, String)> {
        let mut file = ClusterFile::default();
        for (number, line) in (1..).zip(text.lines()) {
            let said = line.split_once('#').map_or(line, |(said, _)| said).trim();
            if !said.is_empty() {
                file.take(said).map_err(|problem| (number, said.to_owned(), problem))?;
            }
        }
        Ok(file)
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        let (left, value) = line.split_once('=').ok_or(LINES)?;
        let (left, value) = (left.trim(), value.trim());
        match left.split_once(char::is_whitespace).map_or((left, ""), |(what, which)| (what, which.trim())) {
            ("cluster", "") if value.is_empty() => Err("the name is missing".to_owned()),
            ("cluster", "") => match self.name.replace(value.to_owned()) {
                Some(before) if before != value => Err(format!("it was {before} above: keep one of the two")),
                _ => Ok(()),
            },
            ("node", number) => {
                let node = parse_node(number, value)?;
                if let Some(other) =
                    self.nodes.iter().find(|other| other.node == node.node || other.endpoint == node.endpoint)
                {
                    return Err(format!(
                        "node {} above has that number or key: each has its own",
                        other.node
                    ));
                }
                self.nodes.push(node);
                Ok(())
            }
            ("client", name) => {
                let client = parse_client(value)?;
                if let Some((other, _)) =
                    self.clients.iter().find(|(_, other)| other.endpoint == client.endpoint)
                {
                    return Err(format!("client {other} above has that key: each has its own"));
                }
                self.clients.push((name.to_owned(), client));
                Ok(())
            }
            _ => Err(LINES.to_owned()),
        }
    }

    /// Adds what is new to a file, which is created if it is not there.
    ///
    /// # Errors
    /// What is there and contradicts it; or that the file cannot be read or written.
    pub fn add_to(&self, path: &Path) -> Result<(), ClusterFileError> {
        let there = if path.exists() { Some(ClusterFile::read(path)?) } else { None };
        let mut lines = if there.is_none() { HEAD.to_owned() } else { String::new() };
        if !std::fs::read(path).unwrap_or_default().ends_with(b"\n") && there.is_some() {
            // Somebody's editor left the last line open.
            lines.push('\n');
        }
        let there = there.unwrap_or_default();
        match (&there.name, &self.name) {
            (None, Some(name)) => _ = writeln!(lines, "cluster = {name}"),
            (Some(found), Some(wanted)) if found != wanted => {
                return Err(ClusterFileError::OtherCluster {
                    path: path.to_path_buf(),
                    found: found.clone(),
                    wanted: wanted.clone(),
                });
            }
            _ => {}
        }
        for node in &self.nodes {
            match there.nodes.iter().find(|other| other.node == node.node) {
                None => _ = writeln!(lines, "node {} = {}@{}", node.node, node.endpoint, node.addr),
                Some(same) if same == node => {}
                Some(other) => {
                    return Err(ClusterFileError::NodeTwice {
                        path: path.to_path_buf(),
                        node: node.node,
                        found: format!("{}@{}", other.endpoint, other.addr),
                    });
                }
            }
        }
        for (name, client) in &self.clients {
            let same = there.clients.iter().find(|(_, other)| other.endpoint == client.endpoint);
            if let Some((name, other)) = same.filter(|(_, other)| other.rights != client.rights) {
                return Err(ClusterFileError::OtherRights {
                    path: path.to_path_buf(),
                    name: name.clone(),
                    rights: show_rights(other.rights),
                });
            }
            if same.is_none() {
                _ = writeln!(lines, "client {name} = {} {}", client.endpoint, show_rights(client.rights));
            }
        }
        let written = std::fs::OpenOptions::new().create(true).append(true).open(path);
        written
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .map_err(|source| ClusterFileError::Write { path: path.to_path_buf(), source })
    }
}

/// A node from `NUMBER` and `KEY@ADDRESS`.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn parse_node(number: &str, text: &str) -> Result<PeerAddress, String> {
    let node = match number.parse() {
        Ok(0) | Err(_) => return Err(format!("{number:?} is no number of a node: they count from 1")),
        Ok(number) => NodeId(number),
    };
    let (key, address) = text.split_once('@').ok_or("a node is KEY@ADDRESS; `iroh-raft init` prints both")?;
    let addr = address.trim().parse();
    Ok(PeerAddress {
        node,
        endpoint: parse_key(key.trim())?,
        addr: addr.map_err(|_| format!("{address} is no address with a port, such as 10.0.0.1:4701"))?,
    })
}

/// `KEY RIGHTS`; without rights, those to append and to read.
fn parse_client(text: &str) -> Result<ClientGrant, String> {
    let (key, rights) = text.split_once(char::is_whitespace).unwrap_or((text, "append+read"));
    Ok(ClientGrant { endpoint: parse_key(key)?, rights: parse_rights(rights.trim())? })
}

fn parse_key(text: &str) -> Result<EndpointId, String> {
    text.parse().map_err(|_| format!("{text:?} is no public key: `iroh-raft init` prints it"))
}

/// Rights by their names, joined by `+`.
///
/// # Errors
/// The name that is none, and those that are.
pub fn parse_rights(text: &str) -> Result<Rights, String> {
    let mut rights = Rights::default();
    for right in text.split('+') {
        match right.trim() {
            "append" => rights.append = true,
            "read" => rights.read = true,
            "manage" => rights.manage = true,
            other => return Err(format!("{other:?} is no right: choose among append, read and manage")),
        }
    }
    Ok(rights)
}

fn show_rights(rights: Rights) -> String {
    let named = [(rights.append, "append"), (rights.read, "read"), (rights.manage, "manage")];
    named.into_iter().filter_map(|(is_given, name)| is_given.then_some(name)).collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    use crate::identity::Identity;

    use super::*;

    #[test]
    fn what_is_added_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster");
        let node = |number, port| PeerAddress {
            node: NodeId(number),
            endpoint: Identity::generate().endpoint_id(),
            addr: ([127, 0, 0, 1], port).into(),
        };
        let rights = Rights { append: true, read: false, manage: true };
        let client = ClientGrant { endpoint: Identity::generate().endpoint_id(), rights };
        let first = ClusterFile {
            name: Some("orders".into()),
            nodes: vec![node(1, 4701)],
            clients: vec![("billing".into(), client)],
        };
        first.add_to(&path).unwrap();
        assert_eq!(ClusterFile::read(&path).unwrap(), first);
        let second = ClusterFile { nodes: vec![node(2, 4702)], ..ClusterFile::default() };
        second.add_to(&path).unwrap();
        first.add_to(&path).unwrap();
        let both = ClusterFile { nodes: vec![first.nodes[0], second.nodes[0]], ..first.clone() };
        assert_eq!(ClusterFile::read(&path).unwrap(), both);

        let other = ClusterFile { name: Some("bills".into()), ..ClusterFile::default() };
        assert!(matches!(other.add_to(&path), Err(ClusterFileError::OtherCluster { .. })));
        let taken = ClusterFile { nodes: vec![node(2, 4709)], ..ClusterFile::default() };
        assert!(matches!(taken.add_to(&path), Err(ClusterFileError::NodeTwice { .. })));
        assert_eq!(ClusterFile::read(&path).unwrap(), both);
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        let key = Identity::generate().endpoint_id();
        for (line, says) in [
            ("nodes 1 = x".to_owned(), "a line is"),
            ("node 0 = x@y".to_owned(), "count from 1"),
            ("node 1".to_owned(), "a line is"),
            (format!("node 1 = {key}"), "KEY@ADDRESS"),
            (format!("node 1 = {key}@localhost"), "no address"),
            ("node 1 = abc@127.0.0.1:1".to_owned(), "no public key"),
            (format!("client a = {key} write"), "append, read and manage"),
            ("cluster =".to_owned(), "missing"),
            ("cluster = b".to_owned(), "it was a above"),
            (format!("node 2 = {key}@127.0.0.1:1"), "that number or key"),
        ] {
            let (number, _, problem) =
                ClusterFile::parse(&format!("cluster = a\nnode 9 = {key}@127.0.0.1:9\n{line}")).unwrap_err();
            assert_eq!(number, 3, "{line}");
            assert!(problem.contains(says), "{line}: {problem}");
        }
    }
}
