//! Adopts images that earlier attempts of a task have stored. Their workers were lost, but the stored
//! images are whole and paid for: they are delivered and not requested from an upstream again.

use std::{collections::BTreeMap, error::Error};

use futures_util::TryStreamExt;

use crate::{
    app::App,
    image::{Filter, ImageInfo, Metadata},
    storage::{Key, StorageError},
    tasks::{Image, Task, store},
};

/// Images by their positions in the task, from 1.
pub(super) type Adopted = BTreeMap<u8, Image>;

/// Returns the whole images of a task's earlier attempts. A first attempt costs no storage request.
pub(super) async fn adopt(app: &App, task: &Task) -> Adopted {
    if task.fence <= store::FIRST_FENCE {
        return Adopted::new();
    }
    let adopted = find(app, task).await.unwrap_or_else(|error| {
        tracing::warn!(
            error = &error as &dyn Error,
            "images of earlier attempts could not be listed"
        );
        Adopted::new()
    });
    if !adopted.is_empty() {
        tracing::info!(images = adopted.len(), "adopted images of a lost attempt");
    }
    adopted
}

async fn find(app: &App, task: &Task) -> Result<Adopted, StorageError> {
    let mut keys: Vec<(i64, u8, Key)> = app
        .storage
        .images_of(task.id)
        .await?
        .into_iter()
        .filter_map(|key| key.fence_and_seq().map(|(fence, seq)| (fence, seq, key)))
        .filter(|(fence, seq, _)| *fence < task.fence && (1..=task.request.n).contains(seq))
        .collect();
    // If several are stored for one position, the latest wins.
    keys.sort_unstable_by_key(|(fence, seq, _)| (*seq, *fence));
    let mut adopted = Adopted::new();
    for (_, seq, key) in keys {
        if let Some(image) = read(app, &key).await? {
            adopted.insert(seq, image);
        }
    }
    Ok(adopted)
}

/// Reads a stored image again, to verify it and to fill in its row.
async fn read(app: &App, key: &Key) -> Result<Option<Image>, StorageError> {
    let Some(mut object) = app.storage.read(key, None).await? else {
        return Ok(None);
    };
    let mut filter = Filter::new(Metadata::Keep, app.image_limits());
    let mut passed = Vec::new();
    while let Some(piece) = object.stream.try_next().await? {
        if filter.push(piece, &mut passed).is_err() {
            return Ok(None);
        }
        passed.clear();
    }
    Ok(filter
        .finish()
        .ok()
        .map(|info| image(key, object.size, info)))
}

fn image(key: &Key, bytes: u64, info: ImageInfo) -> Image {
    Image {
        object: key.clone(),
        format: info.format,
        bytes,
        width: info.width,
        height: info.height,
    }
}
