//! The processes of a rival's servers: started, looked after, killed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::Signal;

use super::RivalError;

/// Lines of a log that an error shows.
const LOG_LINES_SHOWN: usize = 10;
/// Where servers are installed that an ordinary user's `PATH` leaves out.
const MORE_FOLDERS: [&str; 2] = ["/usr/local/sbin", "/usr/sbin"];
/// How often a process is looked at whose end is awaited.
const LOOK: Duration = Duration::from_millis(10);

/// A server as this process: it ends with the one that has started it.
#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    program: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl ServerArgs {
    /// Becomes the server. Returns only if that cannot be done.
    pub(crate) fn become_it(self) -> io::Error {
        // A load generator that dies in any way, by a second Ctrl-C or SIGKILL, leaves no server behind.
        match rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
            Ok(()) => Command::new(&self.program).args(&self.args).exec(),
            Err(error) => error.into(),
        }
    }
}

/// Servers that were started together. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Processes {
    servers: Vec<(Child, PathBuf)>,
}

impl Processes {
    /// Starts a server for each list of arguments, with a log file in `folder`. From the main thread: servers end with the
    /// thread that has started them.
    pub(crate) fn start(
        program: &Path,
        args: &[Vec<OsString>],
        folder: &Path,
    ) -> Result<Processes, RivalError> {
        let system = |what| move |source| RivalError::System { what, source };
        let own = std::env::current_exe().map_err(system("find this program"))?;
        let mut processes = Processes { servers: Vec::new() };
        for (number, args) in (1..).zip(args) {
            let log = folder.join(format!("server-{number}.log"));
            let file =
                File::create(&log).map_err(|source| RivalError::Write { path: log.clone(), source })?;
            let again = file.try_clone().map_err(system("open a log a second time"))?;
            let child = Command::new(&own)
                .arg("server")
                .arg(program)
                .args(args)
                // Settings of servers come from here alone: etcd takes them from its environment, too.
                .env_clear()
                .stdin(Stdio::null())
                .stdout(file)
                .stderr(again)
                // Ctrl-C in the terminal is for the parent, who then ends them.
                .process_group(0)
                .spawn()
                .map_err(system("start a server"))?;
            processes.servers.push((child, log));
        }
        Ok(processes)
    }

    /// Whether all of them run.
    ///
    /// # Errors
    /// [`RivalError::Ended`] if one does not.
    pub(crate) fn check(&mut self) -> Result<(), RivalError> {
        for (number, (child, log)) in (1..).zip(&mut self.servers) {
            let how = match child.try_wait() {
                Ok(None) => continue,
                Ok(Some(status)) => status.to_string(),
                Err(error) => error.to_string(),
            };
            return Err(RivalError::Ended { number, how, log: end_of(log) });
        }
        Ok(())
    }

    /// Their numbers as processes.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.servers.iter().map(|(child, _)| child.id())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // All at once: nobody is left to take over while the others die.
        for (child, _) in &mut self.servers {
            let _ = child.kill();
        }
        for (child, _) in &mut self.servers {
            let _ = child.wait();
        }
    }
}

fn end_of(log: &Path) -> String {
    let log = fs::read_to_string(log).unwrap_or_default();
    let skipped = log.lines().count().saturating_sub(LOG_LINES_SHOWN);
    log.lines().skip(skipped).map(|line| format!("\n    {line}")).collect()
}

/// Where a program is installed, if it is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MORE_FOLDERS.map(PathBuf::from));
    find_in(folders, program)
}

fn find_in(folders: impl Iterator<Item = PathBuf>, program: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    folders.map(|folder| folder.join(program)).find(is_program)
}

/// Whether a program ends well, and within the deadline.
pub(crate) fn succeeds(program: &Path, args: &[OsString], deadline: Duration) -> Result<bool, RivalError> {
    let system = |source| RivalError::System { what: "ask a server about its settings", source };
    let mut command = Command::new(program);
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(system)?;
    let until = Instant::now() + deadline;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().map_err(system)? {
            return Ok(status.success());
        }
        std::thread::sleep(LOOK);
    }
    let _ = child.kill();
    let _ = child.wait();
    Ok(false)
}

/// TCP ports on loopback that are free now. All are held until the last is found, so that they differ.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>, RivalError> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners: io::Result<Vec<TcpListener>> = (0..count).map(|_| bind()).collect();
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    let ports = listeners.and_then(|listeners| listeners.iter().map(port).collect());
    ports.map_err(|source| RivalError::System { what: "find a free TCP port", source })
}

/// Makes the folder of each server.
pub(crate) fn folders(folder: &Path, count: usize) -> Result<Vec<PathBuf>, RivalError> {
    let make = |number| {
        let path = folder.join(format!("server-{number}"));
        fs::create_dir_all(&path).map_err(|source| RivalError::Write { path: path.clone(), source })?;
        Ok(path)
    };
    (1..=count).map(make).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_can_be_run_is_a_program() {
        let folder = tempfile::tempdir().unwrap();
        let (text, folder_of_it) = (folder.path().join("text"), folder.path().join("folder"));
        fs::write(&text, "no program").unwrap();
        fs::create_dir(&folder_of_it).unwrap();
        let look = |name: &str| find_in([folder.path().to_path_buf()].into_iter(), name);
        assert_eq!((look("text"), look("folder"), look("absent")), (None, None, None));
        fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(look("text"), Some(text));
    }

    #[test]
    fn a_program_that_does_not_end_is_not_waited_for_for_ever() {
        let shell = find("sh").expect("every Linux has one");
        let ask = |script: &str, ms| {
            let args = ["-c".into(), script.into()];
            succeeds(&shell, &args, Duration::from_millis(ms)).unwrap()
        };
        assert!(ask("exit 0", 60_000) && !ask("exit 3", 60_000));
        assert!(!ask("read forever < /dev/zero", 50));
    }

    #[test]
    fn ports_differ() {
        let mut ports = free_ports(6).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }
}
