//! Snapshots without values that differ from run to run.

use insta::{Settings, internals::SettingsBindDropGuard};

/// While this guard lives, snapshots on its thread show no ids, times, dates or addresses.
pub fn redacted() -> SettingsBindDropGuard {
    let mut settings = Settings::clone_current();
    for (pattern, shown) in [
        (r"http://127\.0\.0\.1:\d+", "https://HOST"),
        (r"\d{16}-[0-9a-f]{32}-", "[name]-"),
        (
            r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}",
            "[task]",
        ),
        (
            r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}",
            "[file]",
        ),
        (r"/20\d{6}/", "/[date]/"),
        (r"\b1[789]\d{8}\b", "[time]"),
    ] {
        settings.add_filter(pattern, shown);
    }
    settings.bind_to_scope()
}
