//! What operators and their tools see of a mesh: metrics over HTTP.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_integration::alone;
use weft_integration::netns::internet::transfer;
use weft_integration::netns::{Mesh, Running, tool, weft};
use weft_router::cli::options::TapMode;
use weft_router::lab::{Ns, await_true};

const TAPS: [TapMode; 3] = [TapMode::Fast; 3];
const TRIANGLE: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];
const EVERYWHERE: [&str; 2] = ["--http", "0.0.0.0:6784"];
const HERE: &str = "127.0.0.1:6784";
const PROMETHEUS: &str = "127.0.0.1:9090";

/// The status and body of a response.
type Response = (u16, String);

/// Connects to an address in a namespace.
fn connect(ns: &Ns, to: &str) -> TcpStream {
    let to: SocketAddr = to.parse().expect("an address");
    let stream = ns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).expect("the namespace is there");
    let stream = stream.unwrap_or_else(|error| panic!("{to}: {error}"));
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    stream
}

/// Sends a request as it is, and reads until the connection ends.
fn request(ns: &Ns, to: &str, text: &str) -> Response {
    let mut stream = connect(ns, to);
    let mut answer = Vec::new();
    // A server that refuses may close before all was written.
    let _ = stream.write_all(text.as_bytes());
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn get(ns: &Ns, to: &str, path: &str) -> Response {
    request(ns, to, &format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"))
}

/// Starts a Prometheus in a host's namespace that scrapes these routers each second.
fn start_prometheus(mesh: &Mesh, host: usize, targets: &[&str]) -> Running {
    let config = mesh.dir().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: weft\n    static_configs:\n      - targets: {targets:?}\n"
    );
    std::fs::write(&config, text).expect("a configuration");
    let mut command = Command::new(tool("prometheus"));
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", mesh.dir().join("prometheus").display()));
    command.arg(format!("--web.listen-address={PROMETHEUS}"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running(mesh.hosts[host].ns.spawn(command).expect("Prometheus starts"));
    await_true("Prometheus does not scrape all", || {
        let ns = &mesh.hosts[host].ns;
        let is_listening = ns.run(|| TcpStream::connect(PROMETHEUS).is_ok())?;
        Ok(is_listening && query(ns, "sum(up)") == Some(targets.len() as f64))
    })
    .expect("it does");
    running
}

/// The one value of a query.
fn query(ns: &Ns, query: &str) -> Option<f64> {
    let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let (status, body) = get(ns, PROMETHEUS, &format!("/api/v1/query?query={escaped}"));
    assert!([200, 503].contains(&status), "{query}: {status} {body}");
    let answer: Value =
        serde_json::from_str(body.trim()).ok().or_else(|| serde_json::from_str(&unchunked(&body)).ok())?;
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

/// A body that came in chunks (RFC 9112, section 7.1).
fn unchunked(body: &str) -> String {
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((length, after)) = rest.split_once("\r\n") {
        let Some(chunk) = usize::from_str_radix(length, 16).ok().and_then(|length| after.get(..length)) else { break };
        whole.push_str(chunk);
        rest = after[chunk.len()..].trim_start_matches("\r\n");
    }
    whole
}

/// Waits for a query to have a value, and returns it.
fn await_value(ns: &Ns, text: &str, is_wanted: impl Fn(f64) -> bool) -> f64 {
    let mut last = None;
    await_true(&format!("{text} is not what it should be"), || {
        last = query(ns, text);
        Ok(last.is_some_and(&is_wanted))
    })
    .unwrap_or_else(|error| panic!("{error}: {last:?}"));
    last.unwrap_or_default()
}

#[test]
fn prometheus_scrapes_a_mesh_and_its_numbers_are_those_of_the_transfer() {
    let _alone = alone();
    let mut mesh = Mesh::start_with("scraped", &TAPS, &TRIANGLE, &[&EVERYWHERE[..]; 3]);
    mesh.await_connected();
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_all_reach_all(100);
    let _prometheus = start_prometheus(&mesh, 0, &[HERE, "10.99.0.2:6784", "10.99.1.2:6784"]);
    let ns = &mesh.hosts[0].ns;
    let (_, text) = get(ns, HERE, "/metrics");
    let mut lint = Command::new(tool("promtool"));
    let mut lint =
        lint.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("promtool");
    lint.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let lint = lint.wait_with_output().expect("it ends");
    assert!(lint.status.success(), "{}\n{text}", String::from_utf8_lossy(&lint.stderr));

    let endpoint = |what: &str, name: &str| format!("sum(weft_endpoint_{what}_bytes_total{{name=\"{name}\"}})");
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let counters = [
        endpoint("sent", &near.name),
        endpoint("received", &far.name),
        "sum(weft_peer_sent_bytes_total{instance=\"127.0.0.1:6784\",peer=\"h1\"})".to_owned(),
        "sum(weft_peer_received_bytes_total{instance=\"10.99.0.2:6784\",peer=\"h0\"})".to_owned(),
    ];
    let before = counters.each_ref().map(|counter| await_value(ns, counter, |_| true));
    let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(3), |_| ());
    let bytes = carried.bytes as f64;
    for (counter, before) in counters.iter().zip(before) {
        // Headers and acknowledgements come on top; what a session carries is whole datagrams.
        let most = if counter.contains("endpoint") { 1.02 } else { 1.10 };
        let counted = await_value(ns, counter, |value| value - before >= bytes) - before;
        println!("{counter}: {:.4} of {bytes} bytes carried", counted / bytes);
        assert!(counted <= bytes * most, "{counter}: {counted} of {bytes}");
    }
    for (text, expected) in [
        ("sum(weft_peers{state=\"connected\"})", 6.0),
        ("sum(weft_endpoints)", 2.0),
        ("count(weft_link_rtt_seconds)", 6.0),
        ("min(weft_records{kind=\"endpoint\"})", 2.0),
        ("count(weft_build_info)", 3.0),
        ("sum(weft_metrics_omitted)", 0.0),
    ] {
        await_value(ns, text, |value| value == expected);
    }
    // A cut link is a change of path, and what goes by the third host is relayed.
    mesh.cut(0);
    await_value(ns, "sum(weft_path_changes_total{cause!~\"up|moved\"})", |value| value >= 1.0);
    let relayed = "sum(weft_relayed_bytes_total{instance=\"10.99.1.2:6784\"})";
    let before = await_value(ns, relayed, |_| true);
    let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(1), |_| ());
    await_value(ns, relayed, |value| value - before >= carried.bytes as f64);
}

#[test]
fn the_alert_rules_hold_what_their_tests_say() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics");
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let output = Command::new(tool("promtool")).args(arguments).current_dir(&dir).output().expect("promtool");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{arguments:?}: {said:?}");
    }
}

#[test]
fn every_metric_is_in_the_documents_and_the_dashboard_asks_for_no_other() {
    let _alone = alone();
    let mut mesh = Mesh::start_with("documented", &TAPS[..2], &[(0, 1)], &[]);
    mesh.await_connected();
    mesh.add_container(0, "red");
    let (_, text) = get(&mesh.hosts[0].ns, HERE, "/metrics");
    let there: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(there.len() > 20, "{text}");
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let read = |file: &str| std::fs::read_to_string(docs.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let table = read("metrics.md");
    for name in &there {
        assert!(table.contains(&format!("`{name}`")), "docs/metrics.md does not know {name}");
    }
    for file in ["metrics/dashboard.json", "metrics/alerts.yml", "metrics.md"] {
        let text = read(file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("weft_")) {
            let name = ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            assert!(there.contains(&word) || there.contains(&name), "{file} asks for {word}");
        }
    }
}

#[test]
fn strangers_at_the_http_port_get_little_and_harm_nothing() {
    let _alone = alone();
    let mesh = Mesh::start("strangers", &TAPS[..2], &[(0, 1)]);
    mesh.await_connected();
    let ns = &mesh.hosts[0].ns;
    let with_host = |host: &str| format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for (text, expected) in [
        (with_host("h0:6784"), 200),
        (with_host("localhost"), 200),
        (with_host("evil.example"), 421),
        (with_host("h0\r\nSec-Fetch-Site: cross-site"), 403),
        (with_host("h0\r\nSec-Fetch-Site: none"), 200),
        (with_host("127.0.0.1.evil.example:6784"), 421),
        ("GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 421),
        (with_host("h0").replace("GET", "POST"), 405),
        (with_host("h0").replace("GET", "DELETE"), 405),
        (with_host("h0").replace("/metrics", "/../../etc/passwd"), 404),
        (with_host("h0").replace("/metrics", "/metrics/.."), 404),
        (with_host("h0").replace("/metrics", "/"), 200),
        ("\u{16}\u{3}\u{1} no HTTP at all\r\n\r\n".to_owned(), 400),
        (format!("GET /{} HTTP/1.1\r\nHost: h0\r\n\r\n", "a".repeat(1 << 20)), 431),
    ] {
        let (status, body) = request(ns, HERE, &text);
        // Of what is no request, or too long, the end may come before the answer is read.
        let is_fine = status == expected || ([400, 431].contains(&expected) && status == 0);
        assert!(is_fine, "{status} {body}: {}", text.escape_debug().to_string().get(..80).unwrap_or(&text));
    }
    // Ten times as many as are served at once stay half-open, and half of these say a little.
    let begun = Instant::now();
    let mut slow: Vec<TcpStream> = (0..640).map(|_| connect(ns, HERE)).collect();
    for stream in slow.iter_mut().step_by(2) {
        // The server may have ended it.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHo");
    }
    assert_eq!(get(ns, HERE, "/metrics").0, 200, "the newest is served");
    let mut last = slow.pop().expect("there are some");
    let end = last.read(&mut [0; 16]);
    let is_over = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(
        end.as_ref().map_or_else(is_over, |read| *read == 0),
        "a client that says nothing is not waited for: {end:?}"
    );
    println!("a silent client is let go after {:.1?}", begun.elapsed());
    let _ = last.shutdown(Shutdown::Both);
    // Clients that take nothing.
    let mut greedy: Vec<TcpStream> = (0..64).map(|_| connect(ns, HERE)).collect();
    for stream in &mut greedy {
        for _ in 0..100 {
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: h0\r\n\r\n");
        }
    }
    assert_eq!(get(ns, HERE, "/metrics").0, 200);
    assert_eq!(mesh.hosts[0].connected().expect("the router answers"), 1);
}

/// Runs a command of the binary against a host's router; returns what it prints.
fn command(mesh: &Mesh, host: usize, words: &[&str]) -> String {
    let socket = &mesh.hosts[host].socket;
    let output = mesh.hosts[host].ns.run(|| Command::new(weft()).arg("--socket").arg(socket).args(words).output());
    let output = output.expect("the namespace is there").expect("it runs");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What happened to a host's router.
fn events(mesh: &Mesh, host: usize) -> Vec<Value> {
    let lines = command(mesh, host, &["events", "--json"]);
    lines.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

#[test]
fn last_nights_outage_is_told_also_after_a_restart_and_beside_damage() {
    let _alone = alone();
    let mut mesh = Mesh::start("events", &TAPS, &TRIANGLE);
    mesh.await_connected();
    let is = |event: &Value, kind: &str| event["event"] == kind && event["peer"] == "h1";
    // While hosts meet, the first way may be a relay.
    let is_direct = |event: &Value| is(event, "path") && event["path"] == "direct";
    await_true("the path is not noted", || Ok(events(&mesh, 0).iter().any(is_direct))).unwrap();
    let mut follow = Command::new(weft());
    follow.arg("--socket").arg(&mesh.hosts[0].socket).args(["events", "--since", "1s", "--follow"]);
    follow.stdout(Stdio::piped());
    let mut follow = Running(mesh.hosts[0].ns.spawn(follow).expect("it starts"));
    let mut followed = std::io::BufReader::new(follow.0.stdout.take().expect("a pipe"));
    mesh.cut(0);
    let begun = Instant::now();
    let mut said = String::new();
    while !said.contains("link to h1 down: ") {
        assert!(std::io::BufRead::read_line(&mut followed, &mut said).expect("it goes on") > 0, "{said}");
    }
    println!("told {:.1?} after the cut", begun.elapsed());
    let is_relayed = |event: &Value| is(event, "path") && event["path"] == "relay" && event["via"] == "h2";
    let since_direct = |all: Vec<Value>| all.into_iter().skip_while(|event| !is_direct(event)).collect::<Vec<Value>>();
    await_true("the relay is not noted", || Ok(since_direct(events(&mesh, 0)).iter().any(is_relayed))).unwrap();
    let all = since_direct(events(&mesh, 0));
    let path = all.first().expect("it was there before");
    assert_eq!((&path["path"], &path["transport"]), (&"direct".into(), &"udp".into()), "{all:#?}");
    let at = |event: &Value| event["at"].as_u64().expect("a time");
    let then = |event: &Value| format!("{:.3}", at(event) as f64 / 1e3);
    let moment = |event: &Value| {
        let seconds = then(event);
        let output =
            Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%S.%3NZ"]).output();
        String::from_utf8_lossy(&output.expect("date").stdout).trim().to_owned()
    };
    let before = command(&mesh, 0, &["why", "h1", "--at", &moment(path)]);
    assert!(before.contains("frames to h1 go straight by udp") && before.contains("link to h1 down"), "{before}");
    let relayed = all.iter().find(|event| is_relayed(event)).expect("it is there");
    let after = command(&mesh, 0, &["why", "h1", "--at", &moment(relayed)]);
    assert!(after.contains("frames to h1 go by way of h2 by udp"), "{after}");
    // The router ends without a word, and its file is damaged.
    mesh.hosts[0].kill();
    let file = mesh.hosts[0].socket.with_file_name("events.jsonl");
    let mut bytes = std::fs::read(&file).expect("what happened is on disk");
    bytes.splice(0..0, *b"{\"at\":17,\x00\xff\n");
    bytes.extend_from_slice(b"{\"at\":1");
    std::fs::write(&file, bytes).expect("a file");
    mesh.launch(0);
    said.clear();
    while !said.contains("the router started") {
        assert!(std::io::BufRead::read_line(&mut followed, &mut said).expect("it goes on") > 0, "{said}");
    }
    let again = events(&mesh, 0);
    let starts = again.iter().filter(|event| event["event"] == "started").count();
    assert_eq!(starts, 2, "{again:#?}");
    assert!(again.iter().any(is_relayed), "{again:#?}");
    let log = std::fs::read_to_string(mesh.hosts[0].log()).expect("a log");
    assert!(log.contains("skipped 2 damaged lines"), "{log}");
}

#[test]
fn a_report_has_what_helps_and_no_secret() {
    let _alone = alone();
    let mesh = Mesh::start("report", &TAPS, &TRIANGLE);
    mesh.await_connected();
    let archive = mesh.dir().join("report.tar.gz");
    let log = mesh.hosts[0].log();
    let words = ["report", &archive.to_string_lossy(), "--log", &log.to_string_lossy()];
    assert!(command(&mesh, 0, &words).contains("no private key and no secret"));
    let output =
        Command::new("tar").args(["-xzf", &archive.to_string_lossy(), "-C"]).arg(mesh.dir()).output().expect("tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |file: &str| std::fs::read_to_string(mesh.dir().join("weft-report").join(file)).expect("it is there");
    let files = ["status.json", "events.jsonl", "metrics.txt", "why.json", "nftables.txt", "rules.txt", "weft.log"];
    let whole: String = files.iter().map(|file| read(file)).collect();
    for wanted in ["\"records_digest\"", "link_up", "weft_peers{state=\"connected\"} 2", "UDP passes", "is up"] {
        assert!(whole.contains(wanted), "{wanted} is not in {whole}");
    }
    let secret = std::fs::read_to_string(mesh.secret_file()).expect("a secret");
    let identity = std::fs::read_to_string(mesh.hosts[0].socket.with_file_name("identity")).expect("a key");
    for secret in [secret.trim(), identity.trim()] {
        assert!(!secret.is_empty() && !whole.contains(secret));
    }
    let status = |host: usize| mesh.hosts[host].status().expect("it answers")["records_digest"].clone();
    await_true("hosts do not hold the same records", || Ok(status(0) == status(1) && status(1) == status(2))).unwrap();
    // What is there is not written over.
    let again = mesh.hosts[0].ns.run(|| {
        Command::new(weft()).arg("--socket").arg(&mesh.hosts[0].socket).args(["report"]).arg(&archive).output()
    });
    assert_eq!(again.expect("the namespace is there").expect("it runs").status.code(), Some(1));
}

#[test]
fn a_host_that_is_thought_away_is_named_by_those_it_relays_for() {
    let _alone = alone();
    // h1 is between the two others.
    let mesh = Mesh::start("what-if", &TAPS, &[(0, 1), (1, 2)]);
    mesh.await_connected();
    let mut without = String::new();
    // What all hosts announce takes a moment to be everywhere.
    await_true("the pair is not missed", || {
        without = command(&mesh, 0, &["what-if", "h1", "down"]);
        // Pairs stand in the order of their keys, which are drawn.
        let is_lost = ["h0 and h2: no path", "h2 and h0: no path"].iter().any(|line| without.contains(line));
        Ok(is_lost && without.contains("of 1 pairs"))
    })
    .unwrap_or_else(|error| panic!("{error}: {without}"));
    await_true("the other pair is not told of", || {
        let without = command(&mesh, 2, &["what-if", "h0", "down", "--json"]);
        let without: Value = serde_json::from_str(&without).expect("JSON");
        Ok((&without["pairs"], &without["lost"]) == (&1.into(), &serde_json::json!([])))
    })
    .unwrap();
}

#[test]
fn each_cause_of_trouble_is_named_in_a_line() {
    let _alone = alone();
    // h1 is the one that relays; h3 is behind h0.
    let mut mesh = Mesh::start_with(
        "causes",
        &[TapMode::Fast; 4],
        &[(0, 1), (1, 2), (0, 3)],
        &[&["--range", "10.40.0.0/28"][..]; 4],
    );
    await_true("the three are not connected", || {
        (0..3).try_fold(true, |all, host| Ok(all && mesh.hosts[host].connected()? >= 2))
    })
    .unwrap();
    let says = |mesh: &Mesh, host: usize, words: &[&str], line: &str| {
        let mut said = String::new();
        await_true(&format!("{words:?} does not say {line:?}"), || {
            said = command(mesh, host, words);
            Ok(said.lines().any(|found| found.contains(line)))
        })
        .unwrap_or_else(|error| panic!("{error}:\n{said}"));
    };
    says(&mesh, 0, &["why", "h2"], "relayed by h1");
    // A range that is full.
    let containers: Vec<Ns> = (0..16).map(|_| Ns::new().expect("a container")).collect();
    let attach = |container: &Ns| {
        let mut weft = Command::new(weft());
        weft.arg("--socket").arg(&mesh.hosts[0].socket).args(["attach", &container.path()]);
        mesh.hosts[0].ns.run(move || weft.output()).expect("the namespace is there").expect("it runs")
    };
    let refused = containers.iter().map(attach).find(|output| !output.status.success()).expect("14 are no 16");
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("10.40.0.0/28"), "{refused}");
    says(&mesh, 0, &["status"], "PROBLEM: the range 10.40.0.0/28 runs out of addresses");
    // A host with another secret: it was restarted with it.
    mesh.hosts[3].kill();
    let secret = weft_router::daemon::state::new_secret().expect("a secret");
    weft_integration::netns::write_secret(mesh.secret_file(), &[secret]);
    mesh.launch(3);
    says(
        &mesh,
        3,
        &["status"],
        "does not answer at 10.99.2.1:6783: is weft up there, does UDP get through, and has it the same secret?",
    );
    await_true("strangers are not counted", || {
        Ok(mesh.hosts[0].status()?["drops"]["forged"].as_u64().is_some_and(|count| count > 0))
    })
    .unwrap();
    // A cut link, and with it the relay.
    mesh.cut(0);
    says(&mesh, 0, &["status"], "h1 (dead)");
    says(&mesh, 0, &["why", "h1"], "no answer to ");
    says(&mesh, 0, &["why", "h2"], "neither h2 nor a host that relays to it is linked with this host");
    says(&mesh, 0, &["events", "--since", "1m"], "link to h1 down: nothing comes back");
}

#[test]
fn a_port_in_use_is_said_and_none_is_none() {
    let _alone = alone();
    let mut mesh = Mesh::start_with("port", &TAPS[..1], &[], &[&["--http", "none"]]);
    let is_refused = mesh.hosts[0].ns.run(|| TcpStream::connect(HERE).is_err()).expect("the namespace is there");
    assert!(is_refused, "nothing listens");
    mesh.hosts[0].stop().expect("it stops");
    let taken = mesh.hosts[0].ns.run(|| std::net::TcpListener::bind(HERE)).expect("the namespace is there");
    let taken = taken.expect("a free port");
    let launch = |more: &[&str]| {
        let mut command = Command::new(weft());
        command.args(["launch", "--insecure", "--no-docker", "--name", "h0"]).args(more);
        command.arg("--socket").arg(mesh.dir().join("other.sock")).arg("--state-dir").arg(mesh.dir().join("other"));
        command
    };
    let output = mesh.hosts[0].ns.run(|| launch(&["--http", HERE]).output()).expect("the namespace is there");
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot serve HTTP on 127.0.0.1:6784") && said.contains("--http none"), "{said}");
    // Unasked, it goes on without.
    let mut command = launch(&[]);
    command.stderr(Stdio::piped());
    let mut running = Running(mesh.hosts[0].ns.spawn(command).expect("it starts"));
    let mut log = std::io::BufReader::new(running.0.stderr.take().expect("a pipe"));
    let mut said = String::new();
    while !said.contains("is up") {
        let read = std::io::BufRead::read_line(&mut log, &mut said).expect("it logs");
        assert!(read > 0, "it ended: {said}");
    }
    assert!(said.contains("there are neither metrics nor a page of this router"), "{said}");
    drop(taken);
}

#[test]
fn the_installed_unit_is_confined() {
    let root = std::env::temp_dir().join(format!("weft-unit-{}", std::process::id()));
    let output = Command::new(weft()).arg("install").arg("--root").arg(&root).output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Tenths of systemd's points, of 100 for a unit that may do all.
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["security", "--no-pager", "--offline=yes", "--threshold=36"]);
    let output = analyze.arg(root.join("etc/systemd/system/weft.service")).output();
    let output = output.expect("systemd-analyze is missing: install the package systemd, as scripts/test does");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("Unknown key"), "{said}");
    std::fs::remove_dir_all(root).expect("it was made");
}
