//! What time it is at the database, as far as this process knows.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// The database's clock as last read. Its estimates are never late: they leave out what passed between a reading and its
/// arrival.
#[derive(Debug, Default)]
pub struct DatabaseTime(Mutex<Option<(Instant, DateTime<Utc>)>>);

impl DatabaseTime {
    /// Takes a reading that arrived just now.
    pub fn read(&self, time: DateTime<Utc>) {
        let reading = (Instant::now(), time);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
    }

    /// The database's time after this duration. `None`: its clock was not read yet.
    pub fn after(&self, duration: Duration) -> Option<DateTime<Utc>> {
        let reading = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, time) = reading?;
        let passed = TimeDelta::from_std(at.elapsed() + duration).ok()?;
        time.checked_add_signed(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_passes_from_the_latest_reading() {
        let time = DatabaseTime::default();
        assert_eq!(time.after(Duration::ZERO), None);
        time.read(DateTime::UNIX_EPOCH);
        std::thread::sleep(Duration::from_millis(2));
        let in_three = time.after(Duration::from_secs(3)).unwrap();
        assert!((3_002..60_000).contains(&in_three.timestamp_millis()));
    }
}
