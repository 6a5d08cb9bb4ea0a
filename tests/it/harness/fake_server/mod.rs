//! The server under every fake upstream. It listens, records what arrives, and sends what the fake's [`Protocol`]
//! answers: at once, later, or in part, as the [`Reply`] says.

mod call;
mod reply;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

pub use call::{Call, File};
pub use reply::{Gate, Reply, closed_gate};

use super::loopback::{Loopback, Serving};

/// What a fake answers, and the state on which that depends.
pub trait Protocol: Send + 'static {
    fn answer(&mut self, call: &Call) -> Reply;
}

/// A fake that listens on loopback until it is dropped.
pub struct FakeServer<P> {
    /// Its URL, without a path.
    pub url: String,
    shared: Arc<Shared<P>>,
    _serving: Serving,
}

struct Shared<P> {
    protocol: Mutex<P>,
    calls: Mutex<Vec<Call>>,
}

impl<P: Protocol> FakeServer<P> {
    /// Starts a fake, whose protocol may have to know its URL.
    pub async fn serving(protocol: impl FnOnce(&str) -> P) -> Self {
        let loopback = Loopback::bind().await;
        let url = loopback.url();
        let shared = Arc::new(Shared {
            protocol: Mutex::new(protocol(&url)),
            calls: Mutex::default(),
        });
        let answering = Arc::clone(&shared);
        let serving = loopback.serve(move |request| {
            let shared = Arc::clone(&answering);
            async move {
                let call = Call::read(request).await?;
                let reply = shared.protocol.lock().unwrap().answer(&call);
                shared.calls.lock().unwrap().push(call);
                Ok(reply.send().await)
            }
        });
        Self {
            url,
            shared,
            _serving: serving,
        }
    }

    /// Locks the state of the fake.
    pub fn state(&self) -> MutexGuard<'_, P> {
        self.shared.protocol.lock().unwrap()
    }

    /// Every call so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// Every call of this method so far, in order.
    pub fn calls_by(&self, method: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.method == method);
        calls
    }

    /// Every call to this path so far, in order.
    pub fn calls_to(&self, path: &str) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.path == path);
        calls
    }

    /// Returns once this many calls have arrived, answered or not.
    pub async fn wait_for(&self, calls: usize) {
        let came = || self.shared.calls.lock().unwrap().len();
        for _ in 0..3_000 {
            if came() >= calls {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} calls came, not {calls}", came());
    }
}

/// Replies that a test sets in place of the protocol's own.
#[derive(Default)]
pub struct Script {
    next: VecDeque<Reply>,
    always: Option<Reply>,
}

impl Script {
    /// Sets the reply to the next request that has none yet.
    pub fn next(&mut self, reply: Reply) {
        self.next.push_back(reply);
    }

    /// Sets the reply to all requests that have none of their own. `None`: the protocol answers again.
    pub fn always(&mut self, reply: Option<Reply>) {
        self.always = reply;
    }

    /// The reply to the request that has just come, if one was set.
    pub fn take(&mut self) -> Option<Reply> {
        self.next.pop_front().or_else(|| self.always.clone())
    }
}
