//! The settings written down: as the file of a node, as a page of reference, as what holds now.

use std::fmt::Write as _;

use serde::Serialize;

use super::settings::{NodeConfig, SETTINGS, Setting, variable};
use super::shape::{Shape, items};
use super::{Explained, Origin};

/// A value as TOML.
pub(crate) fn toml_value(shape: Shape, text: &str) -> String {
    // A JSON string is a basic string of TOML.
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let bare = |text: &str| if text.parse::<u64>().is_ok() { text.to_owned() } else { quoted(text) };
    match shape {
        Shape::Number { .. } | Shape::Flag => text.to_owned(),
        Shape::List(_) => format!("[{}]", items(text).map(bare).collect::<Vec<_>>().join(", ")),
        _ => quoted(text),
    }
}

/// A node's file: what was chosen stands there, all else as a comment with its default.
pub(crate) fn node_file(config: &NodeConfig, preset: &str, chosen: &[&str]) -> String {
    let mut out = format!(
        "# A node of iroh-raft. What is commented out has its default. `iroh-raft config explain` shows what holds, and why.\n\n\
         preset = {preset:?}\n"
    );
    let mut section = "";
    for Setting { key, meaning, cost, hazard, field } in SETTINGS {
        let (of, name) = key.split_once('.').unwrap_or(("", key));
        if of != section {
            section = of;
            _ = write!(out, "\n[{of}]\n");
        }
        let mut note = format!("# {meaning}");
        for more in [*cost, *hazard].into_iter().filter(|more| !more.is_empty()) {
            _ = write!(note, " {more}");
        }
        let value = toml_value(field.shape, &(field.read)(config));
        let mark = if chosen.contains(key) { "" } else { "# " };
        _ = write!(out, "{note}\n{mark}{name} = {value}\n");
    }
    out
}

/// The page of reference.
pub(crate) fn reference(config: &NodeConfig) -> String {
    let mut out = String::from(
        "# Settings of a node\n\n\
         Made by `iroh-raft config reference`. A value comes from the default, the preset, the node's file, the environment or `--set KEY=VALUE`; each wins \
         over those before. `iroh-raft config explain` shows what holds, and where it comes from.\n\n\
         Defaults are those of the preset `production`. `development` has fast elections and small caches, `testing` small caches; neither pins shards.\n",
    );
    let mut section = "";
    for Setting { key, meaning, cost, hazard, field } in SETTINGS {
        let (of, _) = key.split_once('.').unwrap_or(("", key));
        if of != section {
            section = of;
            _ = write!(out, "\n## {of}\n");
        }
        let value = (field.read)(config);
        let value = if value.is_empty() { "none".to_owned() } else { format!("`{value}`") };
        _ = write!(out, "\n### `{key}`\n\n{meaning}\n\n- Default {value}; {}.\n", field.shape);
        if !cost.is_empty() {
            _ = writeln!(out, "- {cost}");
        }
        if !hazard.is_empty() {
            _ = writeln!(out, "- **Hazard**: {hazard}");
        }
        _ = writeln!(out, "- `{}`", variable(key));
    }
    out
}

/// A setting as it holds.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

/// All settings as they hold.
pub(crate) fn explanation(explained: &Explained) -> Vec<Line> {
    let line = |Setting { key, field, .. }: &Setting| Line {
        key,
        value: (field.read)(&explained.config),
        origin: explained.origins.get(key).cloned().unwrap_or(Origin::Default),
    };
    SETTINGS.iter().map(line).collect()
}
