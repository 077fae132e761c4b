//! A client without manners: it sends the protocol's messages as it likes, and keeps its keys and
//! references for ever.

use super::PAGE;
use dafs_keys::{FileKey, PageKey, Protection, ReadKey, Secret};
use dafs_proto::{
    Call, CloseRequest, CommitRequest, ConnectReply, ConnectRequest, Create, Credential,
    ErrorReply, Extent, Header, Kind, OpenRequest, ReadRequest, SetAttr, SetAttrRequest, Stability,
    Status, WireRef, WriteRequest, encode_message,
};
use ordma::{
    AccessFault, Connector, Endpoint, FOOTER_LEN, Footer, Interest, LinkError, PageReads, Receiver,
    Region, RemoteRef,
};
use prost::Message as _;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The slot number of CONNECT, which belongs to no slot.
pub const NO_SLOT: u16 = 0xFFFF;
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection is gone.
    Lost,
    /// The server says no.
    Status(Status, String),
}

impl Failure {
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Lost => None,
            Self::Status(status, _) => Some(*status),
        }
    }
}

/// The request that opens a session.
pub fn connect_request(
    export: &str,
    least: Protection,
    credential: Option<Credential>,
) -> ConnectRequest {
    ConnectRequest {
        version: u32::from(dafs_proto::VERSION),
        export: export.to_owned(),
        session: Vec::new(),
        client: "raw".to_owned(),
        protection: least.to_wire(),
        slots: 1,
        credential,
        instance: Vec::new(),
    }
}

/// The reply to a request of type `C`.
pub fn reply_of<C: Call>(header: &Header, body: &[u8]) -> Result<C::Reply, Failure> {
    if header.status != Status::Ok {
        let message = ErrorReply::decode(body).unwrap().message;
        return Err(Failure::Status(header.status, message));
    }
    Ok(C::Reply::decode(body).unwrap())
}

/// A key as it came from the server.
pub fn file_key(level: Protection, epoch: u64, secret: &[u8; 32]) -> Arc<FileKey> {
    let secret = Secret::from_bytes(*secret);
    Arc::new(match level {
        Protection::None => FileKey::Clear,
        Protection::Keyed => FileKey::Keyed(ReadKey::new(epoch, secret)),
        Protection::Sealed => FileKey::Sealed(PageKey::new(epoch, secret)),
    })
}

#[derive(Default)]
struct Inbox {
    messages: Mutex<VecDeque<(Vec<u8>, Vec<u8>)>>,
    closed: AtomicBool,
}

impl Receiver for Inbox {
    fn message(&self, head: &[u8], data: &[u8]) {
        self.messages.lock().unwrap().push_back((head.to_vec(), data.to_vec()));
    }

    fn closed(&self, _: LinkError) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

/// A connection.
pub struct Raw {
    endpoint: Arc<dyn Endpoint>,
    inbox: Arc<Inbox>,
    level: Protection,
    sequence: AtomicU32,
    /// Empty before there is a session, like its number.
    pub root: Vec<u8>,
    pub session: Vec<u8>,
}

/// An open file, and what of it is kept.
pub struct RawFile {
    pub open: u64,
    pub handle: Vec<u8>,
    pub number: u64,
    pub epoch: u64,
    pub secret: [u8; 32],
    pub references: BTreeMap<u64, RemoteRef>,
}

impl RawFile {
    fn learn(&mut self, key: Option<dafs_proto::FileKey>, refs: &[u8]) {
        if let Some(key) = key {
            (self.epoch, self.secret) = (key.epoch, key.secret.try_into().unwrap());
        }
        for wire in WireRef::iter(refs).unwrap() {
            let WireRef { block, generation, chunk, slot } = wire;
            let reference = RemoteRef { chunk, slot, file: self.number, block, generation };
            self.references.insert(block, reference);
        }
    }
}

impl Raw {
    /// Connects and opens a session.
    pub fn connect(
        connector: &dyn Connector,
        export: &str,
        level: Protection,
    ) -> Result<Self, String> {
        let mut raw = Self::attach(connector, level)?;
        let reply = raw.begin(export).map_err(|failure| format!("{failure:?}"))?;
        (raw.root, raw.session) = (reply.root, reply.session);
        Ok(raw)
    }

    /// Connects, and opens no session.
    pub fn attach(connector: &dyn Connector, level: Protection) -> Result<Self, String> {
        let inbox = Arc::new(Inbox::default());
        let endpoint = connector
            .connect(Arc::<Inbox>::clone(&inbox), PATIENCE)
            .map_err(|error| error.to_string())?;
        let (root, session) = (Vec::new(), Vec::new());
        Ok(Self { endpoint, inbox, level, sequence: AtomicU32::new(0), root, session })
    }

    pub fn begin(&self, export: &str) -> Result<ConnectReply, Failure> {
        self.begin_with(&connect_request(export, self.level, None))
    }

    pub fn begin_with(&self, request: &ConnectRequest) -> Result<ConnectReply, Failure> {
        let header = Header::request(dafs_proto::Op::Connect, NO_SLOT, 0, 1);
        Ok(self.exchange(header, request, &[])?.0)
    }

    /// Sends a request in a slot, and takes no reply. Whether it could be sent.
    pub fn say<C: Call>(&self, request: &C, slot: u16, sequence: u32) -> bool {
        let head = encode_message(Header::request(C::OP, slot, sequence, 1), request);
        self.endpoint.send(&head, &[]).is_ok()
    }

    pub fn call<C: Call>(&self, request: &C, data: &[u8]) -> Result<(C::Reply, Vec<u8>), Failure> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        self.exchange(Header::request(C::OP, 0, sequence, 1), request, data)
    }

    fn exchange<C: Call>(
        &self,
        header: Header,
        request: &C,
        data: &[u8],
    ) -> Result<(C::Reply, Vec<u8>), Failure> {
        let region = Region::owned(data.to_vec());
        let segments = [region.segment(0, data.len())];
        let segments = if data.is_empty() { &[][..] } else { &segments[..] };
        let head = encode_message(header, request);
        self.endpoint.send(&head, segments).map_err(|_| Failure::Lost)?;
        let end = Instant::now() + PATIENCE;
        loop {
            let next = self.inbox.messages.lock().unwrap().pop_front();
            if let Some((head, data)) = next {
                let (header, body) = Header::decode(&head).unwrap();
                if header.kind == Kind::Reply {
                    return Ok((reply_of::<C>(&header, body)?, data));
                }
            } else if self.inbox.closed.load(Ordering::SeqCst) {
                return Err(Failure::Lost);
            } else {
                assert!(Instant::now() < end, "no reply to {:?}", C::OP);
                let interest = Interest { messages: true, reads: false };
                self.endpoint.drive(interest, Duration::from_millis(100));
            }
        }
    }

    /// Opens a file of the root directory. `access` has bit 0 to read, bit 1 to write.
    pub fn open(&self, name: &str, access: u32) -> Result<RawFile, Failure> {
        self.open_in(&self.root, name, access, None)
    }

    /// Makes a file in the root directory.
    pub fn create(&self, name: &str, mode: u32) -> Result<RawFile, Failure> {
        self.open_in(&self.root, name, 3, Some(mode))
    }

    pub fn open_in(
        &self,
        directory: &[u8],
        name: &str,
        access: u32,
        create: Option<u32>,
    ) -> Result<RawFile, Failure> {
        let request = OpenRequest {
            directory: directory.to_vec(),
            name: name.as_bytes().to_vec(),
            access,
            create: if create.is_some() { Create::Unchecked } else { Create::No }.into(),
            attr: create.map(|mode| SetAttr { mode: Some(mode), ..SetAttr::default() }),
            want_refs: 256,
            ..OpenRequest::default()
        };
        let (reply, _) = self.call(&request, &[])?;
        let mut file = RawFile {
            open: reply.open,
            handle: reply.handle,
            number: reply.file,
            epoch: 0,
            secret: [0; 32],
            references: BTreeMap::new(),
        };
        file.learn(reply.key, &reply.refs);
        Ok(file)
    }

    pub fn close(&self, file: &RawFile) -> Result<(), Failure> {
        self.call(&CloseRequest { open: file.open }, &[]).map(drop)
    }

    /// Reads pages by RPC, and keeps the references and the key that come with them.
    pub fn read(&self, file: &mut RawFile, first: u64, count: u64) -> Result<Vec<u8>, Failure> {
        let page = PAGE as u64;
        let request = ReadRequest {
            open: file.open,
            extents: vec![Extent { offset: first * page, length: count * page }],
            key_epoch: file.epoch,
            ..ReadRequest::default()
        };
        let (reply, mut data) = self.call(&request, &[])?;
        file.learn(reply.key, &reply.refs);
        let pages = data.len() / (FOOTER_LEN + PAGE);
        let (footers, payloads) = data.split_at_mut(pages * FOOTER_LEN);
        let key = file_key(self.level, file.epoch, &file.secret);
        let pages = footers.as_chunks::<FOOTER_LEN>().0.iter().zip(payloads.chunks_exact_mut(PAGE));
        for (footer, payload) in pages {
            ordma::slot::open(footer, payload, &key).expect("a page that was given opens");
        }
        Ok(payloads.to_vec())
    }

    /// Writes, inline and unstable.
    pub fn write(&self, file: &RawFile, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let request = WriteRequest {
            open: file.open,
            extents: vec![Extent { offset, length: bytes.len() as u64 }],
            stability: Stability::Unstable.into(),
            ..WriteRequest::default()
        };
        self.call(&request, bytes).map(drop)
    }

    pub fn commit(&self, file: &RawFile) -> Result<(), Failure> {
        let extent = Some(Extent::default());
        self.call(&CommitRequest { open: file.open, extent, rests_on: 0 }, &[]).map(drop)
    }

    pub fn chmod(&self, handle: &[u8], mode: u32) -> Result<(), Failure> {
        let attr = Some(SetAttr { mode: Some(mode), ..SetAttr::default() });
        self.call(
            &SetAttrRequest { handle: handle.to_vec(), attr, ..SetAttrRequest::default() },
            &[],
        )
        .map(drop)
    }

    /// Reads a page one-sidedly: the outcome, and what the buffer holds then.
    pub fn one_sided(
        &self,
        reference: RemoteRef,
        key: &Arc<FileKey>,
    ) -> (Result<Footer, AccessFault>, Vec<u8>) {
        let region = Region::owned(vec![0xEE; PAGE]);
        let mut reads = PageReads::into(&region, PAGE, key, 1);
        reads.push(reference, 0, 0);
        let batch = self.endpoint.read(reads);
        let end = Instant::now() + PATIENCE;
        loop {
            if let Poll::Ready(outcome) = batch.poll(&mut Context::from_waker(Waker::noop())) {
                return (outcome[0], region.take().unwrap());
            }
            assert!(Instant::now() < end, "a one-sided read does not end");
            let interest = Interest { messages: false, reads: true };
            self.endpoint.drive(interest, Duration::from_millis(100));
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.endpoint.close();
    }
}
