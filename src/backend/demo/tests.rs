//! Tests what images guarantee: their size, what they depend on, and that a reference is visible.

use std::sync::Mutex;

use futures_util::FutureExt;
use image::GenericImageView;

use super::*;
use crate::{
    backend::{Input, SinkError},
    image::{Format, Resolution},
};

#[derive(Default)]
struct Sink {
    images: Vec<Vec<u8>>,
    under_way: Vec<u8>,
    longest: usize,
}

#[async_trait]
impl ImageSink for Sink {
    async fn accepted(&mut self, _job: &str) -> Result<(), SinkError> {
        Ok(())
    }

    fn usage(&mut self, _usage: serde_json::Value) {}

    async fn write(&mut self, piece: Bytes) -> Result<(), SinkError> {
        self.longest = self.longest.max(piece.len());
        self.under_way.extend_from_slice(&piece);
        Ok(())
    }

    fn discard(&mut self) {
        self.under_way.clear();
    }

    async fn finish(&mut self) -> Result<(), SinkError> {
        self.images.push(std::mem::take(&mut self.under_way));
        Ok(())
    }
}

fn request(prompt: &str, n: u8, width: u32, height: u32) -> GenerateRequest {
    GenerateRequest {
        model: "any".into(),
        prompt: prompt.into(),
        n,
        ratio: "1:1".parse().unwrap(),
        resolution: Resolution::OneK,
        size: ImageSize { width, height },
        quality: None,
        references: vec![],
        mask: None,
        options: serde_json::Map::new(),
        extra: serde_json::Map::new(),
        job: None,
    }
}

fn settings(failure_percent: u8) -> DemoBackend {
    DemoBackend {
        delay_ms: 0,
        failure_percent,
    }
}

async fn generate(request: &GenerateRequest) -> Result<Vec<Vec<u8>>, BackendError> {
    let mut sink = Sink::default();
    Demo::new(&settings(0)).generate(request, &mut sink).await?;
    assert!(sink.longest <= PIECE_BYTES);
    Ok(sink.images)
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(
            image,
            image.width(),
            image.height(),
            ExtendedColorType::Rgb8,
        )
        .unwrap();
    png
}

fn input(bytes: Vec<u8>) -> Input {
    whole_input::of_bytes(Format::Png, bytes.into())
}

#[tokio::test]
async fn images_have_the_size_asked_for_and_follow_from_the_prompt() {
    let first = generate(&request("a lighthouse", 2, 336, 144))
        .await
        .unwrap();
    assert_eq!(first.len(), 2);
    for image in &first {
        assert!(image.starts_with(b"\x89PNG\r\n\x1a\n"));
        let decoded = image::load_from_memory(image).unwrap();
        assert_eq!(decoded.dimensions(), (336, 144));
    }
    assert_ne!(first[0], first[1], "the second image is another one");
    let again = generate(&request("a lighthouse", 2, 336, 144))
        .await
        .unwrap();
    assert_eq!(first, again);
    let other = generate(&request("a whale", 1, 336, 144)).await.unwrap();
    assert_ne!(first[0], other[0]);
}

#[tokio::test]
async fn a_reference_is_visible() {
    // Dark on the left, light on the right; half of its width is used.
    let halves = RgbImage::from_fn(400, 100, |x, _| match x {
        0..200 => image::Rgb([10, 10, 10]),
        _ => image::Rgb([245, 245, 245]),
    });
    for prompt in ["one", "two", "three", "four", "five"] {
        let mut request = request(prompt, 1, 200, 100);
        request.references.push(input(png(&halves)));
        let images = generate(&request).await.unwrap();
        let decoded = image::load_from_memory(&images[0]).unwrap().into_luma8();
        assert_eq!(decoded.dimensions(), (200, 100));
        let mean = |from: u32, to: u32| {
            let shades = (from..to).flat_map(|x| (0..100).map(move |y| (x, y)));
            shades
                .map(|(x, y)| u32::from(decoded.get_pixel(x, y).0[0]))
                .sum::<u32>()
                / ((to - from) * 100)
        };
        let (left, right) = (mean(0, 90), mean(110, 200));
        assert!(
            right > left + 60,
            "{prompt}: {left} on the left, {right} on the right"
        );
    }
}

#[tokio::test]
async fn references_are_scaled_up_too_and_bad_ones_rejected() {
    let mut small = request("up", 1, 90, 160);
    small.references.push(input(png(&RgbImage::new(3, 2))));
    let images = generate(&small).await.unwrap();
    let decoded = image::load_from_memory(&images[0]).unwrap();
    assert_eq!(decoded.dimensions(), (90, 160));

    let mut bad = request("bad", 1, 64, 64);
    bad.references.push(input(b"no image".to_vec()));
    assert!(matches!(
        generate(&bad).await,
        Err(BackendError::Invalid { .. })
    ));

    let mut gone = request("gone", 1, 64, 64);
    let fault = Mutex::new(Some(std::io::Error::other("gone")));
    gone.references.push(Input {
        open: Arc::new(move || {
            let fault = fault.lock().unwrap().take().unwrap();
            async move { Err(fault) }.boxed()
        }),
        ..input(vec![])
    });
    assert!(matches!(generate(&gone).await, Err(BackendError::Input(_))));
}

#[tokio::test]
async fn as_many_fail_as_the_settings_say() {
    let demo = Demo::new(&settings(30));
    let failures = (0..1000).filter(|_| demo.next_fails()).count();
    assert!((250..350).contains(&failures), "{failures}");

    let always = Demo::new(&settings(100));
    let mut sink = Sink::default();
    let result = always.generate(&request("x", 1, 8, 8), &mut sink).await;
    assert!(matches!(result, Err(BackendError::Failed { .. })));
    assert!(sink.images.is_empty());
}

/// References that never arrive: only a limited number is started, and text still generates meanwhile.
#[tokio::test]
async fn slow_references_are_bounded_and_delay_no_other_request() {
    let demo = Arc::new(Demo::new(&settings(0)));
    let most = demo.inputs.available_permits();
    let begun = Arc::new(AtomicU64::new(0));
    let mut slow = request("a cat", 1, 8, 8);
    let counted = Arc::clone(&begun);
    slow.references.push(Input {
        format: Format::Png,
        length: 100,
        open: Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::pending().boxed()
        }),
        link: None,
    });
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..most + 5 {
        let (demo, slow) = (Arc::clone(&demo), slow.clone());
        waiting.spawn(async move { demo.generate(&slow, &mut Sink::default()).await.is_ok() });
    }
    while begun.load(Ordering::Relaxed) < most as u64 {
        tokio::task::yield_now().await;
    }
    let (dog, mut sink) = (request("a dog", 1, 8, 8), Sink::default());
    let result = demo.generate(&dog, &mut sink);
    let result = tokio::time::timeout(Duration::from_secs(10), result).await;
    result.unwrap().unwrap();
    assert_eq!(begun.load(Ordering::Relaxed), most as u64);
}
