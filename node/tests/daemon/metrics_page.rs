//! The pages of real nodes: what they say moves with what happens, and nothing but what is promised is answered.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::*;

/// A page of metrics, read.
struct Page {
    /// Each line's name, labels and value.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
    /// Type of each metric.
    types: BTreeMap<String, String>,
}

impl Page {
    fn parse(text: &str) -> Page {
        let mut page = Page { samples: Vec::new(), types: BTreeMap::new() };
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                let before = page.types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "{name} twice");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                // No value of a label here has a comma or a quotation mark.
                let labels = labels.strip_suffix('}').unwrap().split(',').filter(|label| !label.is_empty());
                let labels = labels.map(|label| label.split_once('=').unwrap());
                let labels =
                    labels.map(|(label, value)| (label.to_owned(), value.trim_matches('"').to_owned()));
                page.samples.push((name.to_owned(), labels.collect(), value.parse().unwrap()));
            }
        }
        page
    }

    /// All series of a name together.
    fn sum(&self, name: &str) -> f64 {
        let mut values =
            self.samples.iter().filter(|(of, ..)| of == name).map(|(.., value)| *value).peekable();
        assert!(values.peek().is_some(), "no {name}");
        values.sum()
    }
}

/// Nodes whose pages are on these addresses.
struct Pages {
    cluster: Cluster,
    addresses: [SocketAddr; 3],
}

impl Pages {
    fn start() -> Pages {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.map(|listener| listener.local_addr().unwrap());
        let settings =
            (1..).zip(addresses).map(|(node, address)| (node, format!("metrics.listen={address}")));
        Pages { cluster: three_with(settings.collect()), addresses }
    }

    /// All that is answered to these bytes, until the connection ends; `None` where nobody listens.
    fn ask(&self, node: u64, request: &[u8]) -> Option<String> {
        let mut stream = TcpStream::connect(self.addresses[node as usize - 1]).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request).ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    }

    /// Status and body of a page; `None` where nobody listens.
    fn get(&self, node: u64, path: &str) -> Option<(u16, String)> {
        let said = self.ask(node, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
        let (head, body) = said.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
        Some((status, body.to_owned()))
    }

    fn page(&self, node: u64) -> Page {
        let (status, text) = self.get(node, "/metrics").unwrap();
        assert_eq!(status, 200);
        Page::parse(&text)
    }

    fn pages(&self, nodes: &[u64]) -> Vec<Page> {
        nodes.iter().map(|node| self.page(*node)).collect()
    }

    /// Whether it is well, and which of its parts are not, or are noted.
    fn health(&self, node: u64) -> Option<(bool, BTreeSet<String>)> {
        let (status, body) = self.get(node, "/health")?;
        let health: Value = serde_json::from_str(&body).unwrap();
        let is_ok = status == 200;
        assert_eq!(
            (health["status"] == "ok", health["node"].as_u64()),
            (is_ok, Some(node)),
            "{status} {body}"
        );
        let found = if is_ok { &health["notes"] } else { &health["reasons"] };
        let parts =
            found.as_array().unwrap().iter().map(|finding| finding["part"].as_str().unwrap().to_owned());
        Some((is_ok, parts.collect()))
    }

    fn until_well(&self, nodes: &[u64]) {
        for node in nodes {
            self.cluster.until("it is well", || self.health(*node).filter(|(is_ok, _)| *is_ok));
        }
    }
}

fn sum(pages: &[Page], name: &str) -> f64 {
    pages.iter().map(|page| page.sum(name)).sum()
}

#[test]
fn each_number_moves_on_its_own_event_and_health_is_red_without_a_quorum() {
    let mut pages = Pages::start();
    let all = [1, 2, 3];
    pages.until_well(&all);
    // How groups stand is a second old at most: all three looks have to fit together.
    let before = pages.cluster.until("two groups on three nodes", || {
        let before = pages.pages(&all);
        let sums =
            ["raft_groups", "raft_groups_led", "network_peers_connected"].map(|name| sum(&before, name));
        (sums == [6.0, 2.0, 6.0]).then_some(before)
    });

    // An append moves the counter of its leader by its records, and those of the disks of a quorum.
    pages.cluster.said(&["append", "1", "a", "b", "c"]);
    let after = pages.pages(&all);
    assert_eq!(sum(&after, "raft_proposals_total") - sum(&before, "raft_proposals_total"), 3.0);
    let moved =
        |name| before.iter().zip(&after).filter(|(before, after)| after.sum(name) > before.sum(name)).count();
    assert_eq!(moved("raft_proposals_total"), 1);
    assert!(moved("shard_flushes_total") >= 2 && moved("storage_flush_us_count") >= 2);

    // A read is a request of the node that was asked, and no proposal.
    let before = after;
    pages.cluster.said(&["read", "1", "--node", "2"]);
    let after = pages.pages(&all);
    assert!(after[1].sum("app_requests_total") > before[1].sum("app_requests_total"));
    assert_eq!(sum(&after, "raft_proposals_total"), sum(&before, "raft_proposals_total"));

    // An election of the group whose term is the highest: somebody else leads, in a higher one.
    let leader = pages.cluster.until("the groups are led", || {
        let (objects, _) = pages.cluster.status();
        let groups = objects.iter().filter(|object| object["group"].is_u64());
        groups.max_by_key(|group| group["term"].as_u64())?["leader"].as_u64()
    });
    let others: Vec<u64> = all.into_iter().filter(|node| *node != leader).collect();
    let before = pages.pages(&others);
    pages.cluster.kill(leader);
    let after = pages.cluster.until("the others lead", || {
        let after = pages.pages(&others);
        let is_higher = |(before, after): (&Page, &Page)| {
            after.sum("raft_current_term") > before.sum("raft_current_term")
        };
        (sum(&after, "raft_groups_led") == 2.0 && before.iter().zip(&after).all(is_higher)).then_some(after)
    });
    assert!(sum(&after, "raft_leadership_changes_total") > sum(&before, "raft_leadership_changes_total"));
    // Nothing is amiss but that one is away.
    pages.cluster.until("it is noted", || {
        let (is_ok, parts) = pages.health(others[0])?;
        (is_ok && parts.contains("network")).then_some(())
    });

    // A quorum is away, and back.
    let last = others[0];
    pages.cluster.kill(others[1]);
    pages.cluster.until("the last one says what is amiss", || {
        let (is_ok, parts) = pages.health(last)?;
        let wanted: BTreeSet<String> = ["consensus", "network"].map(str::to_owned).into();
        // Its groups notice one after the other.
        (!is_ok && parts == wanted && pages.page(last).sum("raft_groups_leaderless") == 2.0).then_some(())
    });
    assert_eq!(pages.page(last).sum("node_is_healthy"), 3.0, "of five parts");
    [leader, others[1]].into_iter().for_each(|node| pages.cluster.start(node));
    pages.until_well(&all);
}

#[test]
fn the_page_has_what_its_reference_says_and_the_dashboard_asks_for_what_it_has() {
    let pages = Pages::start();
    pages.cluster.said(&["append", "1", "a"]);
    let documented = table();
    let page = pages.cluster.until("everything is there", || {
        let page = pages.page(1);
        documented.keys().all(|name| page.types.contains_key(name)).then_some(page)
    });
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for (name, labels, _) in &page.samples {
        // The series of a histogram have names of their own, and bounds.
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let base = base.filter(|base| page.types.get(*base).is_some_and(|kind| kind == "histogram"));
        let name = base.unwrap_or(name);
        let kind = page.types.get(name).unwrap_or_else(|| panic!("nobody has described {name}"));
        let labels = labels.keys().filter(|label| *label != "le").cloned();
        found.entry(name.to_owned()).or_insert_with(|| (kind.clone(), BTreeSet::new())).1.extend(labels);
    }
    assert_eq!(found, documented);

    let names: BTreeSet<&str> = page.samples.iter().map(|(name, ..)| name.as_str()).collect();
    let labels: BTreeSet<&str> =
        page.samples.iter().flat_map(|(_, labels, _)| labels.keys()).map(String::as_str).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut expressions = 0;
    let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()) && titles.insert(panel["title"].as_str().unwrap()),
            "{panel}"
        );
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].as_str().is_some_and(|unit| !unit.is_empty()),
            "{panel}"
        );
        for target in panel["targets"].as_array().unwrap() {
            expressions += 1;
            let expression = target["expr"].as_str().unwrap();
            let asked = asked(expression);
            assert!(!asked.metrics.is_empty(), "{expression}");
            for name in &asked.metrics {
                assert!(names.contains(name.as_str()), "{expression}: the page has no {name}");
            }
            for label in &asked.labels {
                // These two are what Prometheus adds.
                let is_known =
                    labels.contains(label.as_str()) || ["job", "instance"].contains(&label.as_str());
                assert!(is_known, "{expression}: nothing has the label {label}");
            }
        }
    }
    assert!(expressions > 30, "{expressions}");
}

#[test]
fn what_asks_in_another_way_is_refused_and_a_node_that_stops_says_so() {
    let mut pages = Pages::start();
    pages.until_well(&[1, 2, 3]);
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(9 << 10));
    for (request, starts) in [
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 "),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 "),
        ("GET /metric HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "),
        ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 "),
        ("what is this\r\n\r\n", "HTTP/1.1 400 "),
        (&long, "HTTP/1.1 431 "),
    ] {
        let said = pages.ask(1, request.as_bytes()).unwrap();
        assert!(said.starts_with(starts), "{request:.40}: {said}");
    }
    let taken = pages.cluster.run(&[
        "start",
        "--config",
        "n2/node.toml",
        "--set",
        &format!("metrics.listen={}", pages.addresses[0]),
    ]);
    let error = String::from_utf8(taken.stderr).unwrap();
    assert!(taken.status.code() == Some(2) && error.contains("choose another port"), "{error}");

    // The others do not answer, so that handing over takes its time.
    let leader = pages.cluster.until("it is led", || pages.cluster.leader(1));
    (1..=3).filter(|node| *node != leader).for_each(|node| pages.cluster.signal(node, Signal::STOP));
    pages.cluster.signal(leader, Signal::TERM);
    pages.cluster.until("it says that it stops", || {
        let (is_ok, parts) = pages.health(leader).expect("it says so before nobody listens any more");
        (!is_ok && parts.contains("node")).then_some(())
    });
    pages.cluster.until("nobody listens", || pages.get(leader, "/health").is_none().then_some(()));
    let status = pages.cluster.nodes[leader as usize - 1].as_mut().unwrap().wait().unwrap();
    assert!(status.success(), "{status}: {}", pages.cluster.log(leader));
}

/// What the reference says: type and labels of each name.
fn table() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.map(|row| {
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        let labels = cells[3].split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
        (cells[0].trim_end_matches('`').to_owned(), (cells[1].to_owned(), labels))
    });
    rows.collect()
}

/// What an expression of PromQL names.
struct Asked {
    metrics: BTreeSet<String>,
    labels: BTreeSet<String>,
}

/// Reads an expression as far as it has names: those in braces and behind `by` are labels, those before a parenthesis
/// functions, all others metrics.
fn asked(expression: &str) -> Asked {
    let mut asked = Asked { metrics: BTreeSet::new(), labels: BTreeSet::new() };
    let (mut rest, mut is_label, mut is_by) = (expression, false, false);
    while let Some(first) = rest.chars().next() {
        let is_name = |letter: char| letter == '_' || letter.is_ascii_alphanumeric();
        let length = match first {
            '"' => 2 + rest[1..].find('"').unwrap(),
            '[' => 1 + rest.find(']').unwrap(),
            first if is_name(first) => rest.find(|letter| !is_name(letter)).unwrap_or(rest.len()),
            first => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        match first {
            '{' => is_label = true,
            '(' if is_by => is_label = true,
            '}' | ')' => is_label = false,
            first if first == '_' || first.is_ascii_alphabetic() => {
                if ["by", "without", "on", "ignoring"].contains(&token) {
                    is_by = true;
                    continue;
                }
                if is_label {
                    asked.labels.insert(token.to_owned());
                } else if !rest.trim_start().starts_with('(') && !rest.trim_start().starts_with("by ") {
                    asked.metrics.insert(token.to_owned());
                }
            }
            _ => {}
        }
        is_by &= first == ' ';
    }
    asked
}
