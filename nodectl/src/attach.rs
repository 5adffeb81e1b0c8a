//! `nodectl volume attach`: a foreground gateway, serving the volume by NBD until a signal.
//!
//! It listens before it attaches: a place that is taken must not cost anybody his attachment. Once fenced it goes on
//! answering, every request with an error, so that its clients learn it from the protocol and not from silence.

use std::rc::Rc;
use std::time::Duration;

use engine::gateway::Export;
use engine::gateway::nbd::{Address, Listener, NbdServer};
use serde::Serialize;

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::http::Api;
use crate::output::Format;
use crate::reach::{self, Reach};
use crate::{signals, units};

/// How often it is looked whether we were fenced off.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `volume attach`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume.
    name: String,
    /// Where to serve it: HOST:PORT (port 0: a free one) or unix:PATH.
    #[arg(long, value_name = "HOST:PORT|unix:PATH")]
    nbd: Address,
    /// Fail a request that could not be done for so long [default: wait for as long as it takes].
    #[arg(long, value_name = "SECONDS", value_parser = units::parse_duration)]
    io_limit: Option<Duration>,
}

/// What is printed once it serves.
#[derive(Debug, Serialize)]
struct Serving {
    uri: String,
    volume: String,
    size: u64,
    generation: u64,
}

/// Serves the volume until a signal.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let api = global.api()?;
    signals::block_on(serve(&api, global.output, args))
}

async fn serve(api: &Api, format: Format, args: &Args) -> Result<(), Failure> {
    let name = &args.name;
    // A volume that is not there is said before a socket is made for it.
    api.volume(name)?;
    let listener = Listener::bind(&args.nbd).await.map_err(|error| {
        Failure::failed(format!("cannot listen at {:?}: {error}", args.nbd))
            .untouched(format!("{name} was not attached; whoever uses it goes on"))
            .next("choose another --nbd address; 127.0.0.1:0 takes a free port")
    })?;
    // From here on a signal ends us in order, also while we attach.
    let mut told = Box::pin(signals::terminated());
    let map = api.attach(name, &reach::client_name("gateway"))?;
    let generation = map.generation;
    let served = async {
        let volume = Rc::new(reach::open(api, &map, args.io_limit));
        let serving =
            Serving { uri: listener.uri(name), volume: name.clone(), size: map.size, generation: generation.0 };
        format.show(&serving, |serving| serving.uri.clone())?;
        let watch = tokio::task::spawn_local(tell_when_fenced(volume.clone(), name.clone()));
        NbdServer::serve(vec![listener], volume.clone(), name, &mut told).await;
        watch.abort();
        Ok(volume.is_fenced())
    };
    let fenced = served.await;
    if !matches!(fenced, Ok(true)) {
        // A newer attachment that came meanwhile is not ours to end, and the authority sees to that.
        if let Err(failure) = api.detach(name, Some(generation)) {
            eprintln!("not detached: {}", failure.what);
        }
    }
    if fenced? {
        return Err(Failure::new(
            Exit::IllegalState,
            format!("{name} was attached by somebody else; this gateway was fenced off"),
        )
        .untouched("every write acknowledged here is kept")
        .next(format!("nodectl volume show {name} says who has it")));
    }
    Ok(())
}

async fn tell_when_fenced(volume: Rc<Reach>, name: String) {
    while !volume.is_fenced() {
        tokio::time::sleep(LOOK).await;
    }
    eprintln!("fenced: {name} was attached by somebody else; every request here fails from now on");
}
