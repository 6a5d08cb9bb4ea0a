//! What a task draws from: its references and its mask, the foreign ones fetched and stored first, so
//! that a backend reads all of them in one way, and as often as it likes.

use std::{error::Error, sync::Arc};

use futures_util::StreamExt;

use super::intake::{self, IntakeError, Origin, Reach};
use crate::{
    app::App,
    backend::{Input, OpenInput},
    references::FetchError,
    storage::Key,
    tasks::{Failure, FailureKind, Reference, StoredReference, Task},
};

/// The images of a task, ready to be read.
pub struct Inputs {
    pub references: Vec<Input>,
    pub mask: Option<Input>,
}

/// Makes the images of a task ready. The task fails with the first that cannot be.
pub async fn open_all(app: &App, task: &Task) -> Result<Inputs, Failure> {
    let request = &task.request;
    let mut references = Vec::with_capacity(request.references.len());
    for (index, reference) in request.references.iter().enumerate() {
        let name = format!("reference image {}", index + 1);
        references.push(input(app, task, reference, &name).await?);
    }
    let mask = match &request.mask {
        Some(mask) => Some(input(app, task, mask, "mask").await?),
        None => None,
    };
    Ok(Inputs { references, mask })
}

async fn input(
    app: &App,
    task: &Task,
    reference: &Reference,
    name: &str,
) -> Result<Input, Failure> {
    let stored = match reference {
        Reference::Stored(stored) => stored.clone(),
        Reference::Foreign(url) => fetch(app, task, url).await.map_err(|error| {
            tracing::info!(task.id = %task.id, error = &error as &dyn Error, "a reference was not taken");
            failed(FailureKind::Reference, &reference_message(name, &error))
        })?,
    };
    open(app, &stored)
}

async fn fetch(
    app: &App,
    task: &Task,
    url: &url::Url,
) -> Result<StoredReference, IntakeError<FetchError>> {
    let origin = Origin {
        account_id: task.account_id,
        file_name: None,
        reach: Reach::Unlinked,
    };
    let fetched = app.references.fetch(url).await.map_err(IntakeError::Read)?;
    Ok(intake::take_in(app, origin, fetched.stream)
        .await?
        .into_reference())
}

/// Says what is wrong with the image, but nothing about the network.
fn reference_message(name: &str, error: &IntakeError<FetchError>) -> String {
    match error {
        IntakeError::Invalid(invalid) => format!("{name}: {invalid}"),
        IntakeError::TooLarge { .. } => format!("{name}: {error}"),
        IntakeError::Read(_) => format!("{name} could not be fetched"),
        IntakeError::Storage(_) | IntakeError::Database(_) => format!("{name} could not be stored"),
    }
}

fn open(app: &App, stored: &StoredReference) -> Result<Input, Failure> {
    let key: Key = stored
        .object
        .parse()
        .ok()
        .ok_or_else(|| failed(FailureKind::Internal, "a reference is no longer stored"))?;
    let storage = app.storage.clone();
    let open: OpenInput = Arc::new(move || {
        let (storage, key) = (storage.clone(), key.clone());
        Box::pin(async move {
            let object = storage
                .read(&key, None)
                .await
                .map_err(std::io::Error::other)?;
            let object = object.ok_or(std::io::ErrorKind::NotFound)?;
            Ok(object
                .stream
                .map(|piece| piece.map_err(std::io::Error::other))
                .boxed())
        })
    });
    Ok(Input {
        format: stored.format,
        length: stored.bytes,
        open,
    })
}

fn failed(kind: FailureKind, message: &str) -> Failure {
    Failure {
        kind,
        message: message.to_owned(),
    }
}
