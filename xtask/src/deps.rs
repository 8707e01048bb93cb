//! Which package may depend on which: read from `cargo tree`, checked against written rules.

use std::collections::{BTreeMap, BTreeSet};

use crate::step;

const CORE: &str = "iroh-raft-core";
const STORAGE: &str = "iroh-raft-storage";
const NETBRIDGE: &str = "iroh-raft-netbridge";
const ENGINE: &str = "iroh-raft";

/// What a program that only uses a cluster does not get.
const NOT_FOR_CLIENTS: [&str; 4] = ["glommio", "redb", STORAGE, "iroh-raft-driver"];

/// What users get: no server of HTTP may hide in it.
const PRODUCTS: [&str; 6] = [CORE, STORAGE, NETBRIDGE, ENGINE, "iroh-raft-loadgen", "iroh-raft-node"];

/// Packages that nothing may depend on.
const LEAVES: [&str; 6] =
    ["iroh-raft-bench", "iroh-raft-tests", "iroh-raft-sim", "iroh-raft-loadgen", "iroh-raft-node", "xtask"];

/// Runtimes, sockets, files, clocks, threads and randomness: none of it reaches the core, nor does
/// anything named `async-*`.
const IMPURE: [&str; 37] = [
    "backon",
    "chrono",
    "core_affinity",
    "crossbeam",
    "crossbeam-channel",
    "fastrand",
    "flume",
    "futures-executor",
    "futures-util",
    "getrandom",
    "glommio",
    "instant",
    "io-uring",
    "iroh",
    "jiff",
    "libc",
    "metrics",
    "mio",
    "nix",
    "noq",
    "parking_lot",
    "quanta",
    "quinn",
    "rand",
    "rand_core",
    "rayon",
    "redb",
    "rustix",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "tracing",
    "web-time",
    "windows-sys",
    "ahash",
];

/// raft-rs draws its election jitter from `rand`. The core overwrites the draw with its own after
/// every call, so nothing of it reaches an output: the one exception.
const PURITY_EXCEPTION: (&str, &str) = ("raft", "rand");

/// Crates that serve HTTP.
const HTTP_SERVERS: [&str; 14] = [
    "actix-web",
    "axum",
    "axum-core",
    "hyper-server",
    "ntex",
    "poem",
    "rocket",
    "rouille",
    "salvo",
    "tide",
    "tiny_http",
    "tonic",
    "trillium",
    "warp",
];

/// Crates that speak HTTP. Allowed below iroh only: its relay client (hyper, reqwest, websockets)
/// cannot be left out by a feature of iroh 1.4. We run it with relays disabled and without
/// discovery, so no code of it is called; nothing of ours may come to use it.
const HTTP: [&str; 10] = [
    "h2",
    "h3",
    "http",
    "http-body",
    "hyper",
    "hyper-util",
    "reqwest",
    "tokio-tungstenite",
    "tower-http",
    "ureq",
];
const HTTP_EXCEPTION: &str = "iroh";

/// Which package uses which, by name.
#[derive(Default, Debug)]
struct Graph {
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Reads the output of `cargo tree --prefix depth`: each line a depth, a name and a version.
    /// What `(*)` leaves out stands elsewhere in the same output.
    fn parse(tree: &str) -> Graph {
        let mut graph = Graph::default();
        let mut path: Vec<String> = Vec::new();
        for line in tree.lines() {
            let rest = line.trim_start_matches(|letter: char| letter.is_ascii_digit());
            let Ok(depth) = line[..line.len() - rest.len()].parse::<usize>() else { continue };
            let Some(name) = rest.split_whitespace().next() else { continue };
            path.truncate(depth);
            if let Some(user) = path.last() {
                graph.edges.entry(user.clone()).or_default().insert(name.to_owned());
            }
            graph.edges.entry(name.to_owned()).or_default();
            path.push(name.to_owned());
        }
        graph
    }

    fn load(args: &[&str]) -> Result<Graph, String> {
        let mut command = step::cargo(&["tree", "--locked", "--prefix", "depth"]);
        let output =
            command.args(args).output().map_err(|error| format!("cannot run cargo tree: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Graph::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn without_package(mut self, name: &str) -> Graph {
        self.edges.remove(name);
        self
    }

    fn without_edge(mut self, (user, used): (&str, &str)) -> Graph {
        if let Some(names) = self.edges.get_mut(user) {
            names.remove(used);
        }
        self
    }

    /// The shortest way from one package to another, both included.
    fn way(&self, from: &str, to: &str) -> Option<Vec<&str>> {
        let (start, users) = self.edges.get_key_value(from)?;
        let mut ways: Vec<Vec<&str>> = users.iter().map(|used| vec![start.as_str(), used]).collect();
        let mut seen = BTreeSet::new();
        while !ways.is_empty() {
            let mut longer = Vec::new();
            for way in ways {
                let Some(last) = way.last().copied() else { continue };
                if last == to {
                    return Some(way);
                }
                if seen.insert(last) {
                    let next = self.edges.get(last).into_iter().flatten();
                    longer.extend(next.map(|used| way.iter().copied().chain([used.as_str()]).collect()));
                }
            }
            ways = longer;
        }
        None
    }
}

/// Checks every rule. Returns whether all hold.
pub(crate) fn run() -> bool {
    println!("==> dependency rules");
    let broken = match broken_rules() {
        Ok(broken) => broken,
        Err(error) => vec![error],
    };
    for rule in &broken {
        eprintln!("dependency rule broken: {rule}");
    }
    println!("==> dependency rules: {}", if broken.is_empty() { "ok" } else { "FAILED" });
    broken.is_empty()
}

fn broken_rules() -> Result<Vec<String>, String> {
    let core = Graph::load(&["-p", CORE, "-e", "normal,build", "--all-features"])?;
    let shipped = Graph::load(&[["--workspace", "-e", "normal"].as_slice(), &step::ALL_FEATURES].concat())?;
    let all = Graph::load(&["--workspace", "-e", "normal,build,dev"])?;
    let mut broken = core_is_pure(core);
    broken.extend(folders_keep_apart(&shipped));
    broken.extend(nothing_uses_leaves(&all));
    broken.extend(no_http(shipped));
    let client = Graph::load(&["-p", ENGINE, "--no-default-features", "-e", "normal"])?;
    let ways = NOT_FOR_CLIENTS.iter().filter_map(|name| client.way(ENGINE, name));
    broken.extend(ways.map(|way| format!("the client alone does without, but: {}", way.join(" -> "))));
    Ok(broken)
}

fn core_is_pure(core: Graph) -> Vec<String> {
    let core = core.without_edge(PURITY_EXCEPTION);
    let asynchronous = core.edges.keys().map(String::as_str).filter(|name| name.starts_with("async-"));
    let names: BTreeSet<&str> = IMPURE.iter().copied().chain(asynchronous).collect();
    let ways = names.iter().filter_map(|name| core.way(CORE, name));
    ways.map(|way| format!("the core is pure, but: {}", way.join(" -> "))).collect()
}

fn folders_keep_apart(graph: &Graph) -> Vec<String> {
    let apart = [
        (STORAGE, NETBRIDGE),
        (NETBRIDGE, STORAGE),
        (STORAGE, ENGINE),
        (NETBRIDGE, ENGINE),
        (STORAGE, "tokio"),
        (STORAGE, "glommio"),
        (NETBRIDGE, "glommio"),
        (NETBRIDGE, "redb"),
    ];
    let ways = apart.iter().filter_map(|(from, to)| graph.way(from, to));
    ways.map(|way| format!("{} never sees {}, but: {}", way[0], way[way.len() - 1], way.join(" -> ")))
        .collect()
}

fn nothing_uses_leaves(graph: &Graph) -> Vec<String> {
    let mut broken = Vec::new();
    for (user, used) in &graph.edges {
        let leaves = LEAVES.iter().filter(|leaf| used.contains(**leaf));
        broken.extend(leaves.map(|leaf| format!("nothing depends on {leaf}, but {user} does")));
    }
    broken
}

fn no_http(graph: Graph) -> Vec<String> {
    let mut broken = Vec::new();
    for product in PRODUCTS {
        let ways = HTTP_SERVERS.iter().filter_map(|name| graph.way(product, name));
        broken.extend(ways.map(|way| format!("no HTTP server by default, but: {}", way.join(" -> "))));
    }
    let graph = graph.without_package(HTTP_EXCEPTION);
    for product in PRODUCTS {
        let ways = HTTP.iter().filter_map(|name| graph.way(product, name));
        broken.extend(ways.map(|way| format!("HTTP only below iroh, but: {}", way.join(" -> "))));
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "\
0iroh-raft-core v0.1.0 (/somewhere)
1raft v0.7.0
2rand v0.8.8
3libc v0.2.191
1slog v2.8.2
2serde v1.0.0

0iroh-raft v0.1.0 (/somewhere)
1iroh v1.4.1
2hyper v1.12.0
1iroh-raft-core v0.1.0 (/somewhere) (*)
";

    #[test]
    fn a_tree_is_read_with_what_it_leaves_out() {
        let graph = Graph::parse(TREE);
        assert_eq!(
            graph.way("iroh-raft", "libc").unwrap(),
            ["iroh-raft", "iroh-raft-core", "raft", "rand", "libc"]
        );
        assert_eq!(graph.way("iroh-raft-core", "hyper"), None);
    }

    #[test]
    fn the_exceptions_are_as_narrow_as_they_say() {
        assert_eq!(core_is_pure(Graph::parse(TREE)), Vec::<String>::new());
        assert_eq!(no_http(Graph::parse(TREE)), Vec::<String>::new());
        let clock = TREE.replace("2serde", "2async-io");
        assert_eq!(
            core_is_pure(Graph::parse(&clock)),
            ["the core is pure, but: iroh-raft-core -> slog -> async-io"]
        );
        let direct = TREE.replace("1slog", "1rand");
        assert_eq!(core_is_pure(Graph::parse(&direct)).len(), 2, "rand and its libc, by another way");
        let http = TREE.replace("2hyper", "1hyper");
        assert_eq!(no_http(Graph::parse(&http)), ["HTTP only below iroh, but: iroh-raft -> hyper"]);
        let server = TREE.replace("2hyper", "2axum");
        assert_eq!(
            no_http(Graph::parse(&server)),
            ["no HTTP server by default, but: iroh-raft -> iroh -> axum"]
        );
    }

    #[test]
    fn folders_that_meet_and_used_leaves_are_told() {
        let meet = "0iroh-raft-storage v0\n1x v1\n2iroh-raft-netbridge v0\n";
        assert_eq!(folders_keep_apart(&Graph::parse(meet)).len(), 1);
        let leaf = "0iroh-raft v0\n1iroh-raft-tests v0\n";
        assert_eq!(
            nothing_uses_leaves(&Graph::parse(leaf)),
            ["nothing depends on iroh-raft-tests, but iroh-raft does"]
        );
    }
}
