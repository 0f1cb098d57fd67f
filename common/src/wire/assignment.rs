//! Assignments.

use std::collections::BTreeMap;

use holdfast_proto::link::v1 as proto;

use super::field::wire_enum;
use super::{Error, Field, Problem, WireEnum as _, nouns};
use crate::access::MAX_NETWORKS_PER_NODE;
use crate::assignment::{
    Assignment, Exposure, MAX_GATED_PORTS, MAX_MEMBERS, MAX_PEERS, MAX_SYSTEM_IDENTIFIER_BYTES,
    MemberAssignment, Peer, Power, RoleAssignment, Synchronous,
};
use crate::engine::{MAX_EXTENSIONS, MAX_PARAMETERS, Parameters};
use crate::generation::Generation;
use crate::term::Term;

wire_enum!(Power, proto::PowerState, Running, Stopped);

impl From<&Assignment> for proto::Assignment {
    fn from(assignment: &Assignment) -> Self {
        let Assignment { coordinator_generation, generation, members } = assignment;
        Self {
            coordinator_generation: coordinator_generation.get(),
            generation: generation.get(),
            members: members.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::Assignment> for Assignment {
    type Error = Error;

    fn try_from(assignment: proto::Assignment) -> Result<Self, Error> {
        let proto::Assignment { coordinator_generation, generation, members } = assignment;
        let members: Vec<MemberAssignment> = Field("members").list(members, MAX_MEMBERS)?;
        Field("members").distinct(&members, |member| member.cluster_id)?;
        Field("members").distinct(&members, |member| member.port)?;
        let networks: usize = members.iter().map(|member| member.access.networks()).sum();
        if networks > MAX_NETWORKS_PER_NODE {
            let problem = Problem::TooMany { count: networks, most: MAX_NETWORKS_PER_NODE };
            return Err(Field("members").refuse(problem));
        }
        Ok(Self {
            coordinator_generation: Generation::new(
                Field("coordinator_generation").positive(coordinator_generation)?,
            ),
            generation: Generation::new(Field("generation").positive(generation)?),
            members,
        })
    }
}

impl From<&MemberAssignment> for proto::MemberAssignment {
    fn from(member: &MemberAssignment) -> Self {
        let MemberAssignment {
            cluster_id,
            cluster_name,
            engine,
            engine_version,
            term,
            role,
            port,
            address,
            parameters,
            members,
            extensions,
            system_identifier,
            power,
            access,
            exposure,
            profile,
            patience,
            replication_port,
            gated_ports,
        } = member;
        Self {
            cluster_id: cluster_id.to_string(),
            cluster_name: cluster_name.to_string(),
            engine: engine.to_wire(),
            engine_version: engine_version.to_string(),
            term: term.get(),
            role: Some(role.into()),
            port: (*port).into(),
            address: address.to_string(),
            parameters: parameters.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            members: members.iter().map(Into::into).collect(),
            extensions: extensions.iter().map(ToString::to_string).collect(),
            system_identifier: system_identifier.clone().unwrap_or_default(),
            power: power.to_wire(),
            access: Some(access.into()),
            allow_unfiltered: match exposure {
                Exposure::OnlyFiltered => false,
                Exposure::AlsoUnfiltered => true,
            },
            lease_profile: profile.to_wire(),
            lease_patience: patience.map(|patience| patience.to_wire()).unwrap_or_default(),
            replication_port: replication_port.map_or(0, u32::from),
            gated_ports: gated_ports.iter().copied().map(u32::from).collect(),
        }
    }
}

impl TryFrom<proto::MemberAssignment> for MemberAssignment {
    type Error = Error;

    fn try_from(member: proto::MemberAssignment) -> Result<Self, Error> {
        let proto::MemberAssignment {
            cluster_id,
            cluster_name,
            engine,
            engine_version,
            term,
            role,
            port,
            address,
            parameters,
            members,
            extensions,
            system_identifier,
            power,
            access,
            allow_unfiltered,
            lease_profile,
            lease_patience,
            replication_port,
            gated_ports,
        } = member;
        if parameters.len() > MAX_PARAMETERS {
            let problem = Problem::TooMany { count: parameters.len(), most: MAX_PARAMETERS };
            return Err(Field("parameters").refuse(problem));
        }
        let parameters: BTreeMap<String, String> = parameters.into_iter().collect();
        let members: Vec<Peer> = Field("members").list(members, MAX_PEERS)?;
        if members.is_empty() {
            return Err(Field("members").refuse(Problem::Missing));
        }
        Field("members").distinct(&members, |peer| peer.node_id)?;
        Field("members").distinct(&members, |peer| peer.name.clone())?;
        let extensions = Field("extensions").parsed_list(extensions, MAX_EXTENSIONS)?;
        Field("extensions").distinct(&extensions, Clone::clone)?;
        let gated_ports = Field("gated_ports").ports(&gated_ports, MAX_GATED_PORTS)?;
        Field("gated_ports").distinct(&gated_ports, |port| *port)?;
        Ok(Self {
            cluster_id: Field("cluster_id").parsed(cluster_id)?,
            cluster_name: Field("cluster_name").parsed(cluster_name)?,
            engine: Field("engine").enumerated(engine)?,
            engine_version: Field("engine_version").parsed(engine_version)?,
            term: Term::new(Field("term").positive(term)?),
            role: Field("role").required(role)?.try_into()?,
            port: Field("port").port(port)?,
            address: Field("address").address(address)?,
            parameters: Parameters::try_from(parameters)
                .map_err(|error| Field("parameters").malformed(error))?,
            members,
            extensions,
            system_identifier: Field("system_identifier")
                .optional_label(system_identifier, MAX_SYSTEM_IDENTIFIER_BYTES)?,
            power: Field("power").enumerated(power)?,
            access: Field("access").optional_message(access)?.unwrap_or_default(),
            exposure: if allow_unfiltered { Exposure::AlsoUnfiltered } else { Exposure::OnlyFiltered },
            profile: Field("lease_profile").optional_enumerated(lease_profile)?.unwrap_or_default(),
            patience: Field("lease_patience").optional_enumerated(lease_patience)?,
            replication_port: Field("replication_port").optional_port(replication_port)?,
            gated_ports,
        })
    }
}

impl From<&RoleAssignment> for proto::member_assignment::Role {
    fn from(role: &RoleAssignment) -> Self {
        match role {
            RoleAssignment::Primary { synchronous: Synchronous { count, nodes } } => {
                Self::Primary(proto::PrimaryRole {
                    synchronous_count: *count,
                    synchronous_node_ids: nodes.iter().map(ToString::to_string).collect(),
                })
            }
            RoleAssignment::Replica { upstream } => {
                Self::Replica(proto::ReplicaRole { upstream: Some(upstream.into()) })
            }
        }
    }
}

impl TryFrom<proto::member_assignment::Role> for RoleAssignment {
    type Error = Error;

    fn try_from(role: proto::member_assignment::Role) -> Result<Self, Error> {
        match role {
            proto::member_assignment::Role::Primary(primary) => {
                let proto::PrimaryRole { synchronous_count, synchronous_node_ids } = primary;
                let synchronous = nouns::synchronous_of(synchronous_count, synchronous_node_ids);
                Ok(Self::Primary { synchronous: synchronous.map_err(|error| error.within("primary"))? })
            }
            proto::member_assignment::Role::Replica(replica) => {
                let upstream = Field("upstream").message(replica.upstream);
                Ok(Self::Replica { upstream: upstream.map_err(|error| error.within("replica"))? })
            }
        }
    }
}

impl From<&Peer> for proto::Peer {
    fn from(peer: &Peer) -> Self {
        let Peer { node_id, name, address, port } = peer;
        Self {
            node_id: node_id.to_string(),
            name: name.to_string(),
            address: address.to_string(),
            port: (*port).into(),
        }
    }
}

impl TryFrom<proto::Peer> for Peer {
    type Error = Error;

    fn try_from(peer: proto::Peer) -> Result<Self, Error> {
        let proto::Peer { node_id, name, address, port } = peer;
        Ok(Self {
            node_id: Field("node_id").parsed(node_id)?,
            name: Field("name").parsed(name)?,
            address: Field("address").address(address)?,
            port: Field("port").port(port)?,
        })
    }
}
