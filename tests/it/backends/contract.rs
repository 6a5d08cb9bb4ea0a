//! The contract of every backend, however its upstream behaves.
//! | A fake provides the settings and plays scenarios; [`fulfils_the_contract`] runs the backend through all of them.

use std::{sync::Arc, time::Duration};

use easel::{
    backend::{Backend, BackendError},
    failure::Class,
    image::Format,
};
use tokio::time::timeout;

use super::{Collected, backend_of, generate, generate_by, input, wanted};
use crate::harness::images;

/// How the fake treats all requests from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scenario {
    /// It generates. Where jobs are polled, jobs begun earlier end now, too.
    #[default]
    Generates,
    /// Its safety system refuses, in the upstream's own format.
    Refuses,
    /// It refuses a parameter.
    FindsInvalid,
    /// It does not know the key.
    KnowsNoKey,
    /// It limits the rate; where the upstream can say so, it asks to retry in 7 seconds.
    LimitsRate,
    /// It reports a failure.
    Fails,
    /// It accepts the request and never ends it.
    Hangs,
    /// The connection breaks in the middle of the image.
    BreaksOff,
    /// It succeeds without an image.
    GeneratesNothing,
    /// It returns something that is not an image.
    GeneratesNoImage,
}

/// A fake upstream on its own port, until it is dropped.
pub trait FakeUpstream {
    /// The settings of a backend for it, as TOML, with its key if it requires one.
    fn settings(&self) -> String;
    /// The required `model` of a request.
    fn model(&self) -> String;
    fn play(&self, scenario: Scenario);
    /// Whether the upstream can play the scenario: some have no safety system, some no keys.
    fn plays(&self, _scene: Scenario) -> bool {
        true
    }
    /// How many requests arrived so far, whatever their outcome; polls do not count.
    fn asked(&self) -> usize;
    /// The reference images of the last request, in order, with the mask last.
    fn inputs(&self) -> Vec<Vec<u8>>;
    /// Whether the mask that arrived is equivalent to the given one; most upstreams take it unchanged.
    fn is_mask(&self, given: &[u8], came: &[u8]) -> bool {
        given == came
    }
    /// The jobs that it was told to cancel, if it has jobs.
    fn cancelled(&self) -> Vec<String> {
        Vec::new()
    }
}

const HANG: Duration = Duration::from_millis(400);

/// Runs the backend through every scenario.
pub async fn fulfils_the_contract(fake: &impl FakeUpstream) {
    let backend = backend_of(&fake.settings());
    generates_an_image(&*backend, fake).await;
    generates_as_many_as_it_says(&*backend, fake).await;
    sends_references(&*backend, fake).await;
    distinguishes_failures(&*backend, fake).await;
    survives_a_hang(&backend, fake).await;
    fake.play(Scenario::Generates);
    backend.check().await.unwrap();
}

async fn generates_an_image(backend: &dyn Backend, fake: &impl FakeUpstream) {
    fake.play(Scenario::Generates);
    let (collected, result) = generate_by(backend, &wanted(fake, 1)).await;
    result.unwrap();
    assert_eq!(collected.images.len(), 1);
    assert_eq!(fake.asked(), 1);
}

async fn generates_as_many_as_it_says(backend: &dyn Backend, fake: &impl FakeUpstream) {
    let n = backend.capabilities().n_max.min(3);
    let (collected, result) = generate_by(backend, &wanted(fake, n)).await;
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
    let (collected, result) = generate_by(backend, &request).await;
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

async fn distinguishes_failures(backend: &dyn Backend, fake: &impl FakeUpstream) {
    for (scenario, class) in [
        (Scenario::Refuses, Class::Refused),
        (Scenario::FindsInvalid, Class::Invalid),
        (Scenario::KnowsNoKey, Class::Credentials),
        (Scenario::LimitsRate, Class::RateLimited),
        (Scenario::Fails, Class::Failed),
        (Scenario::BreaksOff, Class::OutcomeUnknown),
        (Scenario::GeneratesNothing, Class::NoImage),
        (Scenario::GeneratesNoImage, Class::NoImage),
    ] {
        if !fake.plays(scenario) {
            continue;
        }
        fake.play(scenario);
        let asked = fake.asked();
        let (collected, result) = generate_by(backend, &wanted(fake, 1)).await;
        let Err(error) = result else {
            panic!("{scenario:?} is no failure");
        };
        assert_eq!(error.class(), class, "{scenario:?}: {error:?}");
        assert!(collected.images.is_empty(), "{scenario:?}");
        assert_eq!(fake.asked(), asked + 1, "{scenario:?}: asked again");
        if let BackendError::RateLimited { retry_after, .. } = error {
            let waits = retry_after.is_none_or(|wait| wait == Duration::from_secs(7));
            assert!(waits, "{retry_after:?}");
        }
    }
}

/// A cancelled request leaves nothing behind, and its job is resumed if it has a name.
async fn survives_a_hang(backend: &Arc<dyn Backend>, fake: &impl FakeUpstream) {
    fake.play(Scenario::Hangs);
    let mut collected = Collected::default();
    let mut request = wanted(fake, 1);
    let hung = timeout(HANG, backend.generate(&request, &mut collected)).await;
    assert!(hung.is_err(), "it did not hang: {hung:?}");
    let Some(job) = collected.jobs.first().cloned() else {
        return;
    };
    let asked = fake.asked();

    fake.play(Scenario::Generates);
    request.job = Some(job);
    // Another worker, which knows only the job's name.
    let (resumed, result) = generate(fake, &request).await;
    result.unwrap();
    assert_eq!(resumed.images.len(), 1);
    assert_eq!(fake.asked(), asked, "the job was bought twice");

    fake.play(Scenario::Hangs);
    let mut collected = Collected::default();
    request.job = None;
    drop(timeout(HANG, backend.generate(&request, &mut collected)).await);
    backend.cancel(&collected.jobs[0]).await.unwrap();
    let cancelled = fake.cancelled();
    // Not every upstream can cancel.
    assert!(cancelled.is_empty() || cancelled == [collected.jobs[0].clone()]);
}
