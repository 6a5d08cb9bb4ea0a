//! Money: integer micro-CNY inside, exact decimals at the edges, never floats.

use std::{
    fmt,
    iter::Sum,
    ops::{Add, Mul, Sub},
    str::FromStr,
};

use rust_decimal::{Decimal, prelude::ToPrimitive};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

const MICROS_PER_YUAN: i64 = 1_000_000;

/// An amount of CNY, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct Cny(i64);

/// A text or number that is not a valid amount.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an amount of CNY: must be a number with at most six decimals, like 0.20")]
pub struct InvalidAmount(String);

impl Cny {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// An amount of this many millionths of a CNY.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The amount in millionths of a CNY.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The amount in CNY, without trailing zeros.
    pub fn to_decimal(self) -> Decimal {
        Decimal::new(self.0, 6).normalize()
    }
}

impl TryFrom<Decimal> for Cny {
    type Error = InvalidAmount;

    fn try_from(amount: Decimal) -> Result<Self, InvalidAmount> {
        amount
            .checked_mul(Decimal::from(MICROS_PER_YUAN))
            .filter(|micros| micros.fract().is_zero())
            .and_then(|micros| micros.to_i64())
            .map(Self)
            .ok_or_else(|| InvalidAmount(amount.to_string()))
    }
}

impl FromStr for Cny {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        Decimal::from_str_exact(text.trim())
            .ok()
            .and_then(|amount| Self::try_from(amount).ok())
            .ok_or_else(|| InvalidAmount(text.to_owned()))
    }
}

/// At least two decimal places, as prices are written: `0.20`, `1.234567`.
impl fmt::Display for Cny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut amount = self.to_decimal();
        if amount.scale() < 2 {
            amount.rescale(2);
        }
        amount.fmt(f)
    }
}

/// A JSON number, as clients of the wire format expect: `0.2`.
impl Serialize for Cny {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let amount = self.to_decimal();
        match amount.to_f64() {
            Some(number) => serializer.serialize_f64(number),
            None => Err(ser::Error::custom(format!(
                "{amount} CNY cannot be written as a number"
            ))),
        }
    }
}

/// Reads a string, so that the text never passes through a float.
impl<'de> Deserialize<'de> for Cny {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Add for Cny {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Cny {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Mul<u32> for Cny {
    type Output = Self;
    fn mul(self, count: u32) -> Self {
        Self(self.0.saturating_mul(i64::from(count)))
    }
}

impl Sum for Cny {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly_or_refused() {
        assert_eq!("0.20".parse::<Cny>().unwrap().micros(), 200_000);
        assert_eq!(" 100 ".parse::<Cny>().unwrap().micros(), 100_000_000);
        for bad in ["", "0.1234567", "1e3", "NaN", "9223372036855", "¥1"] {
            assert!(bad.parse::<Cny>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn json_shows_a_plain_number() {
        let shown = |micros| serde_json::to_string(&Cny::from_micros(micros)).unwrap();
        assert_eq!(shown(200_000), "0.2");
        assert_eq!(shown(100_000_000), "100.0");
        assert_eq!(shown(0), "0.0");
        assert_eq!(shown(1), "1e-6");
    }

    #[test]
    fn display_shows_at_least_two_decimal_places() {
        assert_eq!(Cny::from_micros(200_000).to_string(), "0.20");
        assert_eq!(Cny::from_micros(1_234_567).to_string(), "1.234567");
    }
}
