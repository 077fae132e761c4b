//! Attributes, sizes and times for people and for machines.

use crate::json::Json;
use crate::names;
use dafs_client::{Attr, FileType, Time};
use std::time::Duration;

/// The type as `ls -l` has it.
fn type_letter(kind: FileType) -> char {
    match kind {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::Character => 'c',
        FileType::Block => 'b',
        FileType::MountPoint => 'm',
        FileType::Unknown => '?',
    }
}

/// The type in words.
pub fn type_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Regular => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Character => "character device",
        FileType::Block => "block device",
        FileType::MountPoint => "mount point",
        FileType::Unknown => "unknown",
    }
}

/// Type and permission bits, as in `-rwxr-sr-x`.
pub fn mode(attr: &Attr) -> String {
    let bit = |mask: u32| attr.mode & mask != 0;
    let mut text = String::from(type_letter(attr.r#type()));
    for (shift, special, set, clear) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        text.push(if bit(4 << shift) { 'r' } else { '-' });
        text.push(if bit(2 << shift) { 'w' } else { '-' });
        text.push(match (bit(special), bit(1 << shift)) {
            (true, true) => set,
            (true, false) => clear,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A time in UTC, as in `2026-01-31 23:59:59Z`.
pub fn time(time: Option<Time>) -> String {
    let Some(time) = time else { return "-".into() };
    let (days, second) = (time.seconds.div_euclid(86400), time.seconds.rem_euclid(86400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar; counts in eras
/// of 400 years that begin in March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i128, i128, i128) {
    let days = i128::from(days) + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i128::from(month <= 2), month, day)
}

/// A size for people, as in `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10) as usize;
    // For people: the precision of a double is plenty.
    let value = bytes as f64 / 2f64.powi(10 * power as i32);
    format!("{value:.1} {}", UNITS[power - 1])
}

/// A duration for people: microseconds with one decimal where it is short.
pub fn micros(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    if micros < 10_000.0 { format!("{micros:.1} us") } else { format!("{:.1} ms", micros / 1e3) }
}

/// A name for machines: as text, which may have lost something, and exactly, percent-encoded.
pub fn name_json(name: &[u8]) -> [(String, Json); 2] {
    [
        ("name".into(), Json::text(String::from_utf8_lossy(name))),
        ("encoded".into(), Json::text(names::encode(name))),
    ]
}

/// Attributes for machines; times in seconds and nanoseconds since 1970.
pub fn attr_json(attr: &Attr) -> Vec<(String, Json)> {
    let time = |time: Option<Time>| match time {
        None => Json::Null,
        Some(time) => Json::object([
            ("seconds", Json::number(time.seconds)),
            ("nanoseconds", Json::number(time.nanoseconds)),
        ]),
    };
    let fields = [
        ("type", Json::text(type_name(attr.r#type()))),
        ("mode", Json::text(format!("{:04o}", attr.mode))),
        ("links", Json::number(attr.nlink)),
        ("uid", Json::number(attr.uid)),
        ("gid", Json::number(attr.gid)),
        ("size", Json::number(attr.size)),
        ("used", Json::number(attr.used)),
        ("inode", Json::number(attr.inode)),
        ("atime", time(attr.atime)),
        ("mtime", time(attr.mtime)),
        ("ctime", time(attr.ctime)),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (951_827_696, "2000-02-29 12:34:56Z"),
            (1_767_225_599, "2025-12-31 23:59:59Z"),
            (-2_208_988_800, "1900-01-01 00:00:00Z"),
        ] {
            assert_eq!(time(Some(Time { seconds, nanoseconds: 0 })), text);
        }
        // Nothing that a server can say makes it fail.
        for seconds in [i64::MIN, i64::MAX] {
            assert!(time(Some(Time { seconds, nanoseconds: 0 })).ends_with('Z'));
        }
    }

    #[test]
    fn modes_show_the_special_bits() {
        let mut attr = Attr { mode: 0o6751, ..Attr::default() };
        attr.set_type(FileType::Regular);
        assert_eq!(mode(&attr), "-rwsr-s--x");
        attr.mode = 0o1776;
        attr.set_type(FileType::Directory);
        assert_eq!(mode(&attr), "drwxrwxrwT");
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
    }
}
