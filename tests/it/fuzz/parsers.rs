//! Stand-alone parsers: image formats, answers of upstreams, sizes and addresses.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use bytes::Bytes;
use easel::{
    backend::json_images::{Found, ImagePath, ImageScanner, REST_BYTES_MAX},
    image::{Filter, ImageInfo, InvalidImage, Limits, Metadata, resolve_size},
    references::Guard,
};
use url::{Host, Url};

use super::fuzz;

const LIMITS: Limits = Limits {
    side_px_max: 16_384,
    pixels_max: 50_000_000,
};

/// The bytes that pass the filter, and the image's properties.
fn filtered(policy: Metadata, pieces: &[&[u8]]) -> Result<(Vec<u8>, ImageInfo), InvalidImage> {
    let mut filter = Filter::new(policy, LIMITS);
    let mut out = Vec::new();
    for piece in pieces {
        filter.push(Bytes::copy_from_slice(piece), &mut out)?;
    }
    let info = filter.finish()?;
    Ok((out.concat(), info))
}

/// However the input is split, the image is the same. Kept bytes are those that were sent, and stripping again changes
/// nothing.
#[test]
fn images() {
    fuzz!(
        "images",
        &[
            "IHDR",
            "IDAT",
            "tEXt",
            "Exif\0\0",
            "VP8X",
            "ANMF",
            "NETSCAPE2.0"
        ],
        |input: &[u8]| {
            let cuts: Vec<&[u8]> = input.chunks(7).collect();
            let kept = filtered(Metadata::Keep, &[input]);
            let kept_in_pieces = filtered(Metadata::Keep, &cuts);
            assert_eq!(kept.is_ok(), kept_in_pieces.is_ok());
            if let Ok((bytes, info)) = kept {
                assert!(bytes == input);
                assert!(info.width <= LIMITS.side_px_max && info.height <= LIMITS.side_px_max);
                assert!(u64::from(info.width) * u64::from(info.height) <= LIMITS.pixels_max);
            }
            let stripped = filtered(Metadata::Strip, &[input]);
            let in_pieces = filtered(Metadata::Strip, &cuts);
            assert_eq!(stripped.is_ok(), in_pieces.is_ok());
            if let (Ok((bytes, info)), Ok((pieces, _))) = (stripped, in_pieces) {
                assert!(bytes == pieces);
                let (again, info_again) = filtered(Metadata::Strip, &[&bytes]).unwrap();
                assert!(again == bytes);
                assert_eq!(info_again, info);
            }
        }
    );
}

/// The images of an answer, and the rest of it.
fn scanned(paths: &Arc<[ImagePath]>, pieces: &[&[u8]]) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
    let mut scanner = ImageScanner::new(Arc::clone(paths));
    let (mut images, mut image) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut left = *piece;
        while let Some(found) = scanner.next(&mut left).ok()? {
            match found {
                Found::Piece(piece) => image.extend_from_slice(&piece),
                Found::End => images.push(std::mem::take(&mut image)),
            }
        }
    }
    Some((images, scanner.into_rest()))
}

/// However an answer is split, it yields the same images; the output is never longer than the input.
#[test]
fn upstream_answers() {
    let paths: Arc<[ImagePath]> = Arc::new([
        ImagePath::of_base64("/data/*/b64_json"),
        ImagePath::of_data_urls("/data/*/url"),
        ImagePath::of_echo("/echo/image"),
    ]);
    let words = [
        "\"data\":[",
        "\"b64_json\":\"",
        "data:image/png;base64,",
        "\\u0041",
        "\\",
        "true",
    ];
    fuzz!("upstream_answers", &words, |input: &[u8]| {
        let whole = scanned(&paths, &[input]);
        let cuts: Vec<&[u8]> = input.chunks(3).collect();
        assert_eq!(whole, scanned(&paths, &cuts));
        if let Some((images, rest)) = whole {
            assert!(rest.len() <= REST_BYTES_MAX && rest.len() <= input.len() * 3);
            assert!(images.concat().len() <= input.len());
        }
    });
}

/// Every accepted size is one of the contract's, and its pixels are within 3 % of its ratio.
#[test]
fn sizes() {
    fuzz!(
        "sizes",
        &["x", ":", "1024", "4294967296", "auto", "2k", "-", "+", "٣"],
        |input: &[u8]| {
            let text = String::from_utf8_lossy(input);
            let (size, resolution) = text
                .split_once('\n')
                .map_or((text.as_ref(), None), |(size, resolution)| {
                    (size, Some(resolution))
                });
            match resolve_size(Some(size), resolution) {
                Ok((ratio, resolution, pixels)) => {
                    assert_eq!(pixels, ratio.pixels(resolution));
                    if let Some((width, height)) = pair(size) {
                        let ratio = f64::from(pixels.width) / f64::from(pixels.height);
                        let off = (width / height) / ratio;
                        assert!(width > 0.0 && height > 0.0, "{size}");
                        // The pixels of a ratio themselves deviate by up to a few thousandths.
                        assert!((0.955..1.045).contains(&off), "{size} became {pixels:?}");
                    }
                }
                Err(error) => {
                    assert!(["size", "resolution"].contains(&error.field));
                    assert!(error.message.starts_with(error.field) && error.message.len() < 400);
                }
            }
        }
    );
}

fn pair(size: &str) -> Option<(f64, f64)> {
    let (width, height) = size.split_once(['x', 'X'])?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// No address that the standard library knows to be private, local or reserved passes, neither as an address nor as a
/// URL.
#[test]
fn addresses() {
    let guard = Guard::new(&references(), "https://easel.example.com");
    let words = [
        "https://",
        "@",
        "[",
        "]",
        "::ffff:",
        "127.0.0.1",
        "0x7f",
        ":443",
        "%2e",
        "localhost",
        "。",
    ];
    fuzz!("addresses", &words, |input: &[u8]| {
        if let Some(bytes) = input.first_chunk::<4>() {
            check_address(&guard, Ipv4Addr::from(*bytes).into());
        }
        if let Some(bytes) = input.first_chunk::<16>() {
            check_address(&guard, Ipv6Addr::from(*bytes).into());
        }
        let Ok(url) = guard.check_url(&String::from_utf8_lossy(input)) else {
            return;
        };
        assert_eq!(url.scheme(), "https");
        assert_eq!(url.port_or_known_default(), Some(443));
        assert!(url.username().is_empty() && url.password().is_none());
        let again: Url = url.as_str().parse().unwrap();
        assert!(
            guard.check_parsed_url(&again).is_ok(),
            "{url} is refused when it is read again"
        );
        match url.host().unwrap() {
            Host::Domain(name) => {
                let name = name.trim_end_matches('.');
                assert!(
                    name != "localhost" && !name.ends_with(".localhost"),
                    "{url}"
                );
            }
            Host::Ipv4(address) => assert!(!is_local(address.into()), "{url}"),
            Host::Ipv6(address) => assert!(!is_local(address.into()), "{url}"),
        }
    });
}

fn check_address(guard: &Guard, address: IpAddr) {
    let is_refused = guard.check_address(address).is_err();
    assert!(is_refused || !is_local(address), "{address}");
}

fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_broadcast()
                || address.is_multicast()
                || address.is_documentation()
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address
                    .to_ipv4_mapped()
                    .is_some_and(|inner| is_local(inner.into()))
        }
    }
}

fn references() -> easel::config::References {
    let dir = tempfile::tempdir().unwrap();
    crate::harness::config(&dir, "", &[]).references
}
