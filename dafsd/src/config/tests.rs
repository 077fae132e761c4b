//! What the configuration accepts, and what it says of what it does not.

use super::*;
use clap::Parser;
use dafs_keys::Protection;

/// A directory to be offered.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn load(text: &str, flags: &[&str]) -> Result<Config, ConfigError> {
    let directory = directory();
    let path = directory.path().join("dafsd.toml");
    std::fs::write(&path, text).unwrap();
    let mut all = vec!["dafsd", "--state-dir", "/state", "--config", path.to_str().unwrap()];
    all.extend(flags);
    Config::load(&Flags::parse_from(all))
}

fn from_flags(flags: &[&str]) -> Result<Config, ConfigError> {
    let mut all = vec!["dafsd", "--state-dir", "/state"];
    all.extend(flags);
    Config::load(&Flags::parse_from(all))
}

#[test]
fn the_example_shows_the_defaults() {
    let text = include_str!("../../dafsd.example.toml");
    let example = load(text, &[]).unwrap();
    let plain = from_flags(&["--export", "data=/srv"]).unwrap();
    assert_eq!(example.exports, plain.exports);
    assert_eq!(example.settings, plain.settings);
    assert_eq!(example.log, plain.log);
    assert_eq!(
        (example.rpc_threads, example.agent_threads),
        (plain.rpc_threads, plain.agent_threads)
    );
    assert_eq!(
        (example.descriptors, example.handle_table, example.receives),
        (plain.descriptors, plain.handle_table, plain.receives)
    );
    assert_eq!(plain.receives, ordma::tcp::Settings::default().receives);
    // Depends on the machine, so the flags say what the file says.
    let flags = ["--export", "data=/srv", "--memory", "1GiB"];
    assert_eq!(example.cache, from_flags(&flags).unwrap().cache);
    let listen = example.listen.unwrap();
    assert_eq!(listen[0], Listen::Tcp(DEFAULT_TCP.to_owned()));
    assert_eq!(listen[1].to_string(), "shm:/run/dafs/20490.sock");
}

#[test]
fn flags_win_over_the_file() {
    let directory = directory();
    let path = directory.path().to_str().unwrap();
    let text = format!(
        "listen = ['tcp:[::1]:1']\nlog = 'warn'\n[cache]\nmemory = '128MiB'\n[sessions]\nlease = '7s'\n\
         [[export]]\nname = 'a'\npath = '{path}'\nas = '12:34'\n[[export]]\nname = 'b'\npath = '/'\n\
         as = '12:34'"
    );
    let config = load(&text, &["--protection", "none"]).unwrap();
    assert_eq!(config.listen, Some(vec![Listen::Tcp("[::1]:1".to_owned())]));
    assert_eq!(config.exports[0].owner, Some((12, 34)));
    assert_eq!(config.cache.budget, 128 << 20);
    assert_eq!(config.cache.geometry.slots, (32 << 20) / 4096);
    assert_eq!(config.settings.session.lease, Duration::from_secs(7));

    let export = format!("b={path},ro");
    let flags = [
        "--protection",
        "none",
        "--listen",
        "tcp:h:0",
        "--listen",
        "shm:/s",
        "--memory",
        "64MiB",
        "--page-size",
        "16KiB",
        "--lease",
        "9s",
        "--log",
        "debug",
        "--export",
        &export,
    ];
    let text = text.replace("as = '12:34'", "read_only = true");
    let config = load(&text, &flags).unwrap();
    assert_eq!(config.listen.unwrap().len(), 2);
    assert_eq!(config.log, "debug");
    assert_eq!(config.settings.session.lease, Duration::from_secs(9));
    assert_eq!(config.settings.limits.max_inline, (64 << 10) + 4 * 64);
    let [a, b] = &config.exports[..] else { panic!("two exports") };
    assert_eq!((&*a.name, &*b.name, b.read_only), ("a", "b", true));
    assert_eq!(a.path, b.path);
}

#[test]
fn engines_may_share_an_address_and_verbs_is_not_taken_by_default() {
    let listen = "listen = ['tcp:0.0.0.0:1', 'verbs:0.0.0.0:1', 'verbs:[fd00::1]:0']\n";
    let export = "[[export]]\nname = 'x'\npath = '/'";
    let config = load(&format!("{listen}{export}"), &[]).unwrap();
    let verbs = |address: &str| Listen::Verbs(address.to_owned());
    let expected = [Listen::Tcp("0.0.0.0:1".to_owned()), verbs("0.0.0.0:1"), verbs("[fd00::1]:0")];
    assert_eq!(config.listen.unwrap(), expected);
    assert_eq!(verbs("0.0.0.0:1").to_string().parse(), Ok(verbs("0.0.0.0:1")));
    let default = Config::default_listen();
    assert!(!default.iter().any(|listen| matches!(listen, Listen::Verbs(_))), "{default:?}");
}

#[test]
fn exports_are_sealed_unless_asked_otherwise_by_name() {
    let level = |flags: &[&str]| from_flags(flags).unwrap().exports[0].protection;
    assert_eq!(level(&["--export", "x=/"]), Protection::Sealed);
    assert_eq!(level(&["--export", "x=/", "--protection", "keyed"]), Protection::Keyed);
    assert_eq!(level(&["--export", "x=/", "--protection", "none"]), Protection::None);
    let text = "[[export]]\nname = 'x'\npath = '/'\nprotection = 'keyed'";
    let config = load(text, &["--protection", "none"]).unwrap();
    assert_eq!(config.exports[0].protection, Protection::Keyed, "the export's own word counts");
}

#[test]
fn the_list_of_clients_is_in_the_state_directory_unless_said_otherwise() {
    let path = |text: &str, flags: &[&str]| load(text, flags).unwrap().authorized_clients;
    let export = "[[export]]\nname = 'x'\npath = '/'\n";
    assert_eq!(path(export, &[]), PathBuf::from("/state/authorized_clients"));
    let named = format!("authorized_clients = '/etc/clients'\n{export}");
    assert_eq!(path(&named, &[]), PathBuf::from("/etc/clients"));
    assert_eq!(path(&named, &["--authorized-clients", "/a"]), PathBuf::from("/a"));
}

#[test]
fn commands_find_the_state_directory_without_an_export() {
    let of = |flags: &[&str]| Config::state_dir(&Flags::parse_from(flags)).unwrap();
    let state = PathBuf::from("/state");
    assert_eq!(of(&["dafsd", "sessions", "--state-dir", "/state"]), state);
    let directory = directory();
    let path = directory.path().join("dafsd.toml");
    std::fs::write(&path, "state_dir = '/state'").unwrap();
    assert_eq!(of(&["dafsd", "fence", "a", "--config", path.to_str().unwrap()]), state);
}

/// Each bad input, and what its error must contain: field, value, what is allowed.
#[test]
fn errors_name_field_value_and_what_is_allowed() {
    let directory = directory();
    let here = directory.path().to_str().unwrap().to_owned();
    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let export = format!("[[export]]\nname = 'x'\npath = '{here}'\nprotection = 'none'\n");
    let with = |text: &str| format!("{export}{text}");
    let before = |text: &str| format!("{text}\n{export}");
    let named = |name: &str| export.replace("'x'", name);
    let cases: Vec<(String, &[&str])> = vec![
        (String::new(), &["export", "(none)", "--export NAME=PATH"]),
        (with("[cache]\nmemory = '1GB'"), &["memory", "1GB", "64MiB"]),
        (with("[cache]\nmemory = 5"), &["memory", "5", "unit"]),
        (
            with("[cache]\nmemory = '15TiB'"),
            &["cache.memory", "15TiB", "less than this machine's memory, which is "],
        ),
        (with("[cache]\nmemory = '1KiB'"), &["cache.memory", "1KiB", "1MiB"]),
        (with("[cache]\npage_size = '5KiB'"), &["cache.page_size", "5KiB", "4KiB, 8KiB"]),
        (with("[cache]\nchunk = '5000B'"), &["cache.chunk", "5000B", "whole number of pages"]),
        (with("[cache]\nchunk = '2TiB'"), &["cache.chunk", "2TiB", "must be from"]),
        (with("[cache]\ndirty_limit = '1TiB'"), &["cache.dirty_limit", "1TiB", "must be from"]),
        (with("[cache]\nwriteback_interval = '5'"), &["writeback_interval", "5", "500ms"]),
        (with("[cache]\nwriteback_interval = '0s'"), &["cache.writeback_interval", "100ms"]),
        (with("[cache]\nmemroy = '1GiB'"), &["memroy", "unknown field", "memory"]),
        (with("[sessions]\nlease = '9h'"), &["sessions.lease", "9h", "1h"]),
        (with("[sessions]\nslots = 0"), &["sessions.slots", "0", "from 1 to 1024"]),
        (with("[sessions]\nslots = 5000"), &["sessions.slots", "5000", "from 1 to 1024"]),
        (with("[sessions]\nmax = -1"), &["max", "-1"]),
        (with("[sessions]\nreceives = '48KiB'"), &["sessions.receives", "48KiB", "from 1MiB"]),
        (with("[sessions]\nmax_opens = 0"), &["sessions.max_opens", "0", "from 1"]),
        (with("[transfers]\nmax_inline = '1KiB'"), &["transfers.max_inline", "1KiB", "4KiB"]),
        (with("[transfers]\nmax_direct = '1KiB'"), &["transfers.max_direct", "1KiB", "64KiB"]),
        (with("[transfers]\nconcurrent = 0"), &["transfers.concurrent", "0", "from 1"]),
        (with("[threads]\nworkers = 0"), &["threads.workers", "0", "from 1 to 1024"]),
        (with("[threads]\nrpc = 1000"), &["threads.rpc", "1000", "256"]),
        (with("[store]\nhandles = 'both'"), &["store.handles", "both", "auto", "table"]),
        (with("[store]\ndescriptors = 0"), &["store.descriptors", "0", "from 1"]),
        (with("[verbs]\n"), &["verbs", "unknown field", "cache"]),
        (before("log = 'chatty=loud'"), &["log", "chatty=loud", "error, warn, info"]),
        (before("listen = []"), &["listen", "[]", "tcp:HOST:PORT"]),
        (
            before("listen = ['udp:x:1']"),
            &["listen", "udp:x:1", "tcp:HOST:PORT, verbs:HOST:PORT or shm:PATH"],
        ),
        (before("listen = ['tcp:host']"), &["listen", "tcp:host", "port from 0 to 65535"]),
        (before("listen = ['tcp:host:99999']"), &["listen", "99999", "65535"]),
        (before("listen = ['verbs:rxe0']"), &["listen", "verbs:rxe0", "verbs:HOST:PORT"]),
        (before("listen = ['verbs::1']"), &["listen", "verbs::1", "verbs:HOST:PORT"]),
        (before("listen = ['tcp::1:7000']"), &["listen", "brackets: tcp:[::1]:7000"]),
        (before("listen = ['tcp:::1:7']"), &["listen", "brackets: tcp:[::1]:7"]),
        (before("listen = ['verbs:fd00::1:7']"), &["listen", "brackets: verbs:[fd00::1]:7"]),
        (before("listen = ['tcp:[h]:7']"), &["listen", "brackets: tcp:[::1]:7"]),
        (before("listen = ['verbs:h:1', 'verbs:h:1']"), &["listen", "verbs:h:1", "twice"]),
        (before("listen = ['shm:socket']"), &["listen", "shm:socket", "absolute path"]),
        (before("listen = ['shm:/s', 'shm:/s']"), &["listen", "shm:/s", "twice"]),
        (with(&export), &["export.name", "x", "twice"]),
        (named("''"), &["export.name", "\"\"", "letters"]),
        (named("'..'"), &["export.name", "..", "letters"]),
        (named("'a/b'"), &["export.name", "a/b", "letters"]),
        (
            export.replace("'none'", "'paper'"),
            &["export \"x\": protection", "paper", "\"sealed\" (the default)", "\"none\""],
        ),
        (with("as = 'root'"), &["export \"x\": as", "root", "UID:GID"]),
        (with("as = '1:4294967295'"), &["export \"x\": as", "4294967295", "UID:GID"]),
        (with("path = 5"), &["path", "duplicate"]),
        (export.replace(&here, "/no/such"), &["export \"x\": path", "/no/such", "directory"]),
        (export.replace(&here, "/etc/passwd"), &["export \"x\": path", "/etc/passwd", "directory"]),
        (
            with(
                &named("'y'")
                    .replace(&here, inner.to_str().unwrap())
                    .replace("'none'", "'none'\nread_only = true"),
            ),
            &["export \"y\": path", "inner", "same read_only", "\"x\""],
        ),
    ];
    for (text, expected) in cases {
        let error = load(&text, &[]).map(drop).expect_err(&text).to_string();
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in the error for\n{text}\n{error}");
        }
    }
    for (flags, expected) in [
        (&["--export", "x"][..], &["--export", "\"x\"", "NAME=PATH"][..]),
        (&["--export", "x="], &["--export", "x=", "NAME=PATH"]),
        (&["--export", "x=/", "--protection", "low"], &["protection", "low", "\"keyed\""]),
        (&["--config", "/no/such"], &["/no/such", "No such file"]),
    ] {
        let error = from_flags(flags).map(drop).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }
    let error = Flags::try_parse_from(["dafsd", "--memory", "lots"]).unwrap_err().to_string();
    assert!(
        error.contains("--memory") && error.contains("lots") && error.contains("64MiB"),
        "{error}"
    );
}
