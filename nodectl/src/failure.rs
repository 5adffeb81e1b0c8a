//! What went wrong, for a person and for a script: exit codes and the three sentences of an error.
//!
//! Every error says what was wrong, what was left untouched and what to do next; the exit code alone tells a script
//! which of these to do (DESIGN 8).

use std::fmt;
use std::process::ExitCode;

/// Exit codes other than 0; part of the contract, never renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It was tried and did not work.
    Failed = 1,
    /// The command line says something that can't be meant.
    Usage = 2,
    /// The thing named does not exist.
    NotFound = 3,
    /// It would be unsafe.
    Refused = 4,
    /// Not in this state.
    IllegalState = 5,
    /// It may still happen; it did not within the time limit.
    WaitTimedOut = 6,
    /// It was looked at, and is not what it should be.
    Damaged = 7,
    /// Nobody answers at the address.
    CannotConnect = 20,
    /// Somebody is there and did not answer in time.
    DeadlinePassed = 21,
}

/// An error on its way to the person who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) exit: Exit,
    /// What was wrong.
    pub(crate) what: String,
    /// What was left untouched; empty where `what` already says so.
    pub(crate) untouched: String,
    /// The next command; empty where there is none.
    pub(crate) next: String,
}

impl Failure {
    /// An error with its exit code.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), untouched: String::new(), next: String::new() }
    }

    /// [`Exit::Failed`].
    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failed, what)
    }

    /// [`Exit::Usage`]; nothing was done yet, and it says so.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what).untouched("nothing was done")
    }

    /// Adds what was left untouched.
    #[must_use]
    pub(crate) fn untouched(mut self, text: impl Into<String>) -> Self {
        self.untouched = text.into();
        self
    }

    /// Adds the next command.
    #[must_use]
    pub(crate) fn next(mut self, text: impl Into<String>) -> Self {
        self.next = text.into();
        self
    }

    /// Prints it and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("{self}");
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if !self.untouched.is_empty() {
            write!(f, "\n  untouched: {}", self.untouched)?;
        }
        if !self.next.is_empty() {
            write!(f, "\n  next: {}", self.next)?;
        }
        Ok(())
    }
}

/// Adds "doing what" to an error of the operating system.
pub(crate) trait Context<T> {
    /// `what` completes "could not ...".
    fn could_not(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn could_not(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(format!("could not {}: {error}", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_three_sentences() {
        let failure =
            Failure::new(Exit::IllegalState, "n3 is lost").untouched("nothing was changed").next("nodectl status");
        assert_eq!(failure.to_string(), "error: n3 is lost\n  untouched: nothing was changed\n  next: nodectl status");
        assert_eq!(Failure::failed("x").to_string(), "error: x");
    }

    #[test]
    fn exit_codes_are_the_contract() {
        let table = [
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::NotFound, 3),
            (Exit::Refused, 4),
            (Exit::IllegalState, 5),
            (Exit::WaitTimedOut, 6),
            (Exit::Damaged, 7),
            (Exit::CannotConnect, 20),
            (Exit::DeadlinePassed, 21),
        ];
        for (exit, number) in table {
            assert_eq!(exit as u8, number);
        }
    }
}
