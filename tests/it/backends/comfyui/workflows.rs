//! What is filled into workflows, and which workflows are faulty.

use std::collections::BTreeMap;

use easel::{
    backend::{BackendError, Registry},
    config,
    image::{Format, ImageSize, Resolution},
};
use serde_json::{Value, json};

use super::{
    Comfyui, FakeUpstream, backend_of, generate, generate_with, server::KEY, wanted, with,
};
use crate::{
    backends::input,
    harness::images::{self, size_of},
};

#[tokio::test]
async fn values_go_where_the_bindings_say() {
    let server = Comfyui::start().await;
    let mut request = wanted(&server, 2);
    request
        .options
        .insert("negative_prompt".into(), "fog".into());
    request.options.insert("seed".into(), 1.into());
    request.extra.insert("3.steps".into(), 7.into());

    let (collected, result) = generate(&server, &request).await;

    result.unwrap();
    let submitted = server.submitted()[0].clone();
    let nodes = &submitted["prompt"];
    assert_eq!(submitted["prompt_id"], collected.jobs[0]);
    assert_eq!(nodes["4"]["inputs"]["ckpt_name"], server.model());
    assert_eq!(nodes["6"]["inputs"]["text"], "a heron");
    assert_eq!(nodes["7"]["inputs"]["text"], "fog");
    // 2:1 with about as many pixels as 1024x1024, in multiples of 64.
    let size = json!({"width": 1472, "height": 704, "batch_size": 2});
    assert_eq!(nodes["5"]["inputs"], size);
    assert_eq!(nodes["3"]["inputs"]["steps"], 7);
    let dimensions: Vec<_> = collected
        .images
        .iter()
        .map(|bytes| size_of(bytes))
        .collect();
    assert_eq!(dimensions, [(1472, 704); 2]);
}

#[tokio::test]
async fn absent_values_keep_the_workflows_own() {
    let server = Comfyui::start().await;
    generate(&server, &wanted(&server, 1)).await.1.unwrap();
    let nodes = &server.submitted()[0]["prompt"];
    assert_eq!(nodes["7"]["inputs"]["text"], "lowres, blurry, watermark");
    assert_eq!(nodes["3"]["inputs"]["steps"], 28);
}

/// ComfyUI answers an identical workflow from its cache.
#[tokio::test]
async fn the_same_prompt_twice_generates_two_images() {
    let server = Comfyui::start().await;
    for _ in 0..2 {
        generate(&server, &wanted(&server, 1)).await.1.unwrap();
    }
    let seeds = || {
        let seed = |body: &Value| body["prompt"]["3"]["inputs"]["seed"].clone();
        server.submitted().iter().map(seed).collect::<Vec<_>>()
    };
    assert_ne!(seeds()[0], seeds()[1]);

    // A workflow that ran before still returns its image.
    let mut same = wanted(&server, 1);
    same.extra.insert("3.seed".into(), 5.into());
    let (first, _) = generate(&server, &same).await;
    let (second, result) = generate(&server, &same).await;
    result.unwrap();
    assert_eq!(seeds()[2], seeds()[3]);
    assert_eq!(first.images, second.images);
}

#[tokio::test]
async fn each_resolution_has_its_pixels() {
    let server = Comfyui::start().await;
    let settings = with(
        &server.settings(),
        "native_side_px = 512\nnative_side_2k_px = 1536\nside_step_px = 16",
    );
    let mut request = wanted(&server, 1);
    request.size = ImageSize {
        width: 1024,
        height: 1536,
    };
    for (resolution, size) in [
        (Resolution::OneK, (416, 624)),
        (Resolution::TwoK, (1248, 1888)),
    ] {
        request.resolution = resolution;
        let (collected, result) = generate_with(&settings, &request).await;
        result.unwrap();
        assert_eq!(size_of(&collected.images[0]), size);
    }
}

#[tokio::test]
async fn references_are_uploaded_to_temporary_files() {
    let server = Comfyui::start().await;
    let mut request = wanted(&server, 1);
    request.references = vec![input(Format::Png, &images::png())];
    let (collected, result) = generate(&server, &request).await;
    result.unwrap();
    let name = format!("easel/{}-1.png [temp]", collected.jobs[0]);
    assert_eq!(server.state().files[&name], images::png());
    let nodes = &server.submitted()[0]["prompt"];
    assert_eq!(nodes["10"]["inputs"]["image"], name);
    assert_eq!(size_of(&collected.images[0]), (1472, 704));
}

#[tokio::test]
async fn a_workflow_may_bind_more_references_than_are_given() {
    let server = Comfyui::start().await;
    let bindings = r#"image_workflow = "builtin:inpaint"
        image_bindings = ["prompt=6.text", "seed=3.seed", "output=9", "reference=10.image",
            "reference=14.image", "model=4.ckpt_name"]"#;
    let settings = with(&server.settings(), bindings);
    let capabilities = backend_of(&settings).capabilities();
    // One of the workflows has no binding for the number of images, so images are generated one by one.
    assert_eq!((capabilities.n_max, capabilities.references_max), (1, 2));
    let mut request = wanted(&server, 1);
    request.references = vec![input(Format::Png, &images::png())];
    generate_with(&settings, &request).await.1.unwrap();
    assert_eq!(server.inputs(), [images::png(), images::png()]);
}

#[tokio::test]
async fn a_missing_workflow_generates_nothing() {
    let server = Comfyui::start().await;
    let settings = with(&server.settings(), "text_workflow = ''\nmask_workflow = ''");
    assert!(!backend_of(&settings).capabilities().mask);
    let (_, result) = generate_with(&settings, &wanted(&server, 1)).await;
    let Err(BackendError::Invalid { message }) = result else {
        panic!("{result:?}");
    };
    assert_eq!(message, "this model generates only from a reference image");
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn server_side_faults_name_the_node_and_not_its_input() {
    let server = Comfyui::start().await;
    let mut request = wanted(&server, 1);
    request.model = "secret-name.safetensors".into();
    let (_, result) = generate(&server, &request).await;
    let Err(BackendError::Invalid { message }) = result else {
        panic!("{result:?}");
    };
    let expected =
        "Prompt outputs failed validation: node 4 (CheckpointLoaderSimple): Value not in list";
    assert_eq!(message, expected);

    let mut request = wanted(&server, 1);
    request.extra.insert("33.steps".into(), 7.into());
    let (_, result) = generate(&server, &request).await;
    assert!(
        matches!(result, Err(BackendError::Failed { .. })),
        "{result:?}"
    );

    let mut request = wanted(&server, 1);
    request
        .options
        .insert("negative_prompt".into(), "x".repeat(32_001).into());
    let (_, result) = generate(&server, &request).await;
    assert!(
        matches!(result, Err(BackendError::Invalid { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_faulty_binding_is_reported_at_the_start() {
    let server = Comfyui::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let saved_by_hand = file("ui.json", r#"{"nodes": [], "links": [], "version": 0.4}"#);
    let broken = file("broken.json", "{");
    let small = file(
        "small.json",
        r#"{"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "color": ["2", 0]}}}"#,
    );
    let settings = [
        "text_workflow = '/nowhere/flux.json'".to_owned(),
        "text_workflow = 'builtin:flux'".to_owned(),
        format!("text_workflow = '{saved_by_hand}'"),
        format!("text_workflow = '{broken}'"),
        format!("text_workflow = '{small}'"),
        format!(
            "text_workflow = '{small}'\ntext_bindings = ['width=1.width', 'seed=1.color', \
             'prompt=1.text', 'height=2.height', 'hight=1.height', 'width', 'width=1', 'output=7']"
        ),
        "text_bindings = ['prompt=6.text', 'seed=3.seed', 'output=9', 'reference=6.text']"
            .to_owned(),
        "mask_bindings = ['prompt=6.text', 'seed=3.seed', 'output=9']".to_owned(),
    ];
    let faults: Vec<String> = settings
        .iter()
        .map(|more| {
            fault(&with(&server.settings(), more)).replace(dir.path().to_str().unwrap(), "")
        })
        .collect();
    assert!(faults.iter().all(|fault| !fault.contains(KEY)));
    insta::assert_snapshot!(faults.join("\n"), @r#"
    backends.own.text_workflow: cannot read /nowhere/flux.json: No such file or directory (os error 2)
    backends.own.text_workflow: unknown workflow builtin:flux, known: builtin:text-to-image, builtin:image-to-image, builtin:inpaint
    backends.own.text_workflow: /ui.json is not a workflow in ComfyUI's API format (save it with Export (API)): "links" is not a node with class_type and inputs
    backends.own.text_workflow: /broken.json is not a workflow in ComfyUI's API format (save it with Export (API)): EOF while parsing an object at line 1 column 1
    backends.own.text_bindings: model=4.ckpt_name: the workflow has no node "4"; prompt=6.text: the workflow has no node "6"; negative=7.text: the workflow has no node "7"; width=5.width: the workflow has no node "5"; height=5.height: the workflow has no node "5"; batch=5.batch_size: the workflow has no node "5"; seed=3.seed: the workflow has no node "3"; output=9: the workflow has no node "9"
    backends.own.text_bindings: seed=1.color: this input is linked to another node, it must hold a value; prompt=1.text: node 1 (EmptyImage) has no input "text", it has: color, width; height=2.height: the workflow has no node "2"; hight=1.height: unknown name "hight", known: model, prompt, negative, width, height, batch, seed, reference, mask, output; "width" is not a binding such as prompt=6.text or output=9; "width=1" is not a binding such as prompt=6.text or output=9; output=7: the workflow has no node "7"
    backends.own.text_bindings: reference cannot have a binding in this workflow
    backends.own.mask_bindings: missing binding: reference; missing binding: mask
    "#);
}

fn fault(settings: &str) -> String {
    let settings: config::Backend = toml::from_str(settings).unwrap();
    let all = BTreeMap::from([("own".to_owned(), settings)]);
    Registry::open(&all).err().unwrap().to_string()
}
