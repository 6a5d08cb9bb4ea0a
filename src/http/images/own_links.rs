//! Links of this gateway's own: recognised whatever their scheme, and read from storage, never over the
//! network.

use url::Url;

use crate::{
    app::App,
    db,
    http::error::ApiError,
    ids::FileId,
    tasks::{self, Image, Reference, StoredReference},
    uploads,
};

/// What one of our links names.
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
    pub model: String,
    pub date: String,
    pub file_id: FileId,
    /// From 1.
    pub seq: usize,
    pub extension: String,
}

impl GatewayUrl {
    /// `None` if the address is none of ours.
    pub(in crate::http) fn parse(public_url: &str, text: &str) -> Option<Self> {
        let (public, given) = (Url::parse(public_url).ok()?, Url::parse(text.trim()).ok()?);
        let http = matches!(given.scheme(), "http" | "https");
        // A public https://host is the same as http://host: whatever proxy stands before us.
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
        // No other spelling of the id or the number: an image has one link.
        let same = format!("{}-{}.{extension}", path.file_id, path.seq) == file;
        same.then_some(path)
    }

    /// The image it names, if everything in it is right.
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

/// What one of our links stands for, as a task's reference.
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
    fn own_links_are_recognised_whatever_their_scheme() {
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
    fn other_addresses_are_not_ours() {
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
