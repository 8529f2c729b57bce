//! Only right frames come out, under any loss, order and damage of datagrams.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Under any loss and reordering, what arrives are valid pieces of the stream.
    #[test]
    fn any_loss_leaves_only_right_frames(
        len in 1usize..20_000, mss in 100usize..1380, keep in any::<u64>(), swap in any::<bool>(), fin in any::<bool>(),
    ) {
        let flags = if fin { 0x19 } else { 0x18 };
        let (frame, mut vnet) = super_frame(false, len, mss, flags);
        if len <= mss {
            vnet.gso = Gso::None;
        }
        let header = usize::from(vnet.header_len);
        let sender = snapshot(1, &[3], None, 1500);
        let receiver = snapshot(3, &[1], None, 1500);
        let (mut path, mut taps) = (Datapath::new(64), Taps::new(ALL));
        path.frame(&sender, segment(), &vnet, &mut frame.clone(), Time::ZERO, &mut taps);
        let mut datagrams: Vec<Vec<u8>> = path.sender.batch.runs()
            .flat_map(|(run, bytes)| bytes.chunks(run.stride).map(<[u8]>::to_vec).collect::<Vec<_>>())
            .enumerate()
            .filter(|(index, _)| keep >> (index % 64) & 1 == 1)
            .map(|(_, datagram)| datagram)
            .collect();
        if swap && datagrams.len() > 2 {
            let middle = datagrams.len() / 2;
            datagrams.swap(middle, middle - 1);
        }
        let count = datagrams.len();
        let mut buffers: Vec<RxBuffer<'_>> = datagrams.iter_mut()
            .map(|datagram| { let stride = datagram.len(); RxBuffer { from: address(1), data: datagram, stride } })
            .collect();
        path.datagrams(&receiver, Time::ZERO, &mut buffers, &mut taps);
        let mut pieces = 0;
        for (vnet, got) in &taps.frames {
            let headers = Headers::parse(got).unwrap();
            prop_assert_eq!(headers.end, got.len());
            let sequence = u32::from_be_bytes(got[headers.l4 + 4..headers.l4 + 8].try_into().unwrap());
            let at = header + sequence as usize - 1;
            let payload = &got[headers.payload..];
            prop_assert!(&frame[at..at + payload.len()] == payload);
            let is_last = at + payload.len() == frame.len();
            let flags_seen = crate::datapath::tcp::TcpCut::flags(got, &headers) & 0x09;
            prop_assert_eq!(flags_seen, if is_last { flags & 0x09 } else { 0 });
            pieces += match vnet.gso {
                Gso::None => 1,
                _ => payload.len().div_ceil(vnet.gso_size.into()),
            };
            let mut completed = got.clone();
            headers.set_full_checksum(&mut completed);
            let mut by_kernel = got.clone();
            frame::complete_checksum(&mut by_kernel, vnet.checksum_start.into(), vnet.checksum_offset.into());
            prop_assert!(completed == by_kernel);
        }
        prop_assert_eq!(pieces, count);
    }

    /// Bytes that no member sealed change nothing.
    #[test]
    fn junk_is_dropped(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..3u8) {
        let receiver = snapshot(3, &[1], None, 1500);
        let (mut path, mut taps) = (Datapath::new(64), Taps::new(ALL));
        let mut junk = bytes;
        if let Some(first) = junk.first_mut() {
            *first = [envelope::TRANSIT, 0, 0xff][usize::from(kind)];
        }
        let stride = junk.len().max(1);
        path.datagrams(&receiver, Time::ZERO, &mut [RxBuffer { from: address(9), data: &mut junk, stride }], &mut taps);
        prop_assert!(taps.frames.is_empty() && taps.punts.is_empty() && taps.relayed.is_empty());
    }
}
