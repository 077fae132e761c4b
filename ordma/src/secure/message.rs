//! What the channel carries from the client to the server.

use dafs_keys::Seal;

/// Most bytes before the head.
pub(super) const PREFIX: usize = 1 + Seal::LEN;

/// Puts a message together. `seal` is that of the data that comes with it.
pub(super) fn encode(head: &[u8], seal: Option<&Seal>, out: &mut Vec<u8>) {
    out.push(u8::from(seal.is_some()));
    if let Some(seal) = seal {
        out.extend_from_slice(&seal.encode());
    }
    out.extend_from_slice(head);
}

/// Takes a message apart. The error says what is wrong with it.
pub(super) fn decode(
    message: &[u8],
    with_data: bool,
) -> Result<(Option<Seal>, &[u8]), &'static str> {
    match message {
        [0, head @ ..] if !with_data => Ok((None, head)),
        [1, rest @ ..] if with_data => {
            let (seal, head) = rest.split_at_checked(Seal::LEN).ok_or("half a seal")?;
            Ok((Some(Seal::decode(seal).ok_or("half a seal")?), head))
        }
        [0, ..] => Err("data was put behind a message on the way"),
        [1, ..] => Err("data was taken from a message on the way"),
        _ => Err("a message that does not tell whether data comes with it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_tell_whether_data_comes_with_them() {
        let seal = Seal { number: 7, tag: [9; 16] };
        for head in [&b""[..], b"head"] {
            for seal in [None, Some(seal)] {
                let mut out = Vec::new();
                encode(head, seal.as_ref(), &mut out);
                assert!(out.len() <= head.len() + PREFIX);
                assert_eq!(decode(&out, seal.is_some()), Ok((seal, head)));
                assert!(decode(&out, seal.is_none()).is_err());
            }
        }
        for bad in [&[][..], &[2], &[1], &[1; Seal::LEN]] {
            assert!(decode(bad, true).is_err() && decode(bad, false).is_err());
        }
    }
}
