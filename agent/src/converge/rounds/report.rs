//! What is observed of a member, as it is reported.

use holdfast_common::engine::Engine;
use holdfast_common::generation::Generation;
use holdfast_common::id::ClusterId;
use holdfast_common::report::MemberReport;
use holdfast_common::term::Term;

use crate::engine::Observation;

/// `term` is what it should be; a primary's own is that which is written in its data.
pub(super) fn report(
    cluster_id: ClusterId,
    term: Term,
    engine: Engine,
    observed: Observation,
) -> MemberReport {
    let Observation {
        state,
        role,
        data_role: _,
        term: written,
        sealed: _,
        position,
        replayed,
        lag_seconds,
        streaming,
        followers,
        synchronous,
        system_identifier,
        engine_version,
        server_build,
        installed_build,
        started_at,
        pending_restart,
        data_bytes,
        message,
        needs_resync,
        troubles,
        tuning,
    } = observed;
    MemberReport {
        cluster_id,
        engine,
        state,
        role,
        term: written.unwrap_or(term),
        position,
        replayed,
        lag_seconds,
        streaming,
        followers,
        synchronous,
        system_identifier,
        engine_version,
        server_build,
        installed_build,
        started_at,
        message,
        converged_generation: Generation::NONE,
        pending_restart,
        data_bytes,
        access: None,
        lease: None,
        has_promised: false,
        failed_probes: 0,
        needs_resync: needs_resync || troubles.iter().any(|trouble| trouble.kind.needs_resync()),
        troubles,
        tuning,
    }
}
