//! Why a request is not valid.

use crate::{billing::Refusal, image::SizeError, images::intake::IntakeError};

/// Why a request is refused before it is submitted, or could not be resolved. The texts are for the client.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A parameter is missing, malformed or not supported.
    #[error("{message}")]
    Invalid {
        /// The parameter at fault, under the name that clients use.
        param: String,
        /// What is wrong, and what is allowed.
        message: String,
    },
    /// The model is not configured. `allowed` lists those that are.
    #[error("no such model: {name}, allowed: {allowed}")]
    UnknownModel {
        /// The name that the client sent.
        name: String,
        /// The names of all models, separated by commas.
        allowed: String,
    },
    /// The account cannot pay it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The image in a data URL could not be stored.
    #[error("{error}")]
    Inline {
        /// The parameter that holds the URL.
        param: &'static str,
        /// Why it could not be stored.
        #[source]
        error: IntakeError<InvalidDataUrl>,
    },
    /// The database failed, while looking up what `param` names or, without one, the account.
    #[error("the database did not answer")]
    Database {
        /// The parameter that names what was looked up.
        param: Option<&'static str>,
        /// The error of the query.
        #[source]
        cause: sqlx::Error,
    },
}

/// A data URL that is not of a base64 image.
#[derive(Debug, thiserror::Error)]
#[error("a data URL must be data:image/…;base64, followed by valid base64")]
pub struct InvalidDataUrl;

impl RequestError {
    /// The error of one parameter. Says what is wrong and what is allowed.
    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid {
            param: param.to_owned(),
            message: message.into(),
        }
    }
}

impl From<SizeError> for RequestError {
    fn from(error: SizeError) -> Self {
        Self::invalid(error.field, error.message)
    }
}

impl From<sqlx::Error> for RequestError {
    fn from(cause: sqlx::Error) -> Self {
        Self::Database { param: None, cause }
    }
}
