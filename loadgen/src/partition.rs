//! The network between processes on this machine is cut: a filter on their UDP sockets drops what comes from the others.
//!
//! What is dropped is lost without a word, as on a broken network. Nothing in the nodes takes part. Their sockets are
//! borrowed, for a moment only: one held longer would keep the port of a node that dies meanwhile.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::{fs, io};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{SockFilter, Socket, Type};

/// Load the source port: the filter of a UDP socket sees a datagram from its UDP header on. `BPF_LD | BPF_H | BPF_ABS`.
const LOAD_SOURCE_PORT: SockFilter = SockFilter::new(0x28, 0, 0, 0);
/// Jump if what is loaded equals a constant. `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_IF: u16 = 0x15;
/// How many bytes are let through. `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// Instructions that the kernel takes (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;

/// Cuts the processes marked as alone off from all others, and these from them. Processes that are gone are left out, and one
/// that starts later has no filter of its own.
pub(crate) fn cut(processes: &[(Pid, bool)]) -> io::Result<()> {
    let sockets: Vec<(Vec<Socket>, bool)> = processes
        .iter()
        .map(|(pid, is_alone)| Ok((udp_sockets(*pid)?, *is_alone)))
        .collect::<io::Result<_>>()?;
    for (at, (own, is_alone)) in sockets.iter().enumerate() {
        let is_cut = |(other, (_, other_alone)): &(usize, &(Vec<Socket>, bool))| {
            *other != at && (*is_alone || *other_alone)
        };
        let others = sockets.iter().enumerate().filter(is_cut).flat_map(|(_, (sockets, _))| sockets);
        let filter = drop_from(&others.map(port).collect::<io::Result<_>>()?)?;
        own.iter().try_for_each(|socket| socket.attach_filter(&filter))?;
    }
    Ok(())
}

/// Takes away what [`cut`] did.
pub(crate) fn heal(processes: &[Pid]) -> io::Result<()> {
    for pid in processes {
        for socket in udp_sockets(*pid)? {
            match socket.detach_filter() {
                // A process that started after the cut has none.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn drop_from(ports: &BTreeSet<u16>) -> io::Result<Vec<SockFilter>> {
    let mut filter = vec![LOAD_SOURCE_PORT];
    for port in ports {
        filter.push(SockFilter::new(JUMP_IF, 0, 1, (*port).into()));
        filter.push(SockFilter::new(RETURN, 0, 0, 0));
    }
    filter.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    if filter.len() > INSTRUCTIONS_MAX {
        return Err(io::Error::other("too many sockets for one filter"));
    }
    Ok(filter)
}

fn port(socket: &Socket) -> io::Result<u16> {
    Ok(socket.local_addr()?.as_socket().map_or(0, |address| address.port()))
}

/// The bound UDP sockets of a process; none if it is gone.
fn udp_sockets(pid: Pid) -> io::Result<Vec<Socket>> {
    let gone = |error: &io::Error| {
        let gone = [rustix::io::Errno::SRCH, rustix::io::Errno::NOENT];
        gone.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    };
    let look = || -> io::Result<Vec<Socket>> {
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let mut sockets = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            // One that was closed since has no link and no number.
            let is_socket = fs::read_link(entry.path())
                .is_ok_and(|target| target.to_str().is_some_and(|target| target.starts_with("socket:")));
            let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if !is_socket {
                continue;
            }
            let socket: OwnedFd = match pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()) {
                Err(rustix::io::Errno::BADF) => continue,
                other => other?,
            };
            let socket = Socket::from(socket);
            if socket.r#type()? == Type::DGRAM && port(&socket)? != 0 {
                sockets.push(socket);
            }
        }
        Ok(sockets)
    };
    match look() {
        Err(error) if gone(&error) => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// This process stands for two of which one is cut off from the other: nothing that it sends to itself arrives until that is
    /// over. One test, for its filters are on all sockets of this process.
    #[test]
    fn datagrams_are_dropped_by_their_source_until_the_cut_is_healed() {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, cut_off, other) = (bind(), bind(), bind());
        let address = to.local_addr().unwrap();
        to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = [0; 16];
        let mut receive = || to.recv(&mut buffer).map(|length| buffer[..length].to_vec()).unwrap();
        // Loopback keeps the order: had one passed that is dropped, it would be read first.
        let socket = Socket::from(to.try_clone().unwrap());
        socket.attach_filter(&drop_from(&[cut_off.local_addr().unwrap().port()].into()).unwrap()).unwrap();
        cut_off.send_to(b"lost", address).unwrap();
        other.send_to(b"passes", address).unwrap();
        assert_eq!(receive(), b"passes");

        let own = rustix::process::getpid();
        cut(&[(own, false), (own, false)]).unwrap();
        cut_off.send_to(b"nobody is cut", address).unwrap();
        assert_eq!(receive(), b"nobody is cut");
        cut(&[(own, true), (own, false)]).unwrap();
        cut_off.send_to(b"lost", address).unwrap();
        other.send_to(b"lost", address).unwrap();
        heal(&[own]).unwrap();
        other.send_to(b"healed", address).unwrap();
        assert_eq!(receive(), b"healed");
    }

    #[test]
    fn sockets_of_this_process_are_found_and_those_of_one_that_is_gone_are_none() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = udp_sockets(rustix::process::getpid()).unwrap();
        let port_of = socket.local_addr().unwrap().port();
        assert!(own.iter().any(|socket| port(socket).is_ok_and(|port| port == port_of)));
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        child.wait().unwrap();
        assert!(udp_sockets(pid).unwrap().is_empty());
        heal(&[pid]).unwrap();
    }
}
