//! Flow records, as a collector of other people's making has them: nfcapd and nfdump.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use weft_integration::alone;
use weft_integration::netns::internet::transfer;
use weft_integration::netns::{Mesh, Running, tool};
use weft_router::cli::options::TapMode;
use weft_router::lab::await_true;

const TAPS: [TapMode; 3] = [TapMode::Fast; 3];
const TRIANGLE: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];
/// The third host's addresses, as each host knows it.
const EXPORTED: [&[&str]; 3] =
    [&["--flow-export", "10.99.1.2:4739"], &["--flow-export", "10.99.2.2:4739"], &["--flow-export", "127.0.0.1:4739"]];

/// A collector.
struct Collector {
    _nfcapd: Running,
    records: PathBuf,
    log: PathBuf,
}

impl Collector {
    fn start(mesh: &Mesh, host: usize) -> Collector {
        let (records, log) = (mesh.dir().join("flows"), mesh.dir().join("nfcapd.log"));
        std::fs::create_dir(&records).expect("a directory");
        let mut command = Command::new(tool("nfcapd"));
        command.arg("-w").arg(&records).args(["-p", "4739", "-t", "2"]);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).expect("a file"));
        Collector { _nfcapd: Running(mesh.hosts[host].ns.spawn(command).expect("nfcapd starts")), records, log }
    }

    /// Waits for records of flows that this filter of nfdump's lets through, until there are such as are wanted.
    fn await_records(&self, filter: &str, are_wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut records = Vec::new();
        await_true("a flow is not told", || {
            let output =
                Command::new(tool("nfdump")).arg("-R").arg(&self.records).args(["-o", "json", filter]).output();
            // Of no file yet it says so, and not in JSON.
            records = serde_json::from_slice(&output.expect("nfdump runs").stdout).unwrap_or_default();
            Ok(are_wanted(&records))
        })
        .unwrap_or_else(|error| panic!("{error}: {records:?}\n{}", self.log()));
        records
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }
}

fn sum(records: &[&Value], key: &str) -> u64 {
    records.iter().map(|record| record[key].as_u64().unwrap_or_else(|| panic!("{key} of {record}"))).sum()
}

/// The number that a host's interface has in records.
fn number(mesh: &Mesh, host: usize) -> u64 {
    let status = mesh.hosts[host].status().expect("it answers");
    u64::from_str_radix(&status["peer_id"].as_str().expect("a key")[..8], 16).expect("hex digits")
}

#[test]
fn a_collector_has_the_flows_and_their_bytes_are_those_of_the_transfer() {
    let _alone = alone();
    let mut mesh = Mesh::start_with("flows", &TAPS, &TRIANGLE, &EXPORTED);
    let collector = Collector::start(&mesh, 2);
    mesh.await_connected();
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_all_reach_all(100);
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(3), |_| ());
    let of = |records: &[Value], direction| -> Vec<Value> {
        records.iter().filter(|record| record["direction"] == direction).cloned().collect()
    };
    let filter = format!("src ip {} and dst ip {} and proto tcp", near.v4, far.v4);
    let all = collector.await_records(&filter, |all| [0, 1].iter().all(|direction| !of(all, *direction).is_empty()));
    let hosts = [0, 1].map(|host| number(&mesh, host));
    // Of the host that it left, and of the one where it arrived.
    let [(near_packets, _), (far_packets, _)] = [1, 0].map(|direction| {
        let records = of(&all, direction);
        let records: Vec<&Value> = records.iter().collect();
        let (packets, octets) = (sum(&records, "in_packets"), sum(&records, "in_bytes"));
        let ratio = octets as f64 / carried.bytes as f64;
        println!("direction {direction}: {ratio:.4} of {} bytes, {packets} packets", carried.bytes);
        assert!((1.0..1.02).contains(&ratio), "{ratio}: {records:?}");
        for record in records {
            assert_eq!([&record["input_snmp"], &record["output_snmp"]], [&hosts[0], &hosts[1]]);
        }
        (packets, octets)
    });
    assert!(near_packets > carried.bytes / 1460, "what super-frames are cut into counts: {near_packets}");
    // What is lost on the way is sent again.
    assert!(far_packets <= near_packets && far_packets > carried.bytes / 1460, "{far_packets} of {near_packets}");
    let log = collector.log();
    let is_good = |line: &str| !line.contains("Ident") || line.contains("Sequence Errors: 0, Bad Packets: 0");
    assert!(log.lines().all(is_good) && !log.contains("Process_name_option"), "{log}");
}

#[test]
fn a_collector_that_is_gone_is_named_until_it_comes_back() {
    let _alone = alone();
    let exported: [&[&str]; 2] = [&["--flow-export", "127.0.0.1:4739"], &[]];
    let mut mesh = Mesh::start_with("collected", &TAPS[..2], &TRIANGLE[..1], &exported);
    mesh.await_connected();
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    let problem = |mesh: &Mesh| {
        let status = mesh.hosts[0].status().expect("it answers");
        let problems = status["problems"].as_array().expect("a list").clone();
        problems.into_iter().find(|problem| problem.as_str().is_some_and(|text| text.contains("127.0.0.1:4739")))
    };
    mesh.await_all_reach_all(100);
    await_true("the problem is not told", || Ok(problem(&mesh).is_some())).expect("nothing listens there");
    let collector = Collector::start(&mesh, 0);
    await_true("the problem is told for ever", || Ok(problem(&mesh).is_none())).expect("it listens");
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let _ = transfer(&near.ns, &far.ns, far.ips[1], Duration::from_millis(200), |_| ());
    let filter = format!("dst ip {} and proto tcp", far.ips[1]);
    // The record is due later, but for the end of the router.
    mesh.hosts[0].stop().expect("it ends");
    let records = collector.await_records(&filter, |records| !records.is_empty());
    assert_eq!(records.len(), 1, "{records:?}");
}
