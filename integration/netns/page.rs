//! The page in a browser: headless Chromium, steered by the DevTools protocol over pipes
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_integration::alone;
use weft_integration::netns::Mesh;
use weft_router::cli::options::TapMode;
use weft_router::lab::{Ns, await_true};

const PAGE: &str = "http://127.0.0.1:6784/";
/// How long an answer of the browser may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page; it ends with the test.
struct Browser {
    process: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    /// What it said besides answers.
    heard: Vec<Value>,
    session: Option<String>,
    last: u64,
}

impl Browser {
    /// Starts a browser in a namespace and opens the page.
    fn open(ns: &Ns, dir: &Path) -> Browser {
        let mut command = Command::new("sh");
        // It reads commands from descriptor 3 and answers at descriptor 4.
        let arguments = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe";
        let script = format!("exec chromium {arguments} --user-data-dir=\"$0\" 3<&0 4>&1 >/dev/null 2>&1");
        command.args(["-c", &script]).arg(dir).env("HOME", dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = ns.spawn(command).expect("Chromium starts; scripts/test installs it");
        let answers = process.stdout.take().expect("a pipe");
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("Chromium speaks JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let commands = process.stdin.take().expect("a pipe");
        let mut browser = Browser { process, commands, messages, heard: Vec::new(), session: None, last: 0 };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.call("Page.navigate", json!({ "url": PAGE }));
        browser
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let text = format!("{message}\0");
        self.commands.write_all(text.as_bytes()).expect("Chromium runs; scripts/test installs it");
        loop {
            let message = self.messages.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no answer to {method}"));
            if message["id"] == self.last {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.heard.push(message);
        }
    }

    /// The value of an expression on the page.
    fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits for an expression to be true; returns how long that took.
    fn await_that(&mut self, expression: &str) -> Duration {
        let begun = Instant::now();
        let is_true = await_true(expression, || Ok(self.evaluate(expression) == true));
        is_true.unwrap_or_else(|error| panic!("{error}: {}", self.evaluate("document.body.innerText")));
        begun.elapsed()
    }

    /// Presses a key: a letter, or one with a name.
    fn press(&mut self, key: &str) {
        let text = if key.chars().count() == 1 { key } else { "" };
        let key = |kind: &str, text: &str| json!({ "type": kind, "key": key, "code": key, "text": text });
        self.call("Input.dispatchKeyEvent", key("keyDown", text));
        self.call("Input.dispatchKeyEvent", key("keyUp", ""));
    }

    /// What it complained of.
    fn complaints(&self) -> Vec<&Value> {
        const COMPLAINTS: [&str; 3] = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"];
        self.heard.iter().filter(|message| COMPLAINTS.iter().any(|kind| message["method"] == **kind)).collect()
    }

    /// The addresses that it asked for something.
    fn requests(&self) -> Vec<&str> {
        let requests = self.heard.iter().filter(|message| message["method"] == "Network.requestWillBeSent");
        requests.filter_map(|message| message["params"]["request"]["url"].as_str()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_page_shows_the_mesh_as_it_changes() {
    let _alone = alone();
    let mut mesh = Mesh::start("page", &[TapMode::Fast; 3], &[(0, 1), (0, 2), (1, 2)]);
    mesh.await_connected();
    for host in [0, 1, 1, 2] {
        mesh.add_container(host, "red");
    }
    mesh.await_all_reach_all(100);
    let mut browser = Browser::open(&mesh.hosts[0].ns, &mesh.dir().join("browser"));
    for container in &mesh.containers {
        let row =
            format!("tr => tr.innerText.includes('{}') && tr.innerText.includes('{}')", container.name, container.v4);
        browser.await_that(&format!("[...document.querySelectorAll('#endpoints tbody tr')].some({row})"));
    }
    let link = |kind: &str, ends: [&str; 2]| {
        let [one, other] = ends;
        format!(
            "document.querySelector('path.{kind}:is([data-link=\"{one} {other}\"], [data-link=\"{other} {one}\"])') !== null"
        )
    };
    browser.await_that("document.querySelectorAll('#graph [data-id]').length === 3");
    browser.await_that(&link("own", ["h0", "h1"]));
    browser.await_that("document.querySelectorAll('path.relayed').length === 0");

    // A link that is cut is seen, and by which way frames go then.
    mesh.cut(0);
    let took = browser.await_that("document.getElementById('events').innerText.includes('link to h1 down')");
    let more = browser.await_that(&link("relayed", ["h0", "h1"]));
    println!("a cut link is told after {took:.1?} and drawn after {:.1?}", took + more);
    browser.await_that("document.getElementById('peers').innerText.includes('by h2')");

    // The path between two containers is what `weft why` says, and is drawn.
    let [from, to] = [0, 1].map(|container| mesh.containers[container].name.clone());
    for (field, name) in [("from", &from), ("to", &to)] {
        browser.evaluate(&format!("document.getElementById('{field}').value = '{name}'"));
    }
    browser.evaluate("document.querySelector('#why button').click()");
    browser.await_that("document.getElementById('answer').innerText.includes('relayed by h2')");
    browser.await_that("document.querySelectorAll('path.way').length === 2");
    browser.evaluate("document.getElementById('to').value = 'nothing'; document.querySelector('#why button').click()");
    browser.await_that("document.getElementById('answer').innerText.includes('nothing is known')");

    // By keyboard: the search, and from host to host.
    browser.evaluate("document.activeElement.blur()");
    browser.press("/");
    browser.await_that("document.activeElement.id === 'search'");
    browser.call("Input.insertText", json!({ "text": mesh.containers[1].v4.to_string() }));
    browser.await_that("document.querySelectorAll('#endpoints tbody tr').length === 1");
    browser.press("Escape");
    browser.await_that("document.querySelectorAll('#endpoints tbody tr').length === 4");
    browser.evaluate("document.querySelector('#graph [tabindex=\"0\"]').focus()");
    let focused = "document.activeElement.dataset.id";
    let first = browser.evaluate(focused);
    let mut reached = Vec::new();
    for key in ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"] {
        browser.press(key);
        reached.push(browser.evaluate(focused));
    }
    assert!(reached.iter().any(|host| host.is_string() && *host != first), "arrows lead nowhere: {first} {reached:?}");
    browser.press("Enter");
    browser.await_that("!document.getElementById('chosen').hidden");

    // In the dark.
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.evaluate(ground);
    let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    browser.call("Emulation.setEmulatedMedia", dark);
    assert_ne!(browser.evaluate(ground), light);

    // Asking for an unknown place was answered with 404, of which the browser tells.
    let is_expected = |complaint: &Value| complaint.to_string().contains("why?");
    let complaints: Vec<&Value> =
        browser.complaints().into_iter().filter(|complaint| !is_expected(complaint)).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    let elsewhere: Vec<&str> =
        browser.requests().into_iter().filter(|url| !url.starts_with(PAGE) && !url.starts_with("data:")).collect();
    assert!(elsewhere.is_empty() && browser.requests().len() >= 6, "{:?}", browser.requests());

    // The router starts anew, and the page goes on.
    mesh.hosts[0].kill();
    browser.await_that("document.getElementById('state').className === 'lost'");
    mesh.launch(0);
    browser.await_that("document.getElementById('state').className === 'live'");
    browser.await_that("/^[12] of 4 on h[0-2]$/.test(document.getElementById('endpoints-count').innerText)");
}
