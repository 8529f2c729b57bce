//! Compose projects.

use super::*;

const STACK: &str = "
version: '2.4'
services:
  web:
    image: weft-test
    command: httpd -f -p 80 -h /bin
    ports: ['8080:80']
    networks: [back, front]
  db:
    image: weft-test
    command: sleep 100000
    networks: [back]
networks:
  back:
    driver: weft
    ipam: {driver: weft}
  front:
    driver: bridge
";

#[test]
fn compose_projects_come_up_on_every_host() {
    let _alone = alone();
    let lan = Lan::start("compose", 2);
    let [a, b] = &lan.hosts[..] else { panic!("two hosts") };
    let file = lan.dir().join("compose.yml").to_string_lossy().into_owned();
    std::fs::write(&file, STACK).unwrap();
    let compose = |host: &EngineHost, arguments: &[&str]| {
        let output = host.compose(&[&["-p", "shop", "-f", &file], arguments].concat());
        assert!(output.status.success(), "{}: {}", host.name, String::from_utf8_lossy(&output.stderr));
    };
    let id = |host: &EngineHost, service: &str| {
        let by_label = format!("label=com.docker.compose.service={service}");
        host.docker(&["ps", "-q", "--filter", &by_label])
    };
    compose(a, &["up", "-d"]);
    await_true("the network does not spread", || Ok(b.network_exists("shop_back"))).unwrap();
    // The copy is taken for the project's own, and taken again.
    for _ in 0..2 {
        compose(b, &["up", "-d"]);
    }
    let both = [a, b].map(|host| host.ip(&id(host, "db"), "shop_back"));
    for host in [a, b] {
        host.await_resolved(&id(host, "web"), "db", &both, KNOWN);
        let address = format!("{}:8080", host.ip);
        await_true(&format!("{address} is not published"), || lan.outside.run(|| answers(&address))).unwrap();
    }
    let hint = "the Compose project shop runs here and on";
    await_true("nothing is said of the two stacks", || Ok(a.log().contains(hint) && b.log().contains(hint))).unwrap();
    // What one host takes down stays where it is used.
    compose(b, &["down", "-t", "0"]);
    let address = format!("{}:8080", a.ip);
    assert!(a.network_exists("shop_back") && lan.outside.run(|| answers(&address)).unwrap());
    compose(a, &["down", "-t", "0"]);
    await_true("the network stays", || Ok(!a.network_exists("shop_back") && !b.network_exists("shop_back"))).unwrap();
}
