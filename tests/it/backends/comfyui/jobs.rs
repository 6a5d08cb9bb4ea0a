//! Prompts that are followed, found again, lost, and cancelled.

use std::time::Duration;

use async_trait::async_trait;
use easel::{
    backend::{BackendError, ImageSink, SinkError},
    ids,
    image::Format,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Collected, Comfyui, backend_of,
    contract::{FakeUpstream, Scenario},
    generate, generate_with, wanted,
};
use crate::{
    backends::input,
    harness::{images, loopback::Loopback},
};

/// Notes how many requests had arrived when a job is named.
struct Noting<'a> {
    server: &'a Comfyui,
    asked: Option<usize>,
}

#[async_trait]
impl ImageSink for Noting<'_> {
    async fn accepted(&mut self, _job: &str) -> Result<(), SinkError> {
        self.asked.get_or_insert(self.server.asked());
        Ok(())
    }

    fn usage(&mut self, _usage: Value) {}

    async fn write(&mut self, _piece: bytes::Bytes) -> Result<(), SinkError> {
        Ok(())
    }

    fn discard(&mut self) {}

    async fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_job_is_named_before_it_is_submitted() {
    let server = Comfyui::start().await;
    let mut sink = Noting {
        server: &server,
        asked: None,
    };
    let backend = backend_of(&server.settings());
    backend
        .generate(&wanted(&server, 1), &mut sink)
        .await
        .unwrap();
    assert_eq!(sink.asked, Some(0));
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_known_job_is_resumed_and_an_unknown_one_submitted_under_its_name() {
    let server = Comfyui::start().await;
    let mut request = wanted(&server, 1);

    // Never submitted: the worker was lost before.
    let id = ids::credential_id().to_string();
    request.job = Some(id.clone());
    let (first, result) = generate(&server, &request).await;
    result.unwrap();
    assert_eq!(server.submitted()[0]["prompt_id"], id);

    // The job has ended in the meantime.
    let (second, result) = generate(&server, &request).await;
    result.unwrap();
    assert_eq!(second.images, first.images);
    assert_eq!(
        second.jobs,
        [id],
        "the job must be named, so that it can be cancelled"
    );
    assert_eq!(server.asked(), 1);

    // The job waits behind another one.
    server.play(Scenario::Hangs);
    let _running = begin(&server).await;
    let queued = begin(&server).await;
    request.job = Some(queued);
    let backend = backend_of(&server.settings());
    let resumed = async {
        let mut collected = Collected::default();
        backend.generate(&request, &mut collected).await.unwrap();
        collected.images.len()
    };
    server.state().polled.clear();
    let ends = async {
        server.wait_for_polls(3).await;
        server.play(Scenario::Generates);
    };
    assert_eq!(tokio::join!(resumed, ends).0, 1);
    assert_eq!(server.asked(), 3);
}

#[tokio::test]
async fn job_names_chosen_by_the_server_are_used() {
    let server = Comfyui::start().await;
    server.state().ignores_ids = true;
    let (collected, result) = generate(&server, &wanted(&server, 1)).await;
    result.unwrap();
    assert_eq!(collected.jobs.len(), 2, "ours, and theirs");

    let mut request = wanted(&server, 1);
    request.job = collected.jobs.last().cloned();
    generate(&server, &request).await.1.unwrap();
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn a_job_lost_in_a_restart_has_failed() {
    let server = Comfyui::start().await;
    server.play(Scenario::Hangs);
    let request = wanted(&server, 1);
    let lost = async {
        server.wait_for_polls(1).await;
        server.restart();
    };
    let ((_, result), ()) = tokio::join!(generate(&server, &request), lost);
    assert!(
        matches!(result, Err(BackendError::Failed { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_few_failed_polls_are_tolerated() {
    let server = Comfyui::start().await;
    server.state().polls_to_fail = 5;
    generate(&server, &wanted(&server, 1)).await.1.unwrap();

    server.state().polls_to_fail = 6;
    let (begun, result) = generate(&server, &wanted(&server, 1)).await;
    assert!(
        matches!(result, Err(BackendError::OutcomeUnknown { .. })),
        "{result:?}"
    );

    // A worker that resumes the job does not submit it again because the server is unreachable.
    let mut request = wanted(&server, 1);
    request.job = begun.jobs.first().cloned();
    let asked = server.asked();
    for (failing, comes) in [(5, true), (6, false)] {
        server.state().polls_to_fail = failing;
        let (_, result) = generate(&server, &request).await;
        assert_eq!(result.is_ok(), comes, "{result:?}");
    }
    assert_eq!(server.asked(), asked);
}

#[tokio::test]
async fn cancelling_removes_queued_prompts_and_stops_running_ones() {
    let server = Comfyui::start().await;
    server.play(Scenario::Hangs);
    let backend = backend_of(&server.settings());
    let running = begin(&server).await;
    let queued = begin(&server).await;

    backend.cancel(&queued).await.unwrap();
    assert_eq!(server.cancelled(), std::slice::from_ref(&queued));
    backend.cancel(&running).await.unwrap();
    assert_eq!(server.cancelled(), [queued.clone(), running.clone()]);

    // A caller that still waits gets the error.
    let mut request = wanted(&server, 1);
    request.job = Some(running.clone());
    let (_, result) = generate(&server, &request).await;
    assert!(matches!(result, Err(BackendError::Failed { detail }) if detail == "interrupted"));

    // Both are gone; the next one continues.
    let next = begin(&server).await;
    for gone in [&queued, &running, &"no id".to_owned()] {
        backend.cancel(gone).await.unwrap();
    }
    assert!(!server.cancelled().contains(&next));
}

/// Some servers stop any running job; they are told to stop only if the job to stop is running.
#[tokio::test]
async fn old_servers_do_not_stop_the_wrong_prompt() {
    let server = Comfyui::start().await;
    server.state().ignores_ids = true;
    server.play(Scenario::Hangs);
    let backend = backend_of(&server.settings());
    let running = begin(&server).await;
    let queued = begin(&server).await;
    backend.cancel(&queued).await.unwrap();
    backend
        .cancel(&ids::credential_id().to_string())
        .await
        .unwrap();
    assert_eq!(server.cancelled(), [queued]);
    backend.cancel(&running).await.unwrap();
    assert!(server.cancelled().contains(&running));
}

#[tokio::test]
async fn file_names_are_passed_back_unchanged() {
    let server = Comfyui::start().await;
    let hostile =
        json!([{"filename": "../../x?type=input&y=#", "subfolder": "/etc", "type": "a b"}]);
    server.state().images = Some(hostile);
    let (_, result) = generate(&server, &wanted(&server, 1)).await;
    assert!(
        matches!(result, Err(BackendError::NoImage { .. })),
        "{result:?}"
    );
    let views = server.calls_to("/view");
    assert_eq!(views.len(), 1);
    assert_eq!(views[0].in_query("filename"), "../../x?type=input&y=#");
    assert_eq!(views[0].in_query("subfolder"), "/etc");
    assert_eq!(views[0].in_query("type"), "a b");
}

#[tokio::test]
async fn endless_answers_are_not_read_to_the_end() {
    let server = Comfyui::start().await;
    server.state().images = Some("x".repeat(5 << 20).into());
    let (_, result) = generate(&server, &wanted(&server, 1)).await;
    let Err(BackendError::OutcomeUnknown { detail }) = result else {
        panic!("{result:?}");
    };
    assert!(detail.contains("longer than"), "{detail}");
}

/// An upload that breaks off has begun no request; a prompt that breaks off may have.
#[tokio::test]
async fn only_an_interrupted_submit_may_have_been_accepted() {
    let (server, closes) = (Comfyui::start().await, Loopback::bind().await);
    let settings = server.settings().replace(&server.url, &closes.url());
    let _closing = closes.accept(|connection| async { drop(connection) });
    let mut request = wanted(&server, 1);
    let (_, submitted) = generate_with(&settings, &request).await;
    assert!(
        matches!(submitted, Err(BackendError::OutcomeUnknown { .. })),
        "{submitted:?}"
    );
    request.references = vec![input(Format::Png, &images::png())];
    let (_, uploaded) = generate_with(&settings, &request).await;
    assert!(
        matches!(uploaded, Err(BackendError::Unreachable { .. })),
        "{uploaded:?}"
    );
}

#[tokio::test]
async fn a_check_tells_comfyui_from_others() {
    let server = Comfyui::start().await;
    let checked = |settings: String| async move { backend_of(&settings).check().await };
    checked(server.settings()).await.unwrap();
    let elsewhere = server
        .settings()
        .replace(&server.url, &format!("{}/other", server.url));
    let no = checked(elsewhere).await;
    assert!(matches!(no, Err(BackendError::Invalid { .. })), "{no:?}");
    server.play(Scenario::KnowsNoKey);
    let no = checked(server.settings()).await;
    assert!(
        matches!(no, Err(BackendError::Credentials { .. })),
        "{no:?}"
    );
    let settings = server.settings();
    drop(server);
    let no = checked(settings).await;
    assert!(
        matches!(no, Err(BackendError::Unreachable { .. })),
        "{no:?}"
    );
}

/// Begins a request and abandons it; returns the name of its job.
async fn begin(server: &Comfyui) -> String {
    let mut collected = Collected::default();
    let known = server.known();
    let backend = backend_of(&server.settings());
    let request = wanted(server, 1);
    let begun = timeout(Duration::from_secs(10), server.wait_for_polls(known + 1));
    tokio::select! {
        result = backend.generate(&request, &mut collected) => panic!("{result:?}"),
        begun = begun => begun.unwrap(),
    }
    collected.jobs.pop().unwrap()
}

/// Parsed into values, this queue would take several gigabytes.
#[tokio::test]
async fn a_queue_of_many_megabytes_takes_no_memory() {
    let server = Comfyui::start().await;
    let id = ids::credential_id().to_string();
    let mut queue = b"{\"queue_running\": [[1, \"other\", [".to_vec();
    while queue.len() < 32 << 20 {
        queue.extend_from_slice(&b"[],".repeat(10_000));
    }
    queue.extend_from_slice(format!("[]]]], \"queue_pending\": [[2, \"{id}\"]]}}").as_bytes());
    server.state().queue = Some(queue.into());
    let backend = backend_of(&server.settings());
    let before = memory_at_most();

    backend.cancel(&id).await.unwrap();

    let more = memory_at_most() - before;
    assert!(more < 100 << 20, "{more} bytes");
    assert!(server.state().cancelled.is_empty(), "it was not running");
    // A truncated answer says nothing about a prompt.
    server.state().queue = Some("{\"queue_running\": [[1".into());
    assert!(backend.cancel(&id).await.is_err());
}

/// The peak memory of this process, in bytes.
fn memory_at_most() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() * 1024
}
