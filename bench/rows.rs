//! The measurements, row by row. Each starts with a fresh gateway, so that no row pays for the memory of another.

use std::{
    net::SocketAddr,
    path::Path,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{
    gateway::{Gateway, Site, cpu_each},
    load::{Extent, Load, Sample},
    peers::{self, Nginx, Processors},
    report::{
        Figure,
        Floor::{self, AtLeast, AtMost},
    },
    upstream::{self, Upstream},
    wire, writers,
};

const CLIENTS: usize = 64;
const WAITING_CLIENTS: usize = 1_000;
const UPLOADING_CLIENTS: usize = 4;
/// The side of an uploaded image: 20 MB of noise, below the limit of 20 MiB.
const UPLOAD_SIDE_PX: u32 = 2_640;
const IDLE_FOR: Duration = Duration::from_secs(2);
const GENERATED_WAIT: Duration = Duration::from_mins(1);

/// The names of the rows, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Row {
    Direct,
    Nginx,
    Start,
    Submit,
    Poll,
    Tiny,
    Large,
    LargeInline,
    Waiting,
    Burst,
    Upload,
    Binary,
    Writers,
}

/// How thorough the measurement is.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    pub(super) warm_up: Duration,
    pub(super) measure: Duration,
    pub(super) uploads_each: usize,
}

/// Everything that the rows share.
pub(super) struct Bench {
    site: Site,
    upstream: Upstream,
    key: String,
    first_start: Duration,
    effort: Effort,
}

impl Bench {
    /// Sets up a gateway in `dir`, with an account that never runs out of money.
    pub(super) async fn set_up(
        program: PathBuf,
        dir: &Path,
        effort: Effort,
        with_peers: bool,
    ) -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let processors = if with_peers {
            Some(Processors::read()?)
        } else {
            None
        };
        let others = processors.as_ref().map(|both| both.others.clone());
        let site = Site::new(program, dir, upstream.address, processors)?;
        let gateway = site.start().await?;
        let first_start = gateway.start;
        site.run(&["accounts", "create", "bench", "--balance", "100000000"])?;
        let key = site.run(&["keys", "create", "--account", "bench"])?;
        gateway.end().await?;
        if let Some(others) = others {
            peers::pin(std::process::id(), &others)?;
        }
        Ok(Self {
            site,
            upstream,
            key,
            first_start,
            effort,
        })
    }

    pub(super) async fn measure(&self, row: Row) -> anyhow::Result<Vec<Figure>> {
        match row {
            Row::Direct => return self.direct().await,
            Row::Nginx => return self.nginx().await,
            Row::Binary => return self.binary(),
            Row::Writers => return writers::compare(&self.site, self.effort.uploads_each).await,
            _ => {}
        }
        let gateway = self.site.start().await?;
        let figures = match row {
            Row::Direct | Row::Nginx | Row::Binary | Row::Writers => vec![],
            Row::Start => self.start(&gateway).await?,
            Row::Submit => self.submit(&gateway).await?,
            Row::Poll => self.poll(&gateway).await?,
            Row::Tiny => self.tiny(&gateway).await?,
            Row::Large => self.large(&gateway, &self.generate("large")).await?,
            Row::LargeInline => self.large_inline(&gateway).await?,
            Row::Waiting => self.waiting(&gateway).await?,
            Row::Burst => self.burst(&gateway).await?,
            Row::Upload => self.upload(&gateway).await?,
        };
        gateway.end().await?;
        self.site.clear_objects()?;
        Ok(figures)
    }

    /// What client and upstream can do without a gateway between them.
    async fn direct(&self) -> anyhow::Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for model in ["tiny", "large"] {
            let line = format!("POST /{model}/v1/images/generations");
            let request = wire::request(&line, "none", "application/json", b"{}");
            let load = self.load(self.upstream.address, vec![request], 200);
            let sample = load.run().await?;
            let what = format!("direct to the upstream, {model} image");
            figures.push(rate(&what, &sample, Floor::None));
        }
        Ok(figures)
    }

    /// What nginx can do between the same client and upstream. It holds, stores and charges nothing.
    async fn nginx(&self) -> anyhow::Result<Vec<Figure>> {
        let nginx = Nginx::start(&self.site.dir, self.upstream.address).await?;
        let request = |model: &str| {
            let line = format!("POST /{model}/v1/images/generations");
            wire::request(&line, "none", "application/json", b"{}")
        };
        let mut figures = Vec::new();
        for (model, what) in [
            ("tiny", "nginx, 70-byte image"),
            ("large", "nginx, 1.5 MB image"),
        ] {
            let load = self.load(nginx.address, vec![request(model)], 200);
            figures.push(rate(what, &load.run().await?, Floor::None));
        }
        let burst = Load {
            address: nginx.address,
            clients: WAITING_CLIENTS,
            extent: Extent::Times(1),
            requests: vec![request("burst")],
            status: 200,
        };
        figures.push(rate(
            "nginx, 1,000 images of 1.5 MB at once",
            &burst.run().await?,
            Floor::None,
        ));
        let image = upstream::noise(UPLOAD_SIDE_PX)?;
        let upload = wire::request("POST /upload", "none", "image/png", &image);
        let uploads = Load {
            address: nginx.address,
            clients: UPLOADING_CLIENTS,
            extent: Extent::Times(self.effort.uploads_each),
            requests: vec![upload],
            status: 200,
        };
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let megabytes = image.len() as f64 / 1e6;
        let a_second = uploads.run().await?.a_second() * megabytes;
        figures.push(
            Figure::new(
                "nginx, uploads of 20 MB by 4 clients",
                a_second,
                "MB/s",
                Floor::None,
            )
            .note("not synced"),
        );
        Ok(figures)
    }

    async fn start(&self, gateway: &Gateway) -> anyhow::Result<Vec<Figure>> {
        tokio::time::sleep(IDLE_FOR).await;
        let seconds = |start: Duration| start.as_secs_f64();
        Ok(vec![
            Figure::new(
                "first start to ready",
                seconds(self.first_start),
                "s",
                AtMost(3.0),
            ),
            Figure::new(
                "later start to ready",
                seconds(gateway.start),
                "s",
                AtMost(0.5),
            ),
            Figure::new(
                "idle: resident memory",
                gateway.resident_mb()?,
                "MB",
                AtMost(30.0),
            ),
        ])
    }

    async fn submit(&self, gateway: &Gateway) -> anyhow::Result<Vec<Figure>> {
        let request = self.generation(
            "POST /v1/images/generations?async=1",
            &json!({"model": "tiny"}),
        );
        let (sample, cpu) = self.steady(gateway, vec![request], 202).await?;
        Ok(vec![
            rate("async submit", &sample, Floor::None).note(&cpu),
            Figure::new(
                "async submit, p99",
                sample.percentile_ms(99),
                "ms",
                AtMost(50.0),
            ),
        ])
    }

    async fn poll(&self, gateway: &Gateway) -> anyhow::Result<Vec<Figure>> {
        let requests = self.result(gateway).await?;
        let (sample, cpu) = self.steady(gateway, requests, 200).await?;
        Ok(vec![
            rate("task poll", &sample, AtLeast(5_000.0)).note(&cpu),
            Figure::new(
                "task poll, p99",
                sample.percentile_ms(99),
                "ms",
                AtMost(25.0),
            ),
        ])
    }

    /// Requests for tasks that have ended.
    async fn result(&self, gateway: &Gateway) -> anyhow::Result<Vec<Vec<u8>>> {
        let submit = Load {
            address: gateway.address,
            clients: CLIENTS,
            extent: Extent::Times(1),
            requests: vec![self.generation(
                "POST /v1/images/generations?async=1",
                &json!({"model": "tiny"}),
            )],
            status: 202,
        };
        let tickets = submit.run().await?.bodies;
        let mut requests = Vec::new();
        for ticket in tickets {
            let ticket: Value = serde_json::from_slice(&ticket)?;
            let id = ticket["id"].as_str().context("a ticket has no id")?;
            requests.push(wire::request(
                &format!("GET /v1/images/tasks/{id}"),
                &self.key,
                "text/plain",
                b"",
            ));
        }
        let deadline = Instant::now() + GENERATED_WAIT;
        loop {
            let look = Load {
                address: gateway.address,
                clients: requests.len(),
                extent: Extent::Times(1),
                requests: requests.clone(),
                status: 200,
            };
            let tasks = look.run().await?.bodies;
            let ended = |task: &Vec<u8>| memchr::memmem::find(task, b"\"completed\"").is_some();
            if tasks.iter().all(ended) {
                return Ok(requests);
            }
            if Instant::now() > deadline {
                bail!("tasks did not end in time");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn tiny(&self, gateway: &Gateway) -> anyhow::Result<Vec<Figure>> {
        let (sample, cpu) = self
            .steady(gateway, vec![self.generate("tiny")], 200)
            .await?;
        Ok(vec![
            rate("sync, 70-byte image", &sample, AtLeast(1_500.0)).note(&cpu),
            Figure::new(
                "sync, 70-byte image: peak memory",
                gateway.peak_mb()?,
                "MB",
                Floor::None,
            ),
        ])
    }

    async fn large(&self, gateway: &Gateway, request: &[u8]) -> anyhow::Result<Vec<Figure>> {
        let (sample, cpu) = self.steady(gateway, vec![request.to_vec()], 200).await?;
        Ok(vec![
            rate("sync, 1.5 MB image", &sample, AtLeast(300.0)).note(&cpu),
            Figure::new(
                "sync, 1.5 MB image: peak memory",
                gateway.peak_mb()?,
                "MB",
                AtMost(300.0),
            ),
        ])
    }

    async fn large_inline(&self, gateway: &Gateway) -> anyhow::Result<Vec<Figure>> {
        let body = json!({"model": "large", "response_format": "b64_json"});
        let request = self.generation("POST /v1/images/generations", &body);
        let mut figures = self.large(gateway, &request).await?;
        for figure in &mut figures {
            figure.what = figure.what.replace("image", "image as b64_json");
        }
        Ok(figures)
    }

    async fn waiting(&self, gateway: &Gateway) -> anyhow::Result<Vec<Figure>> {
        let wait = Load {
            address: gateway.address,
            clients: WAITING_CLIENTS,
            extent: Extent::Times(1),
            requests: vec![self.generate("slow")],
            status: 200,
        };
        let sample = wait.run().await?;
        let added = sample.percentile_ms(99) - upstream::SLOW.as_secs_f64() * 1e3;
        Ok(vec![
            Figure::new(
                "1,000 sync requests waiting: peak memory",
                gateway.peak_mb()?,
                "MB",
                AtMost(100.0),
            ),
            Figure::new(
                "1,000 sync requests waiting: added, p99",
                added,
                "ms",
                Floor::None,
            ),
        ])
    }

    /// Many large images at the same moment: memory must follow a limit, not their number.
    async fn burst(&self, gateway: &Gateway) -> anyhow::Result<Vec<Figure>> {
        let burst = Load {
            address: gateway.address,
            clients: WAITING_CLIENTS,
            extent: Extent::Times(1),
            requests: vec![self.generate("burst")],
            status: 200,
        };
        let sample = burst.run().await?;
        Ok(vec![
            rate("1,000 images of 1.5 MB at once", &sample, Floor::None),
            Figure::new(
                "1,000 images of 1.5 MB at once: peak memory",
                gateway.peak_mb()?,
                "MB",
                AtMost(300.0),
            ),
        ])
    }

    async fn upload(&self, gateway: &Gateway) -> anyhow::Result<Vec<Figure>> {
        let image = upstream::noise(UPLOAD_SIDE_PX)?;
        let load = |image: &[u8], times: usize| Load {
            address: gateway.address,
            clients: UPLOADING_CLIENTS,
            extent: Extent::Times(times),
            requests: vec![self.form(image)],
            status: 200,
        };
        // The first uploads load the memory that all uploads share.
        load(&upstream::noise(1)?, 1).run().await?;
        let resident = gateway.resident_mb()?;
        let before = gateway.cpu()?;
        let sample = load(&image, self.effort.uploads_each).run().await?;
        let cpu = cpu_each(before, gateway.cpu()?, sample.count());
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let megabytes = image.len() as f64 / 1e6;
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let each = (gateway.peak_mb()? - resident) / UPLOADING_CLIENTS as f64;
        Ok(vec![
            Figure::new(
                "uploads of 20 MB by 4 clients",
                sample.a_second() * megabytes,
                "MB/s",
                AtLeast(600.0),
            )
            .note(&cpu),
            Figure::new(
                "uploads: memory per request in flight",
                each,
                "MB",
                AtMost(1.0),
            ),
        ])
    }

    fn binary(&self) -> anyhow::Result<Vec<Figure>> {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let megabytes = self.site.program_bytes()? as f64 / 1e6;
        Ok(vec![Figure::new(
            "release binary",
            megabytes,
            "MB",
            AtMost(40.0),
        )])
    }

    /// The same requests for some seconds, once everything is warm; also the cost of each.
    async fn steady(
        &self,
        gateway: &Gateway,
        requests: Vec<Vec<u8>>,
        status: u16,
    ) -> anyhow::Result<(Sample, String)> {
        let warm_up = Load {
            extent: Extent::For(self.effort.warm_up),
            ..self.load(gateway.address, requests.clone(), status)
        };
        warm_up.run().await?;
        let before = gateway.cpu()?;
        let sample = self.load(gateway.address, requests, status).run().await?;
        let cpu = cpu_each(before, gateway.cpu()?, sample.count());
        Ok((sample, cpu))
    }

    fn load(&self, address: SocketAddr, requests: Vec<Vec<u8>>, status: u16) -> Load {
        Load {
            address,
            clients: CLIENTS,
            extent: Extent::For(self.effort.measure),
            requests,
            status,
        }
    }

    fn generate(&self, model: &str) -> Vec<u8> {
        self.generation("POST /v1/images/generations", &json!({"model": model}))
    }

    fn generation(&self, line: &str, body: &Value) -> Vec<u8> {
        let mut body = body.clone();
        body["prompt"] = json!("a lighthouse at dusk, oil on canvas");
        wire::request(
            line,
            &self.key,
            "application/json",
            body.to_string().as_bytes(),
        )
    }

    fn form(&self, image: &[u8]) -> Vec<u8> {
        let head =
            b"--bench\r\ncontent-disposition: form-data; name=\"file\"; filename=\"noise.png\"\r\n\
                     content-type: image/png\r\n\r\n";
        let body = [head, image, b"\r\n--bench--\r\n"].concat();
        wire::request(
            "POST /v1/uploads/images",
            &self.key,
            "multipart/form-data; boundary=bench",
            &body,
        )
    }
}

fn rate(what: &str, sample: &Sample, floor: Floor) -> Figure {
    let (p50, p99) = (sample.percentile_ms(50), sample.percentile_ms(99));
    Figure::new(what, sample.a_second(), "req/s", floor)
        .note(&format!("p50 {p50:.1} ms, p99 {p99:.1} ms"))
}
