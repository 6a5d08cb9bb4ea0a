//! What every backend promises, whatever its upstream is like.
//!
//! A stand-in says how to reach it and plays scenes; [`keeps_its_promises`] plays all of them through.

use std::{sync::Arc, time::Duration};

use easel::{
    backend::{Backend, BackendError, Drawing},
    failure::Class,
    image::Format,
};
use tokio::time::timeout;

use super::{Collected, backend_of, drawing, input};
use crate::harness::pictures;

/// How the stand-in treats whatever it is asked to draw from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// It draws what it is asked for. Where jobs are polled, those begun before end now, too.
    Draws,
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
    /// The connection ends in the middle of the picture.
    BreaksOff,
    /// All is well, and there is no picture.
    DrawsNothing,
    /// What should be a picture is none.
    DrawsNoImage,
}

/// A stand-in for an upstream, on a port of its own until it is dropped.
pub trait StandIn {
    /// The settings of a backend for it, as TOML, with its key if it wants one.
    fn settings(&self) -> String;
    /// What the drawing's `model` must be.
    fn model(&self) -> String;
    fn play(&self, scene: Scene);
    /// Whether the upstream has a way to do so: some have no safety system, some no keys.
    fn plays(&self, _scene: Scene) -> bool {
        true
    }
    /// How many drawings were asked for so far, whatever became of them; polls do not count.
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
pub async fn keeps_its_promises(stand_in: &impl StandIn) {
    let backend = backend_of(&stand_in.settings());
    draws_a_picture(&*backend, stand_in).await;
    draws_as_many_as_it_says(&*backend, stand_in).await;
    sends_references(&*backend, stand_in).await;
    tells_failures_apart(&*backend, stand_in).await;
    survives_a_hang(&backend, stand_in).await;
    stand_in.play(Scene::Draws);
    backend.check().await.unwrap();
}

async fn draw(backend: &dyn Backend, drawing: &Drawing) -> (Collected, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let drawn = timeout(LONG, backend.draw(drawing, &mut collected)).await;
    (
        collected,
        drawn.unwrap_or_else(|_| panic!("the backend did not return")),
    )
}

fn wanted(stand_in: &impl StandIn, n: u8) -> Drawing {
    Drawing {
        model: stand_in.model(),
        ..drawing(n)
    }
}

async fn draws_a_picture(backend: &dyn Backend, stand_in: &impl StandIn) {
    stand_in.play(Scene::Draws);
    let (collected, drawn) = draw(backend, &wanted(stand_in, 1)).await;
    drawn.unwrap();
    assert_eq!(collected.pictures.len(), 1);
    assert_eq!(stand_in.asked(), 1);
}

async fn draws_as_many_as_it_says(backend: &dyn Backend, stand_in: &impl StandIn) {
    let n = backend.abilities().n_max.min(3);
    let (collected, drawn) = draw(backend, &wanted(stand_in, n)).await;
    drawn.unwrap();
    assert_eq!(collected.pictures.len(), usize::from(n));
}

async fn sends_references(backend: &dyn Backend, stand_in: &impl StandIn) {
    let abilities = backend.abilities();
    let formats = [Format::Png, Format::Jpeg];
    let bytes = [
        pictures::png(),
        pictures::picture(image::ImageFormat::Jpeg),
        pictures::mask_of(100_000),
    ];
    let count = abilities.references_max.min(formats.len());
    let mut drawing = wanted(stand_in, 1);
    let inputs = formats.iter().zip(&bytes).take(count);
    drawing.references = inputs
        .map(|(format, bytes)| input(*format, bytes))
        .collect();
    let masked = abilities.mask && count > 0;
    drawing.mask = masked.then(|| input(Format::Png, &bytes[2]));
    let (collected, drawn) = draw(backend, &drawing).await;
    drawn.unwrap();
    assert_eq!(collected.pictures.len(), 1);
    let mut came = stand_in.inputs();
    if masked {
        let mask = came.pop().unwrap_or_default();
        assert!(stand_in.is_mask(&bytes[2], &mask), "not the mask");
    }
    assert!(
        came == bytes[..count],
        "not the images that were given, or not in order"
    );
}

async fn tells_failures_apart(backend: &dyn Backend, stand_in: &impl StandIn) {
    for (scene, class) in [
        (Scene::Refuses, Class::Refused),
        (Scene::FindsInvalid, Class::Invalid),
        (Scene::KnowsNoKey, Class::Credentials),
        (Scene::LimitsRate, Class::RateLimited),
        (Scene::Fails, Class::Failed),
        (Scene::BreaksOff, Class::Silent),
        (Scene::DrawsNothing, Class::NoImage),
        (Scene::DrawsNoImage, Class::NoImage),
    ] {
        if !stand_in.plays(scene) {
            continue;
        }
        stand_in.play(scene);
        let asked = stand_in.asked();
        let (collected, drawn) = draw(backend, &wanted(stand_in, 1)).await;
        let Err(error) = drawn else {
            panic!("{scene:?} is no failure");
        };
        assert_eq!(error.class(), class, "{scene:?}: {error:?}");
        assert!(collected.pictures.is_empty(), "{scene:?}");
        assert_eq!(stand_in.asked(), asked + 1, "{scene:?}: asked again");
        if let BackendError::RateLimited { retry_after, .. } = error {
            let waits = retry_after.is_none_or(|wait| wait == Duration::from_secs(7));
            assert!(waits, "{retry_after:?}");
        }
    }
}

/// A drawing that is given up leaves nothing behind, and the job goes on where it has a name.
async fn survives_a_hang(backend: &Arc<dyn Backend>, stand_in: &impl StandIn) {
    stand_in.play(Scene::Hangs);
    let mut collected = Collected::default();
    let mut drawing = wanted(stand_in, 1);
    let hung = timeout(HANG, backend.draw(&drawing, &mut collected)).await;
    assert!(hung.is_err(), "it did not hang: {hung:?}");
    let Some(job) = collected.jobs.first().cloned() else {
        return;
    };
    let asked = stand_in.asked();

    stand_in.play(Scene::Draws);
    drawing.job = Some(job);
    // Another worker, which knows nothing but the job's name.
    let (resumed, drawn) = draw(&*backend_of(&stand_in.settings()), &drawing).await;
    drawn.unwrap();
    assert_eq!(resumed.pictures.len(), 1);
    assert_eq!(stand_in.asked(), asked, "the job was bought twice");

    stand_in.play(Scene::Hangs);
    let mut collected = Collected::default();
    drawing.job = None;
    drop(timeout(HANG, backend.draw(&drawing, &mut collected)).await);
    backend.cancel(&collected.jobs[0]).await.unwrap();
    let told = stand_in.cancelled();
    // Not every upstream can be told.
    assert!(told.is_empty() || told == [collected.jobs[0].clone()]);
}
