//! How client and server come to know each other: first contact, keys that are known, given, and
//! changed.

mod common;

use common::{Server, options};
use dafs_client::blocking::Client;
use dafs_client::keys::{Identity, Protection, PublicKey};
use dafs_client::trust::{KnownServers, TrustError};
use dafs_client::{Connectors, Error, FirstContact, Location, Options, Result};
use ordma::{Connector, Endpoint, LinkError, Receiver};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

thread_local! {
    /// The servers behind the TCP address and behind the socket, for this thread's test.
    static SERVERS: RefCell<Option<[Server; 2]>> = const { RefCell::new(None) };
    /// How often a server was asked for its key.
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

/// A connector that knows which server it leads to.
#[derive(Debug)]
struct To(usize);

fn server(which: usize) -> Server {
    SERVERS.with_borrow(|servers| servers.as_ref().unwrap()[which].clone())
}

impl Connector for To {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> std::result::Result<Arc<dyn Endpoint>, LinkError> {
        server(self.0).connector().connect(receiver, timeout)
    }

    fn target(&self) -> String {
        self.0.to_string()
    }
}

/// As a connector with a handshake does: no connection with a server that has another key.
#[derive(Debug)]
struct Secured(Arc<dyn Connector>, PublicKey);

impl Connector for Secured {
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> std::result::Result<Arc<dyn Endpoint>, LinkError> {
        if key_of(&*self.0) != self.1 {
            let reason = "it is not meant for a server with this key".into();
            return Err(LinkError::Connect { target: self.target(), reason });
        }
        self.0.connect(receiver, timeout)
    }

    fn target(&self) -> String {
        self.0.target()
    }
}

fn key_of(connector: &dyn Connector) -> PublicKey {
    let server = server(connector.target().parse().unwrap());
    server.state().identity.public()
}

/// A client's files, and a guarded server.
struct Setting {
    directory: TempDir,
    server: Server,
    key: PublicKey,
}

const NAME: &str = "host:7000";

impl Setting {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Identity::generate().unwrap().save(&directory.path().join("identity")).unwrap();
        let server = Server::protected(Protection::Sealed);
        let key = server.state().identity.public();
        ASKED.set(0);
        Self { directory, server, key }
    }

    fn known_servers(&self) -> PathBuf {
        self.directory.path().join("known_servers")
    }

    fn options(&self) -> Options {
        Options {
            protection: Protection::Sealed,
            identity: Some(self.directory.path().join("identity")),
            ..options()
        }
    }

    fn connect(&self, query: &str, options: Options) -> Result<Client> {
        self.connect_to(&self.server, query, options)
    }

    fn connect_to(&self, shm: &Server, query: &str, options: Options) -> Result<Client> {
        SERVERS.set(Some([self.server.clone(), shm.clone()]));
        let location: Location = format!("dafs://Host:7000/data?{query}").parse()?;
        let connectors = Connectors {
            tcp: |_| Arc::new(To(0)),
            shm: |_| Arc::new(To(1)),
            secure: |inner, _, key, _| Arc::new(Secured(inner, key)),
            ask_key: |connector, _| {
                ASKED.set(ASKED.get() + 1);
                Ok(key_of(connector))
            },
            ..Connectors::default()
        };
        Client::connect_with(&location, options, connectors)
    }

    fn connects(&self) -> u32 {
        self.server.state().connects
    }
}

#[test]
fn a_server_that_is_not_known_is_refused_and_its_key_shown() {
    let setting = Setting::new();
    let error = setting.connect("", setting.options()).unwrap_err();
    assert!(
        matches!(&error, Error::Trust(trust) if matches!(**trust, TrustError::Unknown(_))),
        "{error}"
    );
    assert_eq!((setting.connects(), error.errno()), (0, 13));
    // What the text says to do is enough.
    let line = format!("{NAME} {}", setting.key);
    let (text, known) = (error.to_string(), setting.known_servers());
    assert!(text.contains(&format!("add the line \"{line}\" to {}", known.display())), "{text}");
    std::fs::write(&known, line).unwrap();
    let client = setting.connect("", setting.options()).unwrap();
    assert_eq!(client.server_key().unwrap(), Some(setting.key));
    assert_eq!(client.protection().unwrap(), Protection::Sealed);
    assert_eq!(ASKED.get(), 1, "one that is known is not asked");
}

#[test]
fn somebody_may_look_at_the_key_or_not_and_it_is_remembered() {
    let setting = Setting::new();
    let looked = Arc::new(AtomicUsize::new(0));
    let asking = |answer| {
        let looked = Arc::clone(&looked);
        let first_contact = FirstContact::Ask(Arc::new(move |unknown| {
            looked.fetch_add(1, Ordering::SeqCst);
            assert_eq!(unknown.server, NAME);
            answer
        }));
        Options { first_contact, ..setting.options() }
    };
    let error = setting.connect("", asking(false)).unwrap_err();
    assert!(
        matches!(&error, Error::Trust(trust) if matches!(**trust, TrustError::Unknown(_))),
        "{error}"
    );
    assert!(!setting.known_servers().exists());
    setting.connect("", asking(true)).unwrap();
    setting.connect("", asking(false)).unwrap();
    assert_eq!(looked.load(Ordering::SeqCst), 2, "asked once more, then known");

    let setting = Setting::new();
    let options = Options { first_contact: FirstContact::AcceptNew, ..setting.options() };
    setting.connect("", options).unwrap();
    let known = KnownServers::load(&setting.known_servers()).unwrap();
    assert_eq!(known.get(NAME).unwrap().key, setting.key);
}

#[test]
fn a_changed_key_is_an_error_that_names_both_and_the_line() {
    let setting = Setting::new();
    let other = Identity::generate().unwrap().public();
    let known = setting.known_servers();
    std::fs::write(&known, format!("# mine\n{NAME} {other}\n")).unwrap();
    let options = Options { first_contact: FirstContact::AcceptNew, ..setting.options() };
    let error = setting.connect("", options).unwrap_err();
    assert!(
        matches!(&error, Error::Trust(trust) if matches!(**trust, TrustError::Changed { .. })),
        "{error}"
    );
    let text = error.to_string();
    for part in [
        format!("shows the key {}", setting.key),
        format!("{}:2 says {other}", known.display()),
        format!("remove line 2 of {}", known.display()),
        "may be an attack, or the server was set up anew".to_owned(),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    assert_eq!(setting.connects(), 0);
    assert!(!std::fs::read_to_string(&known).unwrap().contains(&setting.key.to_string()));
}

#[test]
fn a_key_that_is_given_beforehand_is_the_one() {
    let setting = Setting::new();
    setting.connect(&format!("server_key={}", setting.key), setting.options()).unwrap();
    assert_eq!(ASKED.get(), 0);
    assert!(!setting.known_servers().exists(), "nothing is remembered");
    let other = Identity::generate().unwrap().public();
    let options = Options { server_key: Some(other), ..setting.options() };
    let text = setting.connect("", options).unwrap_err().to_string();
    assert!(text.contains(&format!("the one given for it is {other}")), "{text}");
}

#[test]
fn over_shared_memory_the_server_must_have_the_same_key() {
    let socket = tempfile::NamedTempFile::new().unwrap();
    let setting = Setting::new();
    let path = socket.path().to_str().unwrap().to_owned();
    setting.server.state().shm_socket = path.clone();
    let options = || Options { first_contact: FirstContact::AcceptNew, ..setting.options() };
    let client = setting.connect_to(&setting.server, "", options()).unwrap();
    assert_eq!(client.path_choice().engine, "shm");
    assert_eq!((ASKED.get(), client.server_key().unwrap()), (1, Some(setting.key)));
    let other = Server::protected(Protection::Sealed);
    let client = setting.connect_to(&other, "", options()).unwrap();
    assert_eq!(client.path_choice().engine, "tcp");
    assert_eq!((ASKED.get(), other.state().connects), (1, 0));
    // One that is reached by its socket alone is known by that.
    let query = format!("engine=shm&socket={path}");
    setting.connect_to(&other, &query, options()).unwrap();
    let known = KnownServers::load(&setting.known_servers()).unwrap();
    let other = other.state().identity.public();
    assert_eq!(known.get(&format!("shm:{path}")).unwrap().key, other);
}

#[test]
fn without_an_identity_one_is_told_how_to_make_it() {
    let setting = Setting::new();
    let missing = setting.directory.path().join("missing");
    let options = Options { identity: Some(missing.clone()), ..setting.options() };
    let text = setting.connect("", options).unwrap_err().to_string();
    assert!(text.contains(missing.to_str().unwrap()) && text.contains("`dafs keygen`"), "{text}");
    assert_eq!((ASKED.get(), setting.connects()), (0, 0));
    // At level none it takes neither identity nor key.
    let plain = Server::new();
    let options = Options { identity: Some(missing), ..setting.options() };
    SERVERS.set(None);
    let setting = Setting { server: plain, ..setting };
    let client = setting.connect("protection=none", options).unwrap();
    assert_eq!(client.server_key().unwrap(), None);
}
