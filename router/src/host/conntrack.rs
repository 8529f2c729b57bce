//! What the kernel remembers of connections (`nf_conntrack`): flows by rules that have ended are ended with them.

use std::net::{IpAddr, SocketAddr};

use futures_util::StreamExt;
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::proto::{ConnectionHandle, new_connection};
use rtnetlink::sys::SocketAddr as NetlinkAddress;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use crate::error::{Doing, Failure, Result};

/// One connection, as it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// 6 is TCP, 17 is UDP.
    pub protocol: u8,
    /// Who opened it.
    pub from: SocketAddr,
    /// To where, before the firewall led it elsewhere.
    pub to: SocketAddr,
    /// Who answers: where the firewall led it.
    pub answers: SocketAddr,
}

/// Ends the connections for which `is_ended` says so; how many. Programs at their ends find out by what comes next.
pub fn end_flows(is_ended: impl Fn(&Flow) -> bool + Send + Sync + 'static) -> Result<usize> {
    let what = || "cannot look at tracked connections".to_owned();
    let work = async move {
        let (connection, handle, _) = new_connection::<NetfilterMessage>(NETLINK_NETFILTER).doing(what)?;
        tokio::spawn(connection);
        let mut ended = 0;
        for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            for original in list(&handle, family, &is_ended).await? {
                ended += usize::from(delete(&handle, family, original).await);
            }
        }
        Ok(ended)
    };
    crate::attach::netlink::on_thread_in(None, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().doing(what)?;
        runtime.block_on(work)
    })
}

type Tuples = Vec<Tuple>;

/// The original tuples of connections to be ended.
async fn list(
    handle: &ConnectionHandle<NetfilterMessage>,
    family: NetfilterProtoFamily,
    is_ended: &impl Fn(&Flow) -> bool,
) -> Result<Vec<Tuples>> {
    let mut found = Vec::new();
    let request = message(family, ConntrackMessage::Get(Vec::new()), NLM_F_REQUEST | NLM_F_DUMP);
    let mut answers =
        handle.request(request, NetlinkAddress::new(0, 0)).doing(|| "cannot list tracked connections".into())?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(inner) => {
                if let Some((flow, original)) = parse(inner)
                    && is_ended(&flow)
                {
                    found.push(original);
                }
            }
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(Failure::new(format!("cannot list tracked connections: {error}")));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Whether it was there.
async fn delete(handle: &ConnectionHandle<NetfilterMessage>, family: NetfilterProtoFamily, original: Tuples) -> bool {
    let content = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original)]);
    let Ok(mut answers) =
        handle.request(message(family, content, NLM_F_REQUEST | NLM_F_ACK), NetlinkAddress::new(0, 0))
    else {
        return false;
    };
    let mut is_done = true;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload {
            // A flow that has just ended by itself is fine.
            is_done = error.code.is_none();
        }
    }
    is_done
}

fn message(family: NetfilterProtoFamily, content: ConntrackMessage, flags: u16) -> NetlinkMessage<NetfilterMessage> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let content = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), content);
    NetlinkMessage::new(header, NetlinkPayload::from(content))
}

/// A connection and its original tuple, of those protocols that have ports.
fn parse(message: NetfilterMessage) -> Option<(Flow, Tuples)> {
    let netlink_packet_netfilter::NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner
    else {
        return None;
    };
    let (mut original, mut reply) = (None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => original = Some(tuples),
            ConntrackAttribute::CtaTupleReply(tuples) => reply = Some(tuples),
            _ => {}
        }
    }
    let original = original?;
    let (protocol, from, to) = ends(&original)?;
    let (_, answers, _) = ends(&reply?)?;
    Some((Flow { protocol, from, to, answers }, original))
}

fn ends(tuples: &[Tuple]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (mut from, mut to): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut protocol, mut from_port, mut to_port) = (None, None, None);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(ip) => from = Some(*ip),
                IPTuple::DestinationAddress(ip) => to = Some(*ip),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(kind) => protocol = Some(*kind),
                ProtoTuple::SourcePort(port) => from_port = Some(*port),
                ProtoTuple::DestinationPort(port) => to_port = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    let protocol = match protocol? {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        _ => return None,
    };
    Some((protocol, SocketAddr::new(from?, from_port?), SocketAddr::new(to?, to_port?)))
}
