//! `nodectl authority`: what a person has to say about the authority's own record.

use clap::Subcommand;
use engine::authority::api::AcceptOlder;
use engine_core::ids::{NodeId, Revision};

use crate::Global;
use crate::failure::Failure;
use crate::volume::consequences;

/// The authority's record.
#[derive(Debug, Subcommand)]
pub(crate) enum Authority {
    /// There is no newer record than the older one that came back: go on from it, with what nodes report. Without
    /// --revision it only says what would be forgotten.
    AcceptOlder {
        /// The highest revision any node has seen, as the refusal names it.
        #[arg(long)]
        revision: Option<u64>,
        /// A node that is gone for good with its device, and so can't say what it knows; once for each.
        #[arg(long, value_name = "NODE")]
        without: Vec<NodeId>,
        /// Only say what would happen.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs it.
pub(crate) fn run(global: &Global, command: &Authority) -> Result<(), Failure> {
    let api = global.api()?;
    let Authority::AcceptOlder { revision, without, dry_run } = command;
    let wanted = AcceptOlder { revision: revision.map(Revision), without: without.clone(), dry_run: *dry_run };
    global.output.show(&api.accept_older(&wanted)?, consequences)
}
