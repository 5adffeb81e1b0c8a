//! Orders to a running `cluster up`: one line of JSON in, one line back, over a unix socket in the directory.
//!
//! The socket is reached through `/proc/self/fd`, because a socket's path may not be longer than 107 bytes and a
//! directory's may.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use engine_core::ids::NodeId;
use serde::{Deserialize, Serialize};

use super::dir::{Dir, State};
use crate::failure::{Context, Exit, Failure};
use crate::http::Api;

/// How long an order may take; longer than a graceful stop may.
const ORDER_LIMIT: Duration = Duration::from_secs(60);
/// How long a started process may take until it serves.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);

/// A process of the cluster, as people name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Who {
    /// `authority`.
    Authority,
    /// `n3`.
    Node(NodeId),
}

impl FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "authority" => Ok(Self::Authority),
            text => text.parse().map(Self::Node).map_err(|error| format!("{error}, or `authority`")),
        }
    }
}

impl TryFrom<String> for Who {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Authority => f.write_str("authority"),
            Self::Node(node) => node.fmt(f),
        }
    }
}

impl From<Who> for String {
    fn from(who: Who) -> Self {
        who.to_string()
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verb {
    /// SIGTERM, and wait.
    Stop,
    /// SIGKILL.
    Kill,
    /// Start it again.
    Start,
    /// SIGKILL and delete its device.
    Lose,
}

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// What.
    pub(crate) verb: Verb,
    /// To whom.
    pub(crate) who: Who,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Who.
    pub(crate) node: Who,
    /// What its process is doing now.
    pub(crate) state: State,
    /// Its process.
    pub(crate) pid: Option<u32>,
}

/// The line that comes back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Done.
    Done(Done),
    /// Not done.
    Failed {
        /// Exit code.
        exit: u8,
        /// See [`Failure`].
        what: String,
        /// See [`Failure`].
        untouched: String,
        /// See [`Failure`].
        next: String,
    },
}

impl From<Result<Done, Failure>> for Answer {
    fn from(result: Result<Done, Failure>) -> Self {
        match result {
            Ok(done) => Self::Done(done),
            Err(Failure { exit, what, untouched, next }) => Self::Failed { exit: exit as u8, what, untouched, next },
        }
    }
}

impl From<Answer> for Result<Done, Failure> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Done(done) => Ok(done),
            Answer::Failed { exit, what, untouched, next } => {
                let known = [Exit::Usage, Exit::NotFound, Exit::Refused, Exit::IllegalState, Exit::WaitTimedOut];
                let exit = known.into_iter().find(|known| *known as u8 == exit).unwrap_or(Exit::Failed);
                Err(Failure { exit, what, untouched, next })
            }
        }
    }
}

/// The socket's short path, and the open directory it needs to stay valid.
pub(crate) fn socket(dir: &Dir) -> Result<(PathBuf, File), Failure> {
    let open = File::open(dir.path()).could_not(|| format!("open {}", dir.path().display()))?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{}", open.as_raw_fd(), dir.socket_name())), open))
}

/// Gives an order and waits until it is carried out; `start` until the process serves.
pub(crate) fn order(dir: &Dir, order: Order) -> Result<Done, Failure> {
    let cluster = dir.read()?;
    if let Who::Node(id) = order.who
        && !cluster.nodes.iter().any(|node| node.id == id)
    {
        return Err(Failure::new(Exit::NotFound, format!("there is no node {id} in {}", dir.path().display()))
            .untouched("nothing was changed")
            .next(format!("nodectl --cluster {} node ls", dir.path().display())));
    }
    let begun = Instant::now();
    let done = send(dir, order)?;
    if order.verb == Verb::Start {
        let limit = START_LIMIT;
        wait_started(&Api::new(&cluster.authority, Some(Duration::from_secs(2))), order.who, begun, limit)?;
    }
    Ok(done)
}

fn send(dir: &Dir, order: Order) -> Result<Done, Failure> {
    let (path, _open) = socket(dir)?;
    let stream = UnixStream::connect(path).map_err(|_| {
        Failure::new(Exit::IllegalState, format!("no `cluster up` runs in {}", dir.path().display()))
            .untouched("nothing was changed")
            .next(format!("nodectl cluster up --dir {}", dir.path().display()))
    })?;
    let talk = || -> std::io::Result<String> {
        stream.set_read_timeout(Some(ORDER_LIMIT))?;
        let mut line = serde_json::to_string(&order)?;
        line.push('\n');
        (&stream).write_all(line.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = talk().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            Failure::new(Exit::DeadlinePassed, "`cluster up` did not answer the order in time")
                .next(format!("look at {}", dir.cluster_file().display()))
        }
        _ => Failure::failed(format!("the order to `cluster up` broke off: {error}")),
    })?;
    let answer: Answer = serde_json::from_str(&answer)
        .map_err(|_| Failure::failed("`cluster up` ended before it answered").next("look at its output"))?;
    answer.into()
}

/// Waits until the authority answers, or has heard of the node since `since`.
pub(crate) fn wait_started(api: &Api, who: Who, since: Instant, limit: Duration) -> Result<(), Failure> {
    loop {
        let there = match who {
            Who::Authority => api.status().is_ok(),
            Who::Node(node) => api.node(node).is_ok_and(|info| {
                // Heard of after the order: it can't have been the process before.
                info.state == "up" && Duration::from_millis(info.silent_ms) < since.elapsed()
            }),
        };
        if there {
            return Ok(());
        }
        if since.elapsed() > limit {
            let what = format!("{who} was started and does not serve after {:.0} s", limit.as_secs_f64());
            return Err(Failure::new(Exit::WaitTimedOut, what)
                .untouched("its process was left as it is")
                .next(format!("look at the log in the directory of {who}; nodectl status")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn processes_have_names() {
        assert_eq!("n3".parse(), Ok(Who::Node(NodeId(3))));
        assert_eq!("authority".parse(), Ok(Who::Authority));
        assert!("x".parse::<Who>().is_err());
    }

    #[test]
    fn a_failure_survives_the_socket() {
        let failure = Failure::new(Exit::IllegalState, "w").untouched("u").next("n");
        let line = serde_json::to_string(&Answer::from(Err(failure.clone()))).unwrap();
        let answer: Answer = serde_json::from_str(&line).unwrap();
        assert_eq!(Result::<Done, Failure>::from(answer), Err(failure));
    }
}
