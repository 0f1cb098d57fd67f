//! Access rules as nodes get them: networks packed, since there may be a hundred thousand.

use std::net::{Ipv4Addr, Ipv6Addr};

use holdfast_proto::link::v1 as proto;
use ipnet::{Ipv4Net, Ipv6Net};

use super::field::{duration_to_wire, time_to_wire};
use super::{Error, Field, Problem};
use crate::access::{Access, Reach, TRIAL, Trial};

impl From<&Access> for proto::Access {
    fn from(access: &Access) -> Self {
        let Access { kept, trial, log_refused } = access;
        Self { kept: Some(kept.into()), trial: trial.as_ref().map(Into::into), log_refused: *log_refused }
    }
}

impl TryFrom<proto::Access> for Access {
    type Error = Error;

    fn try_from(access: proto::Access) -> Result<Self, Error> {
        let proto::Access { kept, trial, log_refused } = access;
        Ok(Self {
            kept: Field("kept").message(kept)?,
            trial: Field("trial").optional_message(trial)?,
            log_refused,
        })
    }
}

impl From<&Trial> for proto::AccessTrial {
    fn from(trial: &Trial) -> Self {
        let Trial { id, reach, lasts, ends_at } = trial;
        Self {
            trial_id: id.to_string(),
            reach: Some(reach.into()),
            duration: Some(duration_to_wire(*lasts)),
            end_time: Some(time_to_wire(*ends_at)),
        }
    }
}

impl TryFrom<proto::AccessTrial> for Trial {
    type Error = Error;

    fn try_from(trial: proto::AccessTrial) -> Result<Self, Error> {
        let proto::AccessTrial { trial_id, reach, duration, end_time } = trial;
        let lasts = Field("duration").duration(duration)?;
        if !TRIAL.contains(&lasts) {
            return Err(Field("duration").refuse(Problem::OutOfRange { expected: "5 s to 1 h" }));
        }
        Ok(Self {
            id: Field("trial_id").parsed(trial_id)?,
            reach: Field("reach").message(reach)?,
            lasts,
            ends_at: Field("end_time").time(end_time)?,
        })
    }
}

impl From<&Reach> for proto::Reach {
    fn from(reach: &Reach) -> Self {
        let mut v4 = Vec::with_capacity(reach.v4().len() * 5);
        for network in reach.v4() {
            v4.extend(network.addr().octets());
            v4.push(network.prefix_len());
        }
        let mut v6 = Vec::with_capacity(reach.v6().len() * 17);
        for network in reach.v6() {
            v6.extend(network.addr().octets());
            v6.push(network.prefix_len());
        }
        Self { v4, v6 }
    }
}

impl TryFrom<proto::Reach> for Reach {
    type Error = Error;

    fn try_from(reach: proto::Reach) -> Result<Self, Error> {
        let proto::Reach { v4, v6 } = reach;
        let v4 = unpack("v4", &v4, |[a, b, c, d, length]: [u8; 5]| {
            Ipv4Net::new(Ipv4Addr::new(a, b, c, d), length).ok()
        })?;
        let v6 = unpack("v6", &v6, |bytes: [u8; 17]| {
            let (address, length) = bytes.split_last_chunk::<1>()?;
            Ipv6Net::new(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?), length[0]).ok()
        })?;
        Self::from_sorted(v4, v6).map_err(|error| Field("v4").malformed(error))
    }
}

fn unpack<T, const N: usize>(
    field: &'static str,
    bytes: &[u8],
    network: impl Fn([u8; N]) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(Field(field).malformed("its end is cut off"));
    }
    let networks: Option<Vec<T>> = chunks.iter().map(|chunk| network(*chunk)).collect();
    networks.ok_or_else(|| Field(field).malformed("a prefix is longer than an address"))
}
