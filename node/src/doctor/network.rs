//! The network: socket buffers, packet sizes.

use super::{Finding, Host, Level, Remedy};
use crate::config::settings::NodeConfig;

/// What the kernel gives a socket unless told otherwise; less was set by somebody.
const BUFFER_USUAL_BYTES: u64 = 212_992;
/// A QUIC packet with its headers, as large as it may become.
const MTU_MIN: u64 = 1500;

pub(super) fn look(host: &Host, _config: &NodeConfig) -> Vec<Finding> {
    vec![
        buffer(host, "UDP receive buffer", "net.core.rmem_default"),
        buffer(host, "UDP send buffer", "net.core.wmem_default"),
        mtu(host),
    ]
}

fn buffer(host: &Host, name: &'static str, setting: &str) -> Finding {
    let Some(bytes) = host.number(format!("proc/sys/{}", setting.replace('.', "/"))) else {
        return Finding::unknown(name, format!("{setting} cannot be read"));
    };
    let found = format!("{} KiB ({setting})", bytes >> 10);
    if bytes >= BUFFER_USUAL_BYTES {
        return Finding::good(name, found);
    }
    let mend = format!("sysctl -w {setting}={BUFFER_USUAL_BYTES}, or more");
    let remedy = Remedy {
        right: "208 KiB or more",
        cost: "packets are dropped under load, and QUIC slows down",
        mend,
    };
    Finding::of(name, Level::Note, found, remedy)
}

fn mtu(host: &Host) -> Finding {
    const NAME: &str = "packet size";
    let mtu = |name: &String| Some((host.number(format!("sys/class/net/{name}/mtu"))?, name.clone()));
    let is_up = |name: &String| {
        host.read(format!("sys/class/net/{name}/operstate")).is_some_and(|state| state == "up")
    };
    let interfaces: Vec<String> = host.list("sys/class/net").into_iter().filter(is_up).collect();
    let Some((least, name)) = interfaces.iter().filter_map(mtu).min() else {
        return Finding::good(NAME, "no interface is up but loopback");
    };
    let found = format!("{least} bytes on {name}");
    if least >= MTU_MIN {
        return Finding::good(NAME, found);
    }
    let mend = format!("ip link set {name} mtu 1500, if the way between the nodes takes it");
    let remedy = Remedy {
        right: "1,500 or more",
        cost: "more packets for the same bytes, each with its own encryption and system call",
        mend,
    };
    Finding::of(NAME, Level::Note, found, remedy)
}
