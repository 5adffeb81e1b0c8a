//! The NBD server over a volume in memory, on a thread of the test.

use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use engine::gateway::memory::MemoryVolume;
use engine::gateway::nbd::{Address, Listener, NbdServer};
use tokio::sync::oneshot;

/// A server that stops with the test.
pub(crate) struct Server {
    pub(crate) tcp: String,
    pub(crate) unix: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves an empty volume of `size` bytes.
    pub(crate) fn start(size: u64, socket: &Path) -> Self {
        let addresses = [Address::Tcp("127.0.0.1:0".into()), Address::Unix(socket.to_owned())];
        let (stop, stopped) = oneshot::channel();
        let (uris, serving) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let mut listeners = Vec::new();
                for address in &addresses {
                    let listener = Listener::bind(address).await.expect("can listen");
                    uris.send(listener.uri("vol")).expect("the test waits for it");
                    listeners.push(listener);
                }
                let volume = Rc::new(MemoryVolume::new(size));
                NbdServer::serve(listeners, volume, "vol", async { drop(stopped.await) }).await;
            });
        });
        let uri = || serving.recv().expect("the server starts");
        Self { tcp: uri(), unix: uri(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server panicked");
    }
}
