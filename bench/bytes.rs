//! What one core does with the bytes of an image between an upstream's socket and storage, step by step, beside what the
//! memory itself allows: `cargo bench --bench bytes`.

#![expect(
    clippy::expect_used,
    reason = "a bench without its image has nothing to measure"
)]

use std::{hint::black_box, sync::Arc};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use easel::{
    backend::json_images::{Found, ImagePath, ImageScanner},
    image::{Filter, Limits, Metadata},
};

/// A chunk as it comes from a socket.
const CHUNK_BYTES: usize = 64 * 1024;
const IMAGE_BYTES: usize = 1_500_000;
const LIMITS: Limits = Limits {
    side_px_max: 20_000,
    pixels_max: 100_000_000,
};

/// A PNG whose pixels do not compress, as one long IDAT chunk.
fn png() -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    });
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap_or_default().to_be_bytes();
        // The filter does not check the checksum.
        [&length[..], name, data, &[0; 4]].concat()
    };
    let header = [0, 0, 2, 195, 0, 0, 2, 195, 8, 2, 0, 0, 0];
    let data: Vec<u8> = noise.take(IMAGE_BYTES).collect();
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", &data),
        chunk(b"IEND", &[]),
    ]
    .concat()
}

/// Scans an answer and decodes its image; returns the pieces.
fn scan(answer: &[u8], paths: &Arc<[ImagePath]>, mut piece: impl FnMut(Bytes)) {
    let mut scanner = ImageScanner::new(Arc::clone(paths));
    for mut chunk in answer.chunks(CHUNK_BYTES) {
        while let Ok(Some(found)) = scanner.next(&mut chunk) {
            if let Found::Piece(bytes) = found {
                piece(bytes);
            }
        }
    }
}

/// Passes pieces through the filter; returns how many bytes came out.
fn filter(pieces: impl IntoIterator<Item = Bytes>) -> usize {
    let mut filter = Filter::new(Metadata::Strip, LIMITS);
    let (mut out, mut passed) = (Vec::new(), 0);
    for piece in pieces {
        filter.push(piece, &mut out).expect("an image");
        passed += out.drain(..).map(|bytes| bytes.len()).sum::<usize>();
    }
    filter.finish().expect("a whole image");
    passed
}

fn pipeline(criterion: &mut Criterion) {
    let image = png();
    let text = base64_simd::STANDARD.encode_to_string(&image);
    let answer = format!(r#"{{"created":1,"data":[{{"b64_json":"{text}"}}]}}"#).into_bytes();
    let paths: Arc<[ImagePath]> = Arc::new([ImagePath::of_base64("/data/*/b64_json")]);
    let mut pieces = Vec::new();
    scan(&answer, &paths, |piece| pieces.push(piece));
    assert_eq!(filter(pieces.clone()), image.len());

    let mut group = criterion.benchmark_group("1.5 MB image");
    let mut step = |name: &str, bytes: usize, work: &mut dyn FnMut()| {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(&mut *work);
        });
    };
    step("memcpy", image.len(), &mut || {
        drop(black_box(image.clone()));
    });
    step("base64-simd, decode at once", text.len(), &mut || {
        drop(black_box(base64_simd::STANDARD.decode_to_vec(&text)));
    });
    step("scan and decode", answer.len(), &mut || {
        scan(&answer, &paths, |piece| drop(black_box(piece)));
    });
    step("filter", image.len(), &mut || {
        black_box(filter(pieces.iter().cloned()));
    });
    step("scan, decode and filter", answer.len(), &mut || {
        let mut decoded = Vec::new();
        scan(&answer, &paths, |piece| decoded.push(piece));
        black_box(filter(decoded));
    });
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
