//! CONNECT: opens a session, or takes an existing one over after a lost connection.

use super::OpError;
use crate::access::Permit;
use crate::authorized::AskedCredential;
use crate::live::LiveSession;
use crate::server::{BindError, Export, Server};
use crate::sessions::SessionId;
use crate::store::Credential;
use dafs_keys::shown::{is_harmless, shown_within};
use dafs_keys::{Protection, PublicKey};
use dafs_proto::{ConnectReply, ConnectRequest, Status, VERSION};
use ordma::{Link, Party, complaints};
use std::sync::Arc;

/// Longest name of a client, for the log.
const MAX_CLIENT: usize = 64;
/// Most bytes of the name of an export that there is not, in what is said about it.
const MAX_NAME: usize = 64;

/// Serves CONNECT. The only operation that belongs to a connection and not to a session. `party`:
/// whose share of the server the session takes.
///
/// # Errors
/// [`Status::Version`], [`Status::NoExport`], [`Status::Protection`], [`Status::Access`],
/// [`Status::Fenced`], [`Status::TooManySessions`]; [`Status::BadSession`] where the session is
/// another client's; [`Status::Invalid`] where the connection has a session, or the session is of
/// another export.
pub async fn connect(
    server: &Arc<Server>,
    link: &Arc<dyn Link>,
    party: Party,
    request: ConnectRequest,
) -> Result<ConnectReply, OpError> {
    if request.version != u32::from(VERSION) {
        let what = format!("version {} is asked for, the server speaks {VERSION}", request.version);
        return Err(OpError::new(Status::Version, what));
    }
    let key = link.channel().map(|channel| &channel.peer);
    let export = find_export(server, &request.export, key)?;
    check_protection(&export, request.protection, link)?;
    let asked = request.credential.clone().map(AskedCredential::from);
    // Asked again for the session itself: this spares those who are refused the rest.
    let permit =
        server.permit(&export, key, asked.as_ref()).map_err(|error| match error.status {
            // What a client may not use looks like what is not there.
            Status::NoExport => no_export(server, &request.export, key),
            _ => error,
        })?;
    let begin = || new_session(server, &export, &request, (key, party), asked.as_ref());

    let store = Arc::clone(&export.store);
    let root = move || store.node(&Credential::Server, &store.root());
    let root = server.runtime().blocking(export.disk(), root).await?;

    let (session, resumed) = match earlier(server, &export, permit.as_ref(), &request)? {
        Some(session) => (session, true),
        None => (begin()?, false),
    };
    let (session, resumed) = match server.bind(link, &session) {
        Ok(()) => (session, resumed),
        // It ended just now.
        Err(BindError::Session) => {
            let session = begin()?;
            bind_new(server, link, &session)?;
            (session, false)
        }
        Err(error) => {
            if !resumed {
                server.end_session(&session, false);
            }
            return Err(bind_error(error));
        }
    };
    let peer = link.peer();
    if let Some(untold) = complaints::take("session", &peer) {
        tracing::info!(?session, peer, resumed, untold, "session");
    }

    let limits = server.limits();
    let lease = server.session_limits().lease.as_millis();
    Ok(ConnectReply {
        session: session.id().as_bytes().to_vec(),
        boot: server.boot(),
        page_size: u32::try_from(limits.page_size).unwrap_or(u32::MAX),
        slots: session.credits().into(),
        max_inline: limits.max_inline,
        max_transfer: limits.max_transfer,
        lease_ms: u32::try_from(lease).unwrap_or(u32::MAX),
        protection: export.protection.to_wire(),
        read_only: session.export().read_only,
        resumed,
        root: export.wire(&root.handle),
        root_attr: Some(root.attr),
        shm_socket: server.shm_socket().to_owned(),
        verbs_address: server.verbs_address().to_owned(),
        machine_boot: server.cache().boots().machine_boot(),
    })
}

fn find_export(
    server: &Server,
    name: &str,
    key: Option<&PublicKey>,
) -> Result<Arc<Export>, OpError> {
    let found = server.exports().iter().find(|export| export.name == name);
    found.cloned().ok_or_else(|| no_export(server, name, key))
}

/// Tells a client of the exports it may use, and of no others.
fn no_export(server: &Server, name: &str, key: Option<&PublicKey>) -> OpError {
    let may_use = |export: &&Arc<Export>| {
        let known = || key.is_some_and(|key| server.access().may_use(key, &export.name));
        export.protection == Protection::None || known()
    };
    let exports = server.exports().iter().filter(may_use);
    let names: Vec<&str> = exports.map(|export| &*export.name).collect();
    let name = shown_within(name, MAX_NAME);
    let what = match &names[..] {
        [] => format!("no export {name:?} for this client, and no other"),
        names => format!("no export {name:?} for this client; there are: {}", names.join(", ")),
    };
    OpError::new(Status::NoExport, what)
}

/// The export must guard its pages at least as the client asks for, here and in the handshake, and
/// in a way that the engine can.
fn check_protection(export: &Export, least: u32, link: &Arc<dyn Link>) -> Result<(), OpError> {
    let offered = export.protection;
    let refuse = |what: String| Err(OpError::new(Status::Protection, what));
    let capabilities = link.capabilities();
    let bound = link.channel().map(|channel| channel.least);
    match Protection::from_wire(least) {
        Some(least) if least <= offered && bound.is_none_or(|bound| bound <= offered) => {
            if offered == Protection::Keyed && !capabilities.tags {
                return refuse(format!(
                    "export {:?} offers protection keyed, which engine {} cannot check: use \
                     engine tcp, or offer the export as sealed",
                    export.name, capabilities.engine
                ));
            }
            Ok(())
        }
        None if least == 0 => refuse(format!(
            "the client names no protection level; export {:?} offers {offered}, which has to be \
             asked for by name",
            export.name
        )),
        least => {
            let least = least.map_or_else(|| "a higher one".to_owned(), |least| least.to_string());
            refuse(format!(
                "export {:?} offers protection {offered}, the client asks for {least}",
                export.name
            ))
        }
    }
}

/// The session that the client had before its connection was lost, if it still fits.
fn earlier(
    server: &Server,
    export: &Export,
    permit: Option<&Permit>,
    request: &ConnectRequest,
) -> Result<Option<Arc<LiveSession>>, OpError> {
    if request.session.is_empty() {
        return Ok(None);
    }
    let id = SessionId::from_wire(&request.session).ok_or_else(|| {
        OpError::invalid(format!(
            "a session id of {} bytes, where {} are expected",
            request.session.len(),
            SessionId::LEN
        ))
    })?;
    let Some(session) = server.session(&id) else {
        return Ok(None);
    };
    if session.key() != permit.map(|permit| permit.key) {
        return Err(OpError::new(Status::BadSession, "the session is not this client's"));
    }
    if session.export().name != export.name {
        return Err(OpError::invalid(format!(
            "the session is connected to export {:?}, not {:?}",
            session.export().name,
            export.name
        )));
    }
    // Where the client has got other rights meanwhile, it gets them with a new session.
    Ok(Some(session).filter(|session| session.permit() == permit))
}

fn new_session(
    server: &Server,
    export: &Arc<Export>,
    request: &ConnectRequest,
    who: (Option<&PublicKey>, Party),
    asked: Option<&AskedCredential>,
) -> Result<Arc<LiveSession>, OpError> {
    let most = server.session_limits().slots.max(1);
    let slots = u16::try_from(request.slots).unwrap_or(u16::MAX).clamp(1, most);
    let client = request.client.chars().filter(|c| is_harmless(*c)).take(MAX_CLIENT).collect();
    server.add_session(export, client, who, &request.instance, asked, slots)
}

fn bind_new(
    server: &Server,
    link: &Arc<dyn Link>,
    session: &Arc<LiveSession>,
) -> Result<(), OpError> {
    server.bind(link, session).map_err(|error| {
        server.end_session(session, false);
        bind_error(error)
    })
}

pub(crate) fn bind_error(error: BindError) -> OpError {
    match error {
        BindError::Gone => OpError::invalid("this connection is gone"),
        BindError::Link => OpError::invalid("this connection has a session already"),
        BindError::Connecting => OpError::invalid("this connection is getting a session"),
        BindError::Session => OpError::new(Status::BadSession, "the session has ended"),
    }
}
