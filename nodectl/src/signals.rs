//! One small runtime per command, and its end by SIGINT or SIGTERM.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

/// Runs a future to its end on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the operating system gives a process its first epoll");
    LocalSet::new().block_on(&runtime, future)
}

/// Ready at the first SIGINT or SIGTERM. From its first poll on these no longer end the process by themselves.
pub(crate) async fn terminated() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals keep their default: they end the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
