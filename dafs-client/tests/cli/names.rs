//! Names are bytes.

use crate::harness::Server;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[test]
fn names_may_be_any_bytes() {
    let server = Server::start();
    let names: [&[u8]; 8] = [
        b"with space",
        b"new\nline",
        b"\xff\xfe not text",
        b"-dash",
        b"--help",
        b"100%25?a=b#c",
        b"\"quote'\\",
        "gr\u{fc}n".as_bytes(),
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        let local = server.local("local");
        std::fs::write(&local, name.as_bytes()).unwrap();
        let path = Path::new("/").join(name);
        server.ok([OsStr::new("put"), local.as_os_str(), path.as_os_str()]);
        assert_eq!(std::fs::read(server.export.join(name)).unwrap(), name.as_bytes());
        // As it is, behind the end of the flags.
        let cat = server.dafs([OsStr::new("cat"), OsStr::new("--"), name]);
        assert_eq!((cat.code, &cat.output[..]), (0, name.as_bytes()), "{}", cat.error);
        // Within a URL, percent-encoded.
        let escaped: String = name.as_bytes().iter().map(|byte| format!("%{byte:02X}")).collect();
        let cat = server.dafs(["cat", &format!("{}/{escaped}?{}", server.url(), server.query)]);
        assert_eq!((cat.code, &cat.output[..]), (0, name.as_bytes()), "{}", cat.error);
        // And as ls gives it.
        let list = server.dafs(["ls"]);
        assert_eq!(list.output, [name.as_bytes(), b"\n"].concat());
        server.ok([OsStr::new("mv"), path.as_os_str(), OsStr::new("/moved")]);
        server.ok([OsStr::new("mv"), OsStr::new("/moved"), path.as_os_str()]);
        server.ok([OsStr::new("rm"), OsStr::new("--"), name]);
        assert_eq!(server.export.read_dir().unwrap().count(), 0);
    }
    // Messages hold nothing that could confuse a terminal.
    let error = server.fails(1, [OsStr::new("cat"), OsStr::from_bytes(b"/no\n\x1b\xff")]);
    assert!(error.contains("/no%0A%1B%FF") && error.lines().count() == 1, "{error:?}");
}
