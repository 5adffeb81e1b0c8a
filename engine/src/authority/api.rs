//! The JSON of the authority's HTTP API, version 1. One type per document; sizes in bytes unless a name says otherwise.
//!
//! | call | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/cluster` | [`Cluster`] |
//! | `GET /v1/nodes`, `GET /v1/nodes/{id}` | [`NodeInfo`] list, one |
//! | `GET /v1/volumes`, `GET /v1/volumes/{name}` | [`VolumeInfo`] list, one |
//! | `POST /v1/volumes` [`CreateVolume`] | [`VolumeInfo`], when every replica exists |
//! | `DELETE /v1/volumes/{name}` | [`VolumeInfo`] |
//! | `POST /v1/volumes/{name}/resize` [`ResizeVolume`] | [`VolumeInfo`] |
//! | `POST /v1/volumes/{name}/set` [`SetVolume`] | [`VolumeInfo`], with its new limits |
//! | `POST /v1/volumes/{name}/attach` [`AttachVolume`] | [`VolumeMap`], when every older attachment is fenced (I2) |
//! | `POST /v1/volumes/{name}/detach` [`DetachVolume`] | [`VolumeInfo`] |
//! | `GET /v1/volumes/{name}/map` | [`VolumeMap`] |
//! | `GET /v1/volumes/{name}/explain` | [`Explain`] |
//! | `POST /v1/volumes/{name}/recover` [`RecoverVolume`] | [`Consequences`]; loses data, so it has to be named (I16) |
//! | `POST /v1/nodes/{id}/replace-device` [`ReplaceDevice`], `.../release` [`ReleaseCopies`] | [`Consequences`] |
//! | `GET /v1/remirror/breaker`, `POST` [`SetBreaker`] | [`BreakerInfo`] |
//! | `POST /v1/authority/accept-older` [`AcceptOlder`] | [`Consequences`]; forgets, so the revision has to be named (I11) |
//! | `POST /v1/nodes/{id}/scrub` | [`NodeInfo`]; a pass of its scrub has begun |
//! | `GET /v1/openapi.json` | the OpenAPI document |
//!
//! Errors are [`ErrorBody`] with status 400 (`invalid`), 404 (`not_found`), 409 (`illegal_state`, `refused`),
//! 503 (`unavailable`), 504 (`timeout`), 507 (`no_space`).

pub use engine_core::authority::document::{
    AcceptOlder, Address, AttachVolume, Cluster, Consequences, CreateVolume, DamageCounts, DetachVolume, DeviceInfo,
    DeviceState, ErrorBody, Explain, ExplainReplica, ExplainSegment, Health, NodeInfo, Quarantined, RecoverVolume,
    ReleaseCopies, RemirrorCounts, ReplaceDevice, ResizeVolume, ScrubInfo, SegmentCounts, SegmentName, SetVolume,
    Spread, Status, VolumeInfo, VolumeMap,
};
pub use engine_core::authority::policy::{BreakerInfo, BreakerWish, SetBreaker};
pub use engine_core::authority::space::{SpaceAlarm, SpaceInfo};
pub use engine_core::throttle::VolumeLimits;
