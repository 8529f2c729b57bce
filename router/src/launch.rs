//! `weft launch`: puts the parts together and runs until told to stop.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tracing::{info, warn};
use weft_crypto::Ciphers;
use weft_mesh::names::Names;
use weft_mesh::node::{Command, Config, Node, Reply, Target};
use weft_mesh::snapshot::{Hashing, Snapshot};
use weft_mesh::wire::container_mtu;

use crate::attachment;
use crate::attachments::Attachments;
use crate::control::{self, Api};
use crate::dns::Dns;
use crate::docker::{self, Docker};
use crate::engine::{Engine, Fenced, punt_queues};
use crate::error::{Doing, Failure, Result};
use crate::install;
use crate::netlink::in_namespace;
use crate::options::{LaunchArgs, Options, TapMode, parse_peer};
use crate::polling::Pauses;
use crate::state::{self, Store};
use crate::taps::{self, Segments};
use crate::udp::UdpPort;
use crate::worker::{Clock, Counters, Worker};

/// How often names of peers, own addresses and ended containers are looked after.
const CHORES: Duration = Duration::from_secs(2);
const CHORES_PER_RESOLVE: u32 = 15;
/// How long a stopping router lets its goodbyes travel.
const GOODBYE: Duration = Duration::from_millis(50);

/// Runs a router until SIGTERM, SIGINT or `weft stop`.
pub fn launch(args: LaunchArgs) -> Result<()> {
    let args = args.with_file()?;
    // A router of which one thread is gone is worse than none: containers keep their interfaces for the next one.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    raise_file_limit();
    start_log(args.log_level.as_deref().unwrap_or("info"), args.log_json)?;
    let options = args.resolve()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .doing(|| "cannot start an event loop".into())?;
    runtime.block_on(run(options))
}

/// A control socket of a router that is not there is worse than none.
struct RemoveOnDrop(std::path::PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn run(options: Options) -> Result<()> {
    check_privileges()?;
    taps::check(options.tap)?;
    let keyring = options.secrets.read()?;
    state::open_dir(&options.state_dir)?;
    let store = Arc::new(Store::open(&options.state_dir)?);
    let listener = control::bind(&options.socket)?;
    let _socket = RemoveOnDrop(options.socket.clone());
    let identity = state::identity(&options.state_dir)?;
    let underlay = underlay()?;
    refuse_overlap(&options)?;

    let kept = store.read()?;
    let restored = attachment::restore(&kept)?;
    store.write(restored.gone.iter().map(|key| (key, &None)))?;
    let kept: Vec<_> = kept.into_iter().filter(|(key, _)| !restored.gone.contains(key)).collect();
    // An engine that starts looks for its plugins: calls wait until they are served.
    let plugin = if options.docker { Some(docker::bind(&options)?) } else { None };
    let _plugin_socket = plugin.as_ref().map(|plugin| RemoveOnDrop(plugin.path.clone()));

    let clock = Clock::start();
    let worker_count = if options.tap == TapMode::Fast { options.workers } else { 1 };
    let sockets = UdpPort::bind(options.listen, worker_count)?;
    let udp = sockets[0].try_clone()?;
    let port = udp.port();
    let label = identity.peer_id().label();
    let peer_id = identity.peer_id();
    let config = Config {
        identity,
        name: options.name.clone(),
        keyring,
        ciphers: Ciphers::native(options.aes && has_aes_hardware()),
        underlay_mtu: underlay.mtu,
        port,
        discovery: options.discovery,
        grace: options.grace,
        founds_alone: options.found,
        continues: state::note_start(&store, &kept, &options.socket)?,
        restored: kept.clone(),
    };
    let node = Node::new(config, state::entropy()?, clock.now());

    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::empty(label, Hashing::default())));
    let (punts, inbox) = punt_queues();
    let counters = Arc::new(Counters::default());
    let pauses = Pauses::new(options.busy_poll);
    let workers: Vec<Worker> = (sockets.into_iter().enumerate())
        .map(|(number, udp)| {
            let shared = (punts.clone(), counters.clone());
            Worker::start(number, udp, pauses.clone(), snapshot.clone(), shared, clock)
        })
        .collect::<Result<_>>()?;
    let mtu = options.mtu.unwrap_or_else(|| container_mtu(underlay.mtu));
    // Any of them has a queue of each segment.
    let worker = workers[0].handle();
    let segments = Segments::new(options.tap, mtu, workers);
    let names = Arc::new(ArcSwap::from_pointee(Names::new(label)));
    let views = (snapshot, names.clone());
    let (engine, handle, fences) = Engine::new(node, clock, udp, views, (inbox, worker), store.clone());
    start_engine(engine)?;
    let (range, socket) = (options.range, options.docker_socket.clone());
    let attachments = Attachments::new(handle.clone(), store.clone(), segments, range, socket, restored).await?;
    let attachments = Arc::new(attachments);

    handle.ask(Command::SetAddresses(underlay.addresses)).await?;
    if !options.peers.is_empty() {
        // Who is named counts from the start; looking them up may take its time.
        let named = options.peers.iter().map(|name| Target { name: name.clone(), addresses: Vec::new() });
        handle.ask(Command::Connect(named.collect())).await?;
    }
    let options = Arc::new(options);
    let stop = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    let docker = match plugin {
        Some(plugin) => {
            let parts = (handle.clone(), attachments.clone());
            Some(Docker::start(plugin, &options, parts, store.clone(), &kept, &mut tasks).await?)
        }
        None => None,
    };
    let dns = match options.dns {
        true => Some(Dns::start(&options, names.clone(), attachments.clone(), docker.clone(), &mut tasks)?),
        false => None,
    };
    let api = Api {
        engine: handle.clone(),
        attachments,
        docker: docker.clone(),
        dns: dns.clone(),
        names,
        options: options.clone(),
        stop: stop.clone(),
    };
    info!(
        name = options.name,
        peer_id = %peer_id.short(),
        port,
        mtu,
        tap = ?options.tap,
        workers = worker_count,
        "weft {} is up",
        env!("CARGO_PKG_VERSION")
    );
    tasks.spawn(find_peers(api.clone()));
    tasks.spawn(control::serve(listener, api.clone()));
    tasks.spawn(chores(api.clone()));
    tasks.spawn(fence_all(api.clone(), fences));
    install::notify_ready();
    wait_for_end(&api).await?;

    info!("stopping; containers keep their interfaces");
    // The neighbours need not find out; if one misses it, it will.
    let _ = handle.ask(Command::Leave).await;
    tokio::time::sleep(GOODBYE).await;
    tasks.shutdown().await;
    if let Some(dns) = dns {
        dns.stop();
    }
    if let Some(docker) = docker {
        docker.stop().await;
    }
    Ok(())
}

/// The engine has a thread of its own: what commands do to interfaces takes milliseconds that links have not.
fn start_engine(engine: Engine) -> Result<()> {
    let what = || "cannot start the engine".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().doing(what)?;
    std::thread::Builder::new().name("engine".into()).spawn(move || runtime.block_on(engine.run())).doing(what)?;
    Ok(())
}

/// Waits for the end; a SIGHUP on the way reads the secrets again.
async fn wait_for_end(api: &Api) -> Result<()> {
    let on = |kind| signal(kind).doing(|| "cannot listen to signals".into());
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let mut hangup = on(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = api.stop.notified() => return Ok(()),
            _ = hangup.recv() => match api.options.secrets.read() {
                Ok(keyring) => drop(api.engine.ask(Command::SetKeyring(keyring)).await),
                Err(error) => warn!("the old secrets stay: {error}"),
            },
        }
    }
}

/// Looks up the peers named at the start.
async fn find_peers(api: Api) {
    match resolve_targets(&api.options.peers).await {
        Ok(targets) if !targets.is_empty() => drop(api.engine.ask(Command::Connect(targets)).await),
        Ok(_) => {}
        Err(error) => warn!("{error}"),
    }
}

/// Cuts off endpoints whose addresses turned out to be others'.
async fn fence_all(api: Api, mut fences: UnboundedReceiver<Fenced>) {
    while let Some(fenced) = fences.recv().await {
        api.attachments.fence(fenced).await;
    }
}

/// What nothing else brings about: containers that end, names that come to mean other addresses.
async fn chores(api: Api) {
    let mut round = 0u32;
    loop {
        tokio::time::sleep(CHORES).await;
        api.attachments.sweep().await;
        round += 1;
        if round.is_multiple_of(CHORES_PER_RESOLVE) {
            if let Ok(underlay) = underlay() {
                let _ = api.engine.ask(Command::SetAddresses(underlay.addresses)).await;
            }
            let _ = look_up_targets(&api).await;
        }
    }
}

/// Looks up again what the user wants to be connected with now; names that cannot be looked up keep their addresses.
async fn look_up_targets(api: &Api) -> Result<()> {
    let Reply::Targets(targets) = api.engine.ask(Command::Targets).await? else { return Ok(()) };
    let names: Vec<String> = targets.into_iter().filter(|name| !is_literal(name)).collect();
    let found = resolve_targets(&names).await?.into_iter().filter(|target| !target.addresses.is_empty());
    let found: Vec<Target> = found.collect();
    if !found.is_empty() {
        api.engine.ask(Command::Connect(found)).await?;
    }
    Ok(())
}

fn is_literal(peer: &str) -> bool {
    parse_peer(peer).is_ok_and(|(host, _)| host.parse::<IpAddr>().is_ok())
}

/// Looks up the addresses of peers. A name that cannot be looked up now is tried again later.
pub async fn resolve_targets(names: &[String]) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for name in names {
        let (host, port) = parse_peer(name)?;
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => match tokio::time::timeout(Duration::from_secs(3), tokio::net::lookup_host((host, port))).await {
                Ok(Ok(addresses)) => addresses.take(8).collect(),
                _ => {
                    warn!(peer = name, "cannot look up this peer now; trying again");
                    Vec::new()
                }
            },
        };
        targets.push(Target { name: name.clone(), addresses });
    }
    Ok(targets)
}

/// What this host's interfaces say about the network beneath.
struct Underlay {
    mtu: usize,
    addresses: Vec<IpAddr>,
}

/// The smallest MTU and the addresses of interfaces that lead out of this host.
fn underlay() -> Result<Underlay> {
    let mut underlay = Underlay { mtu: 0, addresses: Vec::new() };
    let interfaces = nix::ifaddrs::getifaddrs().doing(|| "cannot list this host's addresses".into())?;
    let known = in_namespace(None, async |net| net.links().await)?;
    let mut mtus = Vec::new();
    for interface in interfaces {
        let name = interface.interface_name;
        let is_ours =
            name.starts_with("weft") || name.starts_with("docker") || name.starts_with("veth") && name.len() > 8;
        let Some(address) = interface.address else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        let is_link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if ip.is_loopback() || ip.is_unspecified() || is_link_local || is_ours {
            continue;
        }
        underlay.addresses.push(ip);
        mtus.extend(known.iter().filter(|link| link.name == name).map(|link| link.mtu));
    }
    underlay.mtu = mtus.into_iter().min().unwrap_or(1500).clamp(1280, 65_535);
    underlay.addresses.truncate(weft_mesh::records::MAX_LIST);
    Ok(underlay)
}

fn refuse_overlap(options: &Options) -> Result<()> {
    let range = options.range;
    let found = in_namespace(None, async move |net| net.overlapping_route(range.0).await)?;
    match found {
        Some((to, length)) => Err(Failure::new(format!(
            "the range {range} overlaps this host's route to {to}/{length}; choose another with --range"
        ))),
        None => Ok(()),
    }
}

fn check_privileges() -> Result<()> {
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").doing(|| "cannot look at own privileges".into())?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if capabilities >> CAP_NET_ADMIN & 1 == 1 {
        Ok(())
    } else {
        Err(Failure::new(
            "a router needs CAP_NET_ADMIN: run as root, or: setcap cap_net_admin,cap_net_raw,cap_sys_admin+ep weft",
        ))
    }
}

/// Each container has sockets of its own: the usual 1024 open files are too few.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

fn has_aes_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

fn start_log(level: &str, json: bool) -> Result<()> {
    use tracing_subscriber::{EnvFilter, fmt};
    let level: tracing::level_filters::LevelFilter =
        level.parse().map_err(|_| Failure::Usage("--log-level takes error, warn, info, debug or trace".into()))?;
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // What a library thinks of packets from strangers is not for the log.
    let filter = EnvFilter::new(format!("{level},hickory_proto=off"));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).with_target(false);
    if json {
        log.json().init()
    } else {
        log.init()
    }
    Ok(())
}
