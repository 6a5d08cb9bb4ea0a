//! References that are links of this gateway: recognised with either scheme, and read from storage, never over
//! the network.

use url::Url;

use crate::{
    app::App,
    db,
    http::error::ApiError,
    ids::FileId,
    tasks::{self, Image, Reference, StoredReference},
    uploads,
};

/// The target of a link of this gateway.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) enum GatewayUrl {
    /// `/f/image/{name}`
    Upload(String),
    /// `/v1/images/files/{model}/{YYYYMMDD}/{file_id}-{seq}.{ext}`
    File(FilePath),
}

/// The parts of a result link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct FilePath {
    /// The model's name, which may contain slashes.
    pub model: String,
    /// The day of the task, as `YYYYMMDD`.
    pub date: String,
    /// The random id in the link, separate from the task's id.
    pub file_id: FileId,
    /// The image's position in the task, from 1.
    pub seq: usize,
    /// The format's file extension.
    pub extension: String,
}

impl GatewayUrl {
    /// Parses a link; `None` if the address does not belong to this gateway.
    pub(in crate::http) fn parse(public_url: &str, text: &str) -> Option<Self> {
        let (public, given) = (Url::parse(public_url).ok()?, Url::parse(text.trim()).ok()?);
        let http = matches!(given.scheme(), "http" | "https");
        // https://host and http://host are the same gateway, since a proxy may terminate TLS.
        let port = |url: &Url| url.port().filter(|port| !matches!(port, 80 | 443));
        if !http || given.host() != public.host() || port(&given) != port(&public) {
            return None;
        }
        let path = given
            .path()
            .strip_prefix(public.path().trim_end_matches('/'))?;
        let decoded = percent_encoding::percent_decode_str(path)
            .decode_utf8()
            .ok()?;
        if let Some(name) = decoded.strip_prefix("/f/image/") {
            return Some(Self::Upload(name.to_owned()));
        }
        let mut parts = decoded.strip_prefix("/v1/images/files/")?.rsplitn(3, '/');
        let (file, date, model) = (parts.next()?, parts.next()?, parts.next()?);
        FilePath::parse(model, date, file).map(Self::File)
    }
}

impl FilePath {
    /// Parses the parts of a path; `None` unless they are in canonical form.
    pub(in crate::http) fn parse(model: &str, date: &str, file: &str) -> Option<Self> {
        let (stem, extension) = file.rsplit_once('.')?;
        let (file_id, seq) = stem.rsplit_once('-')?;
        let path = Self {
            model: model.to_owned(),
            date: date.to_owned(),
            file_id: file_id.parse().ok()?,
            seq: seq.parse().ok()?,
            extension: extension.to_owned(),
        };
        // Refuse other spellings of the id or the number: each image has exactly one link.
        let same = format!("{}-{}.{extension}", path.file_id, path.seq) == file;
        same.then_some(path)
    }

    /// The image that the path names; `None` unless every part matches.
    pub(in crate::http) async fn find(&self, app: &App) -> Result<Option<Image>, ApiError> {
        let task = async {
            let mut conn = db::acquire(&app.pool).await?;
            tasks::store::by_file_id(&mut conn, self.file_id).await
        };
        let Some(task) = app.pool.in_time(task).await? else {
            return Ok(None);
        };
        let image = self
            .seq
            .checked_sub(1)
            .and_then(|index| task.images().get(index));
        let matches =
            task.model == self.model && task.created_at.format("%Y%m%d").to_string() == self.date;
        Ok(image
            .filter(|image| matches && image.format.extension() == self.extension)
            .cloned())
    }
}

/// Resolves a link of this gateway to a stored reference; 400 if its target does not exist or has expired.
pub(super) async fn reference(app: &App, link: GatewayUrl) -> Result<Reference, ApiError> {
    let gone = || ApiError::bad_request("a reference is a link of this gateway that names nothing");
    let (object, format, bytes) = match link {
        GatewayUrl::Upload(name) => {
            let upload = async {
                let mut conn = db::acquire(&app.pool).await?;
                uploads::store::get(&mut conn, &name).await
            };
            let upload = app.pool.in_time(upload).await?.ok_or_else(gone)?;
            if upload.expires_at <= app.clock.now() {
                return Err(ApiError::bad_request(
                    "a reference is an upload that has expired",
                ));
            }
            (upload.object, upload.format, upload.bytes.unsigned_abs())
        }
        GatewayUrl::File(path) => {
            let image = path.find(app).await?.ok_or_else(gone)?;
            (image.object, image.format, image.bytes)
        }
    };
    Ok(Reference::Stored(StoredReference {
        object,
        format,
        bytes,
        digest: String::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: &str = "https://img.example.com/easel";

    #[test]
    fn own_links_are_recognised_with_either_scheme() {
        for scheme in ["http", "https"] {
            let link = format!("{scheme}://img.example.com/easel/f/image/1-a-b.png");
            assert_eq!(
                GatewayUrl::parse(PUBLIC, &link),
                Some(GatewayUrl::Upload("1-a-b.png".to_owned()))
            );
        }
        let id = "3e0c77bb-9cbd-4c44-9549-bff1b4060623";
        let link = format!("{PUBLIC}/v1/images/files/org/model/20260616/{id}-2.png");
        let Some(GatewayUrl::File(file)) = GatewayUrl::parse(PUBLIC, &link) else {
            panic!("{link}")
        };
        assert_eq!((file.model.as_str(), file.seq), ("org/model", 2));
    }

    #[test]
    fn other_addresses_are_not_own_links() {
        for other in [
            "https://img.example.com.evil.net/easel/f/image/x",
            "https://img.example.com:8443/easel/f/image/x",
            "https://img.example.com/f/image/x",
            "https://img.example.com/easel/v1/models",
            "ftp://img.example.com/easel/f/image/x",
            "https://evil.net/easel/f/image/x",
            "not a url",
        ] {
            assert_eq!(GatewayUrl::parse(PUBLIC, other), None, "{other}");
        }
    }
}
