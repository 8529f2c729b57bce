//! What weft's own rules and those it adds to others' have in common.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::{Doing, Failure, Result};

/// Matches the bridges of all segments, in nftables and iptables alike.
pub const BRIDGES: &str = "weft*";

/// Runs a program to its end; returns what it printed.
pub async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let what = || format!("cannot run {program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .doing(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.doing(what)?;
    }
    let output = child.wait_with_output().await.doing(what)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{}: {}", what(), error.lines().next().unwrap_or_default())))
}
