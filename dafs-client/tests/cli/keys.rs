//! The keys of client and server: making one's own, the file of known servers, and what is told of
//! them.

use crate::harness::{Acquaintance, Server, Setup, run};
use dafs_client::PublicKey;
use dafs_client::keys::Identity;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn config(server: &Server, name: &str) -> PathBuf {
    server.local("config").join("dafs").join(name)
}

#[test]
fn keygen_makes_an_identity_once_and_tells_what_to_do_with_it() {
    let server = Server::unprotected();
    let mut command = server.command(["keygen"]);
    let made = run(command.env("USER", "eve l"));
    assert_eq!((made.code, made.error.as_str()), (0, ""), "{}", made.text());
    let path = config(&server, "identity");
    let identity = Identity::load(&path).unwrap();
    let (text, key) = (made.text(), identity.public());
    assert!(text.contains(&format!("identity {}\npublic key {key}\n", path.display())), "{text}");
    let line = text.lines().find(|line| line.ends_with(" exports=EXPORT:rw")).expect("a line");
    let words: Vec<_> = line.split(' ').collect();
    assert_eq!((words.len(), words[0]), (3, key.to_string().as_str()), "{line}");
    assert!(words[1].starts_with("eve-l-"), "{line}");
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    assert!(words[1].chars().all(allowed), "{line}");
    assert!(text.contains("authorized_clients") && text.contains("dafs doctor"), "{text}");
    assert!(!text.contains(std::fs::read_to_string(&path).unwrap().trim()));
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);

    let error = server.fails(1, ["keygen"]);
    let there = format!("it is there, with the public key {key}");
    assert!(error.contains(&there) && error.contains("name another file with --file"), "{error}");
    assert_eq!(Identity::load(&path).unwrap().public(), key, "never overwritten");

    let other = server.local("other/identity");
    server.ok(["keygen", "--file", other.to_str().unwrap()]);
    assert_ne!(Identity::load(&other).unwrap().public(), key);
    let file = server.local("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("identity");
    let error = server.fails(1, ["keygen", "--file", below.to_str().unwrap()]);
    assert!(error.starts_with("dafs: cannot make the identity "), "{error}");
}

#[test]
fn what_is_wrong_with_the_files_is_said_before_anything_is_sent() {
    let server = Server::unprotected();
    let url = server.url();
    server.ok(["keygen"]);
    let (identity, known) = (config(&server, "identity"), config(&server, "known_servers"));
    std::fs::write(&known, "# mine\nhost\n").unwrap();
    let error = server.fails(1, ["ls", &url]);
    assert!(error.contains(&format!("{}:2: must have two words", known.display())), "{error}");
    assert!(error.contains("; correct or remove the line"), "{error}");
    std::fs::set_permissions(&known, PermissionsExt::from_mode(0o666)).unwrap();
    let error = server.fails(1, ["ls", &url]);
    assert!(error.contains("others may write to it (mode 0666"), "{error}");
    std::fs::remove_file(&known).unwrap();
    std::fs::set_permissions(&identity, PermissionsExt::from_mode(0o644)).unwrap();
    let error = server.fails(1, ["ls", &url]);
    assert!(error.contains("has mode 0644") && error.contains("chmod 600"), "{error}");
}

#[test]
fn the_doctor_tells_whose_keys_are_used() {
    let server = Server::unprotected();
    let text = server.ok(["doctor"]);
    assert!(text.contains("   level none; the least is none\n"), "{text}");
    assert!(text.contains("  server has shown no key\n"), "{text}");
    let (identity, known) = (config(&server, "identity"), config(&server, "known_servers"));
    let none = format!("identity there is no identity {}: make it with", identity.display());
    assert!(text.contains(&none), "{text}");
    server.ok(["keygen"]);
    let key = Identity::load(&identity).unwrap().public();
    let server_key = PublicKey::from_bytes([5; 32]);
    std::fs::write(&known, format!("# mine\n{} {server_key}\n", server.address("tcp"))).unwrap();
    server.file("a", "x");
    for text in [server.ok(["doctor"]), server.ok(["stat", "--path", "/a"])] {
        let own = format!("identity {}: public key {key}\n", identity.display());
        assert!(text.contains(&own), "{text}");
        let line = format!("   known {}: line 2 has the key of 127.0.0.1:", known.display());
        assert!(text.contains(&line), "{text}");
    }
    let json = server.ok(["doctor", "--json"]);
    assert!(json.contains(r#""protection":{"level":"none","least":"none","server_key":null,"#));
    assert!(json.contains(&format!(r#""public_key":"{key}","problem":null"#)), "{json}");
    std::fs::write(&known, "x").unwrap();
    let text = server.ok(["doctor"]);
    assert!(text.contains(&format!("   known {}:1: must have two words", known.display())));
}

#[test]
fn the_first_contact_with_a_server_takes_a_yes() {
    let server =
        Server::start_with(Setup { acquaintance: Acquaintance::Strangers, ..Setup::default() });
    server.file("a", "secret");
    let made = server.ok(["keygen"]);
    let url = format!("{}/a", server.url());
    let key = Identity::load(&server.local("state/identity")).unwrap().public();
    let known = config(&server, "known_servers");

    // There is no terminal to ask at.
    let error = server.fails(1, ["cat", &url]);
    assert!(error.starts_with("dafs: cannot connect to ") && error.lines().count() == 1, "{error}");
    let line = format!("{} {key}", server.address("tcp"));
    for part in [
        format!("shows the key {key}, which is not known yet"),
        format!("add the line \"{line}\" to {}", known.display()),
        "--server-key KEY".to_owned(),
        "--accept-new".to_owned(),
        "`dafsd key`".to_owned(),
    ] {
        assert!(error.contains(&part), "{part}: {error}");
    }
    assert!(!known.exists());

    // A key given beforehand is the only right one, even if it looks like a flag.
    let mut keys = std::iter::repeat_with(|| Identity::generate().unwrap().public().to_string());
    let other = keys.find(|key| key.starts_with('-')).unwrap();
    let error = server.fails(1, ["--server-key", &other, "cat", &url]);
    assert!(error.contains(&format!("shows the key {key}, but the one given for it is {other}")));
    assert!(error.contains("may be an attack"), "{error}");

    // Remembered without asking; now the server does not know the client.
    let error = server.fails(1, ["--accept-new", "cat", &url]);
    assert!(error.contains("; tell the server's operator; dafs doctor shows"), "{error}");
    assert_eq!(std::fs::read_to_string(&known).unwrap(), format!("{line}\n"));

    // What keygen says to add is what the server takes.
    let mine = made.lines().find(|line| line.ends_with(" exports=EXPORT:rw")).unwrap();
    let mine = mine.replace("EXPORT", "data");
    let user = rustix::process::geteuid().as_raw();
    std::fs::write(server.local("state/authorized_clients"), format!("{mine} uid={user}\n"))
        .unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let run = server.dafs(["cat", &url]);
        if run.code == 0 {
            assert_eq!(run.text(), "secret");
            break;
        }
        assert!(Instant::now() < end, "{}", run.error);
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = server.ok(["doctor", &url]);
    assert!(text.contains("   level sealed; the least is sealed\n"), "{text}");
    assert!(text.contains(&format!("  server has the key {key}\n")), "{text}");
    let text = server.ok(["stat", "--path", &url]);
    assert!(text.contains("1 ordma; faults: none"), "{text}");
    let error = server.fails(1, ["--protection", "none", "cat", &url]);
    assert!(error.contains("; ask for the export's own level"), "{error}");

    // Another server in its place.
    std::fs::write(&known, line.replace(&key.to_string(), &other)).unwrap();
    let error = server.fails(1, ["cat", &url]);
    let says = format!("shows the key {key}, but {}:1 says {other}", known.display());
    assert!(error.contains(&says) && error.contains("remove line 1 of"), "{error}");
}
