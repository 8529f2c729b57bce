//! Networks of several engines: their subnets, ports and ways out.

use super::*;

#[test]
fn networks_have_the_subnets_ports_and_ways_out_they_were_given() {
    let _alone = alone();
    // One engine leaves the firewall alone, the other has it drop what it does not know.
    let lan = Lan::start_with("networks", &[&[], &["--iptables=false"]]);
    let [a, b] = &lan.hosts[..] else { panic!("two hosts") };
    refused(&a.try_docker(&["network", "create", "-d", "weft", "x"]), "--ipam-driver weft NAME");
    refused(
        &a.try_docker(&create(&["--subnet", "10.98.0.0/16", "x"])),
        "overlaps the network 10.98.0.0/24 of this host's interface eth0",
    );
    refused(&a.try_docker(&create(&["--subnet", "10.32.0.0/16", "x"])), "the mesh's own range");
    refused(&a.try_docker(&create(&["--subnet", "10.0.0.0/8", "x"])), "the mesh's own range");
    refused(&a.try_docker(&create(&["--subnet", "10.50.0.0/31", "x"])), "/8 to /30");
    refused(&a.try_docker(&create(&["-o", "com.docker.network.driver.mtu=100", "x"])), "1280 to 65000");
    a.docker(&create(&[
        "--subnet",
        "10.50.0.0/16",
        "--ip-range",
        "10.50.4.0/24",
        "--gateway",
        "10.50.0.9",
        "--aux-address",
        "printer=10.50.4.1",
        "--ipv6",
        "--subnet",
        "fd50::/64",
        "-o",
        "com.docker.network.driver.mtu=1300",
        "full",
    ]));
    refused(&a.try_docker(&create(&["--subnet", "10.50.0.0/16", "again"])), "overlaps");
    await_true("the network does not spread", || Ok(b.network_exists("full"))).unwrap();
    a.sleeper("one", "full", &["--ip", "10.50.4.77", "--ip6", "fd50::77", "--mac-address", "02:aa:bb:cc:dd:ee"]);
    b.sleeper("two", "full", &[]);
    let text = a.docker(&["exec", "one", "ip", "addr", "show", "eth0"]);
    for expected in ["10.50.4.77/16", "fd50::77/64", "02:aa:bb:cc:dd:ee", "mtu 1300"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    let IpAddr::V4(second) = b.ip("two", "full") else { panic!("IPv4") };
    assert_eq!(second.octets()[..3], [10, 50, 4], "it is of the --ip-range");
    b.await_resolved("two", "one", &["10.50.4.77".parse().unwrap(), "fd50::77".parse().unwrap()], KNOWN);
    assert!(b.pings("two", "10.50.4.77") && b.pings("two", "fd50::77"));
    refused(&b.try_docker(&["run", "--rm", "--network", "full", "--ip", "10.50.4.77", IMAGE, "true"]), "in use");
    refused(&b.try_docker(&["run", "--rm", "--network", "full", "--ip", "10.50.4.1", IMAGE, "true"]), "reserved");

    // Published ports, from outside, from the host and by its loopback; and twice is refused.
    a.docker(&[
        "run",
        "-d",
        "--name",
        "served",
        "--network",
        "full",
        "-p",
        "8080:80",
        IMAGE,
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/bin",
    ]);
    let from_outside = || lan.outside.run(|| answers("10.98.0.1:8080")).unwrap();
    await_true("a published port is not reached from outside", || Ok(from_outside())).unwrap();
    for own in ["10.98.0.1:8080", "127.0.0.1:8080"] {
        assert!(a.inside(|| answers(own)), "{own} does not answer on the host itself");
    }
    refused(&a.try_docker(&["run", "--rm", "--network", "full", "-p", "8080:80", IMAGE, "true"]), "publish");
    // What is not published is not reached.
    let direct = format!("{}:80", a.ip("served", "full"));
    assert!(a.inside(|| answers(&direct)), "the host reaches its containers");

    // A container's ports stay its own when it comes into another network, and when it leaves the first.
    a.docker(&create(&["--subnet", "10.62.0.0/24", "second"]));
    a.docker(&["network", "connect", "second", "served"]);
    await_true("a published port is lost on connect", || Ok(from_outside())).unwrap();
    a.docker(&["network", "disconnect", "full", "served"]);
    await_true("a published port is lost on disconnect", || Ok(from_outside())).unwrap();

    // Gateways answer names, and pass on what they do not know.
    let (outside, outside_ip) = OUTSIDE_NAME;
    let by_gateway = |container: &str, name: &str, gateway: &str| {
        String::from_utf8_lossy(&a.try_docker(&["exec", container, "nslookup", name, gateway]).stdout).into_owned()
    };
    assert!(by_gateway("one", "two", "10.50.0.9").contains(&second.to_string()));
    assert!(by_gateway("one", outside, "10.50.0.9").contains(&outside_ip.to_string()));

    // Flushed rules come back.
    assert!(a.run(&["nft", "flush", "ruleset"]).status.success());
    // Containers reach the outside through their host, unless their network is internal.
    await_true("the way out does not come back after a flush", || Ok(a.pings("one", "10.98.0.254"))).unwrap();
    await_true("a published port does not come back after a flush", || Ok(from_outside())).unwrap();
    a.docker(&create(&["--internal", "inner"]));
    await_true("the network does not spread", || Ok(b.network_exists("inner"))).unwrap();
    a.sleeper("in-a", "inner", &[]);
    b.sleeper("in-b", "inner", &[]);
    await_true("an internal network does not carry", || Ok(a.pings("in-a", "in-b"))).unwrap();
    assert!(!a.pings("in-a", "10.98.0.254") && !b.pings("in-b", "10.98.0.254"));
    assert!(by_gateway("in-a", "in-b", "10.32.0.1").contains(&b.ip("in-b", "inner").to_string()));
    // A container that is in an internal network first publishes its ports all the same, once it has a way out.
    let late = ["-p", "8090:80", IMAGE, "httpd", "-f", "-p", "80", "-h", "/bin"];
    a.docker(&[&["run", "-d", "--name", "late", "--network", "inner"], &late[..]].concat());
    a.docker(&["network", "connect", "second", "late"]);
    let from_outside = || lan.outside.run(|| answers("10.98.0.1:8090")).unwrap();
    await_true("a port is not published by the second network", || Ok(from_outside())).unwrap();
    assert!(!by_gateway("in-a", outside, "10.32.0.1").contains(&outside_ip.to_string()), "a way out by names");

    a.docker(&["rm", "-f", "one", "served", "in-a", "late"]);
    b.docker(&["rm", "-f", "two", "in-b"]);
    for host in [a, b] {
        await_true("something is left", || Ok(host.used() == 0 && host.interfaces().is_empty()))
            .unwrap_or_else(|error| panic!("{error}: {:?} {:#}", host.interfaces(), host.status()["ipam"]));
    }
}

#[test]
fn ports_lead_where_they_should_in_every_state() {
    let _alone = alone();
    let mut lan = Lan::start("ports", 2);
    let a = &lan.hosts[0];
    // The host is in a segment: neither it nor its engine takes that for a foreign network.
    assert!(a.weft(&["expose"]).status.success());
    let started = Instant::now();
    a.docker(&create(&["app"]));
    assert!(started.elapsed() < Duration::from_secs(5), "a network took {:?}", started.elapsed());
    a.docker(&create(&["--ipv6", "--subnet", "10.70.0.0/24", "--subnet", "fd70::/64", "dual"]));
    let run = |more: &[&str]| a.docker(&[&["run", "-d"], more, &SERVER].concat());
    run(&["--name", "web", "--network", "app", "-p", "8081:80"]);
    run(&["--name", "both", "--network", "dual", "-p", "8082:80", "-p", "80"]);
    let outside = |address: &str| lan.outside.run(|| answers(address)).unwrap();
    await_true("a port is not reached from outside", || Ok(outside("10.98.0.1:8081") && outside("10.98.0.1:8082")))
        .unwrap();
    for (port, name) in [(8081, "web"), (8082, "both")] {
        for own in [format!("127.0.0.1:{port}"), format!("[::1]:{port}"), format!("10.98.0.1:{port}")] {
            assert!(a.inside(|| answers(&own)), "{own} does not answer on the host");
        }
        // However the kernel filters bridged frames: its own port, and that of another network.
        for other in [name, if name == "web" { "both" } else { "web" }] {
            let address = format!("10.98.0.1:{port}");
            assert!(a.inside_container(other, || answers(&address)), "{other} does not reach {address}");
        }
    }
    // The engine says of no port which it is: weft does, and it is the same after a restart.
    let random = |host: &weft_integration::docker::EngineHost| {
        let endpoints = host.status()["endpoints"].clone();
        let both = endpoints.as_array().unwrap().iter().find(|e| e["names"][0] == "both").cloned().unwrap();
        let ports: Vec<String> = serde_json::from_value(both["ports"].clone()).unwrap();
        let port = ports.iter().find(|port| !port.contains("8082")).unwrap_or_else(|| panic!("{ports:?}")).clone();
        port.split([':', '-']).nth(1).unwrap().to_owned()
    };
    let port = random(a);
    assert!(outside(&format!("10.98.0.1:{port}")));
    a.kill_router();
    // Without a router nothing that was kept apart is open, and what was published still is.
    let direct: Vec<String> = ["web", "both"]
        .map(|name| {
            format!(
                "{}:80",
                a.docker(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name])
            )
        })
        .into();
    let via = |prefix: &str| {
        let words = ["ip", "route", "replace", prefix, "via", "10.98.0.1"].map(str::to_owned);
        lan.outside.run(move || std::process::Command::new(&words[0]).args(&words[1..]).status()).unwrap().unwrap()
    };
    assert!(via("10.32.0.0/12").success() && via("10.70.0.0/24").success());
    let is_closed = |when: &str| {
        for address in &direct {
            assert!(!outside(address), "{when}: an unpublished port of {address} is open");
        }
        assert!(!a.inside_container("web", || answers(&direct[1])), "{when}: networks reach each other");
    };
    is_closed("killed");
    assert!(outside("10.98.0.1:8081"));
    a.start_router();
    await_true("the random port is another", || Ok(outside(&format!("10.98.0.1:{port}")))).unwrap();
    assert_eq!(random(a), port);
    is_closed("running");
    assert!(a.run(&["nft", "flush", "ruleset"]).status.success());
    is_closed("flushed");
    await_true("a port does not come back after a flush", || Ok(outside("10.98.0.1:8081"))).unwrap();
    a.stop_router();
    is_closed("stopped");
    a.start_router();
    // A firewall that drops all it does not know is told, and it is said.
    let rules = "table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established accept; \
                 iifname lo accept; udp dport 6783 accept; tcp dport 8081 accept; }; chain forward { type filter hook forward \
                 priority 0; policy drop; }; }";
    assert!(a.run(&["nft", rules]).status.success(), "{rules}");
    await_true("a firewall keeps a port closed", || Ok(outside("10.98.0.1:8081"))).unwrap();
    let firewalls = || a.status()["docker"]["firewalls"].to_string();
    await_true("the firewall is not told of", || Ok(firewalls().contains("inet filter forward"))).unwrap();
    let (name, ip) = OUTSIDE_NAME;
    await_true("names are not answered at the gateway", || {
        let output = a.try_docker(&["exec", "web", "nslookup", name, "10.32.0.1"]);
        Ok(String::from_utf8_lossy(&output.stdout).contains(&ip.to_string()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", firewalls()));
    a.docker(&["rm", "-f", "web", "both"]);
    lan.hosts[0].end_engine(Signal::SIGTERM);
}

#[test]
fn spread_networks_are_like_the_first_and_stay_where_they_are_used() {
    let _alone = alone();
    let lan = Lan::start("spread", 2);
    let [a, b] = &lan.hosts[..] else { panic!("two hosts") };
    let label = format!("com.example.long={}", "x".repeat(900));
    a.docker(&create(&[
        "--label",
        "com.docker.compose.network=default",
        "--label",
        "com.docker.compose.project=shop",
        "--label",
        &label,
        "--attachable",
        "-o",
        "com.docker.network.driver.mtu=1400",
        "--subnet",
        "10.71.0.0/24",
        "--aux-address",
        "printer=10.71.0.9",
        "shop",
    ]));
    a.docker(&create(&["-o", "weft.scope=host", "own"]));
    await_true("the network does not spread", || Ok(b.network_exists("shop"))).unwrap();
    let described = |host: &weft_integration::docker::EngineHost| {
        let format = "{{json .Labels}} {{json .Options}} {{json .Internal}} {{json .Attachable}} {{json .EnableIPv6}} {{json .IPAM}}";
        host.docker(&["network", "inspect", "-f", format, "shop"])
    };
    assert_eq!(described(a), described(b));
    assert!(!b.network_exists("own"), "it is one host's alone");
    // Services that look themselves and each other up before they are well come up.
    let check = |name: &str| format!("nslookup {name}");
    for (host, name, other) in [(a, "one", "two"), (b, "two", "one")] {
        let (own, theirs) = (check(name), check(other));
        let health =
            ["--health-cmd", &format!("{own} && {theirs}"), "--health-interval", "1s", "--health-retries", "30"];
        host.sleeper(name, "shop", &health);
    }
    for (host, name) in [(a, "one"), (b, "two")] {
        let health = || host.docker(&["inspect", "-f", "{{.State.Health.Status}}", name]);
        await_true(&format!("{name} does not get well"), || Ok(health() == "healthy")).unwrap();
    }
    // More names than a record takes, on every host.
    let aliases: Vec<String> = (0..60).map(|number| format!("service-{number}.shop.example")).collect();
    let flags: Vec<&str> = aliases.iter().flat_map(|alias| ["--network-alias", alias]).collect();
    a.sleeper("many", "shop", &[&flags[..], &["--hostname", "many.host.example"]].concat());
    let ip = a.ip("many", "shop");
    for name in [&aliases[0], &aliases[59], &"many.host.example".to_owned()] {
        b.await_resolved("two", name, &[ip], KNOWN);
    }
    // Removing a network does not take it from containers elsewhere, running or not.
    a.docker(&["rm", "-f", "one", "many"]);
    b.docker(&["stop", "-t", "0", "two"]);
    a.docker(&["network", "rm", "shop"]);
    await_true("the network does not come back", || Ok(a.network_exists("shop"))).unwrap();
    assert!(b.network_exists("shop"));
    b.docker(&["start", "two"]);
    b.docker(&["rm", "-f", "two"]);
    // Two engines that make and remove at once may need a moment to agree.
    b.docker(&["network", "rm", "shop"]);
    await_true("the network is not removed everywhere", || Ok(!a.network_exists("shop") && !b.network_exists("shop")))
        .unwrap();
}

#[test]
fn networks_that_two_hosts_made_apart_become_one() {
    let _alone = alone();
    let mut lan = Lan::start("apart", 2);
    // Each hands out addresses although the other is away.
    for host in &mut lan.hosts {
        host.stop_router();
        host.arguments.push("--found".into());
        host.start_router();
    }
    lan.await_connected();
    let [a, b] = &lan.hosts[..] else { panic!("two hosts") };
    let is_connected = |host: &EngineHost| host.status()["peers"][0]["state"] == "connected";
    lan.unplug(1);
    await_true("the hosts stay connected", || Ok(!is_connected(a) && !is_connected(b))).unwrap();
    // An unused network gives way; a used one stays, and status says so.
    for (name, number) in [("empty", 75), ("used", 76)] {
        for (host, third) in [(a, 0), (b, 1)] {
            host.docker(&create(&["--subnet", &format!("10.{number}.{third}.0/24"), name]));
        }
    }
    a.sleeper("one", "used", &[]);
    b.sleeper("two", "used", &[]);
    lan.plug(1);
    await_true("the hosts do not meet", || Ok(is_connected(a) && is_connected(b))).unwrap();
    let subnet = |host: &EngineHost, name: &str| {
        let output = host.try_docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", name]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    await_true("they do not become one", || Ok(subnet(a, "empty") == subnet(b, "empty"))).unwrap();
    assert_ne!(subnet(a, "used"), subnet(b, "used"));
    let said = |host: &EngineHost| host.status()["problems"].to_string().contains("the networks used here and on");
    await_true("nothing is said of the other", || Ok(said(a) || said(b))).unwrap();
    a.docker(&["rm", "-f", "one"]);
    b.docker(&["rm", "-f", "two"]);
    await_true("they do not become one later", || Ok(subnet(a, "used") == subnet(b, "used"))).unwrap();
    await_true("the problem stays", || Ok(!said(a) && !said(b))).unwrap();

    // A network without IPv4 spreads as what it is, where engines make such.
    let made = a.try_docker(&create(&["--ipv4=false", "--ipv6", "--subnet", "fd77::/64", "only"]));
    let knows = |host: &EngineHost| {
        let version = host.docker(&["version", "-f", "{{.Server.Version}}"]);
        version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 28)
    };
    assert_eq!(made.status.success(), knows(a), "{}", String::from_utf8_lossy(&made.stderr));
    if knows(a) && knows(b) {
        await_true("it does not spread", || Ok(b.network_exists("only"))).unwrap();
        a.sleeper("six-a", "only", &[]);
        b.sleeper("six-b", "only", &[]);
        await_true("they do not meet", || Ok(b.pings("six-b", "six-a"))).unwrap();
        assert_eq!(b.docker(&["network", "inspect", "-f", "{{.EnableIPv4}}", "only"]), "false");
    }
}
