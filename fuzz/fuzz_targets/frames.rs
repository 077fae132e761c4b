//! Frames and messages: whatever arrives on a connection, nothing panics, nothing is written beside
//! the buffer that it is for, and no page is accepted that was not sealed.

#![no_main]

use dafs_proto::*;
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// Decodes a body as every message there is, and encodes what came of it.
macro_rules! bodies {
    ($body:expr; $($message:ty),* $(,)?) => {
        $(if let Ok(message) = <$message>::decode($body) {
            let _ = format!("{message:?}");
            let again = message.encode_to_vec();
            assert_eq!(<$message>::decode(&again[..]).as_ref(), Ok(&message));
        })*
    };
}

fuzz_target!(|data: &[u8]| {
    let [what, cut, rest @ ..] = data else { return };
    match what % 4 {
        0 => ordma::fuzz::frames(rest, usize::from(*cut)),
        1 => ordma::fuzz::replies(rest, usize::from(*cut) * 16),
        2 => ordma::fuzz::packets(rest),
        _ => {
            if let Ok((header, body)) = Header::decode(rest) {
                let mut again = Vec::new();
                header.encode(&mut again);
                assert_eq!([&again[..], body].concat(), rest);
            }
            let body = rest.get(Header::LEN..).unwrap_or(rest);
            bodies!(body;
                ConnectRequest, ConnectReply, RenewRequest, StatsReply, LookupRequest, OpenRequest,
                OpenReply, CloseRequest, ReadRequest, ReadReply, WriteRequest, WriteReply,
                CommitRequest, GetAttrReply, SetAttrRequest, MkdirRequest, RenameRequest,
                ReaddirRequest, ReaddirReply, SymlinkRequest, LinkRequest, GetRefsRequest,
                GetRefsReply, ErrorReply,
            );
            for list in [body, rest] {
                if let Ok(refs) = WireRef::iter(list) {
                    let mut again = Vec::new();
                    refs.for_each(|reference| reference.push(&mut again));
                    assert_eq!(again, list);
                }
                let _ = WireHeat::iter(list).map(Iterator::count);
            }
        }
    }
});
