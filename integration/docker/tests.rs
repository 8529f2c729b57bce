//! Containers of real engines on several hosts.

mod compose;
mod networks;

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use weft_integration::alone;
use weft_integration::docker::{EngineHost, IMAGE, Lan, OUTSIDE_NAME};
use weft_router::lab::await_true;

/// How long a name may take to be known everywhere, with what a shared machine adds.
const KNOWN: Duration = Duration::from_secs(10);

fn refused(output: &std::process::Output, hint: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(hint), "expected {hint:?}: {text}");
}

#[test]
fn containers_of_three_engines_find_each_other_by_name() {
    let _alone = alone();
    let lan = Lan::start("names", 3);
    let [a, b, c] = &lan.hosts[..] else { panic!("three hosts") };

    // A network made on one host can be used on every other.
    a.docker(&["network", "create", "-d", "weft", "--ipam-driver", "weft", "app"]);
    for host in [b, c] {
        await_true("the network does not spread", || Ok(host.network_exists("app"))).unwrap();
    }
    a.sleeper("web", "app", &["--network-alias", "www", "--hostname", "web-host"]);
    b.sleeper("client", "app", &[]);
    let web = a.ip("web", "app");
    for name in ["web", "WEB", "www", "web-host", "web.app", "web.weft.internal", "web.app.weft.internal"] {
        b.await_resolved("client", name, &[web], KNOWN);
    }
    assert!(b.pings("client", "web") && b.pings("client", "web.app"));
    assert_eq!(b.resolve("client", &web.to_string()), ["web.app.weft.internal"]);
    // It is asked from the engine's own host, too: weft's answer is the same as the engine's.
    a.sleeper("near", "app", &[]);
    a.await_resolved("near", "web", &[web], KNOWN);
    assert!(a.pings("near", "client"));

    // Several under one name are all answered.
    c.sleeper("web-2", "app", &["--network-alias", "web"]);
    let second = c.ip("web-2", "app");
    b.await_resolved("client", "web", &[web, second], KNOWN);
    c.docker(&["pause", "web-2"]);
    b.await_resolved("client", "web", &[web], KNOWN);
    c.docker(&["unpause", "web-2"]);
    b.await_resolved("client", "web", &[web, second], KNOWN);
    c.docker(&["rename", "web-2", "other"]);
    b.await_resolved("client", "other", &[second], KNOWN);
    c.docker(&["rm", "-f", "other"]);
    b.await_resolved("client", "web", &[web], KNOWN);

    // Names and frames of one network are not for containers of another.
    c.sleeper("stranger", "weft", &[]);
    assert!(!c.pings("stranger", &web.to_string()));
    let status = c.status();
    assert!(status["endpoints"].as_array().unwrap().iter().any(|e| e["names"][0] == "web"));
    assert_ne!(c.resolve("stranger", "web.app.weft.internal"), [web.to_string()]);
    refused(&c.try_docker(&["network", "connect", "app", "stranger"]), "--subnet");
    c.docker(&create(&["--subnet", "10.61.0.0/24", "side"]));
    await_true("the network does not spread", || Ok(a.network_exists("side"))).unwrap();
    a.sleeper("member", "side", &[]);
    c.docker(&["network", "connect", "--alias", "guest", "side", "stranger"]);
    a.await_resolved("member", "guest", &[c.ip("stranger", "side")], KNOWN);
    c.await_resolved("stranger", "member", &[a.ip("member", "side")], KNOWN);
    await_true("a connected container does not get through", || Ok(c.pings("stranger", "member"))).unwrap();
    c.docker(&["network", "disconnect", "side", "stranger"]);
    a.await_resolved("member", "guest", &[], KNOWN);
    assert!(!c.pings("stranger", "member"));

    // A container that was not started on a network of weft's.
    a.docker(&["run", "-d", "--name", "plain", IMAGE, "sleep", "100000"]);
    let attached = a.weft(&["attach", "plain", "--segment", "app", "--name", "plain"]);
    let address = String::from_utf8_lossy(&attached.stdout).trim().to_owned();
    let (ip, length) = address.split_once('/').unwrap_or_else(|| panic!("{attached:?}"));
    assert_eq!(length, "12", "it is of the network's range");
    b.await_resolved("client", "plain", &[ip.parse().unwrap()], KNOWN);
    assert!(b.pings("client", "plain"));
    a.docker(&["rm", "-f", "plain"]);
    b.await_resolved("client", "plain", &[], KNOWN);

    // A container that is not well is not answered.
    let check = ["--health-cmd", "test -e /well", "--health-interval", "1s", "--health-retries", "1"];
    c.sleeper("ill", "app", &check);
    b.await_resolved("client", "ill", &[], KNOWN);
    c.docker(&["exec", "ill", "touch", "/well"]);
    b.await_resolved("client", "ill", &[c.ip("ill", "app")], KNOWN);
    c.docker(&["exec", "ill", "rm", "/well"]);
    b.await_resolved("client", "ill", &[], KNOWN);

    // What weft does not know, others may.
    let (name, ip) = OUTSIDE_NAME;
    b.await_resolved("client", name, &[ip], KNOWN);

    // Names that people add.
    assert!(c.weft(&["dns", "add", "printer", "192.0.2.7"]).status.success());
    b.await_resolved("client", "printer", &["192.0.2.7".parse().unwrap()], KNOWN);
    assert_eq!(String::from_utf8_lossy(&b.weft(&["dns", "lookup", "printer"]).stdout), "192.0.2.7\n");
    refused(&b.weft(&["dns", "remove", "printer"]), "remove it there");
    assert!(c.weft(&["dns", "remove", "printer"]).status.success());
    b.await_resolved("client", "printer", &[], KNOWN);

    // A host that ends takes its names along.
    a.docker(&["kill", "web"]);
    b.await_resolved("client", "web", &[], KNOWN);

    // Removing the network removes it where nothing uses it.
    for (host, containers) in [(a, &["web", "near"][..]), (b, &["client"]), (c, &["ill"])] {
        host.docker(&[&["rm", "-f"], containers].concat());
    }
    a.docker(&["network", "rm", "app"]);
    for host in [b, c] {
        await_true(&format!("the network is not removed on {}", host.name), || Ok(!host.network_exists("app")))
            .unwrap();
    }
}

/// Whether a web server answers at an address.
fn answers(address: &str) -> bool {
    use std::io::{Read, Write};
    let mut answer = [0; 8];
    std::net::TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(1)).is_ok_and(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
            && stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
            && stream.read_exact(&mut answer).is_ok()
            && answer.starts_with(b"HTTP/1.")
    })
}

const SERVER: [&str; 7] = [IMAGE, "httpd", "-f", "-p", "80", "-h", "/bin"];

fn create<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["network", "create", "-d", "weft", "--ipam-driver", "weft"], more].concat()
}

#[test]
fn restarts_in_any_order_leave_nothing_behind() {
    let _alone = alone();
    let mut lan = Lan::start("restarts", 2);
    lan.hosts[0].docker(&["network", "create", "-d", "weft", "--ipam-driver", "weft", "app"]);
    await_true("the network does not spread", || Ok(lan.hosts[1].network_exists("app"))).unwrap();
    lan.hosts[0].sleeper("always", "app", &["--restart", "always"]);
    lan.hosts[0].sleeper("once", "app", &[]);
    lan.hosts[1].sleeper("client", "app", &[]);
    let check = |lan: &Lan, what: &str, running: &[&str]| {
        let (a, b) = (&lan.hosts[0], &lan.hosts[1]);
        lan.await_connected();
        for name in running {
            let state = || a.docker(&["inspect", "-f", "{{.State.Running}}", name]);
            await_true(&format!("after {what}: {name} does not run"), || Ok(state() == "true")).unwrap();
            b.await_resolved("client", name, &[a.ip(name, "app")], 2 * KNOWN);
            await_true(&format!("after {what}: {name} is not reached"), || Ok(b.pings("client", name))).unwrap();
            a.await_resolved(name, "client", &[b.ip("client", "app")], KNOWN);
        }
        await_true(&format!("after {what}: addresses leaked"), || Ok(a.used() == running.len() as u64))
            .unwrap_or_else(|error| panic!("{error}: {:#}", a.status()["ipam"]));
        let ports = a.interfaces().iter().filter(|name| name.starts_with("wd")).count();
        assert_eq!(ports, running.len(), "after {what}: {:?}", a.interfaces());
    };
    check(&lan, "the start", &["always", "once"]);

    lan.hosts[0].kill_router();
    lan.hosts[0].start_router();
    check(&lan, "kill -9 of the router", &["always", "once"]);

    lan.hosts[0].stop_router();
    // Without a router, containers go on.
    assert!(lan.hosts[0].pings("always", &lan.hosts[0].ip("once", "app").to_string()));
    lan.hosts[0].start_router();
    check(&lan, "a restart of the router", &["always", "once"]);

    lan.hosts[0].end_engine(Signal::SIGTERM);
    lan.hosts[0].start_engine();
    check(&lan, "a restart of the engine", &["always"]);
    lan.hosts[0].docker(&["start", "once"]);
    check(&lan, "a start of a container", &["always", "once"]);

    lan.hosts[0].end_engine(Signal::SIGKILL);
    lan.hosts[0].start_engine();
    check(&lan, "kill -9 of the engine", &["always"]);

    lan.hosts[0].end_engine(Signal::SIGKILL);
    lan.hosts[0].kill_router();
    lan.hosts[0].start_router();
    lan.hosts[0].start_engine();
    check(&lan, "kill -9 of both", &["always"]);

    // Engines can leave containers running: nothing is told to the plugin then.
    lan.hosts[0].docker(&["start", "once"]);
    lan.hosts[0].end_engine(Signal::SIGTERM);
    lan.hosts[0].engine_arguments = vec!["--live-restore"];
    lan.hosts[0].start_engine();
    lan.hosts[0].docker(&["start", "once"]);
    check(&lan, "a restart with live-restore from now on", &["always", "once"]);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        lan.hosts[0].end_engine(signal);
        lan.hosts[0].start_engine();
        check(&lan, &format!("{signal} to an engine with live-restore"), &["always", "once"]);
    }
    lan.hosts[0].docker(&["stop", "-t", "0", "once"]);

    lan.hosts[0].crash();
    lan.hosts[0].start_router();
    lan.hosts[0].start_engine();
    check(&lan, "a crash of the host", &["always"]);

    // A router that is killed in the middle of calls, and is back before the engine gives up.
    std::thread::scope(|scope| {
        let host = &lan.hosts[0];
        let runs = scope.spawn(|| {
            (0..6)
                .map(|n| {
                    host.try_docker(&[
                        "run",
                        "-d",
                        "--name",
                        &format!("r{n}"),
                        "--network",
                        "app",
                        IMAGE,
                        "sleep",
                        "1000",
                    ])
                })
                .filter(|output| output.status.success())
                .count()
        });
        std::thread::sleep(Duration::from_millis(700));
        host.kill_router();
        host.start_router();
        assert!(runs.join().unwrap() > 0, "no container started");
    });
    for number in 0..6 {
        let _ = lan.hosts[0].try_docker(&["rm", "-f", &format!("r{number}")]);
    }
    check(&lan, "kill -9 of the router in the middle of calls", &["always"]);

    // The host is another one then: its earlier life is given up, and its networks are the engine's.
    let life = lan.hosts[0].status()["peer_id"].as_str().unwrap().to_owned();
    lan.hosts[0].lose_state();
    lan.hosts[0].start_router();
    await_true("the networks are not taken up", || {
        Ok(lan.hosts[0].status()["docker"]["networks"].as_array().is_some_and(|names| names.contains(&"app".into())))
    })
    .unwrap();
    let reclaimed = || lan.hosts[1].weft(&["reclaim", &life[..8]]).status.success();
    await_true("the earlier life is not given up", || Ok(reclaimed())).unwrap();
    // Its address is free once this host knows that the earlier life is dead, too.
    let restarted = || lan.hosts[0].try_docker(&["restart", "-t", "0", "always"]).status.success();
    await_true("the address of the earlier life is not free", || Ok(restarted())).unwrap();
    check(&lan, "loss of the state", &["always"]);
}

#[test]
fn fifty_containers_started_at_once_have_their_own_addresses_and_names() {
    const COUNT: usize = 50;
    let _alone = alone();
    let lan = Lan::start("fifty", 3);
    lan.hosts[0].docker(&["network", "create", "-d", "weft", "--ipam-driver", "weft", "app"]);
    for host in &lan.hosts {
        await_true("the network does not spread", || Ok(host.network_exists("app"))).unwrap();
    }
    lan.hosts[0].sleeper("asker", "app", &[]);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for lane in 0..10 {
            let hosts = &lan.hosts;
            scope.spawn(move || {
                for number in (lane..COUNT).step_by(10) {
                    hosts[number % 3].sleeper(&format!("c{number}"), "app", &["--network-alias", "all"]);
                }
            });
        }
    });
    eprintln!("{COUNT} containers started in {:?}", started.elapsed());
    let all: Vec<IpAddr> = (0..COUNT).map(|number| lan.hosts[number % 3].ip(&format!("c{number}"), "app")).collect();
    let distinct: std::collections::BTreeSet<&IpAddr> = all.iter().collect();
    assert_eq!(distinct.len(), COUNT, "an address twice");
    // Its resolver takes 512 bytes and asks no further: it gets as many as fit, and none that is wrong.
    let found = lan.hosts[0].resolve("asker", "all");
    assert!(found.len() >= 25 && found.iter().all(|ip| all.contains(&ip.parse().unwrap())), "{found:?}");
    for (number, ip) in all.iter().enumerate() {
        lan.hosts[0].await_resolved("asker", &format!("c{number}"), &[*ip], KNOWN);
    }
    for host in &lan.hosts {
        assert!(!host.log().contains("not done within"), "a call took too long on {}", host.name);
    }
    std::thread::scope(|scope| {
        for (index, host) in lan.hosts.iter().enumerate() {
            scope.spawn(move || {
                let mut names: Vec<String> = (index..COUNT).step_by(3).map(|number| format!("c{number}")).collect();
                names.extend((index == 0).then(|| "asker".to_owned()));
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                host.docker(&[&["rm", "-f"], &names[..]].concat());
            });
        }
    });
    for host in &lan.hosts {
        await_true("something is left", || Ok(host.used() == 0 && host.interfaces().is_empty()))
            .unwrap_or_else(|error| panic!("{error}: {:?} {:#}", host.interfaces(), host.status()["ipam"]));
        assert_eq!(host.status()["endpoints"].as_array().map(Vec::len), Some(0));
    }
}

#[test]
fn a_name_is_known_everywhere_within_a_second_and_gone_as_soon() {
    const ROUNDS: usize = 20;
    let _alone = alone();
    let lan = Lan::start("latency", 3);
    let [a, b, c] = &lan.hosts[..] else { panic!("three hosts") };
    let known = |name: &str, host: &weft_integration::docker::EngineHost| {
        host.status()["endpoints"].as_array().into_iter().flatten().any(|e| e["names"][0] == name)
    };
    let (mut appeared, mut left) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let name = format!("n{round}");
        a.sleeper(&name, "weft", &[]);
        let started = Instant::now();
        await_true("the name is not known", || Ok(known(&name, b) && known(&name, c))).unwrap();
        appeared.push(started.elapsed());
        a.docker(&["kill", &name]);
        let started = Instant::now();
        await_true("the name is not gone", || Ok(!known(&name, b) && !known(&name, c))).unwrap();
        left.push(started.elapsed());
    }
    appeared.sort();
    left.sort();
    eprintln!(
        "known on all hosts after the command returned: p50 {:?}, max {:?}",
        appeared[ROUNDS / 2],
        appeared[ROUNDS - 1]
    );
    eprintln!("gone after the command returned: p50 {:?}, max {:?}", left[ROUNDS / 2], left[ROUNDS - 1]);
}

/// `WEFT_CHURN` says how many containers; a thousand take some ten minutes.
#[test]
fn short_lived_containers_leave_nothing_behind() {
    let _alone = alone();
    const LANES: usize = 4;
    /// Connections with the engine, either way, stay open for a while after calls, more or fewer of them; a leak would be one for each of forty
    /// containers.
    const IDLE_CONNECTIONS: usize = 8;
    let count: usize = std::env::var("WEFT_CHURN").map_or(80, |text| text.parse().expect("WEFT_CHURN is a number"));
    let lan = Lan::start("churn", 2);
    lan.hosts[0].docker(&create(&["--subnet", "10.66.0.0/24", "app"]));
    await_true("the network does not spread", || Ok(lan.hosts[1].network_exists("app"))).unwrap();
    // What is made with the first container of a router and stays is there before anything is counted.
    for host in &lan.hosts {
        host.docker(&["run", "--rm", "--network", "app", "-p", "8080:80", IMAGE, "true"]);
    }
    lan.await_connected();
    let footprints = || lan.hosts.iter().map(EngineHost::footprint).collect::<Vec<_>>();
    let mut before = footprints();
    await_true("the start does not settle", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = footprints();
        Ok(std::mem::replace(&mut before, now.clone()) == now)
    })
    .unwrap();

    let (started, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let lane = |lane: usize| {
        let host = &lan.hosts[lane % lan.hosts.len()];
        for round in 0..count / LANES {
            let name = format!("c{lane}-{round}");
            let port = format!("{}:80", 9000 + lane);
            let run = ["run", "--rm", "--name", &name, "--network", "app", "-p", &port];
            // Every fifth is killed instead of ending by itself.
            let is_started = if round % 5 == 0 {
                let output = host.try_docker(&[&run[..], &["-d", IMAGE, "sleep", "1000"]].concat());
                let _ = host.try_docker(&["kill", &name]);
                output.status.success()
            } else {
                host.try_docker(&[&run[..], &[IMAGE, "true"]].concat()).status.success()
            };
            started.fetch_add(usize::from(is_started), Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|number| {
                scope.spawn({
                    let lane = &lane;
                    move || lane(number)
                })
            })
            .collect();
        // Each router is killed once, in the middle of its calls.
        for (number, host) in lan.hosts.iter().enumerate() {
            let due = count * (number + 1) / 3;
            while done.load(Ordering::Relaxed) < due && !lanes.iter().all(|lane| lane.is_finished()) {
                std::thread::sleep(Duration::from_millis(20));
            }
            host.kill_router();
            host.start_router();
        }
    });
    let started = started.into_inner();
    assert!(started * 20 >= count * 19, "only {started} of {count} containers started");
    lan.await_connected();
    let mut after = Vec::new();
    await_true("something is left", || {
        after = footprints();
        let is_as_before = |after: &BTreeMap<&str, usize>, before: &BTreeMap<&str, usize>| {
            let allowed = |what: &str| before[what] + if what == "connections" { IDLE_CONNECTIONS } else { 0 };
            after.iter().all(|(what, count)| *count <= allowed(what))
        };
        Ok(after.iter().zip(&before).all(|(after, before)| is_as_before(after, before)))
    })
    .unwrap_or_else(|error| panic!("{error}: {after:?}, at the start {before:?}"));
    eprintln!("{started} of {count} containers started; {after:?}, at the start {before:?}");
}

/// A socket in a container, and whether something that a client sends to an address arrives there.
fn hears(server: &UdpSocket, client: &UdpSocket, to: (IpAddr, u16)) -> bool {
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    client.send_to(b"hello", to).is_ok() && server.recv_from(&mut [0; 16]).is_ok()
}

#[test]
fn flows_and_neighbours_follow_what_containers_do() {
    let _alone = alone();
    let lan = Lan::start("flows", 2);
    let [a, _] = &lan.hosts[..] else { panic!("two hosts") };
    let bind =
        |container: &str, port: u16| a.inside_container(container, || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    let client = lan.outside.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();

    // A client that never pauses is served by the container that has the port now.
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A minute at most: a failure is to be heard of.
            for _ in (0..3000).take_while(|_| !ended.load(Ordering::Relaxed)) {
                let _ = client.send_to(b"hello", (a.ip, 9000));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        for name in ["first", "second"] {
            a.sleeper(name, "weft", &["-p", "9000:9000/udp"]);
            let server = bind(name, 9000);
            await_true(&format!("{name} hears nothing"), || Ok(hears(&server, &client, (a.ip, 9000)))).unwrap();
            a.docker(&["rm", "-f", name]);
        }
        ended.store(true, Ordering::Relaxed);
    });

    // Port 53 is like any other: others' resolvers and the gateways' go on.
    let resolver = a.inside(|| UdpSocket::bind("127.0.0.53:53").unwrap());
    let local = a.inside(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let given = format!("{}:53:53/udp", a.ip);
    a.sleeper("dns", "weft", &["-p", &given]);
    let server = bind("dns", 53);
    await_true("port 53 is not published", || Ok(hears(&server, &client, (a.ip, 53)))).unwrap();
    assert!(hears(&resolver, &local, ("127.0.0.53".parse().unwrap(), 53)), "the host's resolver is taken");
    refused(&a.try_docker(&["run", "--rm", "--network", "weft", "-p", &given, IMAGE, "true"]), "in use");
    refused(&a.try_docker(&["run", "--rm", "--network", "weft", "-p", "53:53/udp", IMAGE, "true"]), "in use");
    a.await_resolved("dns", "dns", &[a.ip("dns", "weft")], KNOWN);
    a.docker(&["rm", "-f", "dns"]);
    drop(resolver);
    a.sleeper("dns", "weft", &["-p", "53:53/udp"]);
    let server = bind("dns", 53);
    await_true("port 53 is not published", || Ok(hears(&server, &client, (a.ip, 53)))).unwrap();
    a.await_resolved("dns", "dns", &[a.ip("dns", "weft")], KNOWN);

    // IPv6 through the host outlives what the kernel remembers of neighbours.
    for (host, ip) in [(a.ns_path(), "fd98::1/64"), (lan.outside.path(), "fd98::fe/64")] {
        let interface = if ip.ends_with("e/64") { "lan" } else { "eth0" };
        let set = ["ip", "-6", "addr", "add", ip, "dev", interface, "nodad"];
        assert!(a.run(&[&["nsenter", &format!("--net={host}"), "--"][..], &set].concat()).status.success());
    }
    a.docker(&create(&["--ipv6", "--subnet", "10.74.0.0/24", "--subnet", "fd74::/64", "six"]));
    a.sleeper("six", "six", &["-p", "9001:80"]);
    let output = a.docker(&["exec", "six", "ping", "-6", "-c", "12", "-W", "2", "fd98::fe"]);
    assert!(output.contains("12 packets received"), "{output}");
}
