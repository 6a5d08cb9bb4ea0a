//! Links of this gateway: made for uploads and for images, and parsed again, whether as the path of a route or as a
//! URL that a client sends.

use std::fmt;

use chrono::NaiveDate;
use url::Url;

use crate::{
    app::App,
    db,
    ids::FileId,
    tasks::{self, Image, Summary},
};

/// The path of uploads, before the upload's name.
const UPLOADS: &str = "/f/image/";
/// The path of images, before a [`ResultLink`].
const RESULTS: &str = "/v1/images/files/";

/// The link of an upload. `public_url` is its prefix.
pub fn upload(name: &str, public_url: &str) -> String {
    format!("{public_url}{UPLOADS}{name}")
}

/// The links of a task's images. `public_url` is their prefix.
pub fn results(task: &Summary, public_url: &str) -> Vec<String> {
    let links = (1..)
        .zip(task.images())
        .map(|(seq, image)| ResultLink::new(task, seq, image));
    links
        .map(|link| format!("{public_url}{RESULTS}{link}"))
        .collect()
}

/// The path of an image's link: `{model}/{YYYYMMDD}/{file_id}-{seq}.{ext}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultLink {
    /// The model's name, which may contain slashes.
    model: String,
    /// The day of the task, as `YYYYMMDD`.
    date: String,
    /// The random id in the link, separate from the task's id.
    file_id: FileId,
    /// The image's position in the task, from 1.
    seq: usize,
    /// The format's file extension.
    extension: String,
}

impl ResultLink {
    fn new(task: &Summary, seq: usize, image: &Image) -> Self {
        Self {
            model: task.model.clone(),
            date: task.created_at.format("%Y%m%d").to_string(),
            file_id: task.file_id,
            seq,
            extension: image.format.extension().to_owned(),
        }
    }

    /// Parses a path; `None` unless it is in canonical form: each image has exactly one link.
    pub fn parse(path: &str) -> Option<Self> {
        let mut parts = path.rsplitn(3, '/');
        let (file, date, model) = (parts.next()?, parts.next()?, parts.next()?);
        let (stem, extension) = file.rsplit_once('.')?;
        let (file_id, seq) = stem.rsplit_once('-')?;
        let link = Self {
            model: model.to_owned(),
            date: date.to_owned(),
            file_id: file_id.parse().ok()?,
            seq: seq.parse().ok()?,
            extension: extension.to_owned(),
        };
        // The id and the number have other spellings.
        (link.to_string() == path).then_some(link)
    }

    /// The image that the link names; `None` unless every part matches.
    pub async fn find(&self, app: &App) -> sqlx::Result<Option<Image>> {
        let Ok(day) = NaiveDate::parse_from_str(&self.date, "%Y%m%d") else {
            return Ok(None);
        };
        let task = async {
            let mut conn = db::acquire(&app.pool).await?;
            tasks::store::by_file_id(&mut conn, day, self.file_id).await
        };
        let task = app.pool.in_time(task).await?;
        Ok(task.and_then(|task| {
            let image = task.images().get(self.seq.checked_sub(1)?)?;
            (Self::new(&task, self.seq, image) == *self).then(|| image.clone())
        }))
    }

    /// The name under which the image is downloaded.
    pub fn file_name(&self) -> String {
        format!("{}-{}.{}", self.date, self.seq, self.extension)
    }
}

impl fmt::Display for ResultLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            model,
            date,
            file_id,
            seq,
            extension,
        } = self;
        write!(f, "{model}/{date}/{file_id}-{seq}.{extension}")
    }
}

/// The target of a URL of this gateway.
#[derive(Debug, PartialEq, Eq)]
pub enum GatewayUrl {
    /// An upload, by the name in its URL.
    Upload(String),
    /// An image of a task.
    Result(ResultLink),
}

impl GatewayUrl {
    /// Parses a URL with either scheme; `None` if it is not a link of this gateway.
    pub fn parse(public_url: &str, text: &str) -> Option<Self> {
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
        if let Some(name) = decoded.strip_prefix(UPLOADS) {
            return Some(Self::Upload(name.to_owned()));
        }
        ResultLink::parse(decoded.strip_prefix(RESULTS)?).map(Self::Result)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PUBLIC: &str = "https://img.example.com/easel";

    fn link(model: &str, file_id: u128, seq: usize) -> ResultLink {
        ResultLink {
            model: model.to_owned(),
            date: "20260616".to_owned(),
            file_id: uuid::Uuid::from_u128(file_id).into(),
            seq,
            extension: "png".to_owned(),
        }
    }

    #[test]
    fn own_links_are_recognised_with_either_scheme() {
        for scheme in ["http", "https"] {
            let public = format!("{scheme}://img.example.com/easel");
            let made = upload("1-a-b.png", &public);
            assert_eq!(made, format!("{public}/f/image/1-a-b.png"));
            let parsed = GatewayUrl::parse(PUBLIC, &made);
            assert_eq!(parsed, Some(GatewayUrl::Upload("1-a-b.png".to_owned())));
        }
        let id = "3e0c77bb-9cbd-4c44-9549-bff1b4060623";
        let url = format!("{PUBLIC}/v1/images/files/org/model/20260616/{id}-2.png");
        let Some(GatewayUrl::Result(link)) = GatewayUrl::parse(PUBLIC, &url) else {
            panic!("{url}")
        };
        assert_eq!((link.model.as_str(), link.seq), ("org/model", 2));
        assert_eq!(link.file_name(), "20260616-2.png");
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

    #[test]
    fn an_image_has_no_second_link() {
        let id = "3e0c77bb-9cbd-4c44-9549-bff1b4060623";
        assert!(ResultLink::parse(&format!("m/20260616/{id}-2.png")).is_some());
        for other in [
            format!("m/20260616/{}-2.png", id.to_uppercase()),
            format!("m/20260616/{}-2.png", id.replace('-', "")),
            format!("m/20260616/{{{id}}}-2.png"),
            format!("m/20260616/{id}-02.png"),
            format!("m/20260616/{id}-+2.png"),
            format!("m/20260616/{id}-2"),
            format!("20260616/{id}-2.png"),
        ] {
            assert_eq!(ResultLink::parse(&other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn links_are_parsed_as_they_were_made(
            model in "[a-z0-9][a-z0-9._-]{0,8}(/[a-zA-Z0-9][a-z0-9 ._-]{0,8}[a-z]){0,2}",
            file_id: u128,
            seq: usize,
        ) {
            let link = link(&model, file_id, seq);
            prop_assert_eq!(ResultLink::parse(&link.to_string()), Some(link.clone()));
            let url = format!("{PUBLIC}{RESULTS}{link}");
            prop_assert_eq!(GatewayUrl::parse(PUBLIC, &url), Some(GatewayUrl::Result(link)));
        }

        #[test]
        fn what_is_parsed_is_written_the_same(path in "[a-z/]{1,8}/[0-9]{0,8}/\\PC{0,48}") {
            let parsed = ResultLink::parse(&path);
            prop_assert!(parsed.is_none_or(|link| link.to_string() == path));
        }

        #[test]
        fn no_text_breaks_the_parser(text: String) {
            let _ = GatewayUrl::parse(PUBLIC, &text);
            let _ = GatewayUrl::parse(PUBLIC, &format!("{PUBLIC}{RESULTS}{text}"));
        }
    }
}
