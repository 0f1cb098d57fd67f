//! The rules that can be left out, and how: by what the code is told, remembers and does.

use holdfast_common::protocol::{
    Countdown, Decree, Effect, Event, List, Member, Need, Regent, Slot, Timings, ToMember, ToPeer, Version,
};

use super::model::Model;
use super::world::{Deed, Node, World, id};

/// One rule of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    // The gate.
    ArmBeforeSending,
    TimeRunsFromTheArming,
    ArmingTakesBack,
    ArmInOneTransaction,
    AnswersBearTheNumber,
    NumbersAreNeverReused,
    FenceForgets,
    FenceShutsFirst,
    ShuttingDisarms,
    FenceOnTheLeaseThread,
    NoHelperProcess,
    // The lease.
    GrantsAreRemembered,
    WaitAfterAStart,
    NoRenewalOnceIntended,
    WaitForTheLease,
    MarginForDrift,
    // Promises.
    AllMustPromise,
    StartsCountAsPromised,
    SealsWaitForPromises,
    // Membership.
    UnknownIsNotEmpty,
    UnknownTakesNoLateList,
    LoneBecomesTimed,
    DeadlineShuts,
    VersionsAreStoredFirst,
    LowerVersionsAreIgnored,
    OnlyTheNewestConfirmation,
    WaitAfterAdding,
    AddOnlyWhenConfirmed,
    RecordRemovalFirst,
    // Seals and elections.
    EnoughSeals,
    HighestTailWins,
    SealsAreDurable,
    SealsCutTheReceiver,
    ServeOnlyWhenFollowed,
    NotReadyShuts,
    ConfirmWhenAllHaveCaughtUp,
    NoWayBackOnceStored,
    HigherTermsAreTaken,
    /// What a person says of the old primary is true.
    TheWordIsTrue,
    // Switchover.
    NoRenewalWhileStopping,
    StoppedOnlyIfStill,
    AttemptsAreNeverReused,
    OnlyThisRunHasAsked,
    ConfirmForgets,
    ConfirmAfterTheSeals,
    ConfirmBeforeChoosing,
    /// Whoever is promoted must have the log up to where the confirmation says that it ends, not up to where it was stopped first.
    ConfirmThePlace,
    TheTargetHasItAll,
    // Another lease profile.
    WidenFirst,
    NarrowLast,
    AllKnowTheProfile,
    OldLeasesRunOut,
    AtLeast,
}

// === impl Model ===

impl Model {
    /// What a member does about an event, with the rules of agents that are left out.
    pub(crate) fn tampered(&self, node: &mut Node, event: Event, timings: &Timings) -> Vec<Deed> {
        let before = node.member.clone();
        let round = matches!(event, Event::Round { .. });
        let fence = matches!(event, Event::Told(ToMember::Fence { .. }));
        let confirm = matches!(event, Event::Told(ToMember::Confirm { .. }));
        let mut effects = self.handle(&mut node.member, event, timings);
        if round && self.leaves_out(Rule::ArmBeforeSending) && effects.len() > 1 {
            effects.swap(0, 1);
        }
        let keeps =
            fence && self.leaves_out(Rule::FenceForgets) || confirm && self.leaves_out(Rule::ConfirmForgets);
        if keeps {
            node.member.gate = before.gate;
        }
        if fence && self.leaves_out(Rule::FenceShutsFirst) {
            effects.reverse();
        }
        effects.into_iter().flat_map(|effect| self.halves(effect)).collect()
    }

    fn handle(&self, member: &mut Member, event: Event, timings: &Timings) -> Vec<Effect> {
        let promise = member.promise;
        let version = member.record.list.as_ref().map(|list| list.version);
        match &event {
            Event::Told(ToMember::Seal { .. } | ToMember::Promote { .. })
                if self.leaves_out(Rule::SealsWaitForPromises) =>
            {
                member.promise = Countdown::OVER;
                let effects = member.handle(event, timings);
                member.promise = promise;
                return effects;
            }
            Event::Peer { message: ToPeer::Promise { .. }, .. } if self.leaves_out(Rule::AllMustPromise) => {
                let Some(list) = &mut member.record.list else { return Vec::new() };
                let need = std::mem::replace(&mut list.need, Need::of(1));
                let effects = member.handle(event, timings);
                if let Some(list) = &mut member.record.list {
                    list.need = need;
                }
                return effects;
            }
            Event::Told(ToMember::Promote { list, .. })
                if self.leaves_out(Rule::LowerVersionsAreIgnored) && version > Some(list.version) =>
            {
                member.record.list = Some(List::new(Version::new(0), [], Need::All));
            }
            Event::Told(ToMember::Promote { .. })
                if self.leaves_out(Rule::UnknownTakesNoLateList) && version.is_none() =>
            {
                member.record.list = Some(List::new(Version::new(0), [], Need::All));
            }
            Event::Told(ToMember::Follow { term, .. })
                if self.leaves_out(Rule::HigherTermsAreTaken) && *term > member.record.term =>
            {
                return Vec::new();
            }
            _ => {}
        }
        member.handle(event, timings)
    }

    fn halves(&self, effect: Effect) -> Vec<Deed> {
        match effect {
            Effect::Arm { slot, .. } if self.leaves_out(Rule::ArmInOneTransaction) => {
                vec![Deed::Effect(effect), Deed::TakeBack(slot)]
            }
            _ => vec![Deed::Effect(effect)],
        }
    }

    /// An answer as it is taken: without numbers it answers whatever is in hand.
    pub(crate) fn readdressed(&self, node: &Node, message: ToMember) -> ToMember {
        match message {
            ToMember::Granted { term, list, number } if self.leaves_out(Rule::AnswersBearTheNumber) => {
                let number = node.member.gate.requests().next().unwrap_or(number);
                ToMember::Granted { number, term, list }
            }
            message => message,
        }
    }

    /// The write to the kernel that outlives its agent.
    pub(crate) fn orphaned(&self, node: &Node) -> Option<Slot> {
        node.undone.iter().find_map(|deed| match deed {
            Deed::Effect(Effect::Grant { slot }) if self.leaves_out(Rule::NoHelperProcess) => Some(*slot),
            _ => None,
        })
    }

    pub(crate) fn remembers_after_restart(&self, node: &mut Node) {
        if self.leaves_out(Rule::StartsCountAsPromised) {
            node.member.promise = Countdown::OVER;
        }
    }

    pub(crate) fn tampered_election(&self, regent: &mut Regent) {
        if self.leaves_out(Rule::WaitForTheLease) {
            regent.lease = Countdown::OVER;
        }
        if let Some(stop) = &mut regent.stop {
            regent.fenced |= self.leaves_out(Rule::ConfirmBeforeChoosing);
            if self.leaves_out(Rule::TheTargetHasItAll) {
                stop.tail = None;
            }
        }
        if self.leaves_out(Rule::HighestTailWins) {
            let lowest = regent.seals.values().min().copied();
            if let Some(lowest) = lowest {
                regent.seals.values_mut().for_each(|tail| *tail = lowest);
            }
        }
    }

    pub(crate) fn tampered_declaration(&self, regent: &mut Regent) {
        let lists = &mut regent.reign.lists;
        let newest = lists.last().cloned().expect("a reign has a list");
        if self.leaves_out(Rule::AddOnlyWhenConfirmed) {
            // The members of the newest count at once.
            *lists = vec![newest];
        } else if self.leaves_out(Rule::RecordRemovalFirst) {
            // Those of the one before count on, until it is confirmed.
            let members: Vec<_> = lists[0].members().iter().chain(newest.members()).copied().collect();
            let last = lists.len() - 1;
            lists[last] = List::new(newest.version, members, newest.need);
        }
    }

    /// The way back when the new primary is stored already.
    pub(crate) fn abandoned_too_late(&self, world: &mut World) -> Option<Vec<Decree>> {
        let regent = world.regent.as_mut()?;
        let stored = regent.reign.intended.is_none() && regent.reign.primary != id(0);
        if !(stored && self.leaves_out(Rule::NoWayBackOnceStored)) {
            return None;
        }
        let reign = &mut regent.reign;
        let list =
            List::new(reign.newest().version.next(), self.members.iter().map(|&index| id(index)), self.need);
        reign.term = reign.term.next();
        reign.primary = id(0);
        let message = ToMember::Promote { term: reign.term, list: list.clone() };
        reign.lists = vec![list];
        Some(vec![Decree::Store(reign.clone()), Decree::Send { to: id(0), message }])
    }
}
