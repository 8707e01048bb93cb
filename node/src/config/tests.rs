use std::path::Path;

use iroh_raft::Identity;

use super::*;

/// A cluster file that node 1 can be started with.
fn cluster_file() -> String {
    let [one, two] = [Identity::generate(), Identity::generate()].map(|key| key.endpoint_id());
    format!("cluster = orders\nnode 1 = {one}@127.0.0.1:4701\nnode 2 = {two}@127.0.0.1:4702\n")
}

fn sources(folder: &Path, text: &str) -> Sources {
    let file = folder.join("node.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::write(folder.join("cluster"), cluster_file()).unwrap();
    Sources { file: Some(file), ..Sources::default() }
}

fn start(sources: &Sources) -> Result<NodeConfig, ConfigError> {
    sources.explain()?.finish()
}

fn value(explained: &Explained, key: &str) -> String {
    (find(key).unwrap().field.read)(&explained.config)
}

#[test]
fn each_source_wins_over_those_before() {
    let folder = tempfile::tempdir().unwrap();
    let text = "preset = \"development\"\n[node]\nid = 1\n[shards]\ncount = 2\nring_items = 512\n[bridge]\nthreads = 3\n";
    let mut sources = sources(folder.path(), text);
    sources.environment =
        [("IROH_RAFT_SHARDS_RING_ITEMS", "1024"), ("IROH_RAFT_BRIDGE_THREADS", "4"), ("PATH", "/bin")]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .to_vec();
    sources.flags = vec![("bridge.threads".to_owned(), "5".to_owned())];
    let explained = sources.explain().unwrap();
    let file = folder.path().join("node.toml");
    for (key, text, origin) in [
        ("raft.heartbeat_ticks", "2", Origin::Default),
        ("raft.tick", "10ms", Origin::Preset("development")),
        ("shards.count", "2", Origin::File { path: file, line: 5 }),
        ("shards.ring_items", "1024", Origin::Environment("IROH_RAFT_SHARDS_RING_ITEMS".to_owned())),
        ("bridge.threads", "5", Origin::Flag),
        ("node.cluster", "orders", Origin::ClusterFile(folder.path().join("cluster"))),
    ] {
        assert_eq!((value(&explained, key).as_str(), &explained.origins[key]), (text, &origin), "{key}");
    }
    let config = explained.finish().unwrap();
    assert_eq!((config.cluster.as_str(), config.engine.peers.len()), ("orders", 1));
    // A path of the file is meant from where the file is.
    let data = sources.flags.len();
    sources.flags.truncate(data - 1);
    sources.flags.push(("node.data_dir".to_owned(), "here".to_owned()));
    assert_eq!(start(&sources).unwrap().engine.data_dir, Path::new("here"));
}

/// What stands in the file, and what the answer names: key, value, reason, remedy.
const MISTAKES: [(&str, &[&str]); 32] = [
    ("[node]\nid = 0\n", &["node.toml:2: node.id", "\"0\"", "too small", "a number from 1"]),
    ("[node]\nid = \"one\"\n", &["node.id", "\"one\"", "not a whole number"]),
    ("[shards]\ncount = 1\n", &["node.id", "missing", "a number from 1"]),
    (
        "[node]\nid = 1\nbind = \"localhost\"\n",
        &["node.toml:3: node.bind", "\"localhost\"", "not an address", "10.0.0.1:4701"],
    ),
    ("[node]\nid = 1\ndata_dr = \"x\"\n", &["node.toml:3: node.data_dr", "did you mean node.data_dir?"]),
    ("[node]\nid = 1\ndata_dir = \"\"\n", &["node.data_dir", "empty"]),
    (
        "[node]\nid = 1\njournal_bytes = \"1GiB\"\n",
        &["node.journal_bytes", "did you mean storage.journal_bytes?"],
    ),
    ("[node]\nid = 1\nlog = \"=x=\"\n", &["node.log", "\"=x=\"", "info"]),
    ("[node]\nid = 1\nlog_format = \"xml\"\n", &["node.log_format", "\"xml\"", "text, json"]),
    ("[node]\nid = 1\ncluster = \"bills\"\n", &["is the cluster orders, not bills", "choose another file"]),
    ("[node]\nid = 1\ncluster_file = \"nowhere\"\n", &["nowhere", "cannot be read", "iroh-raft init"]),
    ("[node]\nid = 1\nstop_deadline = 10\n", &["node.stop_deadline", "\"10\"", "no unit", "50ms or 7d"]),
    (
        "[node]\nid = 1\n[metrics]\nlisten = \"0.0.0.0:9464\"\n",
        &["node.toml:4: metrics.listen", "\"0.0.0.0:9464\"", "not on loopback", "127.0.0.1:9464"],
    ),
    ("[node]\nid = 1\n[metrics]\nlisten = 9464\n", &["metrics.listen", "\"9464\"", "not an address", "none"]),
    (
        "preset = \"fast\"\n[node]\nid = 1\n",
        &["node.toml:1: preset", "\"fast\"", "production, development, testing"],
    ),
    (
        "[node]\nid = 1\n[shards]\ncount = 0\n",
        &["node.toml:4: shards.count", "\"0\"", "too small", "1 to 1024"],
    ),
    ("[node]\nid = 1\n[shards]\ncount = 70000\n", &["shards.count", "\"70000\"", "too large"]),
    ("[node]\nid = 1\n[shards]\ncount = 1.5\n", &["shards.count", "\"1.5\"", "not a whole number"]),
    (
        "[node]\nid = 1\n[shards]\npinning = \"all\"\n",
        &["shards.pinning", "\"all\"", "auto, none, or a list"],
    ),
    ("[node]\nid = 1\n[shards]\nplaced = [\"7\"]\n", &["shards.placed", "\"7\"", "GROUP=SHARD"]),
    ("[node]\nid = 1\n[shards]\nplaced = [\"7=3\"]\n", &["shards.placed", "\"7=3\"", "3", "shard"]),
    ("[node]\nid = 1\n[groups]\nvoters = [9]\n", &["groups.voters", "\"9\"", "neither this node nor a peer"]),
    (
        "[node]\nid = 1\n[groups]\nretention = [\"7=soon\"]\n",
        &["groups.retention", "\"soon\"", "a time", "bytes"],
    ),
    (
        "[node]\nid = 1\n[groups]\nrecord_bytes_max = \"1GB\"\n",
        &["groups.record_bytes_max", "GB is no unit", "64KiB"],
    ),
    ("[node]\nid = 1\n[bridge]\nthreads = 65\n", &["bridge.threads", "\"65\"", "too large", "1 to 64"]),
    ("[node]\nid = 1\n[bridge]\nstream_window = \"2MiB\"\n", &["bridge.stream_window", "too many", "1MiB"]),
    ("[node]\nid = 1\n[raft]\ntick = \"50\"\n", &["raft.tick", "\"50\"", "no unit"]),
    ("[node]\nid = 1\n[raft]\ntick = \"0ms\"\n", &["raft.tick", "too short", "1ms"]),
    ("[node]\nid = 1\n[raft]\nelection_ticks = \"5-8\"\n", &["raft", "lease"]),
    ("[node]\nid = 1\n[raft]\nelection_ticks = \"soon\"\n", &["raft.election_ticks", "\"soon\"", "12-18"]),
    ("[node]\nid = 1\n[storage]\nbackend = \"mmap\"\n", &["storage.backend", "mmap", "buffered"]),
    ("[node]\nid = 1\n[storage\n", &["node.toml:3: [storage", "not TOML", "key = value"]),
];

#[test]
fn each_mistake_is_one_line_that_names_key_value_reason_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    for (text, parts) in MISTAKES {
        let error = start(&sources(folder.path(), text)).expect_err(text).to_string();
        println!("{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        for part in parts {
            assert!(error.contains(part), "{text}\n{error}\nlacks {part:?}");
        }
    }
}

#[test]
fn all_mistakes_of_a_file_and_of_the_environment_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut sources = sources(folder.path(), "[node]\nid = 1\nbnd = \"x\"\n[shards]\ncount = 0\n");
    sources.environment = vec![("IROH_RAFT_SHARD_COUNT".to_owned(), "2".to_owned())];
    sources.flags = vec![("raft.tik".to_owned(), "1ms".to_owned())];
    let error = start(&sources).unwrap_err().to_string();
    for part in ["node.bnd", "shards.count", "IROH_RAFT_SHARDS_COUNT?", "--set: raft.tik", "raft.tick?"] {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    assert_eq!(error.lines().count(), 4);
}

#[test]
fn the_file_that_init_writes_says_what_holds() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = NodeConfig::new(Preset::Production);
    let chosen = [
        ("node.id", "1"),
        ("shards.placed", "7=0, 8=0"),
        ("node.data_dir", "da\"ta"),
        ("shards.pinning", "none"),
    ];
    for (key, text) in chosen {
        (find(key).unwrap().field.write)(&mut config, text).unwrap();
    }
    // As the cluster file says: the node's file leaves it to that.
    config.cluster = "orders".to_owned();
    let keys = chosen.map(|(key, _)| key);
    let text = page::node_file(&config, "production", &keys);
    let explained = sources(folder.path(), &text).explain().unwrap();
    for setting in SETTINGS {
        let (said, holds) = ((setting.field.read)(&config), (setting.field.read)(&explained.config));
        let is_chosen = matches!(explained.origins[setting.key], Origin::File { .. });
        assert_eq!(is_chosen, keys.contains(&setting.key), "{}", setting.key);
        assert!(said == holds || holds.ends_with(&said), "{}: {said} {holds}", setting.key);
    }
    // What is commented out is right as well.
    let all = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest)
            if rest.split_once(" = ").is_some_and(|(name, _)| {
                name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase())
            }) =>
        {
            rest
        }
        _ => line,
    });
    let all = all.collect::<Vec<_>>().join("\n");
    let explained = sources(folder.path(), &all).explain().unwrap_or_else(|error| panic!("{error}\n{all}"));
    assert!(SETTINGS.iter().all(|setting| matches!(explained.origins[setting.key], Origin::File { .. })));
}

#[test]
fn the_page_of_reference_is_the_one_that_is_kept() {
    let page = page::reference(&NodeConfig::new(Preset::Production));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == page,
        "docs/settings.md is another one: cargo run -p iroh-raft-node -- config reference > docs/settings.md"
    );
}
