//! Whom to attach: a container, a process, or a network namespace.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use weft_mesh::records::is_endpoint_name;

use crate::error::{Failure, Result};

/// A network namespace, held open.
pub struct Namespace {
    /// The open namespace.
    pub file: File,
    /// Device and inode: two handles are of one namespace if these are equal.
    pub id: (u64, u64),
    /// Where it was found.
    pub path: PathBuf,
    /// What the container in it is called, if it was asked for by name or id.
    pub name: Option<String>,
}

/// Finds the network namespace that `target` means: a path, a process id, or a container's name or id.
pub async fn resolve(target: &str, docker_socket: &Path) -> Result<Namespace> {
    if target.contains('/') {
        return open(Path::new(target), || format!("there is no network namespace {target}"));
    }
    if let Ok(pid) = target.parse::<u32>() {
        return open(Path::new(&format!("/proc/{pid}/ns/net")), || format!("there is no process {pid}"));
    }
    let (pid, name) = container(target, docker_socket).await?;
    let found = open(Path::new(&format!("/proc/{pid}/ns/net")), || format!("container {target} has just ended"))?;
    Ok(Namespace { name: name.filter(|name| is_endpoint_name(name)), ..found })
}

/// The network namespace of this host.
pub fn own() -> Result<Namespace> {
    open(Path::new("/proc/self/ns/net"), || "there are no network namespaces here".into())
}

/// Opens a network namespace; `missing` says what is wrong if there is none.
pub fn open(path: &Path, missing: impl FnOnce() -> String) -> Result<Namespace> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    // Opening the path must not block, as a FIFO would.
    let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(missing()),
        _ => Failure::new(format!("cannot open {}: {error}", path.display())),
    })?;
    let is_namespace = nix::sys::statfs::fstatfs(&file).is_ok_and(|fs| fs.filesystem_type().0 == NSFS_MAGIC);
    if !is_namespace {
        return Err(Failure::new(format!("{} is no network namespace", path.display())));
    }
    let metadata =
        file.metadata().map_err(|error| Failure::new(format!("cannot look at {}: {error}", path.display())))?;
    Ok(Namespace { id: (metadata.dev(), metadata.ino()), file, path: path.to_owned(), name: None })
}

/// Finds a network namespace again by its device and inode: at a path where it was, or that of a process that is in it.
pub fn find(id: (u64, u64), path: &Path) -> Option<Namespace> {
    let at = |path: &Path| open(path, String::new).ok().filter(|namespace| namespace.id == id);
    let of_processes = || {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes.map(|process| process.path().join("ns/net")).find_map(|path| at(&path))
    };
    at(path).or_else(of_processes)
}

/// The process of a running container, and its name.
async fn container(name: &str, socket: &Path) -> Result<(i64, Option<String>)> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Failure::new(format!(
            "cannot ask Docker about container {name} at {}: {error}; give a PID or a namespace path instead",
            socket.display()
        ))
    };
    let path = socket.to_string_lossy();
    let docker = bollard::Docker::connect_with_unix(&path, 5, bollard::API_DEFAULT_VERSION)
        .map_err(|error| unreachable(&error))?;
    let docker = docker.negotiate_version().await.map_err(|error| unreachable(&error))?;
    let container = docker.inspect_container(name, None).await.map_err(|error| match error {
        bollard::errors::Error::DockerResponseServerError { status_code: 404, .. } => {
            Failure::new(format!("there is no container {name}"))
        }
        error => unreachable(&error),
    })?;
    match container.state.and_then(|state| state.pid) {
        Some(pid) if pid > 0 => Ok((pid, container.name.map(|name| name.trim_start_matches('/').to_owned()))),
        _ => Err(Failure::new(format!("container {name} does not run; start it first"))),
    }
}
