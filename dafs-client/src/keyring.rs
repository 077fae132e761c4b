//! The keys of an open file: what its pages are read with.
//!
//! A key comes with the reply to an OPEN, and a newer one with the reply to a READ or GET_REFS whose
//! request told of an older epoch. Replies overtake each other, so each is judged by the key that
//! it brings, or else by the one that its own request told of; what the file holds for one-sided
//! reads and later requests is the newest.

use crate::session::outstanding::Reply;
use arc_swap::ArcSwap;
use dafs_keys::page::PageKey;
use dafs_keys::{FileKey, Protection, ReadKey, Secret};
use std::sync::{Arc, OnceLock};
use zeroize::Zeroize;

/// What is wrong with a key, or its absence.
pub(crate) type Malformed = &'static str;

/// The key that an open file holds now.
#[derive(Debug)]
pub(crate) struct Keyring(ArcSwap<Held>);

#[derive(Debug)]
struct Held {
    /// The session in which the file is open: keys of another may be of another boot.
    session: u64,
    /// None where the open may not read.
    key: Option<Arc<FileKey>>,
}

impl Keyring {
    /// Of a file that was opened in `session`.
    pub(crate) fn new(session: u64, key: Option<Arc<FileKey>>) -> Self {
        Self(ArcSwap::from_pointee(Held { session, key }))
    }

    /// The file was opened again in another session.
    pub(crate) fn opened(&self, session: u64, key: Option<Arc<FileKey>>) {
        self.0.store(Arc::new(Held { session, key }));
    }

    /// The key held; `None` where the open may not read.
    pub(crate) fn key(&self) -> Option<Arc<FileKey>> {
        self.0.load().key.clone()
    }

    /// Holds a key that came in `session`, unless the one held is newer or of another session.
    fn renew(&self, session: u64, new: &Arc<FileKey>) {
        self.0.rcu(|held| match &held.key {
            Some(key) if held.session == session && key.epoch() < new.epoch() => {
                Arc::new(Held { session, key: Some(Arc::clone(new)) })
            }
            _ => Arc::clone(held),
        });
    }
}

/// The key that a request told of. It is the same however often the request is sent, as nobody knows
/// which sending a reply answers.
#[derive(Debug, Default)]
pub(crate) struct Told(OnceLock<Option<Arc<FileKey>>>);

impl Told {
    /// The epoch to tell. Ask for it where the session cannot change: while the request is put into
    /// its slot.
    pub(crate) fn epoch(&self, held: &Keyring) -> u64 {
        self.0.get_or_init(|| held.key()).as_ref().map_or(0, |key| key.epoch())
    }

    /// The key of the pages in the reply, and of the references that come with it. Takes the key
    /// out of the message and overwrites its bytes; the file holds it from now on.
    ///
    /// # Errors
    /// How the server broke the protocol.
    pub(crate) fn take(
        &self,
        held: &Keyring,
        brought: Option<dafs_proto::FileKey>,
        reply: &mut Reply,
    ) -> Result<Arc<FileKey>, Malformed> {
        let told = self.0.get().cloned().flatten();
        let Some(brought) = brought else {
            return told.ok_or("pages of a file whose key was never given");
        };
        let new = unpack(brought, reply)?;
        if told.is_some_and(|told| new.epoch() <= told.epoch()) {
            return Err("a key of an epoch that is over");
        }
        held.renew(reply.session, &new);
        Ok(new)
    }
}

/// The key that the reply to an OPEN brought; `None` for an open that may not read. Takes the key
/// out of the message and overwrites its bytes.
///
/// # Errors
/// How the server broke the protocol.
pub(crate) fn of_open(
    may_read: bool,
    brought: Option<dafs_proto::FileKey>,
    reply: &mut Reply,
) -> Result<Option<Arc<FileKey>>, Malformed> {
    let brought = brought.map(|key| unpack(key, reply)).transpose()?;
    match (may_read, brought, reply.protected.level) {
        (true, None, Protection::None) => Ok(Some(FileKey::clear())),
        (true, None, _) => Err("no key for an open that may read"),
        (true, key, _) => Ok(key),
        (false, None, _) => Ok(None),
        (false, Some(_), _) => Err("a key for an open that may not read"),
    }
}

/// Makes a key of what came; no copy of its bytes stays behind.
fn unpack(brought: dafs_proto::FileKey, reply: &mut Reply) -> Result<Arc<FileKey>, Malformed> {
    reply.wipe();
    let dafs_proto::FileKey { epoch, secret: mut bytes } = brought;
    let array: Result<[u8; Secret::LEN], _> = bytes.as_slice().try_into();
    bytes.zeroize();
    let mut array = array.map_err(|_| "a key that has not the length of one")?;
    let secret = Secret::from_bytes(array);
    array.zeroize();
    match reply.protected.level {
        Protection::None => Err("a key at protection level none"),
        Protection::Keyed => Ok(Arc::new(FileKey::Keyed(ReadKey::new(epoch, secret)))),
        Protection::Sealed => Ok(Arc::new(FileKey::Sealed(PageKey::new(epoch, secret)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Protected;
    use dafs_proto::Status;

    fn reply(level: Protection) -> Reply {
        Reply {
            status: Status::Ok,
            body: vec![7; 40],
            pages: 0,
            placed: 0,
            resent: false,
            epoch: 1,
            session: 1,
            grant: None,
            protected: Protected { level, ..Protected::default() },
        }
    }

    fn wire(epoch: u64) -> Option<dafs_proto::FileKey> {
        Some(dafs_proto::FileKey { epoch, secret: vec![9; 32] })
    }

    fn held(epoch: u64) -> Keyring {
        let mut reply = reply(Protection::Sealed);
        Keyring::new(1, of_open(true, wire(epoch), &mut reply).unwrap())
    }

    #[test]
    fn replies_that_overtake_each_other_keep_their_keys_and_the_newest_is_held() {
        let held = held(1);
        let (first, second, third) = (Told::default(), Told::default(), Told::default());
        for told in [&first, &second, &third] {
            assert_eq!(told.epoch(&held), 1);
        }
        let mut reply = reply(Protection::Sealed);
        assert_eq!(third.take(&held, wire(3), &mut reply).unwrap().epoch(), 3);
        assert!(reply.body.iter().all(|byte| *byte == 0), "the message is overwritten");
        assert_eq!(second.take(&held, wire(2), &mut reply).unwrap().epoch(), 2);
        assert_eq!(first.take(&held, None, &mut reply).unwrap().epoch(), 1);
        assert_eq!(held.key().unwrap().epoch(), 3, "never replaced by an older one");
        assert_eq!(first.epoch(&held), 1, "a request that is sent again says the same");
        let late = Told::default();
        assert_eq!(late.epoch(&held), 3);
        for epoch in [2, 3] {
            assert!(late.take(&held, wire(epoch), &mut reply).is_err(), "not newer than told");
        }
    }

    #[test]
    fn a_new_session_begins_with_its_own_key() {
        let held = held(7);
        let told = Told::default();
        told.epoch(&held);
        let again = of_open(true, wire(2), &mut reply(Protection::Sealed)).unwrap();
        held.opened(2, again);
        // What still comes of the former session is not of this boot.
        told.take(&held, wire(8), &mut reply(Protection::Sealed)).unwrap();
        assert_eq!(held.key().unwrap().epoch(), 2);
    }

    #[test]
    fn keys_come_with_what_may_read_above_level_none_alone() {
        let of = |level, may_read, key| of_open(may_read, key, &mut reply(level));
        let clear = of(Protection::None, true, None).unwrap().unwrap();
        assert!(matches!(*clear, FileKey::Clear));
        let keyed = of(Protection::Keyed, true, wire(1)).unwrap().unwrap();
        assert!(matches!(*keyed, FileKey::Keyed(_)));
        let sealed = of(Protection::Sealed, true, wire(1)).unwrap().unwrap();
        assert!(matches!(*sealed, FileKey::Sealed(_)));
        assert!(of(Protection::Sealed, false, None).unwrap().is_none());
        assert!(of(Protection::None, true, wire(1)).unwrap_err().contains("level none"));
        assert!(of(Protection::Sealed, true, None).unwrap_err().contains("no key"));
        assert!(of(Protection::Sealed, false, wire(1)).unwrap_err().contains("may not read"));
        for len in [0, 31, 33] {
            let short = Some(dafs_proto::FileKey { epoch: 1, secret: vec![1; len] });
            assert!(of(Protection::Sealed, true, short).unwrap_err().contains("length"));
        }
    }
}
