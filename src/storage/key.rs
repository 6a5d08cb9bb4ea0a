//! Names of stored objects. There are two shapes and nothing else parses, so a key cannot leave its root or name an
//! object that the gateway did not write.

use std::{fmt, str::FromStr};

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgTypeInfo, PgValueRef},
};
use uuid::{Uuid, fmt::Hyphenated};

use crate::{
    ids::{TaskId, UploadId},
    image::Format,
};

/// The path of a stored object. Its extension gives the image format.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key {
    text: String,
    format: Format,
}

/// The text is not a valid key.
#[derive(Debug, thiserror::Error)]
#[error(
    "no storage key: {0:?}, allowed: uploads/{{date}}/{{id}}.{{ext}}, images/{{hex}}/{{task}}-{{fence}}-{{seq}}.{{ext}}"
)]
pub struct InvalidKey(String);

impl Key {
    /// `uploads/{YYYYMMDD}/{id}.{ext}`: a day's uploads expire together, so they share a folder.
    pub fn upload(created: DateTime<Utc>, id: UploadId, format: Format) -> Self {
        Self::upload_on(created.date_naive(), id, format)
    }

    /// `images/{hex}/{task}-{fence}-{seq}.{ext}`: each attempt of a task writes its own keys.
    ///
    /// The folder is the last three digits of the task's id. They are random, while the first digits are the time. This
    /// gives 4,096 folders, each with a few thousand files at ten million images.
    pub fn image(task: TaskId, fence: i64, seq: u8, format: Format) -> Self {
        let (folder, name) = Self::prefix_of(task);
        let ext = format.extension();
        Self {
            text: format!("{folder}/{name}{fence}-{seq}.{ext}"),
            format,
        }
    }

    /// The folder of a task's images, and the prefix of their names in it.
    pub(super) fn prefix_of(task: TaskId) -> (String, String) {
        let folder = task.uuid().as_u128() & 0xfff;
        (format!("images/{folder:03x}"), format!("{task}-"))
    }

    /// For an image: its task.
    pub(super) fn task(&self) -> Option<TaskId> {
        let (_, name) = self.text.strip_prefix("images/")?.split_once('/')?;
        let id = name.get(..Hyphenated::LENGTH)?;
        Uuid::try_parse(id).ok().map(Into::into)
    }

    /// For an image: the fence of the attempt that stored it, and its position in the task, from 1.
    pub fn fence_and_seq(&self) -> Option<(i64, u8)> {
        let name = self.text.strip_prefix("images/")?;
        let (name, _) = name.rsplit_once('.')?;
        let (name, seq) = name.rsplit_once('-')?;
        let (_, fence) = name.rsplit_once('-')?;
        Some((fence.parse().ok()?, seq.parse().ok()?))
    }

    /// The key as text, as [`FromStr`] parses it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The image format, from the extension.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The media type of the format.
    pub fn content_type(&self) -> &'static str {
        self.format.content_type()
    }

    fn upload_on(day: NaiveDate, id: UploadId, format: Format) -> Self {
        let (day, ext) = (day.format("%Y%m%d"), format.extension());
        Self {
            text: format!("uploads/{day}/{id}.{ext}"),
            format,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (name, ext) = text.rsplit_once('.')?;
        let format = [Format::Jpeg, Format::Png, Format::Webp, Format::Gif]
            .into_iter()
            .find(|format| format.extension() == ext)?;
        let mut parts = name.split('/');
        match (parts.next()?, parts.next()?, parts.next()?) {
            ("uploads", day, id) => {
                let day = NaiveDate::parse_from_str(day, "%Y%m%d").ok()?;
                Some(Self::upload_on(
                    day,
                    Uuid::try_parse(id).ok()?.into(),
                    format,
                ))
            }
            ("images", _, name) => {
                let (name, seq) = name.rsplit_once('-')?;
                // Split the id off by its length: a hyphen before the fence could be its sign.
                let (task, fence) = name.split_at_checked(Hyphenated::LENGTH)?;
                let fence = fence.strip_prefix('-')?.parse().ok()?;
                let task = Uuid::try_parse(task).ok()?;
                Some(Self::image(task.into(), fence, seq.parse().ok()?, format))
            }
            _ => None,
        }
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        // The key rebuilt from its parts must equal the text. This rejects other spellings of dates, ids and numbers.
        Self::parse(text)
            .filter(|key| key.text == text)
            .ok_or_else(|| InvalidKey(text.chars().take(200).collect()))
    }
}

impl TryFrom<String> for Key {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.text
    }
}

impl Type<Postgres> for Key {
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }

    fn compatible(found: &PgTypeInfo) -> bool {
        <str as Type<Postgres>>::compatible(found)
    }
}

impl Encode<'_, Postgres> for Key {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <&str as Encode<Postgres>>::encode_by_ref(&self.as_str(), buffer)
    }
}

impl Decode<'_, Postgres> for Key {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(<&str as Decode<Postgres>>::decode(value)?.parse()?)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0197a1b2-c3d4-7abc-9def-0123456789ab";

    fn id() -> Uuid {
        ID.parse().unwrap()
    }

    #[test]
    fn keys_have_their_shapes_and_parse_again() {
        let day = DateTime::from_timestamp(1_781_599_773, 0).unwrap();
        let upload = Key::upload(day, id().into(), Format::Jpeg);
        assert_eq!(upload.to_string(), format!("uploads/20260616/{ID}.jpg"));
        assert_eq!(upload.content_type(), "image/jpeg");
        let image = Key::image(id().into(), 12, 3, Format::Webp);
        assert_eq!(image.to_string(), format!("images/9ab/{ID}-12-3.webp"));
        assert_eq!(image.fence_and_seq(), Some((12, 3)));
        assert_eq!(upload.fence_and_seq(), None);
        for key in [upload, image] {
            assert_eq!(key.as_str().parse::<Key>().unwrap(), key);
            let json = serde_json::to_string(&key).unwrap();
            assert_eq!(json, format!("\"{key}\""));
            assert_eq!(serde_json::from_str::<Key>(&json).unwrap(), key);
        }
    }

    #[test]
    fn nothing_else_is_a_key() {
        for text in [
            String::new(),
            "uploads".to_owned(),
            ".signing-key".to_owned(),
            "uploads/20260616/../../etc/passwd.png".to_owned(),
            format!("/uploads/20260616/{ID}.png"),
            format!("uploads//20260616/{ID}.png"),
            format!("uploads/20260616/{ID}.png/"),
            format!("uploads/20260616/x/{ID}.png"),
            format!("uploads/20260616/{ID}.PNG"),
            format!("uploads/20260616/{ID}.jpeg"),
            format!("uploads/20260616/{ID}.svg"),
            format!("uploads/20260616/{}.png", ID.to_uppercase()),
            format!("uploads/20260616/{{{ID}}}.png"),
            format!("uploads/20261316/{ID}.png"),
            format!("uploads/2026616/{ID}.png"),
            format!("images/9aa/{ID}-1-1.png"),
            format!("images/9ab/{ID}-1-256.png"),
            format!("images/9ab/{ID}-01-1.png"),
            format!("images/9ab/{ID}-+1-1.png"),
            format!("images/9ab/{ID}-1.png"),
            format!("images/9ab/{ID}-1-1-1.png"),
            format!("images/9ab/é{ID}-1-1.png"),
            format!("images/../{ID}-1-1.png"),
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }
}
