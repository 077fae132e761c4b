//! Requests and replies, without a server process.

use super::serve::answer;
use super::*;
use crate::access::Access;
use crate::cache::{Cache, CacheConfig};
use crate::exporter::Listeners;
use crate::runtime::Runtime;
use crate::server::{Limits, Server, Settings};
use crate::session::SessionLimits;
use ordma::arena::Geometry;
use std::sync::Arc;
use std::time::Duration;

fn server() -> Arc<Server> {
    let key = dafs_keys::PublicKey::from_bytes([1; 32]);
    let text = format!("{key} web exports=* uid=1000");
    let access = Access::of(crate::authorized::Authorized::parse(&text, true).unwrap());
    let runtime = Runtime::inline();
    let config = CacheConfig {
        geometry: Geometry::new(4096, 64 * 4096).unwrap(),
        budget: 1 << 20,
        dirty_limit: 1 << 19,
        writeback_interval: Duration::from_secs(5),
        retire_patience: Duration::from_secs(5),
        disk_patience: Duration::from_secs(30),
    };
    let levels = [dafs_keys::Protection::None, dafs_keys::Protection::Sealed];
    let cache = Cache::new(
        config,
        levels,
        Arc::new(Listeners::default()),
        runtime.clone(),
        Arc::new(crate::sharing::Boots::forgetful(1)),
    )
    .unwrap();
    let settings = Settings {
        limits: Limits { page_size: 4096, max_inline: 16384, max_transfer: 65536 },
        session: SessionLimits { slots: 4, opens: 2, lease: Duration::from_secs(10) },
        max_sessions: 2,
        connect_timeout: Duration::from_secs(5),
        data_in_flight: 20_000,
        transfers: 2,
    };
    Server::new(settings, Vec::new(), access, cache, runtime, Box::new(Instant::now))
}

#[test]
fn commands_are_carried_out_over_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path();
    let fence = |name: &str| Request::Fence { name: name.to_owned() };
    let unfence = |name: &str| Request::Unfence { name: name.to_owned() };
    assert!(matches!(ask(state, &Request::Sessions), Err(AskError::NoServer(_))));

    let server = server();
    let admin = Admin::start(state, &server).unwrap();
    let ask = |request: &Request| super::ask(state, request).unwrap();
    assert_eq!(ask(&Request::Sessions), Reply::Sessions(SessionList::default()));
    let fenced = Reply::Fenced { sessions: 0, exports: Vec::new(), unfinished: 0 };
    assert_eq!(ask(&fence("web")), fenced);
    assert_eq!(ask(&fence("web")), fenced, "again, in case the first did not go through");
    let Reply::Sessions(list) = ask(&Request::Sessions) else { panic!("a list") };
    assert_eq!(list.fenced, ["web"]);
    assert_eq!(ask(&unfence("web")), Reply::Unfenced);
    for (request, part) in [(unfence("web"), "not fenced off"), (fence("wbe"), "\"wbe\"")] {
        let Reply::Error(error) = ask(&request) else { panic!("{request:?}") };
        assert!(error.contains(part), "{error}");
    }
    admin.stop();
    assert!(!state.join(SOCKET).exists());
    let error = super::ask(state, &Request::Sessions).unwrap_err().to_string();
    assert!(error.contains("no server is running") && error.contains("--state-dir"), "{error}");
}

#[test]
fn a_dead_servers_socket_is_replaced_and_no_other_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(SOCKET);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = ask(directory.path(), &Request::Sessions).unwrap_err();
    assert!(matches!(error, AskError::NoServer(_)), "{error}");
    let server = server();
    let admin = Admin::start(directory.path(), &server).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    ask(directory.path(), &Request::Sessions).unwrap();
    admin.stop();
    std::fs::write(&path, "").unwrap();
    let error = Admin::start(directory.path(), &server).unwrap_err().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert!(path.exists());
}

#[test]
fn what_is_no_request_is_refused() {
    let server = server();
    for (line, part) in [
        ("", "one line"),
        ("{\"command\":\"sessions\"}", "one line"),
        ("nonsense\n", "not of this version"),
        ("{\"command\":\"stop\"}\n", "stop"),
        ("{\"command\":\"fence\"}\n", "name"),
        ("{\"command\":\"fence\",\"name\":\"web\",\"now\":1}\n", "now"),
    ] {
        let Reply::Error(error) = answer(line, &server) else { panic!("{line}") };
        assert!(error.contains(part), "{line}: {error}");
    }

    let directory = tempfile::tempdir().unwrap();
    let admin = Admin::start(directory.path(), &server).unwrap();
    let mut stream = UnixStream::connect(directory.path().join(SOCKET)).unwrap();
    // As long as can be: the server may stop reading at its limit, and does not wait for more.
    stream.write_all(&[b' '; MAX_REQUEST as usize]).unwrap();
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).unwrap();
    assert!(reply.contains("at most 4096 bytes"), "{reply}");
    admin.stop();
}
