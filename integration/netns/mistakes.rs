//! What a wrong command line or a leftover gets.

use super::*;

pub(super) fn run_weft(ns: &Ns, arguments: &[&str]) -> Output {
    let mut command = Command::new(weft());
    command.args(arguments).env_remove("WEFT_SECRET");
    ns.run(move || command.output().unwrap()).unwrap()
}

/// Each mistake gets one line that says what to do, and the exit status that fits.
fn refused(ns: &Ns, status: i32, hint: &str, arguments: &[&str]) {
    let output = run_weft(ns, arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {message}");
    assert!(message.contains(hint), "{arguments:?} says: {message}");
    assert_eq!(message.lines().count(), 1, "{arguments:?} says: {message}");
}

#[test]
fn mistakes_get_one_clear_line_and_leave_nothing_behind() {
    let mut mesh = Mesh::start("mistakes", &[Fast; 2], &[(0, 1)]);
    let first = mesh.add_container(0, "red");
    mesh.await_connected();
    mesh.await_all_reach_all(56);
    let dir = mesh.dir().to_string_lossy().into_owned();
    let (ns, socket) = (&mesh.hosts[0].ns, mesh.hosts[0].socket.to_string_lossy().into_owned());
    let spare = Ns::new().unwrap();
    let (target, taken) = (spare.path(), format!("{}/24", mesh.containers[first].v4));
    let weft = |status, hint: &str, arguments: &[&str]| {
        refused(ns, status, hint, &[&["--socket", &socket], arguments].concat());
    };
    weft(1, "in use", &["attach", &target, "--segment", "red", "--ip", &taken]);
    refused(
        &mesh.hosts[1].ns,
        1,
        "in use",
        &["--socket", &mesh.hosts[1].socket.to_string_lossy(), "attach", &target, "--segment", "red", "--ip", &taken],
    );
    weft(1, "reserved", &["attach", &target, "--ip", "10.32.0.1"]);
    weft(2, "no address", &["attach", &target, "--ip", "nonsense"]);
    weft(2, "single interface", &["attach", &target, "--ip", "224.0.0.9/24"]);
    weft(1, "overlaps", &["attach", &target, "--ip", "10.99.0.77/24"]);
    weft(1, "no process", &["attach", "4194303", "--ip", "10.32.9.9/24"]);
    weft(1, "no network namespace", &["attach", "/nowhere/at/all", "--ip", "10.32.9.9/24"]);
    weft(1, "no network namespace", &["attach", "/etc/hostname", "--ip", "10.32.9.9/24"]);
    weft(1, "container", &["attach", "no-such-container", "--ip", "10.32.9.9/24"]);
    weft(1, "weft expose", &["attach", &mesh.hosts[0].pid().unwrap().to_string(), "--ip", "10.32.9.9/24"]);
    // What is not there needs no taking away.
    assert!(run_weft(ns, &["--socket", &socket, "detach", &target]).status.success());
    assert!(run_weft(ns, &["--socket", &socket, "hide"]).status.success());
    weft(1, "no peer", &["forget", "10.1.2.3"]);
    weft(2, "no peer", &["connect", "a:b:c"]);
    weft(2, "unexpected argument", &["status", "--nonsense"]);
    weft(2, "usage: weft connect", &["connect"]);
    weft(2, "--help", &[]);
    weft(1, "prints addresses", &["dns", "lookup", "_http._tcp.web"]);
    let links = spare.net(async |net| net.names().await).unwrap();
    assert!(!links.iter().any(|link| link.starts_with("weft")), "a refused attach left {links:?}");

    let secret = mesh.secret_file().to_string_lossy().into_owned();
    let state = format!("{dir}/spare");
    let own = format!("{dir}/spare.sock");
    let launch = |status, hint: &str, extra: &[&str]| {
        let mut arguments = vec!["--socket", &own, "launch", "--no-docker", "--state-dir", &state];
        arguments.extend(extra);
        refused(ns, status, hint, &arguments);
    };
    launch(2, "secret new", &[]);
    launch(1, "in use", &["--secret-file", &secret]);
    launch(2, "--range", &["--secret-file", &secret, "--range", "10.0.0.1/33"]);
    launch(1, "overlaps", &["--secret-file", &secret, "--listen", "[::]:7001", "--range", "10.96.0.0/11"]);
    launch(1, "it is not there", &["--secret-file", "/nowhere"]);
    launch(1, "chmod 600", &["--secret-file", "/etc/hostname"]);
    launch(2, "--mtu", &["--secret-file", &secret, "--mtu", "100"]);
    let foreign = format!("{dir}/foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::os::unix::fs::chown(&foreign, Some(12345), None).unwrap();
    refused(
        ns,
        1,
        "belongs to user 12345",
        &["--socket", &own, "launch", "--state-dir", &foreign, "--secret-file", &secret],
    );
    let config = format!("{dir}/config.toml");
    std::fs::write(&config, "mtu = 1400\ncolour = 'red'\n").unwrap();
    launch(2, "line 2", &["--secret-file", &secret, "--config", &config]);
    std::fs::write(&config, format!("socket = '{socket}'\n")).unwrap();
    refused(ns, 1, "runs already", &["launch", "--state-dir", &state, "--secret-file", &secret, "--config", &config]);
    let mine = mesh.hosts[0].socket.parent().unwrap().to_string_lossy().into_owned();
    refused(ns, 1, "another router", &["--socket", &own, "launch", "--state-dir", &mine, "--secret-file", &secret]);
    refused(ns, 1, "runs already", &["--socket", &socket, "launch", "--state-dir", &state, "--secret-file", &secret]);
    // A socket that a dead router left says so, and does not stop the next one.
    mesh.hosts[1].kill();
    let dead = mesh.hosts[1].socket.to_string_lossy().into_owned();
    refused(&mesh.hosts[1].ns, 1, "no router runs", &["--socket", &dead, "status"]);
    mesh.launch(1);
    mesh.await_connected();
}
