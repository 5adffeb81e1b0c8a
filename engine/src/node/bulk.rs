//! The bulk lane to one peer: dialled when there is something to carry, over the primary network only (R8).

use std::rc::Rc;
use std::time::Duration;

use engine_core::ids::NodeId;
use engine_core::limits::{DIAL_WAIT, OUTBOX_BYTES_MAX, REDIAL_MAX, REDIAL_MIN};
use engine_core::message::{Lane, PeerMessage};
use engine_core::remirror::backoff::Backoff;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::clock::{duration, seed};
use super::harbour::Harbour;
use super::peers::hello;
use crate::wire::{self, Message, Network, Outbox, WireError};

/// Messages that wait while the connection is being made or is slow; more are dropped and asked for again.
pub(crate) const WAITING: usize = 256;
/// A connection nothing was carried over for this long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// Carries messages until nobody can send any more.
pub(crate) async fn carry(harbour: Rc<Harbour>, node: NodeId, mut waiting: mpsc::Receiver<PeerMessage>) {
    let mut backoff = Backoff::new(REDIAL_MIN, REDIAL_MAX, seed());
    let mut outbox: Option<Outbox> = None;
    loop {
        let message = match timeout(IDLE, waiting.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(_) => {
                outbox = None;
                continue;
            }
        };
        if outbox.as_ref().is_none_or(Outbox::is_closed) {
            outbox = match dial(&harbour, node).await {
                Ok(dialled) => {
                    backoff.reset();
                    Some(dialled)
                }
                Err(error) => {
                    tracing::debug!(peer = %node, %error, "no bulk connection; what waited for it is dropped");
                    tokio::time::sleep(duration(backoff.pause())).await;
                    while waiting.try_recv().is_ok() {}
                    None
                }
            };
        }
        if let Some(outbox) = &outbox {
            until_drained(outbox).await;
            if let Err(error) = outbox.try_send(&Message::Peer(message)) {
                tracing::debug!(peer = %node, %error, "a bulk message was dropped");
            }
        }
    }
}

async fn until_drained(outbox: &Outbox) {
    const LOOK_AGAIN: Duration = Duration::from_millis(1);
    while outbox.queued().1 > OUTBOX_BYTES_MAX / 8 && !outbox.is_closed() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn dial(harbour: &Harbour, node: NodeId) -> Result<Outbox, WireError> {
    let address = harbour.addresses.borrow().get(&node).cloned();
    let address = address.ok_or_else(|| WireError::Unwelcome("its address is not known".into()))?.primary;
    let hello = hello(harbour, Lane::Bulk, Network::Primary)?;
    let (welcome, link) = wire::dial(&address, &hello, duration(DIAL_WAIT)).await?;
    if welcome.node != Some(node) {
        return Err(WireError::Unwelcome(format!("{address} is not {node}")));
    }
    let (mut inbound, outbox) = link.split();
    // Only its end is waited for: dropping `inbound` ends the connection.
    tokio::task::spawn_local(async move { while inbound.next().await.is_ok() {} });
    Ok(outbox)
}
