//! What the network does: packets arrive late, twice, in any order, or not at all.

use holdfast_common::protocol::{Attempt, Effect, Event, RequestNumber, ToCoordinator, ToMember, ToPeer};
use holdfast_common::term::Term;

use super::model::{Action, Model};
use super::rules::Rule;
use super::world::{Deed, Packet, World, id, index_of};

// === impl Model ===

impl Model {
    pub(crate) fn packets_can(&self, world: &World, actions: &mut Vec<Action>) {
        for packet in &world.packets {
            actions.push(Action::Lose(packet.clone()));
            let (Packet::Down { to, .. } | Packet::Peer { to, .. }) = packet else {
                if world.regent.is_some() {
                    actions.push(Action::Deliver(packet.clone()));
                    actions.extend(self.repeats.then(|| Action::DeliverCopy(packet.clone())));
                }
                continue;
            };
            let fence = matches!(packet, Packet::Down { message: ToMember::Fence { .. }, .. });
            let another_thread = fence && self.leaves_out(Rule::FenceOnTheLeaseThread);
            if world.nodes[*to].undone.is_empty() || another_thread {
                actions.push(Action::Deliver(packet.clone()));
                actions.extend(self.repeats.then(|| Action::DeliverCopy(packet.clone())));
            }
        }
    }

    /// Puts a packet under way; where there are too many it is lost.
    pub(crate) fn send(&self, world: &mut World, packet: Packet) {
        let nowhere = match packet {
            Packet::Down { to, .. } | Packet::Peer { to, .. } => to >= self.nodes,
            Packet::Up { .. } => false,
        };
        if !nowhere
            && world.packets.len() < self.packets
            && let Err(place) = world.packets.binary_search(&packet)
        {
            world.packets.insert(place, packet);
        }
    }

    pub(crate) fn deliver(&self, world: &mut World, packet: Packet) {
        match packet {
            Packet::Down { to, .. } | Packet::Peer { to, .. } if world.nodes[to].off => {}
            Packet::Up { from, message } => self.hears(world, from, message),
            Packet::Down { to, message } => {
                let message = self.readdressed(&world.nodes[to], message);
                self.happens(world, to, Event::Told(message));
            }
            Packet::Peer { from, to, message } => {
                self.happens(world, to, Event::Peer { from: id(from), message });
            }
        }
    }

    /// Packets that can never have an effect again are as good as lost.
    pub(crate) fn drop_what_is_inert(&self, world: &mut World) {
        let World { nodes, packets, stored, regent, .. } = world;
        let known = |index: usize| nodes[index].disk.term;
        let numbers_count = !self.leaves_out(Rule::AnswersBearTheNumber)
            && !self.leaves_out(Rule::NumbersAreNeverReused)
            && !self.leaves_out(Rule::FenceForgets);
        let stops_are_forgotten =
            !self.leaves_out(Rule::AttemptsAreNeverReused) && !self.leaves_out(Rule::OnlyThisRunHasAsked);
        packets.retain(|packet| {
            if numbers_count
                && let Some((index, number)) = packet.request()
                && !nodes[index].member.gate.answerable().any(|in_hand| in_hand == number)
            {
                return false;
            }
            let forgotten = |attempt: &Attempt| {
                let stop = regent.as_ref().and_then(|regent| regent.stop);
                stops_are_forgotten && stop.is_none_or(|stop| stop.attempt != *attempt)
            };
            match packet {
                Packet::Up {
                    message: ToCoordinator::Stopped { attempt, .. } | ToCoordinator::Confirmed { attempt, .. },
                    ..
                } if forgotten(attempt) => false,
                Packet::Up { message: ToCoordinator::Sealed { term, .. }, .. } => *term > stored.term,
                Packet::Up { message, .. } => term_up(message) >= stored.term,
                Packet::Down { to, message } => term_down(message) >= known(*to),
                Packet::Peer { .. } => true,
            }
        });
    }
}
// === impl Packet ===

impl Packet {
    /// Whose request it is, or answers, and which.
    pub(crate) fn request(&self) -> Option<(usize, RequestNumber)> {
        match self {
            Self::Up { from, message: ToCoordinator::Renew { number, .. } } => Some((*from, *number)),
            Self::Down { to, message: ToMember::Granted { number, .. } } => Some((*to, *number)),
            Self::Peer { from, message: ToPeer::AskPromise { number, .. }, .. } => Some((*from, *number)),
            Self::Peer { to, message: ToPeer::Promise { number, .. }, .. } => Some((*to, *number)),
            Self::Up { .. } | Self::Down { .. } => None,
        }
    }
}

// === impl Deed ===

impl Deed {
    /// Of what this node is about to send: whose request it is, or answers, and which.
    pub(crate) fn request(&self, by: usize) -> Option<(usize, RequestNumber)> {
        match self {
            Self::Effect(Effect::Tell(message)) => {
                Packet::Up { from: by, message: message.clone() }.request()
            }
            Self::Effect(Effect::Send { to, message }) => {
                Packet::Peer { from: by, to: index_of(*to), message: *message }.request()
            }
            Self::Effect(_) | Self::TakeBack(_) => None,
        }
    }
}

const fn term_up(message: &ToCoordinator) -> Term {
    match message {
        ToCoordinator::Renew { term, .. }
        | ToCoordinator::ListStored { term, .. }
        | ToCoordinator::Fenced { term, .. }
        | ToCoordinator::Stopped { term, .. }
        | ToCoordinator::Confirmed { term, .. }
        | ToCoordinator::Sealed { term, .. } => *term,
    }
}

const fn term_down(message: &ToMember) -> Term {
    match message {
        ToMember::Granted { term, .. }
        | ToMember::Fence { term, .. }
        | ToMember::Stop { term, .. }
        | ToMember::Confirm { term, .. }
        | ToMember::Seal { term }
        | ToMember::Promote { term, .. }
        | ToMember::Follow { term, .. } => *term,
    }
}
