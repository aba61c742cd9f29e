//! Written time to microseconds since the epoch, UTC. Never through a float: a nanosecond count has more
//! digits than a double. Fractions are cut, downwards, to the microsecond.

use crate::schema::TimeFormats;

const MICROS: i64 = 1_000_000;

/// 0000-01-01 and 10000-01-01.
const YEAR_0: i64 = -62_167_219_200 * MICROS;
const YEAR_10000: i64 = 253_402_300_800 * MICROS;

/// What a timestamp's text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// Microseconds since the epoch.
    At(i64),
    /// The empty text: no time.
    Empty,
    /// No accepted form, or a time that doesn't exist.
    Unreadable,
}

/// Reads a JSON number or the text of a JSON string.
pub fn parse(text: &str, formats: TimeFormats) -> Time {
    if text.is_empty() {
        return Time::Empty;
    }
    let bytes = text.as_bytes();
    let found = match bytes[0] {
        b'0'..=b'9' if bytes.len() > 10 && bytes[4] == b'-' => calendar(bytes, formats),
        b'0'..=b'9' | b'-' | b'+' if formats.unix_auto => unix(text),
        b'A'..=b'Z' | b'a'..=b'z' if formats.rfc1123 => rfc1123(text),
        _ => None,
    };
    // No calendar that reads the tables goes beyond these years.
    found.filter(|micros| (YEAR_0..YEAR_10000).contains(micros)).map_or(Time::Unreadable, Time::At)
}

/// An epoch count, its unit told by magnitude: below 1e11 seconds, 1e14 ms, 1e17 µs, else ns.
fn unix(text: &str) -> Option<i64> {
    let count = super::number::integer(text)?;
    match count.unsigned_abs() {
        0..100_000_000_000 => count.checked_mul(MICROS),
        100_000_000_000..100_000_000_000_000 => count.checked_mul(1000),
        100_000_000_000_000..100_000_000_000_000_000 => Some(count),
        _ => Some(count.div_euclid(1000)),
    }
}

/// RFC 3339, or the same with a blank for the `T` and without an offset, which is UTC.
fn calendar(bytes: &[u8], formats: TimeFormats) -> Option<i64> {
    if bytes.len() < 19 || bytes[7] != b'-' || bytes[13] != b':' || bytes[16] != b':' {
        return None;
    }
    let (year, month, day) = (digits(&bytes[0..4])?, digits(&bytes[5..7])?, digits(&bytes[8..10])?);
    let clock = seconds_of_day(digits(&bytes[11..13])?, digits(&bytes[14..16])?, digits(&bytes[17..19])?)?;
    let seconds = days_from_civil(year, month, day)? * 86_400 + clock;
    let (micros, used) = fraction(&bytes[19..])?;
    let zone = &bytes[19 + used..];
    let offset = match (bytes[10], zone) {
        (b'T' | b't' | b' ', [b'Z' | b'z']) if formats.rfc3339 => 0,
        (b'T' | b't' | b' ', [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2]) if formats.rfc3339 => {
            let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
            let seconds = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
            if *sign == b'+' { seconds } else { -seconds }
        }
        (b' ', []) if formats.datetime => 0,
        _ => return None,
    };
    Some((seconds - offset) * MICROS + micros)
}

/// `.123456789` to microseconds, and how many bytes it took; nothing is no fraction.
fn fraction(bytes: &[u8]) -> Option<(i64, usize)> {
    if bytes.first() != Some(&b'.') {
        return Some((0, 0));
    }
    let count = bytes[1..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut micros = 0;
    for place in 0..6 {
        let digit = bytes.get(1 + place).filter(|_| place < count).map_or(0, |b| i64::from(b - b'0'));
        micros = micros * 10 + digit;
    }
    (count > 0).then_some((micros, count + 1))
}

/// `Fri, 21 Oct 2016 07:28:00 GMT`, or `UTC`. The weekday is not checked: servers get it wrong.
fn rfc1123(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (weekday, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let mut word = || words.next();
    let (day, month, year, clock, zone) = (word()?, word()?, word()?, word()?, word()?);
    let known_zone = matches!(zone, "GMT" | "UTC") && words.next().is_none();
    if weekday.len() != 3 || !weekday.bytes().all(|b| b.is_ascii_alphabetic()) || !known_zone {
        return None;
    }
    if day.is_empty() || day.len() > 2 || year.len() != 4 || clock.len() != 8 {
        return None;
    }
    let clock = clock.as_bytes();
    if clock[2] != b':' || clock[5] != b':' {
        return None;
    }
    let month = MONTHS.iter().position(|m| m.eq_ignore_ascii_case(month))? as i64 + 1;
    let days = days_from_civil(digits(year.as_bytes())?, month, digits(day.as_bytes())?)?;
    let seconds = seconds_of_day(digits(&clock[0..2])?, digits(&clock[3..5])?, digits(&clock[6..8])?)?;
    Some((days * 86_400 + seconds) * MICROS)
}

fn digits(bytes: &[u8]) -> Option<i64> {
    bytes.iter().try_fold(0, |sum, b| b.is_ascii_digit().then(|| sum * 10 + i64::from(b - b'0')))
}

/// A leap second, which RFC 3339 allows, is the first second of the next minute.
fn seconds_of_day(hour: i64, minute: i64, second: i64) -> Option<i64> {
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; none for a day that isn't there.
/// The year is taken to begin in March, so that the leap day is its last.
fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}
