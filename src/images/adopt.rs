//! What earlier attempts of a task have left in storage. Their workers were lost, but what they had stored
//! was whole and is paid for: it is delivered, and no upstream is asked for it again.

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

/// The whole images of a task's earlier attempts. Costs nothing where there was none.
pub(super) async fn adopt(app: &App, task: &Task) -> Adopted {
    if task.fence <= store::FIRST_FENCE {
        return Adopted::new();
    }
    let adopted = find(app, task).await.unwrap_or_else(|error| {
        tracing::warn!(
            task.id = %task.id,
            error = &error as &dyn Error,
            "images of earlier attempts could not be looked for"
        );
        Adopted::new()
    });
    if !adopted.is_empty() {
        tracing::info!(task.id = %task.id, images = adopted.len(), "found images of an attempt that was lost");
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
    // Of several for one position the latest is taken.
    keys.sort_unstable_by_key(|(fence, seq, _)| (*seq, *fence));
    let mut adopted = Adopted::new();
    for (_, seq, key) in keys {
        if let Some(image) = read(app, &key).await? {
            adopted.insert(seq, image);
        }
    }
    Ok(adopted)
}

/// Reads an image once more, for what its row says and to be sure of it.
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
        object: key.to_string(),
        format: info.format,
        bytes,
        width: info.width,
        height: info.height,
    }
}
