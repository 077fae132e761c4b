//! Text that a peer wrote, as people are shown it: in a log, in an error, on a terminal.

use std::fmt::Write;

/// Most bytes of one text of a peer's in a log or an error.
pub const MOST: usize = 256;

/// Whether a character does nothing to what stands around it. Control characters move a terminal's
/// cursor and worse; marks of direction and characters without width make a text look like another.
#[must_use]
pub fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            // Soft hyphen, Arabic letter mark, the fillers of Hangul, the Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{180e}'
            // Without width; marks of direction; line and paragraph separator.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            // Byte order mark, annotations, tags.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text with escapes, as `\u{1b}`, for what is not [harmless](is_harmless). At most `most` bytes
/// of it are shown; where there is more, its length is said instead.
#[must_use]
pub fn shown_within(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        let before = shown.len();
        if is_harmless(c) {
            shown.push(c);
        } else {
            _ = write!(shown, "{}", c.escape_unicode());
        }
        if shown.len() > most {
            shown.truncate(before);
            _ = write!(shown, "... ({} bytes)", text.len());
            break;
        }
    }
    shown
}

/// As [`shown_within`], of at most [`MOST`] bytes.
#[must_use]
pub fn shown(text: &str) -> String {
    shown_within(text, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_mislead_is_escaped_and_the_rest_is_as_it_was() {
        for text in ["", "plain", "Grüße, мир, 漢字 \u{1f600}", "a'b\\c"] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("\u{1b}[2J\u{9b}m\n"), "\\u{1b}[2J\\u{9b}m\\u{a}");
        assert_eq!(shown("a\u{202e}fdp.exe"), "a\\u{202e}fdp.exe");
        for c in ['\u{200b}', '\u{200d}', '\u{2066}', '\u{feff}', '\u{ad}', '\u{e0041}', '\u{7f}'] {
            assert_eq!(shown(&c.to_string()), c.escape_unicode().to_string());
        }
    }

    #[test]
    fn long_text_is_cut_where_a_character_ends_and_its_length_is_said() {
        let text = "ä".repeat(30_000);
        assert_eq!(shown(&text), format!("{}... (60000 bytes)", "ä".repeat(MOST / 2)));
        assert_eq!(shown(&"x".repeat(MOST)), "x".repeat(MOST));
        // Escapes count as what they are.
        assert!(shown(&"\u{202e}".repeat(1000)).len() <= MOST + 20);
        assert_eq!(shown_within("abc", 0), "... (3 bytes)");
    }
}
