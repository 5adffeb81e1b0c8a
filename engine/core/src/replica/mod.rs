//! One copy of one segment: primary, backup, election, catch-up. (Being written; `io` is its contract.)

pub mod io;
