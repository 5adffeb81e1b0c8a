//! The command line of a storage node: the same for the program `noded` and for whoever starts one by other means.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

pub use super::config::Args;
use super::start::{self, StartError};

/// Runs a node until it is told to stop (SIGTERM, SIGINT) or cannot go on. Logs go to stderr, as `RUST_LOG` says.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A logger that is there already belongs to whoever started us.
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let _ = log.try_init();
    stop_at_panic();
    use_small_pages();
    match try_run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            eprintln!("noded: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn try_run(args: Args) -> Result<(), StartError> {
    let config = args.resolve()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        let stop = stop_signal()?;
        start::run(config, stop).await
    }))
}

/// Ready when the process is asked to stop. Asked again, it ends at once: its peers take over as from a crash.
fn stop_signal() -> Result<impl Future<Output = ()>, StartError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Runtime)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::task::spawn_local(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("asked to stop a second time: ending at once");
            std::process::exit(1);
        });
    })
}

/// Memory comes in pages of 4 KiB: the first touch of a large one clears 2 MiB at once, for milliseconds on a virtual
/// machine, and every write of the shard waits meanwhile.
fn use_small_pages() {
    // SAFETY: changes nothing but how the kernel backs this process's memory.
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } != 0 {
        tracing::debug!("the kernel keeps to its own choice of page sizes");
    }
}

/// A broken assertion is our mistake, and half a node is worse than none: the whole process stops, its peers go on.
fn stop_at_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}
