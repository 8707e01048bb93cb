//! A replicated key-value store: three processes and a command line client.
//!
//! ```text
//! kv key FILE                                      make a key file, print its public key
//! kv serve NODE ADDRESS FOLDER KEYFILE MEMBER...   run a node; MEMBER is NODE=KEY@ADDRESS or client=KEY
//! kv put KEYFILE KEY VALUE MEMBER...               set a key
//! kv get KEYFILE KEY MEMBER...                     read a key, linearizably
//! ```
//!
//! `serve` runs until its standard input ends.

use std::error::Error;
use std::io::Read;
use std::net::SocketAddr;

use iroh_raft::net::allow::PeerAddress;
use iroh_raft::net::client::{Client, ClientConfig, ClientLimits};
use iroh_raft::prelude::*;
use iroh_raft::{EndpointId, Message, cluster_id};

const CLUSTER: &str = "kv-example";
const USAGE: &str = "kv key FILE | serve NODE ADDRESS FOLDER KEYFILE MEMBER... | put KEYFILE KEY VALUE MEMBER... \
                     | get KEYFILE KEY MEMBER...";

enum Member {
    Node(PeerAddress),
    Client(EndpointId),
}

fn members(texts: &[String]) -> Result<Vec<Member>, Box<dyn Error>> {
    let parse = |text: &String| -> Result<Member, Box<dyn Error>> {
        let (who, rest) = text.split_once('=').ok_or("a member is NODE=KEY@ADDRESS or client=KEY")?;
        if who == "client" {
            return Ok(Member::Client(rest.parse()?));
        }
        let (key, address) = rest.split_once('@').ok_or("a node is NODE=KEY@ADDRESS")?;
        Ok(Member::Node(PeerAddress {
            node: NodeId(who.parse()?),
            endpoint: key.parse()?,
            addr: address.parse()?,
        }))
    };
    texts.iter().map(parse).collect()
}

async fn serve(
    node: u64,
    address: SocketAddr,
    folder: &str,
    key: &str,
    texts: &[String],
) -> Result<(), Box<dyn Error>> {
    let mut builder = RaftCluster::builder()
        .node_id(node)
        .cluster(CLUSTER)
        .preset(Preset::Testing)
        .bind_address(address)
        .data_dir(folder)
        .key_file(key)
        .state_machine(KeyValue::default);
    for member in members(texts)? {
        builder = match member {
            Member::Node(peer) if peer.node == NodeId(node) => builder,
            Member::Node(peer) => builder.peer(peer.node.0, peer.endpoint, peer.addr),
            Member::Client(client) => {
                builder.client(client, Rights { append: true, read: true, manage: false })
            }
        };
    }
    let cluster = builder.build().await?;
    println!("node {node} serves on {}", cluster.engine().local_addr());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    cluster.shutdown().await?;
    Ok(())
}

async fn connect(key: &str, texts: &[String]) -> Result<Client, Box<dyn Error>> {
    let nodes = members(texts)?.into_iter().filter_map(|member| match member {
        Member::Node(peer) => Some(peer),
        Member::Client(_) => None,
    });
    let config = ClientConfig {
        cluster: cluster_id(CLUSTER),
        identity: Identity::load_or_create(key)?,
        nodes: nodes.collect(),
        bind: None,
        limits: ClientLimits::default(),
    };
    Ok(Client::connect(config).await?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["key", file] => println!("{}", Identity::load_or_create(file)?.endpoint_id()),
        ["serve", node, address, folder, key, ..] => {
            serve(node.parse()?, address.parse()?, folder, key, &arguments[5..]).await?;
        }
        ["put", key_file, key, value, ..] => {
            let client = connect(key_file, &arguments[4..]).await?;
            let command = KvCommand::Put { key: (*key).into(), value: value.as_bytes().to_vec() };
            let response = client.propose(GroupId(1), command.encode()).await?;
            println!("{:?}", KvResponse::decode(&response)?);
            client.close();
            client.closed().await;
        }
        ["get", key_file, key, ..] => {
            let client = connect(key_file, &arguments[3..]).await?;
            let query = KvQuery::Value { key: (*key).into() };
            let answer = client.query(GroupId(1), query.encode(), Consistency::Linearizable).await?;
            match KvAnswer::decode(&answer.bytes)? {
                KvAnswer::Value(Some(value)) => println!("{}", String::from_utf8_lossy(&value)),
                KvAnswer::Value(None) | KvAnswer::Hash(_) => println!("(none)"),
            }
            client.close();
            client.closed().await;
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
