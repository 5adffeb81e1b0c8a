//! The authority's HTTP API as seen from the command line: one method per call, a deadline on each, and every way it
//! can fail turned into an exit code.

use std::time::Duration;

use engine::authority::api::{
    AcceptOlder, AttachVolume, BreakerInfo, Consequences, CreateVolume, DetachVolume, ErrorBody, Explain, NodeInfo,
    RecoverVolume, ReleaseCopies, ReplaceDevice, ResizeVolume, SetBreaker, SetVolume, Status, VolumeInfo, VolumeMap,
};
use engine_core::ids::{Generation, NodeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Exit, Failure};

/// How long an ordinary call may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Attaching waits for every segment's fence, the authority for at most 30 s.
const ATTACH_DEADLINE: Duration = Duration::from_secs(40);
/// Creating and deleting wait for nodes.
const CHANGE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);

/// A client of one authority.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    base: String,
    agent: ureq::Agent,
    deadline: Option<Duration>,
}

impl Api {
    /// A client of the authority at `base`; `deadline` replaces every call's own.
    pub(crate) fn new(base: &str, deadline: Option<Duration>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .max_idle_connections(1)
            .proxy(None)
            .build();
        Self { base: base.trim_end_matches('/').to_owned(), agent: config.new_agent(), deadline }
    }

    /// The same authority, with another deadline for every call.
    #[must_use]
    pub(crate) fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Its address.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// `GET /v1/status`.
    pub(crate) fn status(&self) -> Result<Status, Failure> {
        self.get("status")
    }

    /// `GET /v1/nodes`.
    pub(crate) fn nodes(&self) -> Result<Vec<NodeInfo>, Failure> {
        self.get("nodes")
    }

    /// `GET /v1/nodes/{id}`.
    pub(crate) fn node(&self, node: NodeId) -> Result<NodeInfo, Failure> {
        self.get(&format!("nodes/{node}"))
    }

    /// `GET /v1/volumes`.
    pub(crate) fn volumes(&self) -> Result<Vec<VolumeInfo>, Failure> {
        self.get("volumes")
    }

    /// `GET /v1/volumes/{name}`.
    pub(crate) fn volume(&self, name: &str) -> Result<VolumeInfo, Failure> {
        self.get(&format!("volumes/{}", checked(name)?))
    }

    /// `GET /v1/volumes/{name}/map`.
    pub(crate) fn map(&self, name: &str) -> Result<VolumeMap, Failure> {
        self.get(&format!("volumes/{}/map", checked(name)?))
    }

    /// `GET /v1/volumes/{name}/explain`.
    pub(crate) fn explain(&self, name: &str) -> Result<Explain, Failure> {
        self.get(&format!("volumes/{}/explain", checked(name)?))
    }

    /// `POST /v1/volumes/{name}/recover`.
    pub(crate) fn recover(&self, name: &str, wanted: &RecoverVolume) -> Result<Consequences, Failure> {
        self.post(&format!("volumes/{}/recover", checked(name)?), wanted, DEADLINE)
    }

    /// `POST /v1/nodes/{id}/replace-device`.
    pub(crate) fn replace_device(&self, node: NodeId, wanted: &ReplaceDevice) -> Result<Consequences, Failure> {
        self.post(&format!("nodes/{node}/replace-device"), wanted, CHANGE_DEADLINE)
    }

    /// `POST /v1/nodes/{id}/scrub`.
    pub(crate) fn scrub(&self, node: NodeId) -> Result<NodeInfo, Failure> {
        self.post(&format!("nodes/{node}/scrub"), &(), CHANGE_DEADLINE)
    }

    /// `POST /v1/nodes/{id}/release`.
    pub(crate) fn release(&self, node: NodeId, wanted: &ReleaseCopies) -> Result<Consequences, Failure> {
        self.post(&format!("nodes/{node}/release"), wanted, CHANGE_DEADLINE)
    }

    /// `GET /v1/remirror/breaker`.
    pub(crate) fn breaker(&self) -> Result<BreakerInfo, Failure> {
        self.get("remirror/breaker")
    }

    /// `POST /v1/remirror/breaker`.
    pub(crate) fn set_breaker(&self, wanted: SetBreaker) -> Result<BreakerInfo, Failure> {
        self.post("remirror/breaker", &wanted, DEADLINE)
    }

    /// `POST /v1/authority/accept-older`.
    pub(crate) fn accept_older(&self, wanted: &AcceptOlder) -> Result<Consequences, Failure> {
        self.post("authority/accept-older", wanted, CHANGE_DEADLINE)
    }

    /// `POST /v1/volumes`.
    pub(crate) fn create(&self, wanted: &CreateVolume) -> Result<VolumeInfo, Failure> {
        checked(&wanted.name)?;
        self.post("volumes", wanted, CHANGE_DEADLINE)
    }

    /// `DELETE /v1/volumes/{name}`.
    pub(crate) fn delete(&self, name: &str) -> Result<VolumeInfo, Failure> {
        let url = self.url(&format!("volumes/{}", checked(name)?));
        let limit = self.deadline.unwrap_or(CHANGE_DEADLINE);
        let request = self.agent.delete(&url).config().timeout_global(Some(limit)).build();
        self.answer(limit, || request.call())
    }

    /// `POST /v1/volumes/{name}/resize`.
    pub(crate) fn resize(&self, name: &str, size: u64) -> Result<VolumeInfo, Failure> {
        self.post(&format!("volumes/{}/resize", checked(name)?), &ResizeVolume { size }, CHANGE_DEADLINE)
    }

    /// `POST /v1/volumes/{name}/set`.
    pub(crate) fn set(&self, name: &str, wanted: SetVolume) -> Result<VolumeInfo, Failure> {
        self.post(&format!("volumes/{}/set", checked(name)?), &wanted, CHANGE_DEADLINE)
    }

    /// `POST /v1/volumes/{name}/attach`: fences every older attachment off (I2).
    pub(crate) fn attach(&self, name: &str, client: &str) -> Result<VolumeMap, Failure> {
        let body = AttachVolume { client: client.to_owned() };
        self.post(&format!("volumes/{}/attach", checked(name)?), &body, ATTACH_DEADLINE)
    }

    /// `POST /v1/volumes/{name}/detach`.
    pub(crate) fn detach(&self, name: &str, generation: Option<Generation>) -> Result<VolumeInfo, Failure> {
        let body = DetachVolume { generation };
        self.post(&format!("volumes/{}/detach", checked(name)?), &body, ATTACH_DEADLINE)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v1/{path}", self.base)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let limit = self.deadline.unwrap_or(DEADLINE);
        let request = self.agent.get(self.url(path)).config().timeout_global(Some(limit)).build();
        self.answer(limit, || request.call())
    }

    fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B, limit: Duration) -> Result<T, Failure> {
        let limit = self.deadline.unwrap_or(limit);
        let request = self.agent.post(self.url(path)).config().timeout_global(Some(limit)).build();
        self.answer(limit, || request.send_json(body))
    }

    fn answer<T: DeserializeOwned>(
        &self,
        limit: Duration,
        call: impl FnOnce() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Failure> {
        let mut response = call().map_err(|error| self.unanswered(&error, limit))?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(|e| self.unanswered(&e, limit))?;
        if status < 300 {
            return serde_json::from_str(&text).map_err(|error| {
                Failure::failed(format!("{} answered something this nodectl does not understand: {error}", self.base))
                    .next("check that --authority names an authorityd of the same version")
            });
        }
        Err(match serde_json::from_str::<ErrorBody>(&text) {
            Ok(body) => refusal(body),
            Err(_) => Failure::failed(format!("{} answered with HTTP status {status}", self.base))
                .next("check that --authority names an authorityd of the same version"),
        })
    }

    /// No answer came: nobody there, or somebody who is too slow.
    fn unanswered(&self, error: &ureq::Error, limit: Duration) -> Failure {
        let base = &self.base;
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed => unreachable(base, &error.to_string()),
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                unreachable(base, &error.to_string())
            }
            ureq::Error::Timeout(_) => Failure::new(
                Exit::DeadlinePassed,
                format!("the authority at {base} did not answer within {:.0} s", limit.as_secs_f64()),
            )
            .untouched("whether it did what was asked is not known")
            .next("nodectl status, to see what is; then the same command again"),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Failure::usage(format!("`{base}` is not the URL of an authority ({error})"))
                    .next("--authority http://HOST:PORT")
            }
            ureq::Error::Io(_) | ureq::Error::Protocol(_) => unreachable(base, &error.to_string())
                .untouched("the connection broke on the way; whether it did what was asked is not known"),
            other => Failure::failed(format!("the authority at {base} could not be asked: {other}")),
        }
    }
}

fn unreachable(base: &str, why: &str) -> Failure {
    Failure::new(Exit::CannotConnect, format!("cannot connect to the authority at {base}: {why}"))
        .untouched("nothing was changed; volumes in use go on without it")
        .next("check that authorityd runs there, or name another with --authority URL or --cluster DIR")
}

/// The authority said no: its words, and the exit code of its reason.
fn refusal(body: ErrorBody) -> Failure {
    let exit = match body.code.as_str() {
        "invalid" => Exit::Usage,
        "not_found" => Exit::NotFound,
        "refused" | "no_space" => Exit::Refused,
        "illegal_state" => Exit::IllegalState,
        "timeout" => Exit::WaitTimedOut,
        _ => Exit::Failed,
    };
    Failure::new(exit, body.message).next(body.next.unwrap_or_default())
}

/// A volume's name goes into a URL: only what the API allows in one.
fn checked(name: &str) -> Result<&str, Failure> {
    let fits = (1..=engine_core::limits::NAME_BYTES_MAX).contains(&name.len());
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if fits && plain && name.as_bytes()[0].is_ascii_alphanumeric() {
        return Ok(name);
    }
    Err(Failure::usage(format!("`{name}` is not a volume's name"))
        .next("use 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or digit"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers one request with `answer`, then hangs up; `None` never answers.
    fn server(answer: Option<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer);
            match answer {
                Some(text) => stream.write_all(text.as_bytes()).unwrap(),
                // Until the client gives up and closes.
                None => while stream.read(&mut buffer).is_ok_and(|n| n > 0) {},
            }
        });
        url
    }

    #[test]
    fn nobody_there_is_20() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        assert_eq!(Api::new(&url, None).status().unwrap_err().exit, Exit::CannotConnect);
    }

    #[test]
    fn no_answer_is_21() {
        let api = Api::new(&server(None), Some(Duration::from_millis(100)));
        assert_eq!(api.status().unwrap_err().exit, Exit::DeadlinePassed);
    }

    #[test]
    fn the_authoritys_reason_is_the_exit_code() {
        for (code, exit) in [
            ("invalid", Exit::Usage),
            ("not_found", Exit::NotFound),
            ("refused", Exit::Refused),
            ("no_space", Exit::Refused),
            ("illegal_state", Exit::IllegalState),
            ("timeout", Exit::WaitTimedOut),
            ("unavailable", Exit::Failed),
        ] {
            let body = ErrorBody { code: code.to_owned(), message: "m".to_owned(), next: Some("n".to_owned()) };
            let failure = refusal(body);
            assert_eq!((failure.exit, failure.what.as_str(), failure.next.as_str()), (exit, "m", "n"));
        }
    }

    #[test]
    fn an_error_body_is_read_and_a_stranger_recognised() {
        let body = "HTTP/1.1 404 x\r\ncontent-length: 54\r\n\r\n{\"code\":\"not_found\",\"message\":\"no volume\",\"next\":null}";
        let failure = Api::new(&server(Some(body)), None).status().unwrap_err();
        assert_eq!((failure.exit, failure.what.as_str()), (Exit::NotFound, "no volume"));
        let stranger = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        let failure = Api::new(&server(Some(stranger)), None).status().unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
    }

    #[test]
    fn names_never_leave_their_place_in_the_url() {
        for bad in ["", ".x", "a/b", "a b", "a?b", "-a", "ä", "..", &"x".repeat(65)] {
            assert_eq!(checked(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
        assert_eq!(checked("db-1.main_2"), Ok("db-1.main_2"));
    }
}
