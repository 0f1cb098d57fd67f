//! A procedure with real side effects on a world in memory, and ways to get it wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use holdfast_common::{
    error::{Failure, Reason},
    id::{CommandId, OperationId},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::operation::{
    Limits, Progress, StepLabel,
    procedure::{Context, Error, Next, Procedure},
};

/// Makes a database on two nodes and announces it. Past `Publish` there is no way back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Build {
    Reserve,
    Copy { node: u8, port: u16 },
    Publish { port: u16 },
    Announce { port: u16 },
    Remove,
}

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mutant {
    #[default]
    None,
    /// Announces without asking whether it has done so.
    AnnouncesAgain,
    /// Takes a new port on each try.
    ReservesAgain,
    /// Keeps in memory what it should keep in its state.
    Remembers,
    /// Leaves the copies behind on the way back.
    ForgetsCopies,
    /// Has no way back from the copy.
    OneWay,
    /// Believes that it can go back from what all have seen.
    CancelsTooLate,
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) state: Mutex<Nodes>,
}

#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) ports: BTreeMap<u16, OperationId>,
    pub(super) copies: BTreeSet<u8>,
    pub(super) published: Option<u16>,
    pub(super) announced: u32,
    /// What each command has done: a repeat does it no second time.
    pub(super) journal: BTreeMap<CommandId, u32>,
    /// Failures still to come, by step: the failure, and how often.
    pub(super) trouble: BTreeMap<String, (Failure, u32, bool)>,
    /// Command ids that a step has used, by step.
    pub(super) used: Vec<(String, CommandId)>,
    /// A step waits here until it is let go.
    pub(super) hold: Option<(String, Arc<tokio::sync::Semaphore>)>,
    /// Steps that heeded a request to cancel.
    pub(super) heeded: u32,
}

#[derive(Debug)]
pub(super) struct Means {
    pub(super) world: Arc<World>,
    pub(super) mutant: Mutant,
    remembered: Mutex<Option<u16>>,
}

impl World {
    pub(super) fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.state.lock().unwrap()
    }

    pub(super) fn trouble(&self, step: &str, failure: Failure, times: u32) {
        self.lock().trouble.insert(step.to_owned(), (failure, times, false));
    }

    pub(super) fn hold(&self, step: &str) -> Arc<tokio::sync::Semaphore> {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        self.lock().hold = Some((step.to_owned(), Arc::clone(&gate)));
        gate
    }
}

impl Means {
    pub(super) fn new(world: &Arc<World>, mutant: Mutant) -> Self {
        Self { world: Arc::clone(world), mutant, remembered: Mutex::default() }
    }
}

impl Procedure for Build {
    type Means = Means;

    fn kind(&self) -> &'static str {
        "build"
    }

    fn steps(&self) -> Vec<StepLabel> {
        match self {
            Self::Reserve | Self::Copy { .. } | Self::Publish { .. } | Self::Announce { .. } => vec![
                StepLabel::new("reserve", "Reserve a port"),
                StepLabel::new("copy/1", "Copy to node 1"),
                StepLabel::new("copy/2", "Copy to node 2"),
                StepLabel::new("publish", "Publish"),
                StepLabel::new("announce", "Announce"),
            ],
            Self::Remove => vec![StepLabel::new("remove", "Remove what was made")],
        }
    }

    fn step(&self) -> String {
        match self {
            Self::Reserve => "reserve".to_owned(),
            Self::Copy { node, .. } => format!("copy/{node}"),
            Self::Publish { .. } => "publish".to_owned(),
            Self::Announce { .. } => "announce".to_owned(),
            Self::Remove => "remove".to_owned(),
        }
    }

    async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let Means { world, mutant, remembered } = ctx.means();
        let step = self.step();
        let command = ctx.command_id("do");
        ctx.progress(Progress::bytes(1, 2), format!("at {step}"));
        let hold = {
            let mut nodes = world.lock();
            nodes.used.push((step.clone(), command));
            nodes.hold.clone().filter(|(at, _)| *at == step)
        };
        if let Some((_, gate)) = hold {
            tokio::select! {
                permit = gate.acquire() => drop(permit),
                () = ctx.cancelled().cancelled() => {
                    world.lock().heeded += 1;
                    return Err(Error::cancelled());
                }
            }
        }
        // The effect takes its time, so that the coordinator may be stopped in the middle of it.
        tokio::task::yield_now().await;
        if let Some((failure, times, fresh)) = world.lock().trouble.get_mut(&step)
            && *times > 0
        {
            *times -= 1;
            let error = Error::new(failure.clone());
            return Err(if *fresh { error.commands_ended() } else { error });
        }
        match self {
            Self::Reserve => {
                let mut nodes = world.lock();
                let mine =
                    nodes.ports.iter().find(|(_, owner)| **owner == ctx.operation()).map(|(port, _)| *port);
                let port = match mine {
                    Some(port) if *mutant != Mutant::ReservesAgain => port,
                    _ => {
                        let port = 5000 + u16::try_from(nodes.ports.len()).unwrap();
                        nodes.ports.insert(port, ctx.operation());
                        port
                    }
                };
                *remembered.lock().unwrap() = Some(port);
                Ok(Next::Step(Self::Copy { node: 1, port }))
            }
            Self::Copy { node, port } => {
                world.lock().copies.insert(node);
                let port = if *mutant == Mutant::Remembers {
                    remembered.lock().unwrap().unwrap_or_default()
                } else {
                    port
                };
                Ok(Next::Step(if node == 1 { Self::Copy { node: 2, port } } else { Self::Publish { port } }))
            }
            Self::Publish { port } => {
                world.lock().published = Some(port);
                Ok(Next::Step(Self::Announce { port }))
            }
            Self::Announce { port } => {
                let mut nodes = world.lock();
                if *nodes.journal.entry(command).or_default() == 0 || *mutant == Mutant::AnnouncesAgain {
                    *nodes.journal.entry(command).or_default() += 1;
                    nodes.announced += 1;
                }
                Ok(Next::done(json!({ "port": port })))
            }
            Self::Remove => {
                let mut nodes = world.lock();
                nodes.ports.retain(|_, owner| *owner != ctx.operation());
                if *mutant != Mutant::ForgetsCopies {
                    nodes.copies.clear();
                }
                Ok(Next::done(()))
            }
        }
    }

    fn way_back(&self, why: &Error) -> Option<Self> {
        match self {
            Self::Copy { .. } if why.failure().message.contains("one way") => None,
            Self::Reserve | Self::Copy { .. } => Some(Self::Remove),
            // Nobody has seen it unless the step was done, which a refusal rules out and nothing else does.
            Self::Publish { .. } | Self::Announce { .. } | Self::Remove => None,
        }
    }

    fn may_cancel(&self) -> bool {
        match self {
            Self::Reserve | Self::Copy { .. } => true,
            Self::Publish { .. } | Self::Announce { .. } | Self::Remove => false,
        }
    }

    fn limits(&self) -> Limits {
        Limits { attempts: 4, deadline: Duration::from_secs(120) }
    }
}

pub(super) fn broken(message: &str) -> Failure {
    Failure::new(Reason::EngineFailed, message)
}
