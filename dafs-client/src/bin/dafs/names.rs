//! Names are bytes. Here they become text: for URLs, for people, and back.

use dafs_client::keys::shown::is_harmless;
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that need no encoding in the path of a URL.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~/:@!$&'()*+,;=".contains(&byte)
}

/// A path as it is written in a URL: exact, printable, and fit to be pasted into a shell's quotes.
pub fn encode(path: &[u8]) -> String {
    path.iter().fold(String::with_capacity(path.len()), |mut text, byte| {
        if is_plain(*byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a String does not fail.
            _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// The bytes that an encoded path stands for. Bytes that need encoding and are not encoded are
/// taken as they are.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.get(..2).and_then(|two| Some((hex(two[0])?, hex(two[1])?)));
        let Some((high, low)) = digits else {
            return Err("a % must be followed by two hexadecimal digits; write %25 for a percent \
                        sign"
                .into());
        };
        match high << 4 | low {
            0 => return Err("no name contains a zero byte (%00)".into()),
            b'/' => return Err("no name contains a slash (%2F)".into()),
            byte => bytes.push(byte),
        }
        rest = &rest[2..];
    }
    Ok(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// A name for a terminal: as it is where that is harmless, else quoted with escapes as a shell's
/// `$'...'` has them.
pub fn show(name: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(name)
        && !text.is_empty()
        && !text.chars().any(|c| !is_harmless(c) || c == '\'' || c == '\\')
    {
        return text.into();
    }
    let mut shown = String::from("$'");
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => shown.push_str("\\n"),
                '\t' => shown.push_str("\\t"),
                '\r' => shown.push_str("\\r"),
                '\'' | '\\' => shown.extend(['\\', c]),
                c if !is_harmless(c) => {
                    let mut utf8 = [0; 4];
                    for byte in c.encode_utf8(&mut utf8).bytes() {
                        _ = write!(shown, "\\x{byte:02x}");
                    }
                }
                c => shown.push(c),
            }
        }
        for byte in chunk.invalid() {
            _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown.push('\'');
    shown
}

/// A local path for messages.
pub fn show_path(path: &Path) -> String {
    show(bytes(path))
}

/// A path's bytes.
pub fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// The last name of a path, whatever slashes follow it; none where that is empty, `.` or `..`.
pub fn last_name(path: &Path) -> Option<&OsStr> {
    let path = bytes(path);
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let name = path[..end].rsplit(|byte| *byte == b'/').next()?;
    (name != b"." && name != b"..").then(|| OsStr::from_bytes(name))
}

/// Whether the path names a directory by a dot in it.
pub fn ends_with_dot(path: &Path) -> bool {
    let path = bytes(path);
    path == b"." || path.ends_with(b"/.")
}

/// Whether a slash ends the path, so that it means a directory.
pub fn ends_with_slash(path: &Path) -> bool {
    bytes(path).ends_with(b"/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_encoding() {
        let path: Vec<u8> = (1..=255).collect();
        let text = encode(&path);
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(decode(text.as_bytes()).unwrap(), path);
    }

    #[test]
    fn raw_bytes_pass_and_broken_escapes_are_refused() {
        assert_eq!(decode(b"a b\xff%20c").unwrap(), b"a b\xff c");
        for bad in [&b"%"[..], b"%4", b"a%zz", b"%00", b"a%2fb", b"%+1"] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_could_confuse_is_quoted() {
        assert_eq!(show("a b ü".as_bytes()), "a b ü");
        assert_eq!(show(b"a\nb"), "$'a\\nb'");
        assert_eq!(show(b"a\xff'\x1b"), "$'a\\xff\\'\\x1b'");
        assert_eq!(show(b""), "$''");
        assert_eq!(show("a\u{202e}b\u{200b}".as_bytes()), "$'a\\xe2\\x80\\xaeb\\xe2\\x80\\x8b'");
    }

    #[test]
    fn a_path_may_lack_a_last_name() {
        assert_eq!(last_name(Path::new("/a/b/")), Some(OsStr::new("b")));
        for path in ["/", "", ".", "..", "a/.", "a/./", "a/..", "a/../"] {
            assert_eq!(last_name(Path::new(path)), None, "{path}");
        }
    }
}
