//! What commands say: to people by default, as JSON when asked.

use std::io::Write;

use serde::Serialize;

use crate::cluster::AccessError;
use crate::config::ConfigError;
use iroh_raft::net::cluster_file::ClusterFileError;

/// Why a command could not do what it was asked to. One line each, with what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    ClusterFile(#[from] ClusterFileError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Client(#[from] iroh_raft::net::client::ClientError),
    #[error(transparent)]
    Identity(#[from] iroh_raft::net::identity::IdentityError),
    #[error(transparent)]
    Engine(#[from] iroh_raft::EngineError),
    #[error(transparent)]
    Storage(#[from] iroh_raft::storage::StorageError),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    /// Says what was done as an I/O error came.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Failure {
        let what = what.into();
        move |source| Failure::Io { what, source }
    }
}

/// Says a result: as JSON in a line, or as text for people.
pub(crate) fn say<T: Serialize>(is_json: bool, value: &T, text: impl FnOnce(&T) -> String) {
    let line = if is_json {
        serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
    } else {
        text(value)
    };
    put(&line);
}

/// Says a line, as `println!` does, but for a reader that is gone.
macro_rules! out {
    ($($arg:tt)*) => { $crate::say::put(&format!($($arg)*)) };
}

/// Says a line. When nobody reads any more the command is over: what it was asked for is said to nobody.
pub(crate) fn put(line: &str) {
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Rows under a head, each column as wide as its widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(&mut head.iter().copied());
    let rows = rows.iter().map(|row| line(&mut row.iter().map(String::as_str)));
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["1".to_owned(), "leads".to_owned()], vec!["100".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["node", "is"], &rows), "node  is\n1     leads\n100   x");
    }
}
