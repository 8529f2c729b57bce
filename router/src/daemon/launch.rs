//! `weft launch`: puts the parts together and runs until told to stop.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};
use weft_crypto::{Ciphers, PeerId};
use weft_mesh::names::Names;
use weft_mesh::node::{Command, Config, Node, Target};
use weft_mesh::snapshot::{Hashing, Snapshot};

use crate::attach::attachments::{AttachmentParts, Attachments};
use crate::attach::netlink::{self, in_namespace};
use crate::attach::restore::{Restored, restore};
use crate::attach::running::RunningCopies;
use crate::cli::addresses::parse_peer;
use crate::cli::install;
use crate::cli::options::{LaunchArgs, Options, TapMode};
use crate::daemon::api::Api;
use crate::daemon::control;
use crate::daemon::keys::StoreKey;
use crate::daemon::log;
use crate::daemon::node_task::{EndpointChange, NodeHandle, NodeTask, Parts, punt_queues};
use crate::daemon::seeds::{find_peers, look_up_targets};
use crate::daemon::state::{self, Change, Store};
use crate::dataplane::clock::Clock;
use crate::dataplane::counters::Counters;
use crate::dataplane::intake;
use crate::dataplane::polling::Pauses;
use crate::dataplane::taps::{self, Segments};
use crate::dataplane::worker::{Shared, Worker, WorkerHandle};
use crate::dns::{Dns, DnsParts};
use crate::docker::{self, Docker, DockerParts};
use crate::error::{Doing, Failure, Result};
use crate::host::port_mapping::PortMappings;
use crate::host::routing::{self, Policy, Routing};
use crate::host::underlay::{self, Underlay};
use crate::observe::flows::FlowExport;
use crate::observe::happening::Happening;
use crate::observe::observers::Observers;
use crate::observe::recorder::Recorder;
use crate::observe::{self, http};
use crate::transport::Port;
use crate::transport::spare::SparePorts;
use crate::transport::tcp::{self, Connections, Ends};
use crate::transport::udp::UdpPort;

/// How often names of peers and ended containers are looked after.
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
    log::start(args.log_level.as_deref().unwrap_or("info"), args.log_json, args.log_file.as_deref())?;
    let options = args.resolve()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .doing(|| "cannot start an event loop".into())?;
    let result = runtime.block_on(run(options));
    // A look-up under way, which nothing can end, is not waited for.
    runtime.shutdown_timeout(GOODBYE);
    result
}

/// A control socket of a router that is not there is worse than none.
struct RemoveOnDrop(std::path::PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn run(options: Options) -> Result<()> {
    let router = Built::new(options)?.start().await?;
    router.until_told_to_stop().await?;
    router.stop().await;
    Ok(())
}

/// What the store and the control socket's directory remember.
struct Remembered {
    store: Arc<Store>,
    kept: Vec<(Vec<u8>, Vec<u8>)>,
    restored: Restored,
    running: RunningCopies,
    /// What is wrong with the mesh's range on this host, if anything.
    overlap: Option<String>,
}

impl Remembered {
    /// Call it only once no other router can run here: it puts copies of endpoints right.
    fn read(options: &Options, store: Arc<Store>) -> Result<Remembered> {
        let kept = store.read()?;
        let (noted, overlap) = check_range(options, &kept)?;
        store.write_at_start(noted.iter().map(|(key, value)| (key, value)));
        let running = RunningCopies::open(&options.socket)?;
        let restored = restore(&kept, &running)?;
        store.write_at_start(restored.gone.iter().map(|key| (key, &None)));
        let kept = kept.into_iter().filter(|(key, _)| !restored.gone.contains(key)).collect();
        Ok(Remembered { store, kept, restored, running, overlap })
    }
}

/// A router with files, sockets and node, before it carries anything. What is wrong with options or host is found here.
struct Built {
    options: Arc<Options>,
    remembered: Remembered,
    node: Node,
    peer_id: PeerId,
    clock: Clock,
    /// One UDP port per packet worker.
    ports: Vec<UdpPort>,
    listeners: Vec<std::net::TcpListener>,
    underlay: Underlay,
    changes_below: Receiver<()>,
    /// The largest packet of containers, in bytes.
    mtu: u16,
    control: UnixListener,
    plugin: Option<docker::Bound>,
    http: Option<std::net::TcpListener>,
    sockets: Vec<RemoveOnDrop>,
}

impl Built {
    fn new(options: Options) -> Result<Built> {
        check_privileges()?;
        taps::check(options.tap)?;
        let keyring = options.secrets.read()?;
        state::open_dir(&options.state_dir)?;
        let store = Arc::new(Store::open(&options.state_dir)?);
        let control = control::bind(&options.socket)?;
        let mut sockets = vec![RemoveOnDrop(options.socket.clone())];
        let remembered = Remembered::read(&options, store)?;
        let identity = state::identity(&options.state_dir)?;
        let changes_below = netlink::watch_interfaces()?;
        let underlay = underlay::look(&named_addresses(&options), &options.metered_links)?;
        // An engine that starts looks for its plugins: calls wait until they are served.
        let plugin = if options.docker { Some(docker::bind(&options)?) } else { None };
        sockets.extend(plugin.iter().map(|plugin| RemoveOnDrop(plugin.path.clone())));
        let clock = Clock::start();
        let worker_count = if options.tap == TapMode::Fast { options.workers } else { 1 };
        let ports = UdpPort::bind(options.listen.udp, worker_count)?;
        let listeners = tcp::listen(&options.listen.tcp)?;
        let http = options.http.map(http::bind).transpose()?.flatten();
        let (peer_id, mtu) = (identity.peer_id(), underlay.container_mtu(&options));
        let alive = remembered.restored.alive.values();
        let config = Config {
            identity,
            name: options.name.clone(),
            keyring,
            ciphers: Ciphers::native(options.aes && has_aes_hardware()),
            underlay_mtu: underlay.mtu,
            container_mtu: mtu,
            port: ports[0].port(),
            tcp_ports: tcp::ports(&listeners),
            advertised: options.advertised.clone(),
            is_stub: !options.relays,
            is_metered: options.is_metered,
            discovery: options.discovery,
            grace: options.grace,
            founds_alone: options.found,
            continues: state::note_start(&remembered.store, &remembered.kept, &options.socket)?,
            endpoints: alive.map(|attachment| (attachment.id, attachment.record())).collect(),
            restored: remembered.kept.clone(),
        };
        let node = Node::new(config, state::entropy()?, clock.now());
        let options = Arc::new(options);
        Ok(Built {
            options,
            remembered,
            node,
            peer_id,
            clock,
            ports,
            listeners,
            underlay,
            changes_below,
            mtu,
            control,
            plugin,
            http,
            sockets,
        })
    }

    /// Starts workers, node task and servers; containers that are there have traffic from here on.
    async fn start(self) -> Result<Running> {
        let Built { options, remembered, node, peer_id, clock, ports, listeners, underlay, mtu, .. } = self;
        let Remembered { store, kept, restored, running, overlap } = remembered;
        let (label, number, worker_count) = (peer_id.label(), ports[0].port(), ports.len());
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::empty(label, Hashing::default())));
        let names = Arc::new(ArcSwap::from_pointee(Names::new(label)));
        let (punts, inbox) = punt_queues();
        let (counters, observers) = (Arc::<Counters>::default(), Observers::new(Recorder::open(&options.state_dir)));
        observers.recorder.note(&Happening::Started { version: env!("CARGO_PKG_VERSION") });
        let (tcp, Ends { opened, closed }) = Connections::new(options.proxy.clone())?;
        let (spares, spare_changes) = SparePorts::new();
        let port = Port { udp: ports[0].clone(), tcp: tcp.clone(), spares: spares.clone() };
        let shared = Shared {
            pauses: Pauses::new(options.busy_poll),
            snapshot: snapshot.clone(),
            punts,
            counters: counters.clone(),
            clock,
        };
        let numbered = ports.into_iter().enumerate();
        let workers: Vec<Worker> = numbered
            .map(|(number, udp)| Worker::start(number, Port { udp, ..port.clone() }, &shared))
            .collect::<Result<_>>()?;
        // Any of them has a queue of each segment.
        let handles: Vec<WorkerHandle> = workers.iter().map(Worker::handle).collect();
        let worker = handles[0].clone();
        let segments = Segments::new(options.tap, mtu.into(), workers);
        let parts = Parts {
            node,
            clock,
            port,
            closed,
            snapshot,
            names: names.clone(),
            punts: inbox,
            worker,
            store: store.clone(),
            observers: observers.clone(),
        };
        let (task, handle, changes) = NodeTask::new(parts);
        start_node_task(task)?;
        let attachments = Attachments::new(AttachmentParts {
            node: handle.clone(),
            store: store.clone(),
            segments,
            range: options.range,
            docker_socket: options.docker_socket.clone(),
            restored,
            running,
        });
        let attachments = Arc::new(attachments.await?);
        introduce(&handle, &options, &underlay).await;
        attachments.take_up_lost().await;

        let routing = Arc::<Routing>::default();
        let mut tasks = JoinSet::new();
        let docker = match self.plugin {
            Some(plugin) => {
                let (node, attachments, routing) = (handle.clone(), attachments.clone(), routing.clone());
                let (store, observers) = (store.clone(), observers.clone());
                let parts = DockerParts { node, attachments, routing, store, kept: &kept, observers };
                Some(Docker::start(plugin, &options, parts, &mut tasks).await?)
            }
            None => {
                routing.set(Policy { ranges: [options.range].into(), ..Policy::default() })?;
                None
            }
        };
        let dns = match options.dns {
            true => {
                let (docker, routing, tallies) = (docker.clone(), routing.clone(), observers.tallies.clone());
                let parts =
                    DnsParts { names: names.clone(), attachments: attachments.clone(), docker, routing, tallies };
                Some(Dns::start(&options, parts, &mut tasks)?)
            }
            false => None,
        };
        tasks.spawn(tcp.clone().sweep());
        tasks.spawn(intake::connections(opened, handles.clone()));
        tasks.spawn(spares.sweep());
        tasks.spawn(intake::spare_ports(spare_changes, handles.clone()));
        let mappings = PortMappings::of(number, &tcp::ports(&listeners));
        for listener in listeners {
            tasks.spawn(tcp.clone().accept(tcp::in_runtime(listener)?));
        }
        let stop = Arc::new(Notify::new());
        let api = Api {
            node: handle,
            attachments,
            docker,
            dns,
            names,
            observers,
            counters,
            connections: tcp,
            store,
            overlap,
            options,
            stop,
        };
        let (name, tap) = (&api.options.name, api.options.tap);
        info!(
            name,
            peer_id = peer_id.short(),
            port = number,
            mtu,
            ?tap,
            workers = worker_count,
            "weft {} is up",
            env!("CARGO_PKG_VERSION")
        );
        tasks.spawn(find_peers(api.clone()));
        let (underlay, known) = watch::channel(underlay);
        tasks.spawn(underlay::follow(api.clone(), self.changes_below, api.node.links_changed(), underlay));
        if api.options.maps_ports {
            tasks.spawn(mappings.clone().keep(api.node.clone(), known));
        }
        tasks.spawn(routing::keep(routing));
        tasks.spawn(control::serve(self.control, api.clone()));
        observe::start(self.http, &api, &mut tasks)?;
        let collector = api.options.flow_export.clone();
        let flows = collector.map(|collector| FlowExport::start(collector, handles, clock, &peer_id, api.clone()));
        tasks.spawn(chores(api.clone()));
        tasks.spawn(change_endpoints(api.clone(), changes));
        install::notify_ready();
        Ok(Running { api, tasks, flows, mappings, _sockets: self.sockets })
    }
}

/// Tells the node where it is and which peers the operator named.
async fn introduce(node: &NodeHandle, options: &Options, underlay: &Underlay) {
    // Named peers count from the start; looking them up may take its time.
    let named = options.peers.iter().map(|name| Target { name: name.clone(), addresses: Vec::new() });
    let connect = (!options.peers.is_empty()).then(|| Command::ConnectUnlessForgotten(named.collect()));
    let metered = Command::SetMeteredPaths(underlay.metered.clone());
    let addresses = Command::SetAddresses(underlay.addresses.clone());
    for command in [metered, addresses].into_iter().chain(connect) {
        // It takes effect all the same: a full disk is written again once it has room.
        if let Err(error) = node.tell(command).await {
            warn!("{error}; going on");
        }
    }
}

/// A router that carries traffic.
struct Running {
    api: Api,
    tasks: JoinSet<()>,
    flows: Option<FlowExport>,
    mappings: Arc<PortMappings>,
    _sockets: Vec<RemoveOnDrop>,
}

impl Running {
    /// Waits for the end; a SIGHUP on the way reads the secrets again.
    async fn until_told_to_stop(&self) -> Result<()> {
        wait_for_end(&self.api).await
    }

    /// Says goodbye and ends all tasks. Containers keep their interfaces.
    async fn stop(mut self) {
        info!("stopping; containers keep their interfaces");
        self.api.observers.recorder.note(&Happening::Stopped);
        // The neighbours need not find out; if one misses it, it will.
        let _ = self.api.node.tell(Command::Leave).await;
        if let Some(flows) = self.flows {
            flows.finish().await;
        }
        tokio::time::sleep(GOODBYE).await;
        self.tasks.shutdown().await;
        self.mappings.release().await;
        if let Some(dns) = self.api.dns {
            dns.stop();
        }
    }
}

/// The addresses of peers that are named by them.
fn named_addresses(options: &Options) -> Vec<IpAddr> {
    let hosts = options.peers.iter().filter_map(|peer| parse_peer(peer).ok());
    hosts.filter_map(|(host, _)| host.parse().ok()).collect()
}

/// The node task has its own thread: netlink calls block for milliseconds, longer than link timers tolerate.
fn start_node_task(task: NodeTask) -> Result<()> {
    let what = || "cannot start the node task".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().doing(what)?;
    std::thread::Builder::new().name("node".into()).spawn(move || runtime.block_on(task.run())).doing(what)?;
    Ok(())
}

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
                Ok(keyring) => drop(api.node.tell(Command::SetKeyring(keyring)).await),
                Err(error) => warn!("the old secrets stay: {error}"),
            },
        }
    }
}

/// Carries out what the mesh comes to say about endpoints of this host.
async fn change_endpoints(api: Api, mut changes: UnboundedReceiver<EndpointChange>) {
    while let Some(change) = changes.recv().await {
        api.attachments.apply(change).await;
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
            api.attachments.take_up_lost().await;
            let _ = look_up_targets(&api).await;
        }
    }
}

/// Hosts beside this one and containers may not have addresses of one range. That is refused where it can still be changed: before
/// the first use of a range. Later all goes on, but for the addresses that an interface of this host has.
fn check_range(options: &Options, kept: &[(Vec<u8>, Vec<u8>)]) -> Result<(Option<Change>, Option<String>)> {
    let range = options.range;
    let (key, value) = (StoreKey::Range.encode(), range.to_string().into_bytes());
    let is_known = kept.iter().any(|(k, v)| *k == key && *v == value);
    match in_namespace(None, async move |net| net.on_link_overlap(range).await)? {
        Some((network, interface)) if !is_known => Err(Failure::new(format!(
            "the range {range} overlaps the network {network} of interface {interface}; choose another with --range"
        ))),
        Some((network, interface)) => {
            let problem = format!(
                "the range {range} overlaps the network {network} of interface {interface}: machines there are not reached from \
                 containers, nor containers with such addresses from this host; give one of the two other addresses"
            );
            warn!("{problem}");
            Ok((None, Some(problem)))
        }
        None => Ok(((!is_known).then_some((key, Some(value))), None)),
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
