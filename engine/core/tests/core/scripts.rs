//! Golden scripts: what a shard says, step by step, compared to the letter.
//!
//! `tests/scripts/*.txt` hold blocks of commands, a line `----`, and what was said. Nothing is
//! delivered or made durable unless a command says so. `UPDATE_SCRIPTS=1 cargo test -p
//! iroh-raft-core --test core scripts` rewrites them; the diff is what is reviewed.
//!
//! `world` has the nodes, the wires and the disks; `language` the commands; `message` and `trace`
//! how things are written.

mod language;
mod message;
mod snapshots;
mod trace;
mod world;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use world::World;

/// Between commands and what was said.
const RULE: &str = "----";
/// Said when nothing was.
const SILENCE: &str = "(nothing)";

/// Fewer scripts than this means that the folder was not found whole.
const SCRIPTS_MIN: usize = 28;

#[test]
fn scripts_say_what_is_written_in_them() {
    let paths = script_paths();
    assert!(paths.len() >= SCRIPTS_MIN, "only {} scripts", paths.len());
    let is_updating = is_updating();
    let mut wrong = Vec::new();
    for path in paths {
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        let expected = load(&path);
        // A panic is told like any other failure, with the script's name.
        let replayed =
            catch_unwind(|| replay(&expected)).unwrap_or_else(|_| Err("a panic, see above".to_owned()));
        match replayed {
            Ok(found) if found == expected => {}
            Ok(found) if is_updating => save(&path, &found),
            Ok(found) => wrong.push(format!("{name}:\n{}", difference(&expected, &found))),
            Err(error) => wrong.push(format!("{name}: {error}\n")),
        }
    }
    assert!(wrong.is_empty(), "scripts fail (UPDATE_SCRIPTS=1 rewrites what is said):\n{}", wrong.join("\n"));
}

/// Runs a script and writes it down again with what was said this time.
fn replay(script: &str) -> Result<String, String> {
    if !script.starts_with("# ") {
        return Err("a script begins with the rule that it shows, and its source".to_owned());
    }
    let mut world = World::new();
    let mut found = String::new();
    let mut lines = script.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        found.push_str(line);
        found.push('\n');
        if line == RULE {
            let mut said = world.trace.take_lines();
            if said.is_empty() {
                said.push(SILENCE.to_owned());
            }
            said.iter().for_each(|line| found.extend([line, "\n"]));
            // What was said the last time, up to the empty line that ends it.
            if lines.by_ref().any(|(_, line)| line.is_empty()) {
                found.push('\n');
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            language::run(&mut world, line).map_err(|error| format!("line {}: {error}", at + 1))?;
        }
    }
    match world.trace.take_lines().first() {
        Some(line) => Err(format!("after its last rule something was still said: {line}")),
        None => Ok(found),
    }
}

/// The first lines that differ, with a few before them.
fn difference(expected: &str, found: &str) -> String {
    const LINES_BEFORE: usize = 4;
    const LINES_AFTER: usize = 8;
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let same = expected.iter().zip(&found).take_while(|(expected, found)| expected == found).count();
    let part = |sign: &str, lines: &[&str], from: usize, to: usize| -> String {
        let lines = lines.iter().take(to).skip(from);
        lines.map(|line| format!("  {sign} {line}\n")).collect()
    };
    let before = part(" ", &expected, same.saturating_sub(LINES_BEFORE), same);
    let to = same + LINES_AFTER;
    format!("  line {}:\n{before}{}{}", same + 1, part("-", &expected, same, to), part("+", &found, same, to))
}

#[expect(clippy::disallowed_methods, reason = "the scripts are files, for whoever reads them")]
fn script_paths() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scripts");
    let files = std::fs::read_dir(&folder).expect("the folder of scripts");
    let paths = files.map(|file| file.expect("a file of the folder").path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "txt")).collect();
    paths.sort();
    paths
}

#[expect(clippy::disallowed_methods, reason = "the scripts are files, for whoever reads them")]
fn load(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a readable script")
}

#[expect(clippy::disallowed_methods, reason = "scripts are rewritten when asked to")]
fn save(path: &Path, script: &str) {
    std::fs::write(path, script).expect("a writable script");
}

#[expect(clippy::disallowed_methods, reason = "whether to rewrite is asked by whoever runs the tests")]
fn is_updating() -> bool {
    std::env::var("UPDATE_SCRIPTS").is_ok_and(|value| value == "1")
}
