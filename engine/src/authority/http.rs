//! The HTTP API, version 1: turns requests into calls of the core and answers into JSON, and describes itself.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use engine_core::authority::io::{Answer, Call, CallError, ErrorCode};
use engine_core::ids::NodeId;
use engine_core::limits::{HTTP_BODY_MAX, HTTP_DEADLINE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use utoipa::OpenApi;

use super::api::{
    AcceptOlder, AttachVolume, BreakerInfo, Cluster, Consequences, CreateVolume, DetachVolume, ErrorBody, Explain,
    NodeInfo, RecoverVolume, ReleaseCopies, ReplaceDevice, ResizeVolume, SetBreaker, SetVolume, Status, VolumeInfo,
    VolumeMap,
};
use super::desk::{Event, Outcome};
use super::door::HttpDoor;
use super::lanes::Lanes;

/// Where handlers bring their calls.
#[derive(Clone)]
pub(super) struct Desk {
    events: Lanes,
}

impl Desk {
    pub(super) const fn new(events: Lanes) -> Self {
        Self { events }
    }

    async fn ask(&self, request: Call) -> Outcome {
        let (reply, answer) = oneshot::channel();
        let busy = || {
            let message = "the authority has more to do than it can queue; nothing was changed".into();
            CallError::new(ErrorCode::Unavailable, message)
        };
        // People can come again; nodes' messages wait in the same queue and have to get through.
        self.events.try_send(Event::Call { request, reply }).map_err(|_| busy())?;
        match tokio::time::timeout(Duration::from_nanos(HTTP_DEADLINE.0), answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(CallError::new(ErrorCode::Unavailable, "the authority is stopping".into())),
            Err(_) => {
                Err(CallError::new(ErrorCode::Timeout, "no answer in time; what was asked may still happen".into()))
            }
        }
    }
}

/// Serves HTTP until dropped.
pub(super) async fn serve(door: HttpDoor, desk: Desk) {
    if let Err(error) = axum::serve(door, router(desk)).await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

fn router(desk: Desk) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/cluster", get(cluster))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{id}", get(node))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/{name}", get(volume).delete(delete_volume))
        .route("/v1/volumes/{name}/resize", post(resize_volume))
        .route("/v1/volumes/{name}/set", post(set_volume))
        .route("/v1/volumes/{name}/attach", post(attach_volume))
        .route("/v1/volumes/{name}/detach", post(detach_volume))
        .route("/v1/volumes/{name}/map", get(volume_map))
        .route("/v1/volumes/{name}/explain", get(explain_volume))
        .route("/v1/volumes/{name}/recover", post(recover_volume))
        .route("/v1/nodes/{id}/replace-device", post(replace_device))
        .route("/v1/nodes/{id}/release", post(release_copies))
        .route("/v1/remirror/breaker", get(breaker).post(set_breaker))
        .route("/v1/authority/accept-older", post(accept_older))
        .route("/v1/nodes/{id}/scrub", post(scrub))
        .route("/v1/openapi.json", get(openapi_json))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(HTTP_BODY_MAX))
        .with_state(desk)
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Breakwater authority", description = "The control plane of a Breakwater cluster."),
    paths(
        status,
        cluster,
        nodes,
        node,
        volumes,
        create_volume,
        volume,
        delete_volume,
        resize_volume,
        set_volume,
        attach_volume,
        detach_volume,
        volume_map,
        explain_volume,
        recover_volume,
        replace_device,
        release_copies,
        breaker,
        set_breaker,
        accept_older,
        scrub,
        openapi_json
    ),
    components(schemas(ErrorBody))
)]
struct Api;

/// The OpenAPI document of version 1, generated from the handlers.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// An error with its status.
struct Failure(StatusCode, ErrorBody);

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let status = match error.code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::IllegalState | ErrorCode::Refused => StatusCode::CONFLICT,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        };
        Self(status, ErrorBody { code: error.code.name().into(), message: error.message, next: error.next })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        json(self.0, &self.1)
    }
}

fn invalid(message: String) -> Failure {
    CallError::new(ErrorCode::Invalid, message).into()
}

type Handled = Result<Response, Failure>;
type Body = Result<Bytes, BytesRejection>;
type Name = Result<Path<String>, PathRejection>;

fn json(status: StatusCode, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => {
            tracing::error!(%error, "a document could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn answer(outcome: Outcome) -> Handled {
    let ok = StatusCode::OK;
    Ok(match outcome? {
        Answer::Status(document) => json(ok, &document),
        Answer::Cluster(document) => json(ok, &document),
        Answer::Breaker(document) => json(ok, &document),
        Answer::Nodes(documents) => json(ok, &documents),
        Answer::Node(document) => json(ok, &document),
        Answer::Volumes(documents) => json(ok, &documents),
        Answer::Volume(document) => json(ok, &document),
        Answer::Map(document) => json(ok, &document),
        Answer::Explain(document) => json(ok, &document),
        Answer::Consequences(document) => json(ok, &document),
    })
}

fn parse<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let bytes = body.map_err(|rejection| {
        let message = format!("the body can't be taken (at most {HTTP_BODY_MAX} bytes): {}", rejection.body_text());
        let Failure(_, body) = invalid(message);
        Failure(rejection.status(), body)
    })?;
    let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
    serde_json::from_slice(&bytes).map_err(|error| invalid(format!("the body is not the JSON expected: {error}")))
}

fn named(name: Name) -> Result<String, Failure> {
    name.map(|Path(name)| name).map_err(|rejection| invalid(rejection.body_text()))
}

async fn no_such_path() -> Failure {
    let error = CallError::new(ErrorCode::NotFound, "no such path; /v1/openapi.json lists all".into());
    error.next("curl URL/v1/openapi.json").into()
}

async fn no_such_method() -> Failure {
    let Failure(_, body) = invalid("this path has no such method; /v1/openapi.json lists all".into());
    Failure(StatusCode::METHOD_NOT_ALLOWED, body)
}

/// Health, segments by condition, re-mirroring, space.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status), (status = 503, body = ErrorBody)))]
async fn status(State(desk): State<Desk>) -> Handled {
    answer(desk.ask(Call::Status).await)
}

/// The cluster's id and revision.
#[utoipa::path(get, path = "/v1/cluster", responses((status = 200, body = Cluster), (status = 503, body = ErrorBody)))]
async fn cluster(State(desk): State<Desk>) -> Handled {
    answer(desk.ask(Call::Cluster).await)
}

/// All nodes.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = Vec<NodeInfo>), (status = 503, body = ErrorBody)))]
async fn nodes(State(desk): State<Desk>) -> Handled {
    answer(desk.ask(Call::Nodes).await)
}

/// One node.
#[utoipa::path(
    get,
    path = "/v1/nodes/{id}",
    params(("id" = String, Path, description = "such as n3")),
    responses((status = 200, body = NodeInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
async fn node(State(desk): State<Desk>, id: Name) -> Handled {
    answer(desk.ask(Call::Node(node_id(id)?)).await)
}

fn node_id(id: Name) -> Result<NodeId, Failure> {
    named(id)?.parse().map_err(|bad: engine_core::ids::BadNodeId| invalid(bad.to_string()))
}

/// A node's device is gone for good: segments let go of it, and the next device that comes is the node's own.
#[utoipa::path(
    post,
    path = "/v1/nodes/{id}/replace-device",
    params(("id" = String, Path, description = "such as n3")),
    request_body = ReplaceDevice,
    responses((status = 200, body = Consequences), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn replace_device(State(desk): State<Desk>, id: Name, body: Body) -> Handled {
    answer(desk.ask(Call::ReplaceDevice(node_id(id)?, parse::<ReplaceDevice>(body)?)).await)
}

/// Drops copies in quarantine on a node.
#[utoipa::path(
    post,
    path = "/v1/nodes/{id}/release",
    params(("id" = String, Path, description = "such as n3")),
    request_body = ReleaseCopies,
    responses((status = 200, body = Consequences), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn release_copies(State(desk): State<Desk>, id: Name, body: Body) -> Handled {
    answer(desk.ask(Call::Release(node_id(id)?, parse::<ReleaseCopies>(body)?)).await)
}

/// What keeps re-mirroring from becoming a storm: its state, why, and what changes it.
#[utoipa::path(
    get,
    path = "/v1/remirror/breaker",
    responses((status = 200, body = BreakerInfo), (status = 503, body = ErrorBody))
)]
async fn breaker(State(desk): State<Desk>) -> Handled {
    answer(desk.ask(Call::Breaker).await)
}

/// A person says what the breaker is to do.
#[utoipa::path(
    post,
    path = "/v1/remirror/breaker",
    request_body = SetBreaker,
    responses((status = 200, body = BreakerInfo), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody))
)]
async fn set_breaker(State(desk): State<Desk>, body: Body) -> Handled {
    answer(desk.ask(Call::SetBreaker(parse::<SetBreaker>(body)?)).await)
}

/// There is no newer record than this older one; what nodes know beyond it is taken over as far as it can be.
#[utoipa::path(
    post,
    path = "/v1/authority/accept-older",
    request_body = AcceptOlder,
    responses((status = 200, body = Consequences), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn accept_older(State(desk): State<Desk>, body: Body) -> Handled {
    answer(desk.ask(Call::AcceptOlder(parse::<AcceptOlder>(body)?)).await)
}

/// A node begins to compare everything it holds with its checksums.
#[utoipa::path(
    post,
    path = "/v1/nodes/{id}/scrub",
    params(("id" = String, Path, description = "such as n3")),
    responses((status = 200, body = NodeInfo), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody))
)]
async fn scrub(State(desk): State<Desk>, id: Name) -> Handled {
    answer(desk.ask(Call::Scrub(node_id(id)?)).await)
}

/// One copy of a segment counts from now on, in a new life; every other one starts from nothing.
#[utoipa::path(
    post,
    path = "/v1/volumes/{name}/recover",
    params(("name" = String, Path, description = "the volume's name")),
    request_body = RecoverVolume,
    responses((status = 200, body = Consequences), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn recover_volume(State(desk): State<Desk>, name: Name, body: Body) -> Handled {
    answer(desk.ask(Call::Recover(named(name)?, parse::<RecoverVolume>(body)?)).await)
}

/// All volumes, those being deleted included.
#[utoipa::path(
    get,
    path = "/v1/volumes",
    responses((status = 200, body = Vec<VolumeInfo>), (status = 503, body = ErrorBody))
)]
async fn volumes(State(desk): State<Desk>) -> Handled {
    answer(desk.ask(Call::Volumes).await)
}

/// Makes a volume; answers when every replica exists.
#[utoipa::path(
    post,
    path = "/v1/volumes",
    request_body = CreateVolume,
    responses(
        (status = 200, body = VolumeInfo),
        (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody),
        (status = 504, body = ErrorBody),
        (status = 507, body = ErrorBody)
    )
)]
async fn create_volume(State(desk): State<Desk>, body: Body) -> Handled {
    answer(desk.ask(Call::Create(parse(body)?)).await)
}

/// One volume.
#[utoipa::path(
    get,
    path = "/v1/volumes/{name}",
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = 404, body = ErrorBody))
)]
async fn volume(State(desk): State<Desk>, name: Name) -> Handled {
    answer(desk.ask(Call::Volume(named(name)?)).await)
}

/// Deletes a volume nobody has attached; its replicas are dropped when their nodes hear of it.
#[utoipa::path(
    delete,
    path = "/v1/volumes/{name}",
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn delete_volume(State(desk): State<Desk>, name: Name) -> Handled {
    answer(desk.ask(Call::Delete(named(name)?)).await)
}

/// Grows a volume; answers when every new replica exists.
#[utoipa::path(
    post,
    path = "/v1/volumes/{name}/resize",
    params(("name" = String, Path, description = "the volume's name")),
    request_body = ResizeVolume,
    responses(
        (status = 200, body = VolumeInfo),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody),
        (status = 504, body = ErrorBody),
        (status = 507, body = ErrorBody)
    )
)]
async fn resize_volume(State(desk): State<Desk>, name: Name, body: Body) -> Handled {
    answer(desk.ask(Call::Resize(named(name)?, parse::<ResizeVolume>(body)?)).await)
}

/// Changes a volume's limits. Who has it attached follows within about half a minute.
#[utoipa::path(
    post,
    path = "/v1/volumes/{name}/set",
    params(("name" = String, Path, description = "the volume's name")),
    request_body = SetVolume,
    responses(
        (status = 200, body = VolumeInfo),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)
    )
)]
async fn set_volume(State(desk): State<Desk>, name: Name, body: Body) -> Handled {
    answer(desk.ask(Call::Set(named(name)?, parse::<SetVolume>(body)?)).await)
}

/// Attaches a volume: every older attachment is fenced off before this answers.
#[utoipa::path(
    post,
    path = "/v1/volumes/{name}/attach",
    params(("name" = String, Path, description = "the volume's name")),
    request_body = AttachVolume,
    responses(
        (status = 200, body = VolumeMap),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody),
        (status = 504, body = ErrorBody)
    )
)]
async fn attach_volume(State(desk): State<Desk>, name: Name, body: Body) -> Handled {
    answer(desk.ask(Call::Attach(named(name)?, parse::<AttachVolume>(body)?)).await)
}

/// Ends an attachment; without a generation it fences off whoever is attached.
#[utoipa::path(
    post,
    path = "/v1/volumes/{name}/detach",
    params(("name" = String, Path, description = "the volume's name")),
    request_body = DetachVolume,
    responses(
        (status = 200, body = VolumeInfo),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody),
        (status = 504, body = ErrorBody)
    )
)]
async fn detach_volume(State(desk): State<Desk>, name: Name, body: Body) -> Handled {
    answer(desk.ask(Call::Detach(named(name)?, parse::<DetachVolume>(body)?)).await)
}

/// Where a volume's data is.
#[utoipa::path(
    get,
    path = "/v1/volumes/{name}/map",
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = VolumeMap), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn volume_map(State(desk): State<Desk>, name: Name) -> Handled {
    answer(desk.ask(Call::Map(named(name)?)).await)
}

/// Why a volume is as it is, segment by segment.
#[utoipa::path(
    get,
    path = "/v1/volumes/{name}/explain",
    params(("name" = String, Path, description = "the volume's name")),
    responses((status = 200, body = Explain), (status = 404, body = ErrorBody))
)]
async fn explain_volume(State(desk): State<Desk>, name: Name) -> Handled {
    answer(desk.ask(Call::Explain(named(name)?)).await)
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "the OpenAPI document")))]
async fn openapi_json() -> Response {
    json(StatusCode::OK, &openapi())
}
