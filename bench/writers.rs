//! Compares how local objects are written durably: by Easel, in the way of an upload, and by the crate `object_store`.
//! Both get the same pieces and write to the same disk, in turns.

use std::{
    fs, iter,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use easel::{
    clock::Clock,
    config::{Config, Sources},
    ids,
    image::Format,
    storage::{Key, Storage},
};
use object_store::{
    ObjectStore, PutMultipartOptions, local::LocalFileSystem, path::Path as ObjectPath,
};
use tokio::task::JoinSet;

use super::{
    gateway::{Site, empty_files, own_cpu},
    report::{Figure, Floor, number},
};

const WRITERS: usize = 4;
const TURNS: usize = 3;
/// The most that the gateway reads from a connection at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Sizes in words and in bytes, and how many objects are written for each one of the largest size.
const SIZES: [(&str, usize, usize); 3] = [
    ("70 bytes", 70, 40),
    ("1.5 MB", 1_500_000, 13),
    ("20 MB", 20_000_000, 1),
];

#[derive(Clone)]
enum Writer {
    Easel(Storage),
    ObjectStore(LocalFileSystem),
}

/// What it took to write some objects.
#[derive(Clone, Copy, Default)]
struct Cost {
    objects: usize,
    elapsed: Duration,
    cpu: Duration,
}

/// Measures both with objects of each size. Each of their tasks writes about `largest_each` of the largest size.
pub(super) async fn compare(site: &Site, largest_each: usize) -> anyhow::Result<Vec<Figure>> {
    let dir = site.dir.join("writers");
    let (ours, theirs) = (dir.join("easel"), dir.join("object_store"));
    fs::create_dir_all(&theirs)?;
    let config = Config::load(&Sources::default())?.storage;
    let storage = Storage::open(&config, &ours, "http://localhost", Clock::default()).await?;
    let other = LocalFileSystem::new_with_prefix(theirs)?.with_fsync(true);
    let writers = [
        ("Easel", Writer::Easel(storage)),
        ("object_store", Writer::ObjectStore(other)),
    ];
    let mut figures = Vec::new();
    for (size, bytes, objects) in SIZES {
        let pieces = pieces(bytes);
        let objects = objects * largest_each.div_ceil(TURNS);
        let mut costs = [Cost::default(); 2];
        for (_, writer) in &writers {
            writer.write(&pieces).await?;
        }
        for _ in 0..TURNS {
            for ((_, writer), cost) in iter::zip(&writers, &mut costs) {
                cost.add(writer, &pieces, objects).await?;
                empty_files(&dir)?;
            }
        }
        for ((name, _), cost) in iter::zip(&writers, &costs) {
            let what = format!("objects of {size} by {WRITERS} writers: {name}");
            figures.push(cost.figure(&what, bytes));
        }
    }
    Ok(figures)
}

/// An object that does not compress, as it arrives.
fn pieces(bytes: usize) -> Arc<[Bytes]> {
    let mut object = vec![0_u8; bytes];
    rand::fill(&mut object);
    let pieces = object.chunks(PIECE_BYTES).map(Bytes::copy_from_slice);
    pieces.collect()
}

impl Writer {
    /// Writes one object, under a new key.
    async fn write(&self, pieces: &[Bytes]) -> anyhow::Result<()> {
        let key = Key::upload(Clock::default().now(), ids::row_id(), Format::Png);
        match self {
            Self::Easel(storage) => {
                let mut writer = storage.writer(&key);
                for piece in pieces {
                    writer.write(piece.clone()).await?;
                }
                writer.finish().await?;
            }
            Self::ObjectStore(store) => {
                let path = ObjectPath::from(key.as_str());
                let options = PutMultipartOptions::default();
                let mut upload = store.put_multipart_opts(&path, options).await?;
                for piece in pieces {
                    upload.put_part(piece.clone().into()).await?;
                }
                upload.complete().await?;
            }
        }
        Ok(())
    }
}

impl Cost {
    /// Adds what it takes if several tasks at once write this many objects each.
    async fn add(
        &mut self,
        writer: &Writer,
        pieces: &Arc<[Bytes]>,
        objects: usize,
    ) -> anyhow::Result<()> {
        let (began, cpu) = (Instant::now(), own_cpu()?);
        let mut tasks = JoinSet::new();
        for _ in 0..WRITERS {
            let (writer, pieces) = (writer.clone(), Arc::clone(pieces));
            tasks.spawn(async move {
                for _ in 0..objects {
                    writer.write(&pieces).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        self.elapsed += began.elapsed();
        self.cpu += own_cpu()?.saturating_sub(cpu);
        self.objects += WRITERS * objects;
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    fn figure(&self, what: &str, bytes: usize) -> Figure {
        let objects = self.objects as f64;
        let a_second = objects / self.elapsed.as_secs_f64();
        let (measured, unit) = if bytes < PIECE_BYTES {
            (a_second, "obj/s")
        } else {
            (a_second * bytes as f64 / 1e6, "MB/s")
        };
        let cpu = number(self.cpu.as_secs_f64() * 1e6 / objects);
        Figure::new(what, measured, unit, Floor::None).note(&format!("CPU: {cpu} us each"))
    }
}
