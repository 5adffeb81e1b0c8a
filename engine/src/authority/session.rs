//! One node's connection: handshake, registration, then messages into the loop, in order.

use std::time::Duration;

use engine_core::authority::io::SessionRef;
use engine_core::limits::HELLO_DEADLINE;
use engine_core::message::ToAuthority;
use tokio::net::TcpStream;

use super::desk::Event;
use super::lanes::Lanes;
use crate::wire::{Hello, Inbound, Local, Message, Who, WireError, accept_if};

/// Serves one node until its connection ends; the error says how it did.
pub(super) async fn serve(
    stream: TcpStream,
    local: &Local,
    session: SessionRef,
    events: &Lanes,
) -> Result<(), WireError> {
    let (hello, link) = accept_if(stream, local, only_nodes).await?;
    let Who::Node { id, boot, .. } = hello.who else { return Ok(()) };
    let (mut inbound, outbox) = link.split();
    let deadline = Duration::from_nanos(HELLO_DEADLINE.0);
    let first = tokio::time::timeout(deadline, inbound.next())
        .await
        .unwrap_or(Err(WireError::Slow("no registration within the deadline")))?;
    let registration = match first {
        Message::ToAuthority(ToAuthority::Register(registration)) if registration.address.node == id => registration,
        _ => return Err(WireError::Unwelcome(format!("{id} did not begin with its own registration"))),
    };
    if events.send(Event::Register { session, boot, registration, outbox }).await.is_err() {
        return Ok(()); // the authority stops
    }
    let ended = forward(&mut inbound, session, events).await;
    // If nobody listens any more, nobody has to hear that it is gone.
    let _ = events.send(Event::Gone(session)).await;
    ended
}

fn only_nodes(hello: &Hello) -> Result<(), String> {
    match hello.who {
        Who::Node { .. } => Ok(()),
        Who::Client { .. } => Err("this is the authority; clients ask it by HTTP and talk to nodes".into()),
    }
}

async fn forward(inbound: &mut Inbound, session: SessionRef, events: &Lanes) -> Result<(), WireError> {
    loop {
        let Message::ToAuthority(message) = inbound.next().await? else {
            return Err(WireError::Unwelcome("this is not a message to the authority".into()));
        };
        if events.send(Event::Node { session, message }).await.is_err() {
            return Ok(());
        }
    }
}
