//! Numbers and booleans as Cloudflare writes them: as JSON numbers, or as text.

/// A whole number: digits, or a decimal whose value is whole (`1.0`, `1e3`). Exact, never through a float.
/// None for anything else, and for what an i64 can't hold.
pub fn integer(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let (negative, digits) = match bytes.first()? {
        b'-' => (true, &bytes[1..]),
        b'+' => (false, &bytes[1..]),
        _ => (false, bytes),
    };
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return decimal(digits, negative);
    }
    let value = digits.iter().fold(0i64, |sum, b| sum * 10 + i64::from(b - b'0'));
    Some(if negative { -value } else { value })
}

/// The long way round: mantissa digits and a power of ten.
fn decimal(text: &[u8], negative: bool) -> Option<i64> {
    let split = text.iter().position(|b| matches!(b, b'e' | b'E'));
    let (mantissa, exponent) = match split {
        Some(at) => (&text[..at], exponent(&text[at + 1..])?),
        None => (text, 0),
    };
    let (whole, fraction) = match mantissa.iter().position(|b| *b == b'.') {
        Some(at) if at + 1 < mantissa.len() => (&mantissa[..at], &mantissa[at + 1..]),
        Some(_) => return None,
        None => (mantissa, &b""[..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let digits: Vec<u8> = whole.iter().chain(fraction).copied().skip_while(|b| *b == b'0').collect();
    let significant = digits.len() - digits.iter().rev().take_while(|b| **b == b'0').count();
    if significant == 0 {
        return Some(0);
    }
    let power = exponent - fraction.len() as i64 + (digits.len() - significant) as i64;
    if power < 0 || power + significant as i64 > 19 {
        return None;
    }
    let value = digits[..significant].iter().fold(0i128, |sum, b| sum * 10 + i128::from(b - b'0'))
        * 10i128.pow(power as u32);
    i64::try_from(if negative { -value } else { value }).ok()
}

fn exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Far beyond any i64, and far below any overflow of the sums made with it.
    let value = digits.iter().fold(0i64, |sum, b| (sum * 10 + i64::from(b - b'0')).min(1 << 40));
    Some(if negative { -value } else { value })
}

/// A finite 32-bit float written as JSON writes numbers, with a leading `+` allowed.
pub fn float(text: &str) -> Option<f32> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let numeric = digits.as_bytes().first().is_some_and(u8::is_ascii_digit)
        && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if !numeric || digits.ends_with('.') {
        return None;
    }
    text.parse().ok().filter(|f: &f32| f.is_finite())
}

/// True and false as text, in every spelling that Panther's decoder takes.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
