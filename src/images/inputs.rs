//! Prepares a task's inputs: its references and its mask. Foreign references are fetched and stored
//! first, so that a backend reads all inputs in the same way, as often as it needs to.

use std::{error::Error, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, stream};
use url::Url;

use super::{
    intake::{self, IntakeError, Origin, Visibility},
    retry::failed,
    stored_inputs::StoredInputs,
};
use crate::{
    app::App,
    backend::{Input, MakeLink, OpenInput},
    references::{FetchBudget, FetchError},
    storage::{Disposition, Key},
    tasks::{Failure, FailureKind, Reference, StoredReference, Task},
};

/// The inputs of a task, ready to be read.
pub(super) struct Inputs {
    /// In the request's order.
    pub(super) references: Vec<Input>,
    /// The mask, if the request has one.
    pub(super) mask: Option<Input>,
}

/// Why an input could not be prepared.
#[derive(Debug)]
pub(super) enum InputError {
    /// The input is not usable: the task fails.
    Unusable(Failure),
    /// Storage or the database failed: the task can be begun again.
    NotStored,
}

/// Prepares the inputs of a task, several at a time. Errors with the first one that cannot be prepared.
pub(super) async fn open_all(app: &App, task: &Task) -> Result<Inputs, InputError> {
    let request = &task.request;
    let allowance = app.references.allowance();
    let named = (1..).map(|number| format!("reference image {number}"));
    let all = request.references.iter().zip(named);
    let all = all.chain(request.mask.iter().map(|mask| (mask, "mask".to_owned())));
    let opening: Vec<_> = all
        .map(|(reference, name)| input(app, task, reference, name, &allowance))
        .collect();
    let mut references: Vec<Input> = stream::iter(opening)
        .buffered(app.config.references.fetches_max)
        .try_collect()
        .await?;
    let mask = references.split_off(request.references.len()).pop();
    Ok(Inputs { references, mask })
}

async fn input(
    app: &App,
    task: &Task,
    reference: &Reference,
    name: String,
    allowance: &Arc<FetchBudget>,
) -> Result<Input, InputError> {
    let stored = match reference {
        Reference::Stored(stored) => stored.clone(),
        Reference::Foreign(url) => fetch(app, task, url, allowance).await.map_err(|error| {
            tracing::info!(
                error = &error as &dyn Error,
                "a reference could not be fetched"
            );
            failure(&name, &error)
        })?,
    };
    Ok(open(app, &stored))
}

async fn fetch(
    app: &App,
    task: &Task,
    url: &Url,
    allowance: &Arc<FetchBudget>,
) -> Result<StoredReference, IntakeError<FetchError>> {
    let origin = Origin {
        account_id: task.account_id,
        file_name: None,
        visibility: Visibility::Unlinked,
    };
    let fetched = app.references.fetch(url, allowance).await;
    let stream = fetched.map_err(IntakeError::Read)?.stream;
    let mut inputs = StoredInputs::default();
    let ingested = intake::ingest(app, origin, stream, &mut inputs).await?;
    inputs.keep();
    Ok(ingested.into_reference())
}

/// Describes what is wrong with the input, but reveals nothing about the network.
fn failure(name: &str, error: &IntakeError<FetchError>) -> InputError {
    let message = match error {
        IntakeError::Invalid(invalid) => format!("{name}: {invalid}"),
        IntakeError::TooLarge { .. } | IntakeError::Full { .. } => format!("{name}: {error}"),
        IntakeError::Read(error) => format!("{name} {error}"),
        IntakeError::Storage(_) | IntakeError::Database(_) => return InputError::NotStored,
    };
    InputError::Unusable(failed(FailureKind::Reference, &message))
}

fn open(app: &App, stored: &StoredReference) -> Input {
    let key = stored.object.clone();
    let storage = app.storage.clone();
    let read = key.clone();
    let open: OpenInput = Arc::new(move || {
        let (storage, key) = (storage.clone(), read.clone());
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
    Input {
        format: stored.format,
        length: stored.bytes,
        open,
        link: Some(linked(app, &key)),
    }
}

fn linked(app: &App, key: &Key) -> MakeLink {
    let (storage, key) = (app.storage.clone(), key.clone());
    Arc::new(move || {
        let (storage, key) = (storage.clone(), key.clone());
        Box::pin(async move {
            let link = storage.link(&key, Disposition::Inline).await;
            Ok(link.map_err(std::io::Error::other)?.url)
        })
    })
}
