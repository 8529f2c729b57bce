//! What is around the engines: a name server outside, the image, commands.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weft_router::lab::Ns;

/// A resolver outside: it knows one name.
pub(super) fn answer_names(outside: &Ns, ended: Arc<AtomicBool>) {
    let socket = outside.run(|| UdpSocket::bind("10.98.0.254:53")).expect("a namespace").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while !ended.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
            let question = &packet[12..length];
            let end = question.iter().position(|byte| *byte == 0).map_or(0, |root| root + 5);
            let is_known = question.starts_with(b"\x07outside\x07example\x00\x00\x01");
            let code = if is_known || question.starts_with(b"\x07outside\x07example\x00") { 0 } else { 3 };
            let mut answer = [&packet[..2], &[0x81, 0x80 | code, 0, 1, 0, is_known as u8, 0, 0, 0, 0]].concat();
            answer.extend_from_slice(&question[..end]);
            if is_known {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// An image of nothing but busybox.
pub(super) fn make_image(dir: &Path) -> String {
    let busybox = Path::new("/bin/busybox");
    assert!(busybox.exists(), "there is no {}: apt install busybox-static, or run scripts/test", busybox.display());
    let bin = dir.join("image/bin");
    std::fs::create_dir_all(&bin).expect("a directory");
    std::fs::copy(busybox, bin.join("busybox")).expect("a copy of busybox");
    for applet in ["sh", "sleep", "ping", "nslookup", "ip", "wget", "httpd", "cat", "touch", "rm", "test", "nc", "true"]
    {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("a link");
    }
    let tar = dir.join("image.tar").to_string_lossy().into_owned();
    run(&["tar", "-C", &dir.join("image").to_string_lossy(), "-cf", &tar, "."], None);
    tar
}

/// Runs a program, in a network namespace if one is given; it has to work.
pub(super) fn run(command: &[&str], namespace: Option<&str>) {
    let inside = namespace.map(|path| vec!["nsenter".to_owned(), format!("--net={path}"), "--".to_owned()]);
    let all: Vec<String> = inside.into_iter().flatten().chain(command.iter().map(|word| (*word).to_owned())).collect();
    let output = Command::new(&all[0]).args(&all[1..]).output().expect("the program runs");
    assert!(output.status.success(), "{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr));
}
