//! `weft report`: an archive for a bug report. What it holds comes from the router and the kernel, and neither is asked for keys or secrets.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::Method;
use serde_json::{Value, json};
use tar::{Builder, Header};
use tokio::process::Command;

use super::client;
use crate::daemon::control::{EventsAnswer, EventsRequest};
use crate::daemon::why::Question;
use crate::error::{Doing, Result};

/// How much of the end of a log is taken, in bytes.
const MAX_LOG: u64 = 4 << 20;
/// How long a program may take.
const PROGRAM_WITHIN: Duration = Duration::from_secs(10);
/// Peers of which the paths are explained.
const MAX_PATHS: usize = 200;
/// What the kernel is asked: programs with their arguments.
const OF_THE_KERNEL: [(&str, &[&str]); 7] = [
    ("uname.txt", &["uname", "-a"]),
    ("os-release.txt", &["cat", "/etc/os-release"]),
    ("nftables.txt", &["nft", "list", "table", "inet", "weft"]),
    ("rules.txt", &["ip", "rule"]),
    ("routes.txt", &["ip", "route", "show", "table", "6783"]),
    ("interfaces.txt", &["ip", "-details", "link"]),
    ("docker.txt", &["docker", "version"]),
];

/// Writes the archive; returns what to tell the user. An error leaves no file.
pub async fn report(socket: &Path, file: Option<PathBuf>, log: Option<PathBuf>) -> Result<String> {
    let mut parts = of_the_router(socket).await?;
    for (name, command) in OF_THE_KERNEL {
        parts.push((name, output_of(command).await));
    }
    if let Some(log) = &log {
        parts.push(("weft.log", end_of(log).doing(|| format!("cannot read {}", log.display()))?));
    }
    let file = file.unwrap_or_else(|| "weft-report.tar.gz".into());
    let what = || format!("cannot write {}; name another file", file.display());
    let out = File::options().write(true).create_new(true).mode(0o600).open(&file).doing(what)?;
    if let Err(error) = write(out, &parts) {
        // Half an archive is of no use.
        let _ = std::fs::remove_file(&file);
        return Err(error).doing(what);
    }
    let log = if log.is_some() { "; look into the log before you send it" } else { "" };
    Ok(format!(
        "wrote {}: it names hosts, containers and addresses, and has no private key and no secret{log}\n",
        file.display()
    ))
}

type Part = (&'static str, Vec<u8>);

async fn of_the_router(socket: &Path) -> Result<Vec<Part>> {
    let status: Value = client::ask(socket, Method::GET, "/status", &Value::Null).await?;
    let request = EventsRequest { since: 0, from: 0, wait: false };
    let EventsAnswer { events, .. } = client::ask(socket, Method::POST, "/events", &request).await?;
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    let metrics: String = client::ask(socket, Method::GET, "/metrics", &Value::Null).await?;
    let peers = status["peers"].as_array().into_iter().flatten().filter_map(|peer| peer["peer_id"].as_str());
    let mut paths = Vec::new();
    for peer in peers.take(MAX_PATHS) {
        let question = Question { from: None, to: peer.to_owned(), at: None };
        let why: Result<Value> = client::ask(socket, Method::POST, "/why", &question).await;
        paths.push(why.unwrap_or_else(|error| json!({ "to": peer, "error": error.to_string() })));
    }
    Ok(vec![
        ("status.json", format!("{status:#}\n").into_bytes()),
        ("events.jsonl", lines.into_bytes()),
        ("metrics.txt", metrics.into_bytes()),
        ("why.json", format!("{:#}\n", Value::from(paths)).into_bytes()),
    ])
}

/// What a program prints; one that is missing, fails or hangs says so instead.
async fn output_of(command: &[&str]) -> Vec<u8> {
    let Some((program, arguments)) = command.split_first() else { return Vec::new() };
    let output = Command::new(program).args(arguments).kill_on_drop(true).output();
    match tokio::time::timeout(PROGRAM_WITHIN, output).await {
        Ok(Ok(output)) => [output.stdout, output.stderr].concat(),
        Ok(Err(error)) => format!("{program}: {error}\n").into_bytes(),
        Err(_) => format!("{program}: nothing within {PROGRAM_WITHIN:?}\n").into_bytes(),
    }
}

fn end_of(log: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))?;
    let mut text = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut text)?;
    Ok(text)
}

fn write(out: impl Write, parts: &[Part]) -> std::io::Result<()> {
    let mut archive = Builder::new(GzEncoder::new(out, Compression::default()));
    for (name, bytes) in parts {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, format!("weft-report/{name}"), &bytes[..])?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_added_is_in_the_archive_and_a_log_is_cut_at_its_beginning() {
        let dir = std::env::temp_dir().join(format!("weft-report-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        let (path, log) = (dir.join("report.tar.gz"), dir.join("log"));
        std::fs::write(&log, [&vec![b'a'; MAX_LOG as usize][..], b"the end"].concat()).unwrap();
        let end = end_of(&log).unwrap();
        assert!(end.len() as u64 == MAX_LOG && end.ends_with(b"athe end"));
        let none = output_of(&["no-such-program", "-v"]).await;
        write(File::create(&path).unwrap(), &[("status.json", b"{}".to_vec()), ("none.txt", none)]).unwrap();
        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let mut found = Vec::new();
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((entry.path().unwrap().display().to_string(), text));
        }
        assert_eq!(found[0], ("weft-report/status.json".to_owned(), "{}".to_owned()));
        assert!(found[1].1.starts_with("no-such-program: "), "{found:?}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
