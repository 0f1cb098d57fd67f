//! How many connections there may be: one address cannot keep all others out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections in all.
const MAX_CONNECTIONS: usize = 128;
/// Connections of one address.
const MAX_OF_ONE: usize = 32;

/// Room for connections. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Room {
    taken: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Room,
    address: IpAddr,
}

// === impl Room ===

impl Room {
    /// A place for a connection from this address, if there is one.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let mut taken = self.lock();
        let of_one = taken.get(&address).copied().unwrap_or_default();
        if of_one >= MAX_OF_ONE || taken.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        taken.insert(address, of_one + 1);
        Some(Place { room: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        // No change of it can panic half-way.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn one_address_leaves_room_for_others_and_places_are_given_back() {
        let room = Room::default();
        let mut places: Vec<Place> = (0..MAX_OF_ONE).filter_map(|_| room.take(address(1))).collect();
        assert_eq!(places.len(), MAX_OF_ONE);
        assert!(room.take(address(1)).is_none(), "one address has more than its share");
        places.pop();
        places.extend(room.take(address(1)));
        assert_eq!(places.len(), MAX_OF_ONE);
        let others = (2..=u8::MAX).flat_map(|last| room.take(address(last)));
        places.extend(others);
        assert_eq!(places.len(), MAX_CONNECTIONS);
        drop(places);
        assert!(room.lock().is_empty(), "a place was not given back");
    }
}
