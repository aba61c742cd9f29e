//! A schedule in one value: an interval, or a cron expression.

use std::time::Duration;

use croner::Cron;
use serde::{Deserialize, Deserializer};

/// When something is done again.
#[derive(Debug, Clone)]
pub enum Every {
    /// So long after the last time: `10m`.
    Interval(Duration),
    /// At the times of a cron expression, in UTC: `0 3 * * *`.
    Cron(Box<Cron>),
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(interval) if interval.is_zero() => Err(format!("`{text}`: an interval of nothing")),
            Ok(interval) => Ok(Self::Interval(interval)),
            Err(_) => match text.parse::<Cron>() {
                Ok(cron) => Ok(Self::Cron(Box::new(cron))),
                Err(error) => Err(format!(
                    "`{text}` is neither a time, such as 10m, nor a cron expression, such as 0 3 * * * (every day at 3, UTC): {error}"
                )),
            },
        }
    }
}
