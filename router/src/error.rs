//! Errors for people: one line, what failed and what to do.

use std::fmt;
use std::process::ExitCode;

/// Why a command was not done. Nothing is left behind.
#[derive(Debug)]
pub enum Failure {
    /// The command made no sense: exit status 2.
    Usage(String),
    /// It could not be done: exit status 1.
    CouldNot(String),
}

/// What commands return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Something could not be done.
    pub fn new(message: impl Into<String>) -> Self {
        Failure::CouldNot(message.into())
    }

    /// The exit status for it.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            Failure::CouldNot(_) => ExitCode::from(1),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Messages of libraries stay on one line.
            Failure::Usage(message) | Failure::CouldNot(message) => f.write_str(&message.replace('\n', " ")),
        }
    }
}

/// Says what was being done when an error came.
pub trait Doing<T> {
    /// `what`: "cannot ...".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::CouldNot(format!("{}: {error}", what())))
    }
}
