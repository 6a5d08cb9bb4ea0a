//! Settings of a PostgreSQL server that risk data or cost time. The private server has none of them.

use sqlx::{PgConnection, query};

/// What a setting does to a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Acknowledged requests can be lost.
    Unsafe,
    /// Requests take longer.
    Slow,
}

/// A setting that should be another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What it does.
    pub effect: Effect,
    /// The setting, and what follows from it.
    pub text: String,
}

/// A rule about one setting.
struct Rule {
    name: &'static str,
    /// Accepted values: one of these words, or at least this many units of `pg_settings`.
    wanted: Wanted,
    effect: Effect,
    /// What follows from another value.
    because: &'static str,
}

enum Wanted {
    On,
    Not(&'static str),
    AtLeast(i64),
}

const RULES: [Rule; 7] = [
    Rule {
        name: "fsync",
        wanted: Wanted::On,
        effect: Effect::Unsafe,
        because: "a crash of its machine can destroy the database",
    },
    Rule {
        name: "full_page_writes",
        wanted: Wanted::On,
        effect: Effect::Unsafe,
        because: "a crash of its machine can destroy pages of the database",
    },
    Rule {
        name: "synchronous_commit",
        wanted: Wanted::Not("off"),
        effect: Effect::Unsafe,
        because: "a crash of the server loses requests that were acknowledged",
    },
    Rule {
        name: "autovacuum",
        wanted: Wanted::On,
        effect: Effect::Slow,
        because: "open tasks leave dead rows behind, and the queue gets slower with each",
    },
    Rule {
        // In pages of 8 kB.
        name: "shared_buffers",
        wanted: Wanted::AtLeast(128 * 1024 / 8),
        effect: Effect::Slow,
        because: "below 128 MB, indexes are read from the disk again and again",
    },
    Rule {
        // In MB.
        name: "max_wal_size",
        wanted: Wanted::AtLeast(1024),
        effect: Effect::Slow,
        because: "below 1 GB, a busy gateway causes checkpoints all the time, and after each every page is logged whole",
    },
    Rule {
        // In seconds.
        name: "checkpoint_timeout",
        wanted: Wanted::AtLeast(300),
        effect: Effect::Slow,
        because: "below 5 min, checkpoints are frequent, and after each every page is logged whole",
    },
];

/// Looks for settings that should be others.
pub async fn advice(conn: &mut PgConnection) -> sqlx::Result<Vec<Advice>> {
    let mut advice = Vec::new();
    for rule in RULES {
        let setting = query!(
            r#"SELECT setting AS "value!", current_setting(name) AS "shown!" FROM pg_settings WHERE name = $1"#,
            rule.name
        );
        if let Some(setting) = setting.fetch_optional(&mut *conn).await?
            && !rule.accepts(&setting.value)
        {
            advice.push(Advice {
                effect: rule.effect,
                text: format!("{} = {}: {}", rule.name, setting.shown, rule.because),
            });
        }
    }
    Ok(advice)
}

impl Rule {
    /// Whether a value, in the unit of `pg_settings`, is fine.
    fn accepts(&self, value: &str) -> bool {
        match self.wanted {
            Wanted::On => value == "on",
            Wanted::Not(word) => value != word,
            Wanted::AtLeast(least) => value.parse().is_ok_and(|value: i64| value >= least),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_accept_what_is_safe_and_large_enough() {
        let accepts = |name: &str, value: &str| {
            let rule = RULES.iter().find(|rule| rule.name == name).unwrap();
            rule.accepts(value)
        };
        for (name, good, bad) in [
            ("fsync", "on", "off"),
            ("synchronous_commit", "remote_apply", "off"),
            ("shared_buffers", "16384", "16383"),
            ("max_wal_size", "1024", "80"),
            ("checkpoint_timeout", "300", "30"),
        ] {
            assert!(accepts(name, good), "{name} = {good}");
            assert!(!accepts(name, bad), "{name} = {bad}");
        }
    }
}
