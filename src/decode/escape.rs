//! The escapes in JSON strings.

/// The text of a string with escapes, appended to `out`. False, with `out` as it was, if it holds half a
/// surrogate pair: no text can hold that.
pub fn unescape(raw: &str, out: &mut String) -> bool {
    let before = out.len();
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let (letter, used) = match rest.as_bytes()[at + 1] {
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'n' => ('\n', 2),
            b'r' => ('\r', 2),
            b't' => ('\t', 2),
            b'u' => match unicode_escape(&rest[at..]) {
                Some(found) => found,
                None => {
                    out.truncate(before);
                    return false;
                }
            },
            same => (char::from(same), 2),
        };
        out.push(letter);
        rest = &rest[at + used..];
    }
    out.push_str(rest);
    true
}

/// The character that `\u` with its four digits (or a pair of these) at the head of `text` stands for, and
/// its length.
fn unicode_escape(text: &str) -> Option<(char, usize)> {
    let unit = |from: usize| text.get(from..from + 4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let first = unit(2)?;
    if let Some(plain) = char::from_u32(first) {
        return Some((plain, 6));
    }
    if first >= 0xdc00 || text.get(6..8) != Some("\\u") {
        return None;
    }
    let second = unit(8).filter(|u| (0xdc00..0xe000).contains(u))?;
    char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)).map(|c| (c, 12))
}
