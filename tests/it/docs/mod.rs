//! What the documents say: their commands run, and the tests they cite exist.

mod readme;
mod reliability;
