//! The shared state: pool, storage, backends, clock, settings, and the loops that accept and settle
//! tasks.

use std::sync::{Arc, PoisonError, RwLock, atomic::AtomicBool};

use tokio::sync::{Notify, Semaphore, mpsc};

use crate::{
    accounts::Authenticator,
    backend::Catalog,
    buffers::Buffers,
    clock::Clock,
    config::Config,
    db,
    image::Limits,
    images::{Claimed, admission::SyncWaiters, settle, submit},
    progress::Progress,
    references::Fetcher,
    shutdown::Shutdown,
    stall::StallWatch,
    storage::Storage,
    tasks::{
        backlog::Backlog,
        poll::{self, Poller},
        store::Terms,
        wait::Waiters,
    },
    uploads::Stock,
};

/// A running gateway without its HTTP server and worker. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// What an [`App`] shares between its clones.
pub struct Inner {
    pub config: Config,
    pub clock: Clock,
    pub pool: db::Pool,
    pub storage: Storage,
    catalog: RwLock<Arc<Catalog>>,
    /// Notified when the configuration is to be reloaded.
    pub reload: Notify,
    pub references: Fetcher,
    pub authenticator: Authenticator,
    pub waiters: Waiters,
    pub poller: Poller,
    pub submitter: submit::Submitter,
    pub settler: settle::Settler,
    /// Whether these loops and the worker make progress.
    pub progress: Progress,
    /// The slots of this process's worker: a permit allows one running task.
    pub slots: Arc<Semaphore>,
    /// Whether queued tasks only wait for a slot here: new ones may not overtake them.
    pub backlogged: AtomicBool,
    pub backlog: Backlog,
    pub sync_waiters: SyncWaiters,
    /// Memory for request bodies that are held whole.
    pub buffers: Buffers,
    /// The storage that each account's uploads occupy.
    pub stock: Stock,
    /// The prefix of every link.
    pub public_url: String,
    pub stalls: StallWatch,
    pub shutdown: Shutdown,
}

/// Why the gateway could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The storage failed.
    #[error("storage could not be opened")]
    Storage(#[from] crate::storage::StorageError),
    /// The configuration of a backend is invalid.
    #[error("a backend could not be set up")]
    Backend(#[from] crate::backend::RegistryError),
    /// The HTTP client for references could not be built.
    #[error("the reference fetcher could not be set up")]
    References(#[from] crate::references::BuildError),
}

impl App {
    /// Sets up the gateway over a migrated database. The receiver is for the worker.
    pub async fn open(
        config: Config,
        pool: db::Pool,
        clock: Clock,
        shutdown: Shutdown,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Claimed>), OpenError> {
        let public_url = config.server.public_url();
        let storage = Storage::open(
            &config.storage,
            &config.data_dir,
            &public_url,
            clock.clone(),
        )
        .await?;
        let catalog = RwLock::new(Arc::new(Catalog::open(&config, None)?));
        let references = Fetcher::new(&config.references, config.uploads.bytes_max, &public_url)?;
        let waiters = Waiters::default();
        let terms = Terms {
            lease: config.tasks.lease(),
            deadline: config.tasks.deadline(),
        };
        let zone = &config.billing.time_zone;
        let (claimed, to_run) = mpsc::unbounded_channel();
        let progress = Progress::default();
        let submitter = submit::start(submit::SubmitBatch {
            pool: pool.clone(),
            waiters: waiters.clone(),
            progress: progress.clone(),
            claimed,
            terms,
            time_zone: zone.clone(),
        });
        let poller = poll::start(pool.clone(), progress.clone());
        let settler = settle::start(settle::SettleBatch {
            pool: pool.clone(),
            waiters: waiters.clone(),
            progress: progress.clone(),
            time_zone: zone.clone(),
        });
        let stock = Stock::new(config.uploads.account_bytes_max);
        let buffers = Buffers::new(
            config.server.buffer_bytes_max,
            config.server.account_buffer_bytes_max,
        );
        let app = Self(Arc::new(Inner {
            authenticator: Authenticator::new(pool.clone()),
            slots: Arc::new(Semaphore::new(config.tasks.running_max)),
            config,
            clock,
            pool,
            storage,
            catalog,
            reload: Notify::new(),
            references,
            backlogged: AtomicBool::new(false),
            backlog: Backlog::default(),
            sync_waiters: SyncWaiters::default(),
            buffers,
            stock,
            public_url,
            waiters,
            poller,
            submitter,
            settler,
            progress,
            stalls: StallWatch::default(),
            shutdown,
        }));
        Ok((app, to_run))
    }

    /// The current models and routes. Running work keeps the catalog that it began with.
    pub fn catalog(&self) -> Arc<Catalog> {
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&catalog)
    }

    /// Replaces the current models, backends and routing.
    pub fn replace_catalog(&self, catalog: Catalog) {
        let mut current = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(catalog);
    }

    /// The maximum dimensions of an image.
    pub fn image_limits(&self) -> Limits {
        Limits {
            side_px_max: self.config.uploads.side_px_max,
            pixels_max: self.config.uploads.pixels_max,
        }
    }
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
