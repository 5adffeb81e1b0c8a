//! `nodectl remirror`: what keeps copying from becoming a storm, and what a person may say about it.

use clap::Subcommand;
use engine::authority::api::{BreakerInfo, BreakerWish, SetBreaker};

use crate::Global;
use crate::failure::Failure;

/// Re-mirroring.
#[derive(Debug, Subcommand)]
pub(crate) enum Remirror {
    /// Many nodes that vanish at once mean the network: nothing is re-mirrored until it is clear who is lost.
    #[command(subcommand)]
    Breaker(Breaker),
}

/// What to do with the breaker.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Breaker {
    /// Its state, why, and what changes it.
    Show,
    /// Nothing is re-mirrored until `reset`; former copies still come back by catch-up.
    Hold,
    /// Do not wait until the lost nodes have stayed the same for long enough: a few copies at a time from now on.
    HalfOpen,
    /// Who is lost now is lost for good: re-mirror at full pace.
    Close,
    /// End `hold`: it judges for itself again.
    Reset,
}

/// Runs it.
pub(crate) fn run(global: &Global, command: &Remirror) -> Result<(), Failure> {
    let api = global.api()?;
    let Remirror::Breaker(command) = command;
    let set = match command {
        Breaker::Show => return global.output.show(&api.breaker()?, breaker),
        Breaker::Hold => BreakerWish::Hold,
        Breaker::HalfOpen => BreakerWish::HalfOpen,
        Breaker::Close => BreakerWish::Close,
        Breaker::Reset => BreakerWish::Reset,
    };
    global.output.show(&api.set_breaker(SetBreaker { set })?, breaker)
}

/// In a few lines.
fn breaker(info: &BreakerInfo) -> String {
    let mut text = format!("breaker {}", info.state.replace('_', "-"));
    if let Some(why) = &info.why {
        text.push_str(&format!("\n{why}"));
    }
    if !info.lost.is_empty() {
        let names: Vec<String> = info.lost.iter().map(ToString::to_string).collect();
        text.push_str(&format!("\nlost: {}", names.join(", ")));
    }
    text
}
