//! The plugin's side of the engine's protocol: the calls that engines make, one after the other as they make them,
//! against a router in a namespace of its own and an engine that only answers what it is asked.

mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use weft_router::daemon::state::Store;
use weft_router::lab::await_true;

use harness::*;

const DEFAULT_POOL: &str = "default/10.32.0.0/12";

#[test]
fn an_engine_finds_out_what_the_plugin_is() {
    let plugin = Plugin::start("capabilities");
    // Calls without parameters have no body.
    let ask = |method: &str| plugin.raw(method, b"");
    assert_eq!(ask("Plugin.Activate").1, json!({ "Implements": ["NetworkDriver", "IpamDriver"] }));
    assert_eq!(ask("NetworkDriver.GetCapabilities").1["Scope"], "local");
    assert_eq!(ask("IpamDriver.GetCapabilities").1["RequiresMACAddress"], false);
    assert_eq!(ask("IpamDriver.GetDefaultAddressSpaces").1["LocalDefaultAddressSpace"], "weft");
    for method in ["NetworkDriver.DiscoverNew", "NetworkDriver.AllocateNetwork", "NetworkDriver.GwAllocCheck"] {
        assert_eq!(plugin.raw(method, b"{}").0, 200, "{method}");
    }
    assert_eq!(plugin.raw("NetworkDriver.Nonsense", b"{}").0, 404);
}

#[test]
fn a_network_is_created_used_and_removed() {
    let plugin = Plugin::start("life");
    plugin.create_plain(NETWORK, "app");
    let (first, second) = (endpoint_id(1), endpoint_id(2));
    let address = plugin.run(NETWORK, DEFAULT_POOL, &first, "web");
    let other = plugin.run(NETWORK, DEFAULT_POOL, &second, "db");
    assert_ne!(address, other);
    let endpoints = plugin.endpoints(2);
    let web = endpoints.iter().find(|e| e["names"] == json!(["web"])).unwrap_or_else(|| panic!("{endpoints:?}"));
    assert_eq!((&web["segment"], &web["ips"]), (&json!("app"), &json!([address])));
    // The engine repeats itself; nothing is there twice.
    plugin.call("NetworkDriver.Join", join(NETWORK, &first));
    plugin.endpoints(2);
    // A restart of a container is a new endpoint, and may be a new address.
    plugin.end(NETWORK, DEFAULT_POOL, &first, &address);
    let again = plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(3), "web");
    assert_ne!(again, address, "an address rests before it is used again");
    plugin.end(NETWORK, DEFAULT_POOL, &endpoint_id(3), &again);
    plugin.end(NETWORK, DEFAULT_POOL, &second, &other);
    for method in ["NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"] {
        plugin.call(method, of(NETWORK, &second));
    }
    plugin.endpoints(0);
    assert_eq!(plugin.used(), 0);
    let released = json!({ "PoolID": DEFAULT_POOL, "Address": "10.32.0.1" });
    plugin.call("IpamDriver.ReleaseAddress", released);
    plugin.call("IpamDriver.ReleasePool", json!({ "PoolID": DEFAULT_POOL }));
    plugin.call("NetworkDriver.DeleteNetwork", json!({ "NetworkID": NETWORK }));
    let left: Vec<String> = plugin.interfaces().into_iter().filter(|name| name.starts_with('w')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_network_has_what_its_creator_chose() {
    let plugin = Plugin::start("full");
    let v4 = plugin.call("IpamDriver.RequestPool", pool("10.50.0.0/16", "10.50.4.0/24"));
    assert_eq!(v4["Pool"], "10.50.0.0/16");
    assert_eq!(plugin.call("IpamDriver.RequestAddress", gateway(&v4, "10.50.0.9"))["Address"], "10.50.0.9/16");
    let aux = json!({ "PoolID": v4["PoolID"], "Address": "10.50.4.0", "Options": null });
    assert_eq!(plugin.call("IpamDriver.RequestAddress", aux)["Address"], "10.50.4.0/16");
    let v6 = plugin.call("IpamDriver.RequestPool", pool("fd50::/64", ""));
    assert_eq!(plugin.call("IpamDriver.RequestAddress", gateway(&v6, "fd50::1"))["Address"], "fd50::1/64");
    let options = json!({ "com.docker.network.driver.mtu": "1300", "weft.segment": "red" });
    let aux = json!({ "printer": "10.50.4.0/16" });
    let data =
        json!([{ "AddressSpace": "weft", "AuxAddresses": aux, "Gateway": "10.50.0.9/16", "Pool": "10.50.0.0/16" }]);
    let data6 = json!([{ "AddressSpace": "weft", "Gateway": "fd50::1/64", "Pool": "fd50::/64" }]);
    plugin.call("NetworkDriver.CreateNetwork", create(NETWORK, options, data, data6));
    plugin.name_network(NETWORK, "full");
    // Containers: the first chooses its addresses and its MAC, the second does not.
    let wanted = |pool: &Value, address: &str| json!({ "PoolID": pool["PoolID"], "Address": address, "Options": null });
    assert_eq!(plugin.call("IpamDriver.RequestAddress", wanted(&v4, "10.50.4.77"))["Address"], "10.50.4.77/16");
    assert_eq!(plugin.call("IpamDriver.RequestAddress", wanted(&v6, "fd50::77"))["Address"], "fd50::77/64");
    plugin.refused("IpamDriver.RequestAddress", wanted(&v4, "10.50.4.77"), "in use");
    plugin.refused("IpamDriver.RequestAddress", wanted(&v4, "10.50.4.0"), "reserved");
    plugin.refused("IpamDriver.RequestAddress", wanted(&v4, "10.51.0.1"), "outside");
    let mut request = endpoint_of(NETWORK, &endpoint_id(1), "10.50.4.77/16", "02:aa:bb:cc:dd:ee");
    request["Interface"]["AddressIPv6"] = json!("fd50::77/64");
    assert_eq!(plugin.call("NetworkDriver.CreateEndpoint", request), json!({ "Interface": {} }));
    let joined = plugin.call("NetworkDriver.Join", join(NETWORK, &endpoint_id(1)));
    assert_eq!((&joined["Gateway"], &joined["GatewayIPv6"]), (&json!("10.50.0.9"), &json!("fd50::1")));
    assert_eq!(
        (&joined["InterfaceName"]["DstPrefix"], &joined["DisableGatewayService"]),
        (&json!("eth"), &json!(false))
    );
    let source = joined["InterfaceName"]["SrcName"].as_str().unwrap().to_owned();
    let links = plugin.ns.net(async |net| net.links().await).unwrap();
    assert_eq!(links.iter().find(|link| link.name == source).map(|link| link.mtu), Some(1300));
    assert_eq!(plugin.endpoints(1)[0]["segment"], "red");
    assert_eq!(plugin.endpoints(1)[0]["mac"], "02:aa:bb:cc:dd:ee");
    let address = plugin.call("IpamDriver.RequestAddress", wanted(&v4, ""))["Address"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.50.4.") && address != "10.50.4.0/16", "{address}");
    let address = plugin.call("IpamDriver.RequestAddress", wanted(&v6, ""))["Address"].as_str().unwrap().to_owned();
    assert!(address.starts_with("fd50:") && address.ends_with("/64"), "{address}");
}

#[test]
fn a_part_of_the_meshs_own_range_can_be_a_networks() {
    let mut plugin = Plugin::start("part");
    let wanted = |pool: &str, address: &str| json!({ "PoolID": pool, "Address": address, "Options": null });
    plugin.call("IpamDriver.RequestAddress", wanted(DEFAULT_POOL, ""));
    let part = plugin.call("IpamDriver.RequestPool", pool("10.40.0.0/16", ""));
    assert_eq!(plugin.call("IpamDriver.RequestAddress", gateway(&part, ""))["Address"], "10.40.0.1/16");
    let data = json!([{ "AddressSpace": "weft", "Gateway": "10.40.0.1/16", "Pool": "10.40.0.0/16" }]);
    plugin.call("NetworkDriver.CreateNetwork", create(NETWORK, json!({}), data, json!([])));
    plugin.name_network(NETWORK, "part");
    plugin.refused("IpamDriver.RequestPool", pool("10.40.8.0/24", ""), "overlaps");
    let id = part["PoolID"].as_str().unwrap();
    assert_eq!(plugin.call("IpamDriver.RequestAddress", wanted(id, "10.40.0.9"))["Address"], "10.40.0.9/16");
    let foreign = "is of the network with the subnet 10.40.0.0/16";
    plugin.refused("IpamDriver.RequestAddress", wanted(DEFAULT_POOL, "10.40.0.10"), foreign);
    // Also after a restart; and with the network the part is the mesh's again.
    plugin.kill();
    plugin.launch();
    plugin.refused("IpamDriver.RequestAddress", wanted(DEFAULT_POOL, "10.40.0.10"), foreign);
    plugin.call("IpamDriver.ReleaseAddress", wanted(id, "10.40.0.9"));
    plugin.call("NetworkDriver.DeleteNetwork", json!({ "NetworkID": NETWORK }));
    plugin.call("IpamDriver.ReleasePool", json!({ "PoolID": id }));
    assert_eq!(
        plugin.call("IpamDriver.RequestAddress", wanted(DEFAULT_POOL, "10.40.0.10"))["Address"],
        "10.40.0.10/12"
    );
    // Which hands out of it now.
    plugin.refused(
        "IpamDriver.RequestPool",
        pool("10.40.0.0/16", ""),
        "in use in the mesh's own range 10.32.0.0/12, by",
    );
}

#[test]
fn internal_networks_have_no_way_out_and_foreign_addresses_are_refused() {
    let plugin = Plugin::start("internal");
    let data = json!([{ "AddressSpace": "weft", "Gateway": "10.32.0.1/12", "Pool": "10.32.0.0/12" }]);
    let mut request = create(NETWORK, json!({}), data, json!([]));
    request["Options"]["com.docker.network.internal"] = json!(true);
    plugin.call("NetworkDriver.CreateNetwork", request);
    plugin.name_network(NETWORK, "inner");
    let asked = json!({ "PoolID": DEFAULT_POOL, "Address": "", "Options": null });
    let address = plugin.call("IpamDriver.RequestAddress", asked)["Address"].as_str().unwrap().to_owned();
    plugin.call("NetworkDriver.CreateEndpoint", endpoint_of(NETWORK, &endpoint_id(1), &address, ""));
    let joined = plugin.call("NetworkDriver.Join", join(NETWORK, &endpoint_id(1)));
    assert_eq!((&joined["Gateway"], &joined["DisableGatewayService"]), (&json!(""), &json!(true)));
    // The engine's own addresses, and none at all.
    for (space, prefix) in [("LocalDefault", "172.18.0.0/16"), ("null", "0.0.0.0/0")] {
        let data = json!([{ "AddressSpace": space, "Gateway": "172.18.0.1/16", "Pool": prefix }]);
        let request = create(OTHER, json!({}), data, json!([]));
        plugin.refused("NetworkDriver.CreateNetwork", request, "--ipam-driver weft NAME");
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let plugin = Plugin::start("nonsense");
    plugin.create_plain(NETWORK, "app");
    // Calls that are repeated after a connection broke come without their parameters.
    for method in ["IpamDriver.RequestPool", "IpamDriver.RequestAddress", "NetworkDriver.Join", "NetworkDriver.Leave"] {
        let (status, answer) = plugin.raw(method, b"");
        assert!(status >= 400 && answer["Err"].as_str().unwrap().contains("without its parameters"), "{answer}");
        for body in [&b"{"[..], b"[]", b"null", b"\xff\xfe", b"{\"NetworkID\":7}"] {
            assert!(plugin.raw(method, body).0 >= 400, "{method} takes {body:?}");
        }
    }
    assert!(plugin.raw("NetworkDriver.Join", &vec![b' '; 3 << 20]).0 >= 400);
    plugin.refused("IpamDriver.RequestPool", pool("10.32.0.0/24", ""), "the mesh's own range");
    plugin.refused("IpamDriver.RequestPool", pool("10.0.0.0/8", ""), "the mesh's own range");
    plugin.refused("IpamDriver.RequestPool", pool("", "10.32.9.0/24"), "--subnet");
    plugin.refused("IpamDriver.RequestPool", pool("10.50.0.0/16", "10.60.0.0/24"), "lies outside --subnet");
    plugin.refused("IpamDriver.RequestPool", pool("nonsense", ""), "no subnet");
    plugin.refused("IpamDriver.RequestAddress", json!({ "PoolID": "x", "Address": "" }), "no pool");
    let data = json!([{ "AddressSpace": "weft", "Gateway": "10.32.0.1/12", "Pool": "10.32.0.0/12" }]);
    let misspelt = create(NETWORK, json!({ "weft.segmant": "red" }), data, json!([]));
    plugin.refused("NetworkDriver.CreateNetwork", misspelt, "no option weft.segmant");
    plugin.refused("NetworkDriver.Join", join(NETWORK, &endpoint_id(1)), "was not told of");
    plugin.refused("NetworkDriver.Join", join(OTHER, &endpoint_id(1)), "was not told of");
    let strange = endpoint_of(NETWORK, "short", "10.32.0.9/12", "");
    plugin.refused("NetworkDriver.CreateEndpoint", strange, "no endpoint id");
    let strange = endpoint_of(NETWORK, &endpoint_id(1), "10.32.0.9/12", "02:aa");
    plugin.refused("NetworkDriver.CreateEndpoint", strange, "no MAC");
    let strange = endpoint_of(NETWORK, &endpoint_id(1), "", "");
    plugin.refused("NetworkDriver.CreateEndpoint", strange, "without an address");
    plugin.endpoints(0);
    assert_eq!(plugin.used(), 0);
    // A container whose name is none has none, and is there.
    plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(2), "a b\n;rm -rf");
    assert_eq!(plugin.endpoints(1)[0]["names"], json!([]));
}

#[test]
fn a_restarted_plugin_knows_what_it_knew() {
    let mut plugin = Plugin::start("restart");
    plugin.create_plain(NETWORK, "app");
    let address = plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(1), "web");
    plugin.kill();
    assert!(plugin.socket().exists(), "a dead socket is in the way");
    plugin.launch();
    plugin.endpoints(1);
    assert_eq!(plugin.used(), 1);
    // No Activate, no replay: the engine goes on where it was.
    plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(2), "db");
    plugin.end(NETWORK, DEFAULT_POOL, &endpoint_id(1), &address);
    plugin.endpoints(1);
    assert_eq!(plugin.used(), 1);
}

#[test]
fn a_plugin_that_lost_its_store_takes_up_the_engines_networks() {
    let mut plugin = Plugin::start("lost");
    plugin.create_plain(NETWORK, "app");
    plugin.name_network(OTHER, "full");
    let made = |options: Value, internal: bool, config: Value| {
        let ipam = json!({ "Driver": "weft", "Options": null, "Config": config });
        json!({ "Driver": "weft", "Internal": internal, "EnableIPv6": false, "Options": options, "IPAM": ipam })
    };
    let chosen = json!([{
        "Subnet": "10.50.0.0/16", "IPRange": "10.50.4.0/24", "Gateway": "10.50.0.9",
        "AuxiliaryAddresses": { "printer": "10.50.4.0" },
    }]);
    let plain = json!([{ "Subnet": "10.32.0.0/12", "Gateway": "10.32.0.1" }]);
    plugin.engine().made = BTreeMap::from([
        (NETWORK.to_owned(), made(json!({}), false, plain)),
        (OTHER.to_owned(), made(json!({ "weft.segment": "red" }), true, chosen)),
    ]);
    plugin.kill();
    std::fs::remove_dir_all(plugin.dir.join("state")).unwrap();
    plugin.launch();
    let knows = |name: &str| plugin.status()["docker"]["networks"].as_array().unwrap().contains(&json!(name));
    await_true("networks are not taken up", || Ok(knows("app") && knows("full"))).unwrap();
    plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(1), "web");
    let address = plugin.run(OTHER, "10.50.0.0/16/10.50.4.0/24", &endpoint_id(2), "db");
    assert_eq!(address, "10.50.4.1/16", "within the part, and not what is set aside");
    let segments: Vec<Value> = plugin.endpoints(2).iter().map(|endpoint| endpoint["segment"].clone()).collect();
    assert!(segments.contains(&json!("app")) && segments.contains(&json!("red")), "{segments:?}");
}

#[test]
fn an_address_that_is_no_longer_this_hosts_is_in_no_record() {
    let mut plugin = Plugin::start("fence");
    plugin.create_plain(NETWORK, "app");
    let address = plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(1), "web");
    let ips = |plugin: &Plugin| plugin.endpoints(1)[0]["ips"].clone();
    assert_eq!(ips(&plugin), json!([address]));
    plugin.kill();
    // As after a crash that took the disk's last writes along.
    let store = Store::open(&plugin.dir.join("state")).unwrap();
    let handed_out = store.read().unwrap().into_iter().filter(|(key, _)| key.starts_with(b"ipam/address/"));
    let gone: Vec<(Vec<u8>, Option<Vec<u8>>)> = handed_out.map(|(key, _)| (key, None)).collect();
    assert_eq!(gone.len(), 1);
    store.write(gone.iter().map(|(key, none)| (key, none))).unwrap();
    drop(store);
    plugin.launch();
    await_true("the record still has it", || Ok(ips(&plugin) == json!([]))).unwrap();
}

#[test]
fn an_engine_that_does_not_answer_holds_nothing_up() {
    let plugin = Plugin::start("hang");
    plugin.create_plain(NETWORK, "app");
    plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(1), "web");
    plugin.engine().hangs = true;
    // The network's name is known by now; the container's will be.
    let address = plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(2), "db");
    plugin.endpoints(2);
    plugin.end(NETWORK, DEFAULT_POOL, &endpoint_id(2), &address);
}

/// `ProgramExternalConnectivity` with ports: protocol, container's, host's first and last.
fn program(network: &str, endpoint: &str, ports: &[(u8, u16, u16, u16)]) -> Value {
    let ports = ports.iter().map(|(protocol, port, first, last)| {
        json!({ "Proto": protocol, "IP": "", "Port": port, "HostIP": "127.0.0.1", "HostPort": first, "HostPortEnd": last })
    });
    let options = json!({ "com.docker.network.portmap": ports.collect::<Vec<Value>>() });
    json!({ "NetworkID": network, "EndpointID": endpoint, "Options": options })
}

#[test]
fn ports_are_those_of_the_endpoint_that_was_programmed_last() {
    const TCP: u8 = 6;
    let mut plugin = Plugin::start("ports");
    plugin.create_plain(NETWORK, "app");
    let (first, second) = (endpoint_id(1), endpoint_id(2));
    plugin.run(NETWORK, DEFAULT_POOL, &first, "web");
    assert_eq!(plugin.ports(&first), Vec::<String>::new(), "nothing is published by joining");
    plugin.call("NetworkDriver.ProgramExternalConnectivity", program(NETWORK, &first, &[(TCP, 80, 0, 0)]));
    let ports = plugin.ports(&first);
    let host_port: u16 = ports[0].split([':', '-']).nth(1).unwrap().parse().unwrap();
    assert_eq!(ports, [format!("127.0.0.1:{host_port}->80/tcp")]);
    // Another container's is refused, with the reason.
    plugin.run(NETWORK, DEFAULT_POOL, &second, "db");
    let taken = program(NETWORK, &second, &[(TCP, 80, host_port, host_port)]);
    plugin.refused("NetworkDriver.ProgramExternalConnectivity", taken.clone(), "publish another");
    // The number is kept over a restart of the router, which the engine knows nothing of.
    plugin.kill();
    plugin.launch();
    assert_eq!(plugin.ports(&first), ports);
    plugin.call("NetworkDriver.ProgramExternalConnectivity", program(NETWORK, &first, &[(TCP, 80, 0, 0)]));
    assert_eq!(plugin.ports(&first), ports, "the engine says it twice");
    plugin.call("NetworkDriver.RevokeExternalConnectivity", of(NETWORK, &first));
    assert_eq!(plugin.ports(&first), Vec::<String>::new());
    plugin.call("NetworkDriver.ProgramExternalConnectivity", taken);
    assert_eq!(plugin.ports(&second), ports);
    // A range of the host for one port, and ranges for ranges.
    let range: Vec<_> = (0..2000).map(|n| (17, 10_000 + n, 10_000 + n, 10_000 + n)).collect();
    plugin.call("NetworkDriver.ProgramExternalConnectivity", program(NETWORK, &first, &range));
    assert_eq!(plugin.ports(&first), ["127.0.0.1:10000-11999->10000-11999/udp"]);
    // A container that leaves without a word lets go of them.
    plugin.call("NetworkDriver.Leave", of(NETWORK, &second));
    plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(3), "other");
    let again = program(NETWORK, &endpoint_id(3), &[(TCP, 80, host_port, host_port)]);
    plugin.call("NetworkDriver.ProgramExternalConnectivity", again);
}

#[test]
fn a_call_fails_while_its_rules_cannot_be_put_in_force_and_leaves_nothing() {
    let plugin = Plugin::start("rules");
    plugin.create_plain(NETWORK, "app");
    plugin.break_program("nft", true);
    let request = json!({ "PoolID": DEFAULT_POOL, "Address": "", "Options": null });
    let address = plugin.call("IpamDriver.RequestAddress", request)["Address"].as_str().unwrap().to_owned();
    let first = endpoint_id(1);
    plugin.call("NetworkDriver.CreateEndpoint", endpoint_of(NETWORK, &first, &address, ""));
    plugin.refused("NetworkDriver.Join", join(NETWORK, &first), "cannot be put in force");
    plugin.endpoints(0);
    let left: Vec<String> = plugin.interfaces().into_iter().filter(|name| name.starts_with("wd")).collect();
    assert!(left.is_empty(), "{left:?}");
    plugin.break_program("nft", false);
    plugin.call("NetworkDriver.Join", join(NETWORK, &first));
    plugin.endpoints(1);
    // Published ports are rules, too.
    plugin.break_program("nft", true);
    let publish = program(NETWORK, &first, &[(6, 80, 0, 0)]);
    plugin.refused("NetworkDriver.ProgramExternalConnectivity", publish.clone(), "cannot be put in force");
    assert_eq!(plugin.ports(&first), Vec::<String>::new());
    plugin.break_program("nft", false);
    plugin.call("NetworkDriver.ProgramExternalConnectivity", publish);
    assert_eq!(plugin.ports(&first).len(), 1);
}

#[test]
fn limits_of_bridge_networks_are_kept_or_refused() {
    let plugin = Plugin::start("limits");
    let data = json!([{ "AddressSpace": "weft", "Gateway": "10.32.0.1/12", "Pool": "10.32.0.0/12" }]);
    for (option, value) in [
        ("com.docker.network.bridge.enable_icc", "false"),
        ("com.docker.network.bridge.enable_ip_masquerade", "false"),
        ("com.docker.network.bridge.gateway_mode_ipv4", "routed"),
        ("com.docker.network.bridge.host_binding_ipv4", "nonsense"),
        ("weft.scope", "galaxy"),
    ] {
        let request = create(NETWORK, json!({ option: value }), data.clone(), json!([]));
        plugin.refused("NetworkDriver.CreateNetwork", request, option.rsplit('.').next().unwrap());
    }
    let harmless = json!({ "com.docker.network.bridge.enable_icc": "true", "weft.scope": "host" });
    plugin.call("NetworkDriver.CreateNetwork", create(NETWORK, harmless, data, json!([])));
}

#[test]
fn an_engine_that_wants_another_range_for_ever_is_told_what_to_do() {
    let plugin = Plugin::start("forever");
    // It finds that the range overlaps a route of its host, and asks for another, which there is not.
    let refused = (0..1000).map(|_| plugin.raw("IpamDriver.RequestPool", pool("", "").to_string().as_bytes()));
    let (_, answer) = refused.into_iter().find(|(status, _)| *status != 200).expect("it has to end");
    assert!(answer["Err"].as_str().unwrap().contains("--subnet 10.32.0.0/12"), "{answer}");
    // That is what it may say then, and after a restart.
    let chosen = plugin.call("IpamDriver.RequestPool", pool("10.32.0.0/12", ""));
    assert_eq!(chosen["PoolID"], DEFAULT_POOL);
}

#[test]
fn what_another_engine_does_not_know_stays() {
    let mut plugin = Plugin::start("another");
    plugin.create_plain(NETWORK, "app");
    plugin.run(NETWORK, DEFAULT_POOL, &endpoint_id(1), "web");
    let problems = |plugin: &Plugin| plugin.status()["problems"].to_string();
    let know = |plugin: &Plugin| plugin.status()["docker"]["engine"] != Value::Null;
    await_true("the engine is not met", || Ok(know(&plugin))).unwrap();
    plugin.kill();
    let known = std::mem::take(&mut plugin.engine().networks);
    for (kind, id, hint) in [("Engine", "another", "another engine"), ("Podman Engine", "", "podman")] {
        (plugin.engine().kind, plugin.engine().id) = (kind.into(), id.into());
        plugin.launch();
        await_true("nothing is said", || Ok(problems(&plugin).contains(hint))).unwrap();
        // Longer than what an engine does not have is kept.
        std::thread::sleep(Duration::from_secs(6));
        plugin.endpoints(1);
        plugin.kill();
    }
    (plugin.engine().kind, plugin.engine().id) = ("Engine".into(), String::new());
    plugin.engine().networks = known;
    plugin.launch();
    await_true("its own engine is not met", || Ok(know(&plugin) && problems(&plugin) == "[]")).unwrap();
    plugin.endpoints(1);
}

#[test]
fn a_small_network_gives_all_its_addresses_again_and_again() {
    let plugin = Plugin::start("small");
    let v4 = plugin.call("IpamDriver.RequestPool", pool("10.50.0.0/29", ""));
    plugin.call("IpamDriver.RequestAddress", gateway(&v4, "10.50.0.1"));
    let data = json!([{ "AddressSpace": "weft", "Gateway": "10.50.0.1/29", "Pool": "10.50.0.0/29" }]);
    plugin.call("NetworkDriver.CreateNetwork", create(NETWORK, json!({}), data, json!([])));
    plugin.name_network(NETWORK, "small");
    let pool_id = v4["PoolID"].as_str().unwrap().to_owned();
    let mut running: Vec<(u8, String)> =
        (1..=5).map(|number| (number, plugin.run(NETWORK, &pool_id, &endpoint_id(number), "c"))).collect();
    let wanted = json!({ "PoolID": pool_id, "Address": "", "Options": null });
    plugin.refused("IpamDriver.RequestAddress", wanted, "10.50.0.0/29");
    // A container that is started again gets an address at once, and so does the next one.
    for number in 6..20 {
        let (old, address) = running.remove(0);
        plugin.end(NETWORK, &pool_id, &endpoint_id(old), &address);
        running.push((number, plugin.run(NETWORK, &pool_id, &endpoint_id(number), "c")));
    }
}
