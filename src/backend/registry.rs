//! The configured backends, ready to use.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use reqwest::{Client, redirect};

use super::{
    Backend,
    async_job::{self, AsyncJob},
    comfyui::{self, Comfyui},
    demo::Demo,
    gemini::Gemini,
    openai::Openai,
    sdapi::Sdapi,
    upstream::InvalidSetting,
};
use crate::{
    config::{self, ConfigIssue},
    failure::with_causes,
    tls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An upstream may generate for minutes without sending a byte: this keeps routers from dropping the connection.
const KEEPALIVE: Duration = Duration::from_secs(30);
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How many unused connections to one host are kept: after a large answer each holds a buffer of 408 kB.
const POOL_IDLE_MAX: usize = 32;

/// Every configured backend, by name.
#[derive(Default)]
pub struct Registry {
    backends: BTreeMap<String, Opened>,
}

struct Opened {
    backend: Arc<dyn Backend>,
    /// `None`: it needs none, and was opened before any backend that does.
    client: Option<Client>,
}

/// Why the configured backends cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A setting of this backend is invalid.
    #[error("backends.{backend}: {fault}")]
    Setting {
        /// The backend's name.
        backend: String,
        /// What is wrong.
        fault: InvalidSetting,
    },
    /// A ComfyUI workflow or its bindings are invalid.
    #[error("backends.{backend}.{fault}")]
    Workflow {
        /// The backend's name.
        backend: String,
        /// What is wrong.
        fault: comfyui::WorkflowError,
    },
    /// The description of an `async_job` upstream or its settings are invalid.
    #[error("backends.{backend}: {fault}")]
    AsyncJob {
        /// The backend's name.
        backend: String,
        /// What is wrong.
        fault: async_job::OpenError,
    },
    /// The HTTP client that all upstreams share could not be built.
    #[error("the HTTP client for upstreams could not be built")]
    Client(#[source] reqwest::Error),
}

impl RegistryError {
    /// The issue, under the key to change if one setting is at fault.
    pub fn issue(&self) -> ConfigIssue {
        let text = with_causes(self);
        match text.split_once(": ") {
            Some((key, message)) => ConfigIssue::new(key, message),
            None => ConfigIssue::new("backends", text),
        }
    }

    fn setting(backend: &str, fault: InvalidSetting) -> Self {
        let backend = backend.to_owned();
        Self::Setting { backend, fault }
    }

    fn comfyui(backend: &str, error: comfyui::OpenError) -> Self {
        match error {
            comfyui::OpenError::Setting(fault) => Self::setting(backend, fault),
            comfyui::OpenError::Workflow(fault) => Self::Workflow {
                backend: backend.to_owned(),
                fault,
            },
        }
    }
}

impl Registry {
    /// Opens every configured backend; fails at the first invalid one.
    pub fn open(config: &BTreeMap<String, config::Backend>) -> Result<Self, RegistryError> {
        Self::reopen(config, |_| None)
    }

    /// Opens every configured backend, with the client that it had `before`, if any, and so over its connections. A
    /// backend whose settings are the same is opened anew too, because they can name files that have changed.
    pub(super) fn reopen(
        config: &BTreeMap<String, config::Backend>,
        before: impl Fn(&str) -> Option<Client>,
    ) -> Result<Self, RegistryError> {
        let mut new = None;
        let mut backends = BTreeMap::new();
        for (name, settings) in config {
            let mut kept = before(name);
            let client = if kept.is_some() { &mut kept } else { &mut new };
            let backend = open(name, settings, client)?;
            let client = client.clone();
            backends.insert(name.clone(), Opened { backend, client });
        }
        Ok(Self { backends })
    }

    /// Every reason why these backends cannot be opened, with the backend's name.
    pub fn faults(config: &BTreeMap<String, config::Backend>) -> Vec<(&str, RegistryError)> {
        let mut client = None;
        config
            .iter()
            .filter_map(|(name, settings)| {
                let fault = open(name, settings, &mut client).err()?;
                Some((name.as_str(), fault))
            })
            .collect()
    }

    /// The backend of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Backend>> {
        self.backends.get(name).map(|opened| &opened.backend)
    }

    /// The client with which the backend of this name was opened.
    pub(super) fn client(&self, name: &str) -> Option<Client> {
        self.backends.get(name)?.client.clone()
    }

    /// All backends, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Backend>)> {
        let backends = self.backends.iter();
        backends.map(|(name, opened)| (name.as_str(), &opened.backend))
    }
}

fn open(
    name: &str,
    settings: &config::Backend,
    client: &mut Option<Client>,
) -> Result<Arc<dyn Backend>, RegistryError> {
    Ok(match settings {
        config::Backend::Demo(settings) => Arc::new(Demo::new(settings)),
        config::Backend::Openai(settings) => {
            let opened = Openai::open(settings, shared_client(client)?);
            Arc::new(opened.map_err(|fault| RegistryError::setting(name, fault))?)
        }
        config::Backend::Sdapi(settings) => {
            let opened = Sdapi::open(settings, shared_client(client)?);
            Arc::new(opened.map_err(|fault| RegistryError::setting(name, fault))?)
        }
        config::Backend::Comfyui(settings) => {
            let opened = Comfyui::open(settings, shared_client(client)?);
            Arc::new(opened.map_err(|error| RegistryError::comfyui(name, error))?)
        }
        config::Backend::Gemini(settings) => {
            let opened = Gemini::open(settings, shared_client(client)?);
            Arc::new(opened.map_err(|fault| RegistryError::setting(name, fault))?)
        }
        config::Backend::AsyncJob(settings) => {
            let opened = AsyncJob::open(settings, shared_client(client)?);
            Arc::new(opened.map_err(|fault| RegistryError::AsyncJob {
                backend: name.to_owned(),
                fault,
            })?)
        }
    })
}

/// One client, and so one connection pool, for all backends that are opened together. Built only if a backend needs
/// it: it reads the system's certificates, which a machine that runs only `demo` may lack.
fn shared_client(client: &mut Option<Client>) -> Result<Client, RegistryError> {
    if let Some(client) = client {
        return Ok(client.clone());
    }
    tls::install_crypto_provider();
    let made = Client::builder()
        .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(KEEPALIVE)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(POOL_IDLE_MAX)
        .build()
        .map_err(RegistryError::Client)?;
    Ok(client.insert(made).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(settings: &str) -> Result<Registry, RegistryError> {
        Registry::open(&toml::from_str(settings).unwrap())
    }

    #[test]
    fn backends_are_found_by_name() {
        let registry = open(
            r#"
            paint = { kind = "demo" }
            real = { kind = "openai", base_url = "http://127.0.0.1:1/v1", api_key = "sk-1" }"#,
        )
        .unwrap();
        assert!(!registry.get("paint").unwrap().capabilities().mask);
        assert!(registry.get("real").unwrap().capabilities().mask);
        assert!(registry.get("other").is_none());
        let names: Vec<&str> = registry.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["paint", "real"]);
    }

    #[test]
    fn bad_settings_are_named() {
        let error = |settings| open(settings).err().unwrap().to_string();
        assert_eq!(
            error(r#"a = { kind = "openai", base_url = "mailto:a@b", api_key = "k" }"#),
            "backends.a: base_url must start with https:// or http://"
        );
        assert_eq!(
            error(r#"a = { kind = "openai", base_url = "https://h/v1", api_key = "k\n" }"#),
            "backends.a: api_key must not contain line breaks or other control characters"
        );
    }
}
