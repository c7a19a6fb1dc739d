//! Variables of the environment.

use std::env::VarError;

use crate::error::{Error, Result};

/// The value of a variable, if it is set.
///
/// # Errors
/// It is not UTF-8; the message names the variable.
pub(crate) fn variable(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(e) => Err(Error::input(name, e)),
    }
}
