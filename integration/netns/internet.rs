//! A small internet of namespaces: a backbone that routes, and hosts at its edge, some behind NATs and firewalls.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use weft_router::attach::prefix::Prefix;
use weft_router::lab::{Ns, wire};

use super::{ip, nft};

/// What stands between a host and the backbone, from the outside in.
pub type Edge = &'static [Layer];

/// One router before a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layer {
    /// Passes packets from outside only in answer to what went out.
    Firewall,
    /// A NAT as Linux does it: a port is kept if it is free, and each destination has its own mapping and filter. What comes unasked is
    /// taken for the NAT's own.
    Nat,
    /// The same, and what comes unasked is dropped.
    FilteringNat,
    /// The same with a random port for each destination.
    SymmetricNat,
    /// The same, and what comes to its port 7000 by UDP goes to the host behind it.
    ForwardingNat,
    /// A symmetric NAT that maps ports when a host asks for it so.
    MappingNat(AskedBy),
    /// A NAT that lets out connections to web servers and nothing else.
    OnlyHttps,
    /// The same, with a look at what the connections carry: only TLS passes, all else vanishes.
    OnlyTls,
}

/// How a NAT is asked to map a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AskedBy {
    /// PCP and NAT-PMP.
    Pcp,
    /// UPnP.
    Upnp,
}

/// The backbone and everything at it.
pub struct Internet {
    /// The router in the middle.
    pub backbone: Ns,
    /// Namespaces of the routers before hosts, which last as long as this.
    pub routers: Vec<Ns>,
    /// What runs on them.
    daemons: Vec<Child>,
}

impl Drop for Internet {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // It may have ended.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Internet {
    /// A backbone without hosts.
    pub fn new() -> Internet {
        let backbone = Ns::new().expect("a namespace for the backbone");
        forward(&backbone);
        Internet { backbone, routers: Vec::new(), daemons: Vec::new() }
    }

    /// Joins a host by a leg of its own, `leg{number}` at the backbone and `up` at the host, behind the layers of its edge. Returns the address
    /// that the host has.
    pub fn join(&mut self, host: &Ns, number: u8, edge: Edge) -> Ipv4Addr {
        let mut outer = self.backbone.try_clone().expect("the backbone is there");
        for (depth, layer) in edge.iter().enumerate() {
            let router = Ns::new().expect("a namespace for a router");
            forward(&router);
            self.link(&outer, &router, number, depth);
            nft(&router, rules(*layer));
            if *layer == Layer::ForwardingNat {
                let [a, b] = network(depth + 1);
                let to = format!("iifname up udp dport 7000 dnat to {a}.{b}.{number}.2:6783;");
                nft(
                    &router,
                    &format!("table ip forwarded {{ chain pre {{ type nat hook prerouting priority -100; {to} }} }}"),
                );
            }
            if *layer == Layer::Firewall {
                // Hosts behind it have addresses that others know the way to.
                assert_eq!(depth, 0, "a firewall is outermost");
                ip(&self.backbone, &format!("route add 198.19.{number}.0/24 via 198.18.{number}.2"));
            }
            outer = router.try_clone().expect("the router is there");
            self.routers.push(router);
        }
        self.link(&outer, host, number, edge.len());
        if let [.., Layer::MappingNat(by)] = edge {
            self.map_ports(number, *by);
        }
        let [a, b] = network(edge.len());
        Ipv4Addr::new(a, b, number, 2)
    }

    /// Has the last router map ports of its LAN. It has an address for that which counts as a public one; miniupnpd maps none at others.
    fn map_ports(&mut self, number: u8, by: AskedBy) {
        let router = self.routers.last().expect("a router");
        let outside = mapped_address(number);
        ip(router, &format!("addr add {outside}/32 dev up"));
        ip(&self.backbone, &format!("route add {outside} via 198.18.{number}.2"));
        nft(router, PORT_MAPPING);
        let [pcp, upnp] = [AskedBy::Pcp, AskedBy::Upnp].map(|way| if way == by { "yes" } else { "no" });
        let config = format!(
            "ext_ifname=up\next_ip={outside}\nlistening_ip=leg{number}\nenable_natpmp={pcp}\nenable_upnp={upnp}\n\
             upnp_table_name=mapping\nupnp_nat_table_name=mapping\nsecure_mode=yes\nmin_lifetime=120\nmax_lifetime=86400\n\
             uuid=00000000-0000-4000-8000-0000000000{number:02}\nallow 1024-65535 0.0.0.0/0 1024-65535\n"
        );
        let base = std::env::temp_dir().join(format!("weft-mapping-{}-{number}", std::process::id()));
        let path = base.with_extension("conf");
        std::fs::write(&path, config).expect("a configuration file");
        let mut daemon = Command::new("miniupnpd");
        daemon.args([
            "-d".as_ref(),
            "-f".as_ref(),
            path.as_os_str(),
            "-P".as_ref(),
            base.with_extension("pid").as_os_str(),
        ]);
        daemon.stdout(Stdio::null()).stderr(Stdio::null());
        self.daemons.push(router.spawn(daemon).expect("miniupnpd; scripts/test installs it"));
    }

    /// Joins two namespaces and has the inner one send everything to the outer.
    fn link(&self, outer: &Ns, inner: &Ns, number: u8, depth: usize) {
        let [a, b] = network(depth);
        let end = |last| [Prefix(IpAddr::from([a, b, number, last]), 24)];
        let leg = format!("leg{number}");
        wire(outer, inner, (&leg, "up"), (&end(1), &end(2))).expect("a wire");
        let gateway = IpAddr::from([a, b, number, 1]);
        inner.net(async move |net| net.add_default_route(gateway).await).expect("a default route");
    }
}

impl Default for Internet {
    fn default() -> Self {
        Internet::new()
    }
}

/// Where the NAT of a leg that maps ports has them.
pub fn mapped_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(25, 0, number, 2)
}

const PORT_MAPPING: &str = "table inet mapping { chain miniupnpd { } chain prerouting_miniupnpd { } chain postrouting_miniupnpd { } \
    chain pre { type nat hook prerouting priority -100; jump prerouting_miniupnpd; } \
    chain post { type nat hook postrouting priority 90; jump postrouting_miniupnpd; } \
    chain f { type filter hook forward priority 0; jump miniupnpd; } }";

/// The first bytes of the addresses at a depth: public, behind one router, behind two.
fn network(depth: usize) -> [u8; 2] {
    [[198, 18], [198, 19], [192, 168]][depth]
}

fn forward(router: &Ns) {
    let on = router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
    on.expect("the namespace is there").expect("forwarding can be switched on");
}

fn rules(layer: Layer) -> &'static str {
    const NAT: &str = "table ip nat { chain post { type nat hook postrouting priority 100; oifname up masquerade; } }";
    const FILTERING: &str = "table ip nat { chain post { type nat hook postrouting priority 100; oifname up masquerade; } } \
        table ip filter { chain in { type filter hook input priority 0; iifname up ct state new drop; } }";
    const SYMMETRIC: &str = "table ip nat { chain post { type nat hook postrouting priority 100; oifname up masquerade fully-random; } } \
        table ip filter { chain in { type filter hook input priority 0; iifname up ct state new drop; } }";
    const FIREWALL: &str =
        "table ip filter { chain f { type filter hook forward priority 0; iifname up ct state new drop; } }";
    const ONLY_HTTPS: &str = "table ip nat { chain post { type nat hook postrouting priority 100; oifname up masquerade; } } \
        table ip filter { chain f { type filter hook forward priority 0; policy drop; \
        ct state established,related accept; tcp dport 443 accept; } }";
    // A client's first bytes are those of a TLS handshake (22), or it stays without an answer. Packets without data have no more than 60.
    const ONLY_TLS: &str = "table ip nat { chain post { type nat hook postrouting priority 100; oifname up masquerade; } } \
        table ip filter { chain f { type filter hook forward priority 0; policy drop; \
        oifname up tcp dport 443 meta length > 60 ct mark 0 @ih,0,8 22 ct mark set 1; \
        oifname up tcp dport 443 meta length > 60 ct mark 0 drop; \
        ct state established,related accept; tcp dport 443 accept; } }";
    match layer {
        Layer::Firewall => FIREWALL,
        Layer::Nat => NAT,
        Layer::FilteringNat => FILTERING,
        Layer::SymmetricNat | Layer::ForwardingNat | Layer::MappingNat(_) => SYMMETRIC,
        Layer::OnlyHttps => ONLY_HTTPS,
        Layer::OnlyTls => ONLY_TLS,
    }
}

/// What became of a TCP transfer.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Bytes that arrived; each was compared with what was sent.
    pub bytes: u64,
    /// The longest time between two arrivals.
    pub longest_silence: Duration,
}

/// Sends bytes by TCP from one namespace to another for a while, and runs `meanwhile` with their count so far. Panics if any arrives
/// changed.
pub fn transfer(
    from: &Ns,
    to: &Ns,
    address: IpAddr,
    duration: Duration,
    meanwhile: impl FnOnce(&AtomicU64),
) -> Transfer {
    let listener = to.run(|| TcpListener::bind((address, 0))).expect("the namespace is there").expect("a free port");
    let target = listener.local_addr().expect("a bound socket has an address");
    let arrived = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || from.run(move || send(target, duration)));
        let receiver = scope.spawn(|| receive(&listener, &arrived));
        meanwhile(&arrived);
        let transfer = receiver.join().expect("the receiver ends");
        sender.join().expect("the sender ends").expect("the namespace is there").expect("all was taken");
        transfer.expect("all arrives")
    })
}

/// The byte at a place of a transfer: no two neighbouring blocks are alike.
fn byte_at(place: u64) -> u8 {
    (place ^ (place >> 8) ^ (place >> 16)) as u8
}

fn send(target: SocketAddr, duration: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let (end, mut sent, mut block) = (Instant::now() + duration, 0u64, vec![0; 1 << 16]);
    while Instant::now() < end {
        (sent..).zip(&mut block).for_each(|(place, byte)| *byte = byte_at(place));
        stream.write_all(&block)?;
        sent += block.len() as u64;
    }
    Ok(())
}

fn receive(listener: &TcpListener, arrived: &AtomicU64) -> std::io::Result<Transfer> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut block, mut last) = (vec![0; 1 << 16], Instant::now());
    let mut transfer = Transfer { bytes: 0, longest_silence: Duration::ZERO };
    loop {
        let count = stream.read(&mut block)?;
        transfer.longest_silence = transfer.longest_silence.max(last.elapsed());
        last = Instant::now();
        if count == 0 {
            return Ok(transfer);
        }
        let is_intact = (transfer.bytes..).zip(&block[..count]).all(|(place, byte)| *byte == byte_at(place));
        assert!(is_intact, "bytes after {} arrive changed", transfer.bytes);
        transfer.bytes += count as u64;
        arrived.store(transfer.bytes, Ordering::Relaxed);
    }
}
