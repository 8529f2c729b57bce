//! Requests to a router's HTTP server, from its network namespace.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::LabHost;

/// Sends a request for a path to a router; returns the connection by which the answer comes, and on which it ends.
pub fn ask(host: &LabHost, path: &str) -> Result<TcpStream> {
    let what = || format!("cannot read {path} of {}", host.name);
    let mut stream = host.ns.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 6784)))?.doing(what)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).doing(what)?;
    Ok(stream)
}

/// Reads a path of a router, with the headers of the answer; an error if it is refused.
pub fn get(host: &LabHost, path: &str) -> Result<String> {
    let what = || format!("cannot read {path} of {}", host.name);
    let mut answer = String::new();
    ask(host, path)?.read_to_string(&mut answer).doing(what)?;
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(answer),
        false => Err(Failure::new(what())),
    }
}
