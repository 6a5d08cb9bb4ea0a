//! What every backend promises, whatever its upstream is like.
//!
//! A fake says how to reach it and plays scenes; [`keeps_its_promises`] plays all of them through.

use std::{sync::Arc, time::Duration};

use easel::{
    backend::{Backend, BackendError, GenerateRequest},
    failure::Class,
    image::Format,
};
use tokio::time::timeout;

use super::{Collected, backend_of, input, request};
use crate::harness::images;

/// How the fake treats whatever it is asked to generate from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// It generates what it is asked for. Where jobs are polled, those begun before end now, too.
    Generates,
    /// Its safety system does not let it, in the upstream's own way of saying so.
    Refuses,
    /// It does not take a parameter.
    FindsInvalid,
    /// It does not know the key.
    KnowsNoKey,
    /// Too much at once; come again in 7 seconds, where the upstream can say so.
    LimitsRate,
    /// It says that it has failed.
    Fails,
    /// It takes the request on, and never ends it.
    Hangs,
    /// The connection ends in the middle of the image.
    BreaksOff,
    /// All is well, and there is no image.
    GeneratesNothing,
    /// What should be an image is none.
    GeneratesNoImage,
}

/// A fake of an upstream, on a port of its own until it is dropped.
pub trait FakeUpstream {
    /// The settings of a backend for it, as TOML, with its key if it wants one.
    fn settings(&self) -> String;
    /// What the request's `model` must be.
    fn model(&self) -> String;
    fn play(&self, scene: Scene);
    /// Whether the upstream has a way to do so: some have no safety system, some no keys.
    fn plays(&self, _scene: Scene) -> bool {
        true
    }
    /// How many requests were asked for so far, whatever became of them; polls do not count.
    fn asked(&self) -> usize;
    /// The images that came along with the last one, in order; a mask comes last.
    fn inputs(&self) -> Vec<Vec<u8>>;
    /// Whether the mask that came says what the one given says; most upstreams take it as it is.
    fn is_mask(&self, given: &[u8], came: &[u8]) -> bool {
        given == came
    }
    /// The jobs that it was told to give up.
    fn cancelled(&self) -> Vec<String>;
}

const HANG: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(20);

/// Plays every scene to the backend.
pub async fn keeps_its_promises(fake: &impl FakeUpstream) {
    let backend = backend_of(&fake.settings());
    generates_an_image(&*backend, fake).await;
    generates_as_many_as_it_says(&*backend, fake).await;
    sends_references(&*backend, fake).await;
    tells_failures_apart(&*backend, fake).await;
    survives_a_hang(&backend, fake).await;
    fake.play(Scene::Generates);
    backend.check().await.unwrap();
}

async fn generate(
    backend: &dyn Backend,
    request: &GenerateRequest,
) -> (Collected, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let result = timeout(LONG, backend.generate(request, &mut collected)).await;
    (
        collected,
        result.unwrap_or_else(|_| panic!("the backend did not return")),
    )
}

fn wanted(fake: &impl FakeUpstream, n: u8) -> GenerateRequest {
    GenerateRequest {
        model: fake.model(),
        ..request(n)
    }
}

async fn generates_an_image(backend: &dyn Backend, fake: &impl FakeUpstream) {
    fake.play(Scene::Generates);
    let (collected, result) = generate(backend, &wanted(fake, 1)).await;
    result.unwrap();
    assert_eq!(collected.images.len(), 1);
    assert_eq!(fake.asked(), 1);
}

async fn generates_as_many_as_it_says(backend: &dyn Backend, fake: &impl FakeUpstream) {
    let n = backend.capabilities().n_max.min(3);
    let (collected, result) = generate(backend, &wanted(fake, n)).await;
    result.unwrap();
    assert_eq!(collected.images.len(), usize::from(n));
}

async fn sends_references(backend: &dyn Backend, fake: &impl FakeUpstream) {
    let capabilities = backend.capabilities();
    let formats = [Format::Png, Format::Jpeg];
    let bytes = [
        images::png(),
        images::image(image::ImageFormat::Jpeg),
        images::mask_of(100_000),
    ];
    let count = capabilities.references_max.min(formats.len());
    let mut request = wanted(fake, 1);
    let inputs = formats.iter().zip(&bytes).take(count);
    request.references = inputs
        .map(|(format, bytes)| input(*format, bytes))
        .collect();
    let masked = capabilities.mask && count > 0;
    request.mask = masked.then(|| input(Format::Png, &bytes[2]));
    let (collected, result) = generate(backend, &request).await;
    result.unwrap();
    assert_eq!(collected.images.len(), 1);
    let mut came = fake.inputs();
    if masked {
        let mask = came.pop().unwrap_or_default();
        assert!(fake.is_mask(&bytes[2], &mask), "not the mask");
    }
    assert!(
        came == bytes[..count],
        "not the images that were given, or not in order"
    );
}

async fn tells_failures_apart(backend: &dyn Backend, fake: &impl FakeUpstream) {
    for (scene, class) in [
        (Scene::Refuses, Class::Refused),
        (Scene::FindsInvalid, Class::Invalid),
        (Scene::KnowsNoKey, Class::Credentials),
        (Scene::LimitsRate, Class::RateLimited),
        (Scene::Fails, Class::Failed),
        (Scene::BreaksOff, Class::OutcomeUnknown),
        (Scene::GeneratesNothing, Class::NoImage),
        (Scene::GeneratesNoImage, Class::NoImage),
    ] {
        if !fake.plays(scene) {
            continue;
        }
        fake.play(scene);
        let asked = fake.asked();
        let (collected, result) = generate(backend, &wanted(fake, 1)).await;
        let Err(error) = result else {
            panic!("{scene:?} is no failure");
        };
        assert_eq!(error.class(), class, "{scene:?}: {error:?}");
        assert!(collected.images.is_empty(), "{scene:?}");
        assert_eq!(fake.asked(), asked + 1, "{scene:?}: asked again");
        if let BackendError::RateLimited { retry_after, .. } = error {
            let waits = retry_after.is_none_or(|wait| wait == Duration::from_secs(7));
            assert!(waits, "{retry_after:?}");
        }
    }
}

/// A request that is given up leaves nothing behind, and the job goes on where it has a name.
async fn survives_a_hang(backend: &Arc<dyn Backend>, fake: &impl FakeUpstream) {
    fake.play(Scene::Hangs);
    let mut collected = Collected::default();
    let mut request = wanted(fake, 1);
    let hung = timeout(HANG, backend.generate(&request, &mut collected)).await;
    assert!(hung.is_err(), "it did not hang: {hung:?}");
    let Some(job) = collected.jobs.first().cloned() else {
        return;
    };
    let asked = fake.asked();

    fake.play(Scene::Generates);
    request.job = Some(job);
    // Another worker, which knows nothing but the job's name.
    let (resumed, result) = generate(&*backend_of(&fake.settings()), &request).await;
    result.unwrap();
    assert_eq!(resumed.images.len(), 1);
    assert_eq!(fake.asked(), asked, "the job was bought twice");

    fake.play(Scene::Hangs);
    let mut collected = Collected::default();
    request.job = None;
    drop(timeout(HANG, backend.generate(&request, &mut collected)).await);
    backend.cancel(&collected.jobs[0]).await.unwrap();
    let told = fake.cancelled();
    // Not every upstream can be told.
    assert!(told.is_empty() || told == [collected.jobs[0].clone()]);
}
