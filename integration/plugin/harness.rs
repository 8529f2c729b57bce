//! A router whose plugin is called by hand, beside an engine that answers from a script.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_integration::netns::weft;
use weft_router::lab::{Ns, await_true};

pub(super) const NETWORK: &str = "c9f498c3c919243a415be984b16dd0ebac1a634cf377b0eaba75b4efc6b0b16a";
pub(super) const OTHER: &str = "d4e8fa7c125a31acf9a13baea9751c9a5f463e7b22ca8c22787ecc26c63914de";

/// A router, and the engine that it believes in.
pub(super) struct Plugin {
    pub(super) ns: Ns,
    pub(super) dir: PathBuf,
    pub(super) child: Option<Child>,
    pub(super) engine: Arc<Mutex<Engine>>,
}

/// What the engine says of itself and of networks.
#[derive(Default)]
pub(super) struct Engine {
    /// Its id, and what it calls itself.
    pub(super) id: String,
    pub(super) kind: String,
    /// Names of networks by their ids, and names of containers by their endpoints' ids.
    pub(super) networks: BTreeMap<String, (String, BTreeMap<String, String>)>,
    /// How it was told to make networks, by their ids.
    pub(super) made: BTreeMap<String, Value>,
    pub(super) hangs: bool,
}

impl Plugin {
    pub(super) fn start(name: &str) -> Plugin {
        let dir = std::env::temp_dir().join(format!("weft-plugin-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("plugins")).unwrap();
        let engine = Arc::<Mutex<Engine>>::default();
        let listener = UnixListener::bind(dir.join("engine.sock")).unwrap();
        let served = engine.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let engine = served.clone();
                std::thread::spawn(move || serve(stream, &engine));
            }
        });
        let mut plugin = Plugin { ns: Ns::new().unwrap(), dir, child: None, engine };
        plugin.launch();
        plugin
    }

    pub(super) fn launch(&mut self) {
        let path = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let log = std::fs::File::options().create(true).append(true).open(path("log")).unwrap();
        let mut command = Command::new(weft());
        command.args(["launch", "--insecure", "--name", "host", "--no-spread", "--state-dir", &path("state")]);
        command.args(["--socket", &path("weft.sock"), "--plugin-dir", &path("plugins")]);
        command.args(["--docker-socket", &path("engine.sock")]);
        let programs = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{programs}", path("bin")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(self.ns.spawn(command).unwrap());
        await_true("the router does not answer", || Ok(self.ask_status().is_ok_and(|(status, _)| status == 200)))
            .unwrap_or_else(|error| panic!("{error}: {}", std::fs::read_to_string(path("log")).unwrap_or_default()));
    }

    /// Has a program fail from now on, or (with `false`) work again.
    pub(super) fn break_program(&self, name: &str, is_broken: bool) {
        let script = self.dir.join("bin").join(name);
        if !is_broken {
            return std::fs::remove_file(script).unwrap();
        }
        std::fs::create_dir_all(self.dir.join("bin")).unwrap();
        let fresh = script.with_extension("new");
        std::fs::write(&fresh, "#!/bin/sh\necho out of order >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(fresh, script).unwrap();
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("plugins/weft.sock")
    }

    pub(super) fn engine(&self) -> std::sync::MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name_network(&self, id: &str, name: &str) {
        self.engine().networks.entry(id.to_owned()).or_default().0 = name.to_owned();
    }

    /// A call as engines make it: no content type, no host. Its status and answer.
    pub(super) fn raw(&self, method: &str, body: &[u8]) -> (u16, Value) {
        let started = Instant::now();
        let answer = post(&self.socket(), method, body);
        assert!(started.elapsed() < Duration::from_secs(5), "{method} took {:?}", started.elapsed());
        answer
    }

    /// A call that has to work.
    pub(super) fn call(&self, method: &str, body: Value) -> Value {
        let (status, answer) = self.raw(method, body.to_string().as_bytes());
        assert_eq!(status, 200, "{method}: {answer}");
        assert!(answer.get("Err").is_none(), "{method}: {answer}");
        answer
    }

    /// A call that has to be refused, with a reason.
    pub(super) fn refused(&self, method: &str, body: Value, hint: &str) {
        let (status, answer) = self.raw(method, body.to_string().as_bytes());
        let reason = answer["Err"].as_str().unwrap_or_default();
        assert!(status >= 400 && reason.contains(hint), "{method} is answered {status}: {answer}");
        assert_eq!(reason.lines().count(), 1);
    }

    /// What an engine does to create a network without a `--subnet`.
    pub(super) fn create_plain(&self, network: &str, name: &str) {
        let pool = self.call("IpamDriver.RequestPool", pool("", ""));
        assert_eq!((&pool["Pool"], &pool["Data"]), (&json!("10.32.0.0/12"), &json!({})));
        let gateway = self.call("IpamDriver.RequestAddress", gateway(&pool, ""));
        assert_eq!(gateway["Address"], "10.32.0.1/12");
        let data = json!([{ "AddressSpace": "weft", "Gateway": "10.32.0.1/12", "Pool": "10.32.0.0/12" }]);
        self.call("NetworkDriver.CreateNetwork", create(network, json!({}), data, json!([])));
        self.name_network(network, name);
    }

    /// What an engine does to start a container; its address.
    pub(super) fn run(&self, network: &str, pool_id: &str, endpoint: &str, name: &str) -> String {
        let request = json!({ "PoolID": pool_id, "Address": "", "Options": null });
        let address = self.call("IpamDriver.RequestAddress", request)["Address"].as_str().unwrap().to_owned();
        let created = self.call("NetworkDriver.CreateEndpoint", endpoint_of(network, endpoint, &address, ""));
        assert_eq!(created["Interface"]["MacAddress"].as_str().map(str::len), Some(17));
        let named = (endpoint.to_owned(), name.to_owned());
        self.engine().networks.entry(network.to_owned()).or_default().1.extend([named]);
        self.call("NetworkDriver.Join", join(network, endpoint));
        for _ in 0..2 {
            self.call("NetworkDriver.ProgramExternalConnectivity", of(network, endpoint));
            assert_eq!(self.call("NetworkDriver.EndpointOperInfo", of(network, endpoint))["Value"], json!({}));
        }
        address
    }

    /// What an engine does when a container ends.
    pub(super) fn end(&self, network: &str, pool_id: &str, endpoint: &str, address: &str) {
        self.call("NetworkDriver.RevokeExternalConnectivity", of(network, endpoint));
        self.call("NetworkDriver.Leave", of(network, endpoint));
        self.call("NetworkDriver.DeleteEndpoint", of(network, endpoint));
        let address = address.split('/').next().unwrap();
        self.call("IpamDriver.ReleaseAddress", json!({ "PoolID": pool_id, "Address": address }));
    }

    pub(super) fn status(&self) -> Value {
        self.ask_status().unwrap().1
    }

    pub(super) fn ask_status(&self) -> std::io::Result<(u16, Value)> {
        let mut stream = UnixStream::connect(self.dir.join("weft.sock"))?;
        stream.write_all(b"GET /status HTTP/1.1\r\nHost: weft\r\nConnection: close\r\n\r\n")?;
        Ok(answer_of(stream))
    }

    /// All endpoints, once there are so many: records are written some milliseconds after the call.
    pub(super) fn endpoints(&self, count: usize) -> Vec<Value> {
        let all = || self.status()["endpoints"].as_array().cloned().unwrap_or_default();
        await_true(&format!("not {count} endpoints"), || Ok(all().len() == count))
            .unwrap_or_else(|error| panic!("{error}: {:?}", all()));
        all()
    }

    pub(super) fn used(&self) -> u64 {
        self.status()["ipam"]["used"].as_u64().unwrap()
    }

    pub(super) fn interfaces(&self) -> Vec<String> {
        self.ns.net(async |net| net.names().await).unwrap()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            return eprintln!("see {}", self.dir.display());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The engine's answers to what a plugin may ask.
pub(super) fn serve(mut stream: UnixStream, engine: &Mutex<Engine>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().and_then(Result::ok).unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
    let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
    if engine.hangs {
        drop(engine);
        return std::thread::sleep(Duration::from_secs(8));
    }
    let tail = path.rsplit('/').next().unwrap_or_default();
    let body = match tail {
        "version" => json!({
            "Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12", "Components": [{ "Name": engine.kind, "Version": "" }],
        }),
        "info" => json!({ "ID": engine.id }),
        "networks" => {
            let described = |(id, (name, _)): (&String, &(String, _))| {
                let mut network = engine.made.get(id).cloned().unwrap_or_else(|| json!({}));
                (network["Id"], network["Name"]) = (json!(id), json!(name));
                network
            };
            engine.networks.iter().map(described).collect()
        }
        "json" => json!([]),
        "events" => {
            drop(engine);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n");
            return std::thread::sleep(Duration::from_secs(30));
        }
        id => match engine.networks.get(id) {
            Some((name, containers)) => {
                let listed = containers.iter();
                let listed = listed.map(|(id, name)| (format!("ep-{id}"), json!({ "Name": name, "EndpointID": id })));
                json!({ "Id": id, "Name": name, "Containers": listed.collect::<serde_json::Map<_, _>>() })
            }
            None => json!({ "message": "no such network" }),
        },
    };
    drop(engine);
    let (status, body) = (if body.get("message").is_some() { "404 Not Found" } else { "200 OK" }, body.to_string());
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

pub(super) fn post(socket: &Path, method: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let head = format!(
        "POST /{method} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Accept: application/vnd.docker.plugins.v1.2+json\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A body that is too long is refused before it is read.
    let _ = stream.write_all(body);
    answer_of(stream)
}

pub(super) fn answer_of(mut stream: UnixStream) -> (u16, Value) {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or_default())
}

pub(super) fn pool(prefix: &str, part: &str) -> Value {
    json!({ "AddressSpace": "weft", "Pool": prefix, "SubPool": part, "Options": {}, "V6": prefix.contains(':') })
}

pub(super) fn gateway(pool: &Value, address: &str) -> Value {
    let options = json!({ "RequestAddressType": "com.docker.network.gateway" });
    json!({ "PoolID": pool["PoolID"], "Address": address, "Options": options })
}

pub(super) fn create(network: &str, options: Value, v4: Value, v6: Value) -> Value {
    let all = json!({ "com.docker.network.enable_ipv6": v6 != json!([]), "com.docker.network.generic": options });
    json!({ "NetworkID": network, "Options": all, "IPv4Data": v4, "IPv6Data": v6 })
}

pub(super) fn endpoint_of(network: &str, endpoint: &str, address: &str, mac: &str) -> Value {
    let interface = json!({ "Address": address, "AddressIPv6": "", "MacAddress": mac });
    let options = json!({ "com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": [] });
    json!({ "NetworkID": network, "EndpointID": endpoint, "Interface": interface, "Options": options })
}

pub(super) fn join(network: &str, endpoint: &str) -> Value {
    let sandbox = format!("/run/docker/netns/{}", &endpoint[..12]);
    json!({ "NetworkID": network, "EndpointID": endpoint, "SandboxKey": sandbox, "Options": {} })
}

pub(super) fn of(network: &str, endpoint: &str) -> Value {
    json!({ "NetworkID": network, "EndpointID": endpoint })
}

pub(super) fn endpoint_id(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

impl Plugin {
    /// The published ports of an endpoint.
    pub(super) fn ports(&self, endpoint: &str) -> Vec<String> {
        let all = self.status()["endpoints"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|known| known["id"] == endpoint[..32]).map(|known| known["ports"].clone());
        serde_json::from_value(found.unwrap_or_default()).unwrap_or_default()
    }
}
