//! The command line of `authorityd`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use engine_core::authority::headroom::Headroom;
use engine_core::authority::policy::Policy;
use engine_core::authority::space::Thresholds;
use engine_core::limits::{BREAKER_STABLE, SPACE_LOW_PER_MILLE, SPACE_SHORT_PER_MILLE};
use engine_core::time::Span;
use tokio::signal::unix::{SignalKind, signal};

use super::desk::{Options, serve};

/// Runs the control plane of a cluster.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Directory of its records; made, with a new cluster in it, if it does not exist.
    #[arg(long)]
    pub dir: PathBuf,
    /// Address to listen on, for HTTP and for nodes.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7400")]
    pub listen: String,
    /// How long a missing replica may come back before its segment is re-mirrored elsewhere.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub grace: u64,
    /// When many nodes are lost at once, nothing is re-mirrored until nobody else has come or gone for this long.
    #[arg(long, value_name = "SECONDS", default_value_t = BREAKER_STABLE.as_millis() / 1000)]
    pub breaker_stable: u64,
    /// Space that only re-mirroring may use: as much as the largest `node` or `zone` has, or a percentage of every node.
    #[arg(long, value_name = "POLICY", default_value_t = Headroom::default())]
    pub headroom: Headroom,
    /// Say that space is low when so much of what new volumes may book is booked.
    #[arg(long, value_name = "PERCENT", default_value_t = SPACE_LOW_PER_MILLE / 10, value_parser = clap::value_parser!(u64).range(..=100))]
    pub space_low: u64,
    /// Say that the headroom is short when no more than this part of it is left.
    #[arg(long, value_name = "PERCENT", default_value_t = SPACE_SHORT_PER_MILLE / 10, value_parser = clap::value_parser!(u64).range(..=100))]
    pub space_short: u64,
}

/// Runs until SIGTERM or SIGINT; says on stdout when and where it listens.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    // Somebody who runs this inside a larger program may have set up a log already.
    let filter = tracing_subscriber::EnvFilter::try_from_env("BREAKWATER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let space = Thresholds { low_per_mille: args.space_low * 10, short_per_mille: args.space_short * 10 };
    let breaker_stable = Span(args.breaker_stable.saturating_mul(1_000_000_000));
    let policy = Policy { breaker_stable, headroom: args.headroom, space };
    let options = Options { dir: args.dir, listen: args.listen, grace: Duration::from_secs(args.grace), policy };
    let served = runtime.block_on(async {
        let stop = stop_signal()?;
        let ready = |cluster, address| {
            // Nobody may be reading; the line is for whoever does.
            let _ = writeln!(std::io::stdout(), "authority of cluster {cluster} listens on http://{address}");
        };
        serve(options, ready, stop).await.map_err(Box::<dyn std::error::Error>::from)
    });
    // Connections may be in the middle of something; their other ends see a close and come again.
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    tracing::error!("authorityd ends: {error}");
    ExitCode::FAILURE
}

fn stop_signal() -> Result<impl Future<Output = ()>, Box<dyn std::error::Error>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
