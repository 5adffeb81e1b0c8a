//! A client's connection: its requests go to the shards of their segments, answers come back by themselves.
//!
//! A client that does not take its answers is not read from; nothing of it grows meanwhile (I15).

use std::time::Duration;

use engine_core::limits::OUTBOX_BYTES_MAX;

use super::harbour::Harbour;
use super::mail::ClientMail;
use crate::wire::{Link, Message, Outbox, WireError, check_request};

/// Serves a client until its connection ends; gives the reason.
pub(crate) async fn serve(harbour: &Harbour, link: Link) -> WireError {
    let client = harbour.name_client();
    let (mut inbound, outbox) = link.split();
    let mut told: Vec<bool> = vec![false; harbour.shards.len()];
    let reason = loop {
        until_drained(&outbox).await;
        let request = match inbound.next().await {
            // Damaged on its way, it is neither ordered nor answered: the client sends it again over a new connection.
            Ok(Message::Request(request)) => match check_request(&request) {
                Ok(()) => request,
                Err(damaged) => break damaged.into(),
            },
            Ok(_) => break WireError::Unwelcome("a client sends requests and nothing else".into()),
            Err(error) => break error,
        };
        let shard = usize::from(harbour.pilot.way(request.segment).shard());
        let to = &harbour.shards[shard].requests;
        if !told[shard] {
            told[shard] = true;
            if to.send(ClientMail::Up(client, outbox.clone())).await.is_err() {
                break WireError::Closed;
            }
        }
        // Waits while the shard is busy: then this client's socket is not read either.
        if to.send(ClientMail::Request(client, Box::new(request))).await.is_err() {
            break WireError::Closed;
        }
    };
    for (shard, _) in harbour.shards.iter().zip(&told).filter(|(_, told)| **told) {
        // A shard that is over needs no news.
        let _ = shard.requests.send(ClientMail::Gone(client)).await;
    }
    reason
}

async fn until_drained(outbox: &Outbox) {
    const LOOK_AGAIN: Duration = Duration::from_millis(1);
    while outbox.queued().1 > OUTBOX_BYTES_MAX / 4 && !outbox.is_closed() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
