//! CONNECT: opens a session, or takes an existing one over after a lost connection.

use super::OpError;
use crate::live::LiveSession;
use crate::server::{BindError, Export, Server};
use crate::sessions::SessionId;
use crate::store::Credential;
use dafs_keys::Protection;
use dafs_proto::{ConnectReply, ConnectRequest, Status, VERSION};
use ordma::Link;
use std::sync::Arc;

/// Longest name of a client, for the log.
const MAX_CLIENT: usize = 64;

/// Serves CONNECT. The only operation that belongs to a connection and not to a session.
///
/// # Errors
/// [`Status::Version`], [`Status::NoExport`], [`Status::Protection`], [`Status::TooManySessions`];
/// [`Status::Invalid`] where the connection has a session, or the session is of another export.
pub async fn connect(
    server: &Arc<Server>,
    link: &Arc<dyn Link>,
    request: ConnectRequest,
) -> Result<ConnectReply, OpError> {
    if request.version != u32::from(VERSION) {
        let what = format!("version {} is asked for, the server speaks {VERSION}", request.version);
        return Err(OpError::new(Status::Version, what));
    }
    let export = find_export(server, &request.export)?;
    check_protection(&export, request.protection)?;

    let store = Arc::clone(&export.store);
    let root =
        server.runtime().blocking(move || store.node(&Credential::Server, &store.root())).await?;

    let (session, resumed) = match earlier(server, &export, &request)? {
        Some(session) => (session, true),
        None => (new_session(server, &export, &request)?, false),
    };
    let (session, resumed) = match server.bind(link, &session) {
        Ok(()) => (session, resumed),
        // It ended just now.
        Err(BindError::Session) => {
            let session = new_session(server, &export, &request)?;
            bind_new(server, link, &session)?;
            (session, false)
        }
        Err(error) => {
            if !resumed {
                server.end_session(&session);
            }
            return Err(bind_error(error));
        }
    };
    tracing::info!(?session, peer = link.peer(), resumed, "session");

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
        read_only: export.read_only,
        resumed,
        root: export.wire(&root.handle),
        root_attr: Some(root.attr),
        shm_socket: server.shm_socket().to_owned(),
    })
}

fn find_export(server: &Server, name: &str) -> Result<Arc<Export>, OpError> {
    let found = server.exports().iter().find(|export| export.name == name);
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> = server.exports().iter().map(|export| &*export.name).collect();
        let what = format!("no export {name:?}; there are: {}", names.join(", "));
        OpError::new(Status::NoExport, what)
    })
}

/// The export must guard its pages at least as the client asks for.
fn check_protection(export: &Export, least: u32) -> Result<(), OpError> {
    let offered = export.protection;
    let refuse = |what: String| Err(OpError::new(Status::Protection, what));
    match Protection::from_wire(least) {
        Some(least) if least <= offered => Ok(()),
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

/// The session that the client had before its connection was lost.
fn earlier(
    server: &Server,
    export: &Arc<Export>,
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
    if !Arc::ptr_eq(session.export(), export) {
        return Err(OpError::invalid(format!(
            "the session is connected to export {:?}, not {:?}",
            session.export().name,
            export.name
        )));
    }
    Ok(Some(session))
}

fn new_session(
    server: &Server,
    export: &Arc<Export>,
    request: &ConnectRequest,
) -> Result<Arc<LiveSession>, OpError> {
    let most = server.session_limits().slots.max(1);
    let slots = u16::try_from(request.slots).unwrap_or(u16::MAX).clamp(1, most);
    let client = request.client.chars().filter(|c| !c.is_control()).take(MAX_CLIENT).collect();
    server.add_session(export, client, Credential::Server, slots)
}

fn bind_new(
    server: &Server,
    link: &Arc<dyn Link>,
    session: &Arc<LiveSession>,
) -> Result<(), OpError> {
    server.bind(link, session).map_err(|error| {
        server.end_session(session);
        bind_error(error)
    })
}

fn bind_error(error: BindError) -> OpError {
    match error {
        BindError::Link => OpError::invalid("this connection has a session already"),
        BindError::Session => OpError::new(Status::BadSession, "the session has ended"),
    }
}
