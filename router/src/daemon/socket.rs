//! Unix sockets that only their owner may use.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::UnixListener;

use crate::daemon::state;
use crate::error::{Doing, Failure, Result};

/// Binds a unix socket that only its owner may use, in place of one without a server. `what` failed if it does; `option`
/// chooses another; it is `taken` if a server answers on it.
pub fn bind_private(
    path: &Path,
    what: &dyn Fn() -> String,
    option: &str,
    taken: impl FnOnce() -> Failure,
) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).doing(what)?;
    }
    let is_free = || std::os::unix::net::UnixStream::connect(path).map_or(Ok(()), Err);
    if state::once_let_go(is_free, |_| true).is_err() {
        return Err(taken());
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => {
            std::fs::remove_file(path).doing(what)?;
        }
        Ok(_) => return Err(Failure::new(format!("{}: it is no socket; choose another with {option}", what()))),
        Err(_) => {}
    }
    // No other user may connect between bind and chmod.
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(mask);
    let listener = listener.doing(what)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).doing(what)?;
    Ok(listener)
}
