//! What the server does with requests.

use super::transport::FakeEndpoint;
use super::{Judgement, Node, PAGE, ROOT, Server, Session, State, reply};
use dafs_keys::Protection;
use dafs_proto::*;
use prost::Message;
use std::collections::BTreeMap;

pub struct Served {
    pub head: Vec<u8>,
    pub data: Vec<u8>,
    /// The session, after CONNECT.
    pub session: Option<Vec<u8>>,
}

type Answer = Result<(Vec<u8>, Vec<u8>), (Status, String)>;

pub fn serve(
    server: &Server,
    link: &FakeEndpoint,
    session: Option<Vec<u8>>,
    header: &Header,
    body: &[u8],
    data: &[u8],
) -> Served {
    let mut state = server.state();
    let state = &mut *state;
    state.log.push(header.op);
    if header.op == Op::Connect {
        return connect(state, link, header, body);
    }
    let refuse = |status, credits| {
        let head = reply(header, status, credits, &ErrorReply::default());
        Served { head, data: Vec::new(), session: None }
    };
    let id = session.unwrap_or_default();
    let Some(session) = state.sessions.get_mut(&id) else {
        return refuse(Status::BadSession, 1);
    };
    let (last, kept) = session.replies.entry(header.slot).or_default();
    if header.sequence == *last {
        if let Some((head, data)) = kept.clone() {
            return Served { head, data, session: None };
        }
    } else if header.sequence != last.wrapping_add(1) || header.slot >= state.slots {
        return refuse(Status::BadSequence, 1);
    }
    let answer = answer(state, &id, link, header.op, body, data);
    let (head, data) = match answer {
        Ok((body, data)) => {
            let mut head = Vec::new();
            let mut header = Header::reply(header, Status::Ok, state.credits);
            header.body_len = body.len() as u32;
            header.encode(&mut head);
            head.extend(body);
            (head, data)
        }
        Err((status, message)) => {
            (reply(header, status, state.credits, &ErrorReply { message }), Vec::new())
        }
    };
    if let Some(session) = state.sessions.get_mut(&id) {
        let kept = (!header.op.is_idempotent()).then(|| (head.clone(), data.clone()));
        session.replies.insert(header.slot, (header.sequence, kept));
    }
    Served { head, data, session: None }
}

fn connect(state: &mut State, link: &FakeEndpoint, header: &Header, body: &[u8]) -> Served {
    let request = ConnectRequest::decode(body).unwrap();
    let offered = state.protection;
    let asked = Protection::from_wire(request.protection).unwrap();
    if asked > offered || (asked == Protection::None && offered != asked) {
        let message =
            format!("the export offers protection {offered}, the client asks for {asked}");
        let head = reply(header, Status::Protection, 1, &ErrorReply { message });
        return Served { head, data: Vec::new(), session: None };
    }
    assert!(offered == Protection::None || link.is_known());
    state.credentials.push(request.credential);
    let resumed = state.resume && state.sessions.contains_key(&request.session);
    let id = if resumed {
        request.session
    } else {
        let mut id = vec![7; 16];
        id[..8].copy_from_slice(&(state.connects as u64).to_le_bytes());
        id[8..].copy_from_slice(&state.boot.to_le_bytes());
        state.sessions.insert(id.clone(), Session::default());
        id
    };
    let body = ConnectReply {
        session: id.clone(),
        boot: state.boot,
        page_size: PAGE as u32,
        slots: u32::from(state.slots),
        max_inline: state.max_inline,
        max_transfer: state.max_transfer,
        lease_ms: state.lease_ms,
        protection: offered.to_wire(),
        resumed,
        root: ROOT.to_le_bytes().to_vec(),
        root_attr: Some(attr(state, ROOT)),
        shm_socket: state.shm_socket.clone(),
        verbs_address: state.verbs_address.clone(),
        ..ConnectReply::default()
    };
    let head = reply(header, Status::Ok, state.credits, &body);
    Served { head, data: Vec::new(), session: Some(id) }
}

pub fn attr(state: &State, id: u64) -> Attr {
    let node = &state.nodes[&id];
    let kind = match (&node.directory, &node.target) {
        (Some(_), _) => FileType::Directory,
        (_, Some(_)) => FileType::Symlink,
        _ => FileType::Regular,
    };
    let size = node.data.len() as u64;
    Attr { r#type: kind.into(), mode: node.mode, nlink: 1, size, inode: id, ..Attr::default() }
}

fn decode<T: Message + Default>(body: &[u8]) -> T {
    T::decode(body).expect("a good request")
}

fn good(body: impl Message) -> Answer {
    Ok((body.encode_to_vec(), Vec::new()))
}

fn bad<T>(status: Status) -> Result<T, (Status, String)> {
    Err((status, String::new()))
}

fn id_of(state: &State, handle: &[u8]) -> Result<u64, (Status, String)> {
    match handle.try_into().map(u64::from_le_bytes) {
        Ok(id) if state.nodes.contains_key(&id) => Ok(id),
        _ => bad(Status::StaleHandle),
    }
}

fn entry(state: &State, directory: &[u8], name: &[u8]) -> Result<Option<u64>, (Status, String)> {
    let id = id_of(state, directory)?;
    match &state.nodes[&id].directory {
        Some(entries) => Ok(entries.get(name).copied()),
        None => bad(Status::NotDirectory),
    }
}

fn handle(id: u64) -> Vec<u8> {
    id.to_le_bytes().to_vec()
}

fn answer(
    state: &mut State,
    session: &[u8],
    link: &FakeEndpoint,
    op: Op,
    body: &[u8],
    data: &[u8],
) -> Answer {
    let opened = |state: &State, open: u64| {
        let found = state.sessions.get(session).and_then(|session| session.opens.get(&open));
        found.copied().ok_or((Status::BadOpen, String::new()))
    };
    match op {
        Op::Disconnect => {
            state.sessions.remove(session);
            good(DisconnectReply {})
        }
        Op::Renew => {
            state.heat.extend(decode::<RenewRequest>(body).heat);
            good(RenewReply {})
        }
        Op::Stats => good(StatsReply {
            counters: vec![Counter { name: "one_sided".into(), value: state.one_sided }],
        }),
        Op::Lookup => {
            let request: LookupRequest = decode(body);
            let Some(id) = entry(state, &request.directory, &request.name)? else {
                return bad(Status::NoEntry);
            };
            good(LookupReply { handle: handle(id), attr: Some(attr(state, id)) })
        }
        Op::Open => open(state, session, &decode(body)),
        Op::Close => {
            let request: CloseRequest = decode(body);
            let opens = &mut state.sessions.get_mut(session).unwrap().opens;
            match opens.remove(&request.open) {
                Some(_) => good(CloseReply {}),
                None => bad(Status::BadOpen),
            }
        }
        Op::Read => {
            let request: ReadRequest = decode(body);
            let id = opened(state, request.open)?;
            read(state, link, id, &request)
        }
        Op::Write => {
            let request: WriteRequest = decode(body);
            let id = opened(state, request.open)?;
            write(state, link, id, &request, data)
        }
        Op::Commit => {
            let request: CommitRequest = decode(body);
            let id = opened(state, request.open)?;
            let node = state.nodes.get_mut(&id).unwrap();
            node.stable = node.data.clone();
            let file = state.number(id);
            let (verifier, through) = (state.verifier, state.changes);
            good(CommitReply { stable: Some(Stable { file, verifier, through }) })
        }
        Op::GetAttr => {
            let id = id_of(state, &decode::<GetAttrRequest>(body).handle)?;
            good(GetAttrReply { attr: Some(attr(state, id)) })
        }
        Op::SetAttr => {
            let request: SetAttrRequest = decode(body);
            let id = id_of(state, &request.handle)?;
            let mut reply = SetAttrReply::default();
            if let Some(size) = request.attr.and_then(|set| set.size) {
                reply.from = size.min(state.nodes[&id].data.len() as u64);
                let judgement = request.resend.and(state.resends);
                state.resent.extend(request.resend);
                if judgement.is_none() {
                    state.change(id, |data| data.resize(size as usize, 0));
                }
                reply.skipped = judgement == Some(Judgement::Skip);
                reply.refused = judgement == Some(Judgement::Refuse);
                reply.change = Some(changed(state));
            }
            reply.attr = Some(attr(state, id));
            good(reply)
        }
        Op::Mkdir => {
            let request: MkdirRequest = decode(body);
            if entry(state, &request.directory, &request.name)?.is_some() {
                return bad(Status::Exists);
            }
            let parent = id_of(state, &request.directory)?;
            let node = Node { directory: Some(BTreeMap::new()), ..Node::default() };
            let id = state.add(parent, &request.name, node);
            good(MkdirReply { handle: handle(id), attr: Some(attr(state, id)) })
        }
        Op::Unlink => {
            let request: UnlinkRequest = decode(body);
            let parent = id_of(state, &request.directory)?;
            let entries = state.nodes.get_mut(&parent).unwrap().directory.as_mut().unwrap();
            match entries.remove(&request.name) {
                Some(_) => good(UnlinkReply {}),
                None => bad(Status::NoEntry),
            }
        }
        Op::Rename => {
            let request: RenameRequest = decode(body);
            let from = id_of(state, &request.from_directory)?;
            let to = id_of(state, &request.to_directory)?;
            let entries = state.nodes.get_mut(&from).unwrap().directory.as_mut().unwrap();
            let Some(id) = entries.remove(&request.from_name) else { return bad(Status::NoEntry) };
            let entries = state.nodes.get_mut(&to).unwrap().directory.as_mut().unwrap();
            entries.insert(request.to_name, id);
            good(RenameReply {})
        }
        Op::Readdir => readdir(state, &decode(body)),
        Op::Readlink => {
            let id = id_of(state, &decode::<ReadlinkRequest>(body).handle)?;
            match &state.nodes[&id].target {
                Some(target) => good(ReadlinkReply { target: target.clone() }),
                None => bad(Status::Invalid),
            }
        }
        Op::GetRefs => {
            let request: GetRefsRequest = decode(body);
            let id = opened(state, request.open)?;
            let extent = request.extent.unwrap();
            let first = extent.offset / PAGE as u64;
            let last = (extent.offset + extent.length).div_ceil(PAGE as u64);
            let mut list = Vec::new();
            for block in first..last.min(state.blocks(id)) {
                if request.fill {
                    state.fill(id, block);
                }
                push_ref(state, id, block, &mut list);
            }
            let size = state.nodes[&id].data.len() as u64;
            let key = state.wire_key(id, Some(request.key_epoch));
            good(GetRefsReply { file: state.number(id), refs: list, size, key })
        }
        _ => bad(Status::NotSupported),
    }
}

fn push_ref(state: &State, id: u64, block: u64, list: &mut Vec<u8>) {
    if let Some(slot) = state.cached.get(&(id, block)) {
        let slot_number = (id << 16 | block) as u32;
        WireRef { block, generation: slot.generation, chunk: 1, slot: slot_number }.push(list);
    }
}

fn open(state: &mut State, session: &[u8], request: &OpenRequest) -> Answer {
    let found = if request.name.is_empty() {
        Some(id_of(state, &request.handle)?)
    } else {
        entry(state, &request.directory, &request.name)?
    };
    let created = found.is_none();
    let id = match (found, request.create()) {
        (Some(_), Create::Exclusive) => return bad(Status::Exists),
        (Some(id), _) => id,
        (None, Create::No) => return bad(Status::NoEntry),
        (None, _) => {
            let parent = id_of(state, &request.directory)?;
            state.add(parent, &request.name, Node::default())
        }
    };
    if state.nodes[&id].target.is_some() {
        return bad(Status::Loop);
    }
    if request.truncate {
        state.change(id, Vec::clear);
    }
    let truncated = request.truncate.then(|| changed(state));
    let session = state.sessions.get_mut(session).unwrap();
    session.last_open += 1;
    let open = session.last_open;
    session.opens.insert(open, id);
    let (file, attr) = (state.number(id), Some(attr(state, id)));
    let key = (request.access & 1 != 0).then(|| state.wire_key(id, None)).flatten();
    let handle = handle(id);
    good(OpenReply { open, handle, file, attr, created, key, truncated, ..OpenReply::default() })
}

fn read(state: &mut State, link: &FakeEndpoint, id: u64, request: &ReadRequest) -> Answer {
    let (mut footers, mut payloads, mut refs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut counts, mut tags) = (Vec::new(), Vec::new());
    let mut first_tag = None;
    for extent in &request.extents {
        let first = extent.offset / PAGE as u64;
        let last = (extent.offset + extent.length).div_ceil(PAGE as u64);
        let mut count = 0;
        // A steady read behind the end of the file gets the page that holds the end.
        let first = if request.steady { first.min(state.blocks(id) - 1) } else { first };
        for block in first..last.min(state.blocks(id)) {
            let slot = state.fill(id, block);
            let (footer, payload) = state.page(id, block, slot);
            if state.protection == Protection::Keyed {
                let (number, tag) = link.tag(&[&footer[..], &payload].concat());
                first_tag.get_or_insert(number);
                tags.extend(tag);
            }
            footers.extend(footer);
            payloads.extend(payload);
            push_ref(state, id, block, &mut refs);
            count += 1;
        }
        for block in last..(last + u64::from(request.want_refs)).min(state.blocks(id)) {
            push_ref(state, id, block, &mut refs);
        }
        counts.push(count);
    }
    footers.extend(payloads);
    let size = state.nodes[&id].data.len() as u64;
    let (file, key) = (state.number(id), state.wire_key(id, Some(request.key_epoch)));
    let first_tag = first_tag.unwrap_or(0);
    let mut body = ReadReply { file, counts, refs, size, key, tags, first_tag, from_slots: false };
    match request.placement() {
        Placement::Inline => {
            assert!(footers.len() <= state.max_inline as usize);
            Ok((body.encode_to_vec(), footers))
        }
        Placement::Direct => {
            assert!(footers.len() <= state.max_transfer as usize);
            if state.no_direct {
                return bad(Status::Transfer);
            }
            state.whole_reads += u32::from(request.whole);
            if let Some(meanwhile) = state.from_slots.pop_front() {
                body.from_slots = true;
                meanwhile(&mut footers);
            }
            link.place(request.buffers[0].tag, &footers);
            good(body)
        }
    }
}

fn write(
    state: &mut State,
    link: &FakeEndpoint,
    id: u64,
    request: &WriteRequest,
    data: &[u8],
) -> Answer {
    let fetched;
    let data = match request.placement() {
        Placement::Inline => data,
        Placement::Direct => {
            if state.no_direct {
                return bad(Status::Transfer);
            }
            fetched = link.fetch(request.buffers[0].tag, &request.seal);
            state.seals.push(request.seal.clone());
            match &fetched {
                Some(data) => data,
                None => return bad(Status::Transfer),
            }
        }
    };
    let extent = request.extents[0];
    assert_eq!(extent.length as usize, data.len());
    let end = extent.offset as usize + data.len();
    let judgement = request.resend.and(state.resends);
    state.resent.extend(request.resend);
    if judgement.is_none() {
        state.change(id, |bytes| {
            bytes.resize(bytes.len().max(end), 0);
            bytes[extent.offset as usize..end].copy_from_slice(data);
        });
    }
    if request.stability() != Stability::Unstable {
        let node = state.nodes.get_mut(&id).unwrap();
        node.stable = node.data.clone();
    }
    let (file, size) = (state.number(id), state.nodes[&id].data.len() as u64);
    let (count, stability, change) = (data.len() as u64, request.stability, Some(changed(state)));
    let all = |is| if judgement == Some(is) { vec![extent] } else { Vec::new() };
    let (skipped, refused) = (all(Judgement::Skip), all(Judgement::Refuse));
    let rest = WriteReply::default();
    good(WriteReply { count, stability, file, size, change, skipped, refused, ..rest })
}

/// Counts a change.
fn changed(state: &mut State) -> Change {
    state.changes += 1;
    Change { number: state.changes, verifier: state.verifier, ctime: None }
}

fn readdir(state: &mut State, request: &ReaddirRequest) -> Answer {
    let id = id_of(state, &request.directory)?;
    let Some(entries) = state.nodes[&id].directory.clone() else {
        return bad(Status::NotDirectory);
    };
    // A few at a time, so that listing takes several requests.
    let after = request.cookie as usize;
    let part: Vec<DirEntry> = entries
        .iter()
        .enumerate()
        .skip(after)
        .take(3)
        .map(|(place, (name, id))| DirEntry {
            name: name.clone(),
            cookie: place as u64 + 1,
            handle: handle(*id),
            attr: Some(attr(state, *id)),
        })
        .collect();
    let end = after + part.len() == entries.len();
    good(ReaddirReply { entries: part, end })
}
