//! Identifiers. Rows use UUID v7, so that indexes grow at one end. Credentials (file ids, upload
//! names) are fully random.

use std::{fmt, marker::PhantomData, str::FromStr};

use rand::{RngExt, distr::Alphanumeric};
use serde::{Deserialize, Serialize};
use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef},
};
use uuid::Uuid;

/// Identifies a task. Time-ordered; may be given to support, never a credential.
pub type TaskId = Id<OfTask>;
/// Identifies an account.
pub type AccountId = Id<OfAccount>;
/// Identifies an API key's row, not the key itself.
pub type KeyId = Id<OfKey>;
/// Identifies the images of one task in their links: 122 random bits, a credential.
pub type FileId = Id<OfFile>;
/// Identifies an upload's row.
pub type UploadId = Id<OfUpload>;

/// An id of one kind of thing. Ids of different kinds do not mix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent, bound = "")]
pub struct Id<Of>(Uuid, PhantomData<Of>);

/// Marks a [`TaskId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfTask {}
/// Marks an [`AccountId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfAccount {}
/// Marks a [`KeyId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfKey {}
/// Marks a [`FileId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfFile {}
/// Marks an [`UploadId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfUpload {}

/// A time-ordered id for a row.
#[expect(clippy::disallowed_methods, reason = "the one place that makes them")]
pub fn row_id<Of>() -> Id<Of> {
    Uuid::now_v7().into()
}

/// A random id for a credential: whoever knows it has access.
#[expect(clippy::disallowed_methods, reason = "the one place that makes them")]
pub fn credential_id() -> Uuid {
    Uuid::new_v4()
}

impl<Of> Id<Of> {
    /// The id, without its kind.
    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl<Of> From<Uuid> for Id<Of> {
    fn from(id: Uuid) -> Self {
        Self(id, PhantomData)
    }
}

impl<Of> FromStr for Id<Of> {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::from_str(text).map(Self::from)
    }
}

impl<Of> fmt::Display for Id<Of> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl<Of> fmt::Debug for Id<Of> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<Of> Type<Postgres> for Id<Of> {
    fn type_info() -> PgTypeInfo {
        <Uuid as Type<Postgres>>::type_info()
    }
}

impl<Of> PgHasArrayType for Id<Of> {
    fn array_type_info() -> PgTypeInfo {
        Uuid::array_type_info()
    }
}

impl<Of> Encode<'_, Postgres> for Id<Of> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <Uuid as Encode<Postgres>>::encode_by_ref(&self.0, buffer)
    }
}

impl<Of> Decode<'_, Postgres> for Id<Of> {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        <Uuid as Decode<Postgres>>::decode(value).map(Self::from)
    }
}

/// 128 random bits as lower-case hex, for capability links.
pub fn random_hex() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// `count` random characters of `[A-Za-z0-9]`, 5.95 bits each.
pub fn random_base62(count: usize) -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(count)
        .map(char::from)
        .collect()
}
