//! The shared state: pool, storage, backends, clock and settings.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;

use crate::{
    accounts::Authenticator,
    backend::Catalog,
    buffers::Buffers,
    clock::Clock,
    config::Config,
    db,
    image::Limits,
    progress::Progress,
    references::Fetcher,
    shutdown::Shutdown,
    stall::StallWatch,
    storage::Storage,
    tasks::{
        inquiry::Inquiries,
        poll::{self, Poller},
        wait::Waiters,
    },
    uploads::StorageQuota,
};

/// What all use cases share. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// What an [`App`] shares between its clones.
pub struct Inner {
    /// The settings as read at the start. A reload changes only the catalog.
    pub config: Config,
    /// The only source of the time.
    pub clock: Clock,
    /// The database.
    pub pool: db::Pool,
    /// The bytes of images.
    pub storage: Storage,
    catalog: RwLock<Arc<Catalog>>,
    /// Notified when the configuration is to be reloaded.
    pub reload: Notify,
    /// Fetches foreign references.
    pub references: Fetcher,
    /// Recognises API keys.
    pub authenticator: Authenticator,
    /// Callers that wait for tasks in this process.
    pub waiters: Waiters,
    /// Questions to other processes about their callers.
    pub inquiries: Inquiries,
    /// Looks up tasks that clients poll.
    pub poller: Poller,
    /// Whether the loops of this process make progress.
    pub progress: Progress,
    /// Memory for request bodies that are held whole.
    pub buffers: Buffers,
    /// The storage that each account's uploads occupy.
    pub storage_quota: StorageQuota,
    /// The prefix of every link.
    pub public_url: String,
    /// Notices when this process could not run for a while.
    pub stalls: StallWatch,
    /// The shutdown of this process, and the tasks it waits for.
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
    /// Sets up the shared state over a migrated database.
    pub async fn open(
        config: Config,
        pool: db::Pool,
        clock: Clock,
        shutdown: Shutdown,
    ) -> Result<Self, OpenError> {
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
        let progress = Progress::default();
        let poller = poll::start(pool.clone(), progress.clone());
        let storage_quota = StorageQuota::new(config.uploads.account_bytes_max);
        let buffers = Buffers::new(
            config.server.buffer_bytes_max,
            config.server.account_buffer_bytes_max,
        );
        Ok(Self(Arc::new(Inner {
            authenticator: Authenticator::new(pool.clone()),
            config,
            clock,
            pool,
            storage,
            catalog,
            reload: Notify::new(),
            references,
            buffers,
            storage_quota,
            public_url,
            waiters,
            inquiries: Inquiries::default(),
            poller,
            progress,
            stalls: StallWatch::default(),
            shutdown,
        })))
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
