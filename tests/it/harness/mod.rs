//! What the tests share: servers to run against, and settings to run with.

pub(crate) mod s3;
