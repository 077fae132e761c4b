//! What holds for all headers, lists and numbers.

use dafs_proto::{
    ConnectRequest, Header, Kind, ListError, Op, OpenRequest, ReadRequest, ReaddirReply, Status,
    WireHeat, WireRef, WriteRequest,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;

/// A header that may be sent, with a body that fits.
fn message() -> impl Strategy<Value = (Header, Vec<u8>)> {
    let kind = select(vec![Kind::Request, Kind::Reply, Kind::Notice]);
    let fields = (kind, select(Op::ALL), select(Status::ALL), any::<(u16, u16, u32)>());
    (fields, vec(any::<u8>(), 0..100)).prop_map(|((kind, op, status, rest), body)| {
        let (slot, credits, sequence) = rest;
        let status = if kind == Kind::Request { Status::Ok } else { status };
        let credits = if kind == Kind::Reply { credits.max(1) } else { credits };
        let body_len = u32::try_from(body.len()).expect("a short body");
        (Header { kind, op, status, slot, credits, sequence, body_len }, body)
    })
}

fn encode(header: &Header, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    bytes.extend_from_slice(body);
    bytes
}

proptest! {
    #[test]
    fn header_survives((header, body) in message()) {
        let bytes = encode(&header, &body);
        prop_assert_eq!(Header::decode(&bytes), Ok((header, &body[..])));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Header::decode(&bytes);
        let _ = ConnectRequest::decode(&bytes[..]);
        let _ = OpenRequest::decode(&bytes[..]);
        let _ = ReadRequest::decode(&bytes[..]);
        let _ = WriteRequest::decode(&bytes[..]);
        let _ = ReaddirReply::decode(&bytes[..]);
    }

    /// Arbitrary bytes hardly ever get past the magic number; a changed header does. What is
    /// accepted has exactly one encoding, so no byte goes unchecked.
    #[test]
    fn changed_header_is_refused_or_means_what_it_says(
        (header, body) in message(),
        changes in vec((0..Header::LEN, any::<u8>()), 0..4),
    ) {
        let mut bytes = encode(&header, &body);
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok((header, body)) = Header::decode(&bytes) {
            prop_assert_eq!(encode(&header, body), bytes);
        }
    }

    #[test]
    fn cut_or_prolonged_message_is_refused((header, body) in message(), at in any::<usize>()) {
        let mut bytes = encode(&header, &body);
        prop_assert!(Header::decode(&bytes[..at % bytes.len()]).is_err());
        bytes.push(0);
        prop_assert!(Header::decode(&bytes).is_err());
    }

    #[test]
    fn references_survive(fields in vec(any::<(u64, u64, u32, u32)>(), 0..20)) {
        let refs: Vec<_> = fields
            .into_iter()
            .map(|(block, generation, chunk, slot)| WireRef { block, generation, chunk, slot })
            .collect();
        let mut list = Vec::new();
        refs.iter().for_each(|r| r.push(&mut list));
        prop_assert_eq!(list.len(), refs.len() * WireRef::LEN);
        let entries = WireRef::iter(&list).unwrap();
        prop_assert_eq!(entries.len(), refs.len());
        prop_assert_eq!(entries.collect::<Vec<_>>(), refs);
    }

    #[test]
    fn heat_survives(fields in vec(any::<(u64, u64, u64)>(), 0..20)) {
        let pages: Vec<_> = fields
            .into_iter()
            .map(|(file, block, generation)| WireHeat { file, block, generation })
            .collect();
        let mut list = Vec::new();
        pages.iter().for_each(|p| p.push(&mut list));
        prop_assert_eq!(WireHeat::iter(&list).unwrap().collect::<Vec<_>>(), pages);
    }

    #[test]
    fn lists_are_whole_entries_or_refused(list in vec(any::<u8>(), 0..200)) {
        match WireRef::iter(&list) {
            Ok(entries) => {
                let mut again = Vec::new();
                entries.for_each(|r| r.push(&mut again));
                prop_assert_eq!(&again, &list);
            }
            Err(error) => {
                prop_assert_ne!(list.len() % WireRef::LEN, 0);
                prop_assert_eq!(error, ListError { len: list.len(), entry: WireRef::LEN });
            }
        }
        prop_assert_eq!(WireHeat::iter(&list).is_ok(), list.len().is_multiple_of(WireHeat::LEN));
    }
}

#[test]
fn numbers_name_what_they_came_from() {
    for number in 0..=u16::MAX {
        let op = Op::ALL.iter().copied().find(|op| op.number() == number);
        assert_eq!(Op::from_u16(number), op);
        let status = Status::ALL.iter().copied().find(|s| s.number() == number);
        assert_eq!(Status::from_u16(number), status);
    }
}

#[test]
fn errno_of_the_file_system_reaches_the_client() {
    for errno in -200..200 {
        let status = Status::from_errno(errno);
        let known = Status::ALL
            .iter()
            .any(|s| s.errno() == errno && (s.number() < 100 || *s == Status::NoMemory));
        assert_eq!(status.errno(), if known { errno } else { Status::Io.errno() });
        // The client would throw its session or its open away.
        assert!(status.number() < 100 || status == Status::NoMemory, "{status} for {errno}");
    }
    assert_eq!(Status::from_errno(0), Status::Ok);
    assert_eq!(Status::from_errno(Status::BadMessage.errno()), Status::Io);
    assert_eq!(Status::from_errno(Status::Fenced.errno()), Status::Access);
}
