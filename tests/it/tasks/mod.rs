//! Tasks as clients see them: submitted in both modes, polled, listed and repeated.

mod modes;
mod polling;
mod repeats;
