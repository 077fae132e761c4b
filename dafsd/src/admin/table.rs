//! Sessions as a table, for people.

use super::{SessionList, SessionReport};

/// What stands where nothing is known.
const NONE: &str = "-";
/// As much of a key as tells it from others at a glance.
const KEY: usize = 10;

/// The sessions, one a line under a heading, and who is fenced off. Every line has its end.
#[must_use]
pub fn table(list: &SessionList) -> String {
    let heading = ["CLIENT", "KEY", "PEER", "EXPORT", "LEVEL", "ENGINE", "OPEN", "SINCE", "IDLE"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(list.sessions.iter().map(row));
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  "));
        text.push_str(cells.collect::<String>().trim_end());
        text.push('\n');
    }
    if !list.fenced.is_empty() {
        text.push_str(&format!("fenced off: {}\n", list.fenced.join(", ")));
    }
    text
}

fn row(session: &SessionReport) -> [String; 9] {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| NONE.to_owned());
    // What a client calls itself is its own word only.
    let own = || Some(&session.client).filter(|own| !own.is_empty()).map(|own| format!("({own})"));
    [
        or_none(&session.name.clone().or_else(own)),
        or_none(
            &session.key.as_ref().map(|key| key.chars().take(KEY).chain("..".chars()).collect()),
        ),
        or_none(&session.peer),
        session.export.clone(),
        session.protection.clone(),
        or_none(&session.engine),
        session.open_files.to_string(),
        ago(session.age_ms),
        ago(session.idle_ms),
    ]
}

/// A time in its two largest units: `1d 2h`, `3m 4s`, `5s`.
fn ago(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(3);
    let mut text = format!("{}{}", seconds / units[first].0, units[first].1);
    if let Some((unit, name)) = units.get(first + 1) {
        text.push_str(&format!(" {}{name}", seconds % units[first].0 / unit));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3599, "59m 59s"), (93_784, "1d 2h")]
        {
            assert_eq!(ago(seconds * 1000 + 999), text);
        }
    }

    #[test]
    fn columns_stand_under_each_other() {
        let known = SessionReport {
            name: Some("web-1".to_owned()),
            key: Some("0123456789abcdef".to_owned()),
            client: "ls".to_owned(),
            peer: Some("10.0.0.1:5".to_owned()),
            export: "data".to_owned(),
            protection: "sealed".to_owned(),
            engine: Some("tcp".to_owned()),
            open_files: 12,
            age_ms: 3_600_000,
            idle_ms: 10,
        };
        let lost = SessionReport {
            name: None,
            key: None,
            peer: None,
            engine: None,
            protection: "none".to_owned(),
            ..known.clone()
        };
        let fenced = vec!["a".to_owned(), "b".to_owned()];
        let text = table(&SessionList { sessions: vec![known, lost], fenced });
        let expected = "\
CLIENT  KEY           PEER        EXPORT  LEVEL   ENGINE  OPEN  SINCE  IDLE
web-1   0123456789..  10.0.0.1:5  data    sealed  tcp     12    1h 0m  0s
(ls)    -             -           data    none    -       12    1h 0m  0s
fenced off: a, b
";
        assert_eq!(text, expected);
        assert_eq!(table(&SessionList::default()).lines().count(), 1);
    }
}
