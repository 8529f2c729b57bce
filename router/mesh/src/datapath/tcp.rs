//! TCP headers: what cutting a super-frame changes in them, and the MSS option.

use super::frame::{Headers, TCP_HEADER, Transport, fold, put_u16, u16_at};

// Kinds of TCP options (RFC 9293, section 3.2; RFC 5925).
const TCP_OPTION_END: u8 = 0;
const TCP_OPTION_NOP: u8 = 1;
const TCP_OPTION_MSS: u8 = 2;
const TCP_OPTION_AUTHENTICATION: u8 = 29;

/// A TCP header's flag byte and sequence number, for cutting.
pub struct TcpCut;

impl TcpCut {
    /// FIN and PSH belong to the last piece, CWR to the first.
    pub const FIN: u8 = 0x01;
    /// One of the two packets that open a connection.
    pub const SYN: u8 = 0x02;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;

    /// The flag byte.
    pub fn flags(frame: &[u8], headers: &Headers) -> u8 {
        frame[headers.l4 + 13]
    }

    /// Writes the flag byte.
    pub fn set_flags(frame: &mut [u8], headers: &Headers, flags: u8) {
        frame[headers.l4 + 13] = flags;
    }

    /// Adds `n` to the sequence number.
    pub fn add_sequence(frame: &mut [u8], headers: &Headers, n: u32) {
        if let Some(field) = frame.get_mut(headers.l4 + 4..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *field = u32::from_be_bytes(*field).wrapping_add(n).to_be_bytes();
        }
    }
}

/// Has a TCP connection agree on segments that fit frames of `room` bytes, if `frame` is one of the two that open it: lowers
/// the maximum segment size that it tells (RFC 9293, section 3.7.1).
pub fn clamp_mss(frame: &mut [u8], headers: &Headers, room: usize, has_partial_checksum: bool) {
    if headers.transport != Transport::Tcp || TcpCut::flags(frame, headers) & TcpCut::SYN == 0 {
        return;
    }
    let most = room.saturating_sub(headers.l4 + TCP_HEADER).min(usize::from(u16::MAX)) as u16;
    let (mut at, mut told) = (headers.l4 + TCP_HEADER, None);
    while at < headers.payload {
        let len = match (frame[at], frame.get(at + 1)) {
            // What authenticates options (RFC 5925) would not hold any more.
            (TCP_OPTION_END | TCP_OPTION_AUTHENTICATION, _) => return,
            (TCP_OPTION_NOP, _) => 1,
            (_, Some(len)) if *len >= 2 => usize::from(*len),
            _ => return,
        };
        if frame[at] == TCP_OPTION_MSS && len == 4 && at + len <= headers.payload {
            told = u16_at(frame, at + 2).map(|told| (at + 2, told));
        }
        at += len;
    }
    let Some((at, told)) = told.filter(|(_, told)| *told > most) else { return };
    put_u16(frame, at, most);
    // A partial one is over the pseudo-header alone. A wrong one stays wrong (RFC 1624).
    if let (false, Some(before)) = (has_partial_checksum, u16_at(frame, headers.l4 + headers.checksum_offset())) {
        let swapped = |word: u16| if (at - headers.l4).is_multiple_of(2) { word } else { word.swap_bytes() };
        let sum = u64::from(!before) + u64::from(!swapped(told)) + u64::from(swapped(most));
        put_u16(frame, headers.l4 + headers.checksum_offset(), !fold(sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::frame::tests::{checksums_are_right, tcp_frame};

    #[test]
    fn connections_agree_on_segments_that_fit() {
        for v6 in [false, true] {
            let opening = |flags: u8, options: [u8; 12]| {
                let mut frame = tcp_frame(v6, b"", flags);
                let headers = Headers::parse(&frame).unwrap();
                frame[headers.l4 + 20..headers.payload].copy_from_slice(&options);
                headers.set_full_checksum(&mut frame);
                (frame, headers)
            };
            let clamped = |(mut frame, headers): (Vec<u8>, Headers), room: usize, is_partial: bool| {
                clamp_mss(&mut frame, &headers, room, is_partial);
                frame
            };
            let most = if v6 { 1318 } else { 1338 };
            for (flags, before) in [(TcpCut::SYN, 4), (TcpCut::SYN | 0x10, 4), (TcpCut::SYN, 3)] {
                let told = |mss: u16| {
                    let mut options = [1; 12];
                    options[before..before + 4].copy_from_slice(&[2, 4, (mss >> 8) as u8, mss as u8]);
                    options
                };
                let frame = clamped(opening(flags, told(1410)), 1392, false);
                let at = Headers::parse(&frame).unwrap().l4 + 20 + before + 2;
                assert_eq!(frame[at..at + 2], u16::to_be_bytes(most));
                assert!(checksums_are_right(&frame));
                assert_eq!(clamped(opening(flags, told(1200)), 1392, false), opening(flags, told(1200)).0);
                // The pseudo-header's sum stays as it was for the device that completes the checksum.
                let mut expected = opening(flags, told(1410)).0;
                expected[at..at + 2].copy_from_slice(&most.to_be_bytes());
                assert_eq!(clamped(opening(flags, told(1410)), 1392, true), expected);
                assert_eq!(clamped(opening(0x10, told(1410)), 1392, false), opening(0x10, told(1410)).0);
            }
            let authenticated = [2, 4, 0x10, 0, 29, 4, 0, 0, 1, 1, 1, 1];
            let broken = [
                [2; 12],
                [0; 12],
                [1; 12],
                [9, 0, 2, 4, 0x10, 0, 9, 3, 9, 255, 2, 4],
                [3, 12, 2, 4, 2, 4, 2, 4, 2, 4, 2, 4],
            ];
            for options in broken.into_iter().chain([authenticated]) {
                assert_eq!(clamped(opening(TcpCut::SYN, options), 100, false), opening(TcpCut::SYN, options).0);
            }
        }
    }
}
