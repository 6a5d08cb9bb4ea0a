//! Adopts images that earlier attempts of a task have stored. Their workers were lost, but the stored
//! images are whole and paid for: they are delivered and not requested from an upstream again.

use std::{collections::BTreeMap, error::Error};

use futures_util::TryStreamExt;

use crate::{
    app::App,
    failure::Class,
    image::{Filter, ImageInfo, Metadata},
    storage::{Key, StorageError},
    tasks::{Attempt, Claim, Image, Task, store},
};

/// Images by their positions in the task, from 1.
pub(super) type Adopted = BTreeMap<u8, Image>;

/// Returns the whole images of a task's earlier attempts. It costs no storage request if these have reported all that
/// they delivered.
pub(super) async fn adopt(app: &App, Claim { task, assignment }: &Claim) -> Adopted {
    if have_all_reported(task.fence, &assignment.tried) {
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

/// Whether every earlier claim of a task ended with a report. A claim raises the fence by one, and so does its end. Claims
/// that left no attempt behind were given back at a shutdown, or had not begun.
fn have_all_reported(fence: i64, tried: &[Attempt]) -> bool {
    let has_reported = |attempt: &&Attempt| {
        // A lost worker reported nothing, and images that could not be stored in time may have been stored later.
        !matches!(attempt.class, Some(Class::Lost | Class::Internal))
    };
    let reported = tried.iter().filter(has_reported).count();
    let claims_before = (fence - store::FIRST_FENCE) / 2;
    usize::try_from(claims_before).is_ok_and(|claims| claims == reported)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_claims_without_a_report_can_have_left_images() {
        let attempt = |class| Attempt {
            route: "up".to_owned(),
            jobs: Vec::new(),
            duration_ms: 1,
            class: Some(class),
        };
        let [failed, lost, internal] = [Class::Failed, Class::Lost, Class::Internal].map(attempt);
        for (fence, tried, all) in [
            (1, vec![], true),
            (3, vec![failed.clone()], true),
            (5, vec![failed.clone(), failed.clone()], true),
            // Given back in between.
            (3, vec![], false),
            (5, vec![failed.clone()], false),
            (3, vec![lost.clone()], false),
            (5, vec![failed.clone(), lost], false),
            (5, vec![failed, internal], false),
        ] {
            assert_eq!(have_all_reported(fence, &tried), all, "{fence} {tried:?}");
        }
    }
}
