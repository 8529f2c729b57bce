//! The configuration file.

use std::path::Path;

use weft_router::cli::options::LaunchArgs;

/// Reads a configuration, and completes it.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let result = LaunchArgs::from_toml(text, Path::new("weft.toml")).and_then(LaunchArgs::resolve);
    if let Err(error) = result {
        assert!(!error.to_string().contains('\n'), "an error of several lines: {error}");
    }
}

/// A file with every option, and each of its lines alone.
pub fn seeds() -> Vec<Vec<u8>> {
    let whole = r#"socket = "/run/weft.sock"
name = "host1"
secret-file = "/etc/weft/secret"
listen = "[::]:6783"
state-dir = "/var/lib/weft"
range = "10.32.0.0/12"
mtu = 1450
no-discovery = false
tap = "fast"
found = true
grace = 3600
no-dns = false
dns-listen = "127.0.0.1:5353"
no-docker = true
no-spread = true
plugin-dir = "/run/docker/plugins"
dns-domain = "weft.internal"
insecure = true
docker-socket = "/run/docker.sock"
no-aes = true
workers = 2
busy-poll = 50
log-file = "/var/log/weft"
log-level = "info"
log-json = true
"#;
    whole.lines().map(|line| line.as_bytes().to_vec()).chain([whole.as_bytes().to_vec()]).collect()
}
