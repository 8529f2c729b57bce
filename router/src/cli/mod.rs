//! The commands.

pub mod addresses;
pub mod client;
pub mod demo;
pub mod events;
pub mod install;
pub mod manual;
pub mod options;
pub mod report;
pub mod show;

use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use hyper::Method;
use serde_json::Value;

use crate::attach::attachments::AttachRequest;
use crate::cli::addresses::parse_peer;
use crate::cli::install::{InstallArgs, install};
use crate::cli::options::{DEFAULT_SOCKET, LaunchArgs};
use crate::cli::show::Topic;
use crate::daemon::control::{Entry, Peers};
use crate::daemon::launch::launch;
use crate::daemon::state;
use crate::daemon::why::{self, Question};
use crate::error::{Doing, Failure, Result};

/// The version, with the commit it was built from where that is known.
const VERSION: &str = env!("WEFT_VERSION");

const LAUNCH_EXAMPLES: &str = "Examples:
  weft secret new > /etc/weft/secret && chmod 600 /etc/weft/secret
                                    make the network secret, once; copy it to all hosts
  weft launch --secret-file /etc/weft/secret
                                    the first host
  weft launch --secret-file /etc/weft/secret host1.example:6783
                                    every other host: name one or more that are up
  weft launch --insecure --no-docker
                                    try it without a secret and without Docker";
const ATTACH_EXAMPLES: &str = "Examples:
  weft attach web                   a container, in the segment weft, with an address of the mesh's range
  weft attach web --segment shop --ip 10.9.0.7/24 --name web.shop.example
  weft attach 4711                  the network namespace of a process
  weft attach /run/netns/lab        a network namespace by its path";
const WHY_EXAMPLES: &str = "Examples:
  weft why host2                    from this host to another
  weft why web db                   between two containers, by any of their names
  weft why 10.32.0.7 --json         to a container by its address
  weft why host2 --at 03:00         how it was then, and what happened around it";
const WHAT_IF_EXAMPLES: &str = "Examples:
  weft what-if host2 down           who would no longer reach whom, and who would relay";
const EVENTS_EXAMPLES: &str = "Examples:
  weft events --since 2h            what happened within the last two hours
  weft events --follow --json       what happens, for a program
  weft why host2 --at 03:00         how frames to a host went last night";
const INSTALL_EXAMPLES: &str = "Examples:
  weft install                      the first host: makes a secret, starts the router
  weft install host1.example        further hosts, once the first one's /etc/weft/secret is there";

/// An encrypted mesh network for containers.
#[derive(Parser, Debug)]
#[command(name = "weft", version = VERSION, propagate_version = false)]
pub struct Cli {
    /// Control socket
    #[arg(help = "Control socket [default: /run/weft/weft.sock]", value_name = "FILE")]
    #[arg(long, global = true, env = "WEFT_SOCKET")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run this host's router in the foreground, until SIGTERM or SIGINT
    #[command(after_help = LAUNCH_EXAMPLES)]
    Launch(Box<LaunchArgs>),
    /// Stop the router; containers keep their interfaces and addresses
    Stop,
    /// Show how the mesh stands
    Status {
        /// What to show; none: a summary
        topic: Option<Topic>,
        /// The same as one JSON object; without a topic everything
        #[arg(long)]
        json: bool,
        /// Show it anew each second, until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// Show the path to a host, container, name or address, and why it is no better one
    #[command(after_help = WHY_EXAMPLES)]
    Why {
        /// Where the path ends, or begins if B is given
        a: String,
        /// Where it ends
        b: Option<String>,
        /// How it was at this time: 03:00, '2026-11-28 03:00' or with a zone; from this host only
        #[arg(long, value_name = "TIME", conflicts_with = "b")]
        at: Option<String>,
        /// The same as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show which pairs of hosts would lose their path without a host, and which way the others would go
    #[command(after_help = WHAT_IF_EXAMPLES)]
    WhatIf {
        /// Its nickname, or its peer_id
        host: String,
        /// down: the host is off
        state: Supposed,
        /// The same as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what happened to this host's router: links, paths, hosts, refused calls
    #[command(after_help = EVENTS_EXAMPLES)]
    Events {
        /// How long ago it begins: 30m, 2h, 1d [default: all that is kept]
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Go on with what happens from now on
        #[arg(long)]
        follow: bool,
        /// An object a line
        #[arg(long)]
        json: bool,
    },
    /// Write an archive for a bug report, without keys and secrets
    Report {
        /// The archive [default: weft-report.tar.gz]
        file: Option<PathBuf>,
        /// Add the end of this log
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
    },
    /// Add peers now; they are kept across restarts
    Connect {
        /// Forget all others
        #[arg(long)]
        replace: bool,
        /// host, ip or [ip6], each with an optional :port
        #[arg(required = true)]
        peers: Vec<String>,
    },
    /// Stop trying peers
    Forget {
        /// As they were given
        #[arg(required = true)]
        peers: Vec<String>,
    },
    /// Take back the address space of a host that is off for good
    Reclaim {
        /// Its nickname, or its peer_id
        host: String,
    },
    /// Give a running container an interface; prints its addresses
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach {
        /// Container name or id, PID, or network namespace path
        target: String,
        /// The segment [default: weft]
        #[arg(long)]
        segment: Option<String>,
        /// An address [default: one of the mesh's range]
        #[arg(long = "ip", value_name = "ADDR[/LEN]")]
        ips: Vec<String>,
        /// A name
        #[arg(long = "name", value_name = "NAME")]
        names: Vec<String>,
    },
    /// Take a container's interface away
    Detach {
        /// Container name or id, PID, or network namespace path
        target: String,
        /// The segment [default: weft]
        #[arg(long)]
        segment: Option<String>,
    },
    /// Give the host itself an address in a segment; prints it
    Expose {
        /// The segment [default: weft]
        #[arg(long)]
        segment: Option<String>,
        /// An address [default: one of the mesh's range]
        #[arg(long = "ip", value_name = "ADDR[/LEN]")]
        ips: Vec<String>,
        /// A name by which containers find the host
        #[arg(long = "name")]
        names: Vec<String>,
    },
    /// Take the host's address in a segment away
    Hide {
        /// The segment [default: weft]
        #[arg(long)]
        segment: Option<String>,
    },
    /// Names beside those of containers
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Make or reload network secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Three hosts and their containers on this machine: see the mesh work
    Demo(demo::DemoArgs),
    /// Put binary, configuration, secret and systemd unit in place, and start the router
    #[command(after_help = INSTALL_EXAMPLES)]
    Install(InstallArgs),
    /// Print what a shell needs to complete commands; weft install puts it in place
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the version
    Version,
    /// A part of the demo
    #[command(hide = true)]
    DemoStage(demo::DemoArgs),
}

/// What clap has to say about a wrong command line, in one line. Help that was asked for is printed.
pub fn misused(error: &clap::Error) -> Result<()> {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(&error.render().to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Err(Failure::Usage("a command is missing; see --help for what there is".into()))
        }
        _ => {
            let text = error.render().to_string();
            let (problem, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            let usage = rest.split("\n\n").find_map(|part| part.trim().strip_prefix("Usage: "));
            let usage = usage.map(|usage| format!("; usage: {}", words(usage))).unwrap_or_default();
            Err(Failure::Usage(format!("{}{usage}", words(problem.trim_start_matches("error: ")))))
        }
    }
}

/// What is supposed of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Supposed {
    /// It is off.
    Down,
}

#[derive(Subcommand, Debug)]
enum DnsCommand {
    /// Have a name stand for addresses, on every host
    Add {
        /// The name, with or without the domain
        name: String,
        /// Addresses
        #[arg(required = true, value_name = "IP")]
        ips: Vec<IpAddr>,
    },
    /// Have a name no longer stand for addresses, or for any if none are given
    Remove {
        /// The name
        name: String,
        /// Addresses
        #[arg(value_name = "IP")]
        ips: Vec<IpAddr>,
    },
    /// Print the addresses of a name, nearest first
    Lookup {
        /// The name, with or without network and domain
        name: String,
    },
}

#[derive(Subcommand, Debug)]
enum SecretCommand {
    /// Print a fresh network secret
    New,
    /// Read the secret file again; sessions under a secret no longer listed end
    Reload,
}

impl Cli {
    /// Does what the command line says.
    pub fn run(self) -> Result<()> {
        let socket = self.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into());
        match self.command {
            Command::Launch(args) => launch(LaunchArgs { socket: self.socket, ..*args }),
            Command::Install(args) => print(&install(&args, &manual::files(Cli::command())?)?),
            Command::Completions { shell } => print(&manual::completions(Cli::command(), shell)),
            Command::Demo(args) => demo::run(&args),
            Command::DemoStage(args) => demo::stage(&args),
            Command::Version => print(&format!("weft {VERSION}\n")),
            Command::Secret(SecretCommand::New) => print(&format!("{}\n", state::new_secret()?)),
            command => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .doing(|| "cannot start an event loop".into())?;
                runtime.block_on(talk(command, &socket))
            }
        }
    }
}

/// Commands that a running router carries out.
async fn talk(command: Command, socket: &std::path::Path) -> Result<()> {
    let post = async |path: &str, body: &Value| client::ask::<Value>(socket, Method::POST, path, body).await;
    match command {
        Command::Stop => stop(socket).await,
        Command::Status { topic, json, watch } => loop {
            let report: Value = client::ask(socket, Method::GET, "/status", &Value::Null).await?;
            let is_terminal = std::io::stdout().is_terminal();
            let text = match json {
                true => format!("{:#}\n", show::part(report, topic)),
                false if is_terminal && std::env::var_os("NO_COLOR").is_none() => {
                    show::coloured(&show::print(&report, topic)?)
                }
                false => show::print(&report, topic)?,
            };
            // What is watched on a terminal is shown in one place.
            let clear = if watch && is_terminal { "\x1b[H\x1b[2J" } else { "" };
            if !print_on(&format!("{clear}{text}"))? || !watch {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        },
        Command::Why { a, b: None, at: Some(at), json } => {
            let question = Question { from: None, to: a, at: Some(events::clock_time(&at)?) };
            let report = post("/why", &to_json(&question)?).await?;
            print(&if json { format!("{report:#}\n") } else { events::earlier_path(&report) })
        }
        Command::Why { a, b, at: _, json } => {
            let (from, to) = b.map_or((None, a.clone()), |b| (Some(a.clone()), b));
            let question = Question { from, to, at: None };
            let report = post("/why", &to_json(&question)?).await?;
            print(&if json { format!("{report:#}\n") } else { why::print(&report) })
        }
        Command::WhatIf { host, state: Supposed::Down, json } => {
            let report = post("/what-if", &to_json(&host)?).await?;
            print(&if json { format!("{report:#}\n") } else { why::print_what_if(&report) })
        }
        Command::Events { since, follow, json } => events::events(socket, since.as_deref(), follow, json).await,
        Command::Report { file, log } => print(&report::report(socket, file, log).await?),
        Command::Connect { replace, peers } => {
            peers.iter().try_for_each(|peer| parse_peer(peer).map(drop))?;
            post("/connect", &to_json(&Peers { names: peers.clone() })?).await?;
            if !replace {
                return Ok(());
            }
            let status: Value = client::ask(socket, Method::GET, "/status", &Value::Null).await?;
            let targets =
                status["targets"].as_array().into_iter().flatten().filter_map(|target| target["name"].as_str());
            let others = targets.filter(|name| !peers.iter().any(|peer| peer == name)).map(str::to_owned);
            post("/forget", &to_json(&Peers { names: others.collect() })?).await.map(drop)
        }
        Command::Forget { peers } => post("/forget", &to_json(&Peers { names: peers })?).await.map(drop),
        Command::Reclaim { host } => post("/reclaim", &to_json(&host)?).await.map(drop),
        Command::Attach { target, segment, ips, names } => {
            let target = Some(absolute(target)?);
            attach(socket, AttachRequest { target, segment, ips, names }).await
        }
        Command::Expose { segment, ips, names } => {
            attach(socket, AttachRequest { target: None, segment, ips, names }).await
        }
        Command::Detach { target, segment } => {
            let target = Some(absolute(target)?);
            let request = AttachRequest { target, segment, ips: Vec::new(), names: Vec::new() };
            post("/detach", &to_json(&request)?).await.map(drop)
        }
        Command::Hide { segment } => {
            let request = AttachRequest { target: None, segment, ips: Vec::new(), names: Vec::new() };
            post("/detach", &to_json(&request)?).await.map(drop)
        }
        Command::Dns(DnsCommand::Add { name, ips }) => {
            post("/dns/add", &to_json(&Entry { name, ips })?).await.map(drop)
        }
        Command::Dns(DnsCommand::Remove { name, ips }) => {
            post("/dns/remove", &to_json(&Entry { name, ips })?).await.map(drop)
        }
        Command::Dns(DnsCommand::Lookup { name }) => {
            let entry = Entry { name, ips: Vec::new() };
            let found: Vec<IpAddr> = client::ask(socket, Method::POST, "/dns/lookup", &entry).await?;
            print(&found.iter().map(|ip| format!("{ip}\n")).collect::<String>())
        }
        Command::Secret(SecretCommand::Reload) => post("/secret/reload", &Value::Null).await.map(drop),
        Command::Launch(_)
        | Command::Install(_)
        | Command::Demo(_)
        | Command::DemoStage(_)
        | Command::Completions { .. }
        | Command::Version
        | Command::Secret(SecretCommand::New) => Err(Failure::new("this command needs no running router")),
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).doing(|| "cannot put the request into words".into())
}

/// Asks the router to stop, and waits until it has: the next one finds everything free.
async fn stop(socket: &std::path::Path) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    // What does not run needs no stopping.
    if !client::is_served(socket).await {
        return Ok(());
    }
    let pid: u32 = client::ask(socket, Method::POST, "/stop", &Value::Null).await?;
    let end = tokio::time::Instant::now() + PATIENCE;
    while is_running(pid) {
        if tokio::time::Instant::now() > end {
            return Err(Failure::new(format!(
                "the router (process {pid}) is still stopping after {PATIENCE:?}; see its log"
            )));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Whether a process is there and has not ended: a zombie has.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Prints; a reader that closed the pipe has had enough.
fn print(text: &str) -> Result<()> {
    print_on(text).map(drop)
}

/// Prints; false if the reader closed the pipe.
fn print_on(text: &str) -> Result<bool> {
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).doing(|| "cannot print".into()),
    }
}

async fn attach(socket: &std::path::Path, request: AttachRequest) -> Result<()> {
    let addresses: Vec<String> = client::ask(socket, Method::POST, "/attach", &request).await?;
    print(&addresses.iter().map(|address| format!("{address}\n")).collect::<String>())
}

/// A namespace path means what it means here, not where the router runs.
fn absolute(target: String) -> Result<String> {
    if !target.contains('/') {
        return Ok(target);
    }
    let path = std::path::absolute(&target).doing(|| format!("cannot find {target}"))?;
    path.into_os_string().into_string().map_err(|_| Failure::Usage(format!("{target} is no path in plain text")))
}
