//! Accounts as their owners see them: models, balance and usage, and the keys that open them.

mod keys;
mod routes;
