//! One session, over plain domain messages: nothing here knows of sockets or of the wire.
//!
//! ```text
//!            Hello ──►                     heartbeat, metrics: by their intervals, the newest only
//! begin ───────────────► wait for Welcome ─────────────► open ──► ends: lost, closed, silent, violated, stopped
//!            ◄── Welcome (version spoken?)               │
//!                                                        ├─ orders go down one at a time; while one waits for room,
//!                                                        │  nothing more is read: the stream holds the coordinator back
//!                                                        ├─ outcomes, events, progress come up as there is room
//!                                                        └─ questions are answered a few at a time, behind all that
//! ```
//!
//! A coordinator that does not read costs the node nothing: the one bounded channel is full, and what would be sent next
//! is made only when there is room again. Ending a session cancels no command. Not here: connecting, and waiting to
//! connect again.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use holdfast_common::clock::Clock;
use holdfast_common::error::{Classify as _, Failure, Reason};
use holdfast_common::id::CommandId;
use holdfast_common::link::{
    Answer, Close, FromAgent, FromCoordinator, Heartbeat, Hello, Question, VERSIONS, Welcome,
};
use holdfast_common::question;
use holdfast_common::report::{NodeReport, Severity};
use holdfast_common::telemetry::Sample;
use holdfast_common::wire;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::assignment;
use crate::dispatch::Order;
use crate::outbox::{Outbox, node_event};

/// How long the coordinator may take to welcome.
pub const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// How long heartbeats may stay without an answer before the session is given up.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Messages that wait to be written.
pub const OUTBOUND: usize = 4;
/// News is told at once, but at most this often: as a heartbeat before its time.
const NEWS_INTERVAL: Duration = Duration::from_millis(100);
/// Questions that are being answered, or whose answers wait to be sent; more are refused.
pub const MAX_QUESTIONS: usize = 16;
/// Progress is told at most this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// An outcome or event that was not acknowledged is told again this often within a session.
const REPEAT_INTERVAL: Duration = Duration::from_secs(20);

/// What lies below the session: the agent's own parts, or a simulation of them.
pub trait Below: Send + Sync + 'static {
    /// Once before the first try to connect.
    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn hello(&self) -> BoxFuture<'_, Hello>;

    /// The newest state of all members. Cheap.
    fn report(&self) -> NodeReport;

    /// Returns when a report says something that others wait for. Cancel-safe.
    fn news(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// The newest measurement; `None` if there was none since the last one.
    fn sample(&self) -> Option<Box<Sample>>;

    /// Takes an assignment over. Waits where that takes time.
    fn assign(
        &self,
        assignment: Box<holdfast_common::assignment::Assignment>,
    ) -> BoxFuture<'_, Result<(), assignment::Error>>;

    /// Takes an order over. Waits while there is no room for it.
    fn order(&self, order: Order) -> BoxFuture<'_, ()>;

    /// Answers a question. Changes nothing.
    fn answer(&self, _question: Question) -> BoxFuture<'_, Result<question::Answer, Failure>> {
        let failure = Failure::new(Reason::UnknownCommand, "this node answers no questions");
        Box::pin(std::future::ready(Err(failure)))
    }

    /// What waits to be told.
    fn outbox(&self) -> &Outbox;

    fn clock(&self) -> &Clock;

    /// A session is open, with these intervals.
    fn opened(&self, _welcome: &Welcome) {}
}

/// What arrives.
#[derive(Debug)]
pub enum Inbound {
    Message(FromCoordinator),
    /// A message with a bad field, and the command it was, where that can be told.
    Refused {
        command: Option<CommandId>,
        error: wire::Error,
    },
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The agent stops.
    Stopped,
    /// The stream ended; why is for the one who made it to say.
    Lost,
    Closed(Close),
    /// Heartbeats stayed without an answer.
    Silent,
    /// The coordinator said what it must not.
    Violated(&'static str),
    /// It chose a version that this agent does not speak.
    Version(u32),
    /// It did not welcome in time.
    Unwelcome,
}

/// Tells when the session is open, and until when it was.
pub trait Watcher: Send {
    fn opened(&mut self, welcome: &Welcome);
}

struct Open<'a, B> {
    below: &'a B,
    to_coordinator: mpsc::Sender<FromAgent>,
    heartbeat: Interval,
    metrics: Interval,
    progress: Interval,
    repeat: Interval,
    due: Due,
    heartbeats: u64,
    told: Instant,
    answered: Instant,
    /// An order or assignment on its way down.
    going_down: Option<BoxFuture<'a, ()>>,
    /// Questions that are being answered.
    answering: FuturesUnordered<BoxFuture<'a, Answer>>,
}

/// What should be sent as soon as there is room.
#[derive(Debug, Default)]
struct Due {
    heartbeat: bool,
    metrics: bool,
    outbox: bool,
    progress: bool,
    answers: VecDeque<Answer>,
}

enum Next {
    Stopped,
    Arrived(Option<Inbound>),
    WentDown,
    Answered(Answer),
    Tick,
    Sent,
    Gone,
}

/// Holds one session until it ends.
///
/// # Cancel safety
/// Dropping it ends the session; what was not told is told in the next one.
pub async fn hold<B, S>(
    below: &B,
    to_coordinator: mpsc::Sender<FromAgent>,
    mut from_coordinator: S,
    watcher: &mut dyn Watcher,
    stop: &CancellationToken,
) -> End
where
    B: Below,
    S: Stream<Item = Inbound> + Unpin + Send,
{
    let welcoming = begin(below, &to_coordinator, &mut from_coordinator);
    // Both arms may be dropped: nothing was taken over yet.
    let begun = tokio::select! {
        () = stop.cancelled() => return End::Stopped,
        begun = timeout(WELCOME_DEADLINE, welcoming) => begun,
    };
    let welcome = match begun {
        Ok(Ok(welcome)) => welcome,
        Ok(Err(end)) => return end,
        Err(_) => return End::Unwelcome,
    };
    watcher.opened(&welcome);
    below.opened(&welcome);
    below.outbox().rewind();
    Open::new(below, to_coordinator, &welcome).run(&mut from_coordinator, stop).await
}

async fn begin<B, S>(
    below: &B,
    to_coordinator: &mpsc::Sender<FromAgent>,
    from_coordinator: &mut S,
) -> Result<Welcome, End>
where
    B: Below,
    S: Stream<Item = Inbound> + Unpin,
{
    let hello = FromAgent::Hello(Box::new(below.hello().await));
    to_coordinator.send(hello).await.map_err(|_| End::Lost)?;
    match from_coordinator.next().await {
        Some(Inbound::Message(FromCoordinator::Welcome(welcome))) if VERSIONS.contains(welcome.version) => {
            Ok(welcome)
        }
        Some(Inbound::Message(FromCoordinator::Welcome(welcome))) => Err(End::Version(welcome.version)),
        Some(Inbound::Message(FromCoordinator::Close(close))) => Err(End::Closed(close)),
        Some(Inbound::Message(_)) => Err(End::Violated("it said something before its welcome")),
        Some(Inbound::Refused { error, .. }) => {
            tracing::warn!(%error, "the welcome cannot be understood");
            Err(End::Violated("its welcome has a bad field"))
        }
        None => Err(End::Lost),
    }
}

impl<'a, B: Below> Open<'a, B> {
    fn new(below: &'a B, to_coordinator: mpsc::Sender<FromAgent>, welcome: &Welcome) -> Self {
        Self {
            below,
            to_coordinator,
            heartbeat: ticks(welcome.heartbeat_interval),
            metrics: ticks(welcome.metrics_interval),
            progress: ticks(PROGRESS_INTERVAL),
            repeat: ticks(REPEAT_INTERVAL),
            due: Due::default(),
            heartbeats: 0,
            told: Instant::now(),
            answered: Instant::now(),
            going_down: None,
            answering: FuturesUnordered::new(),
        }
    }

    async fn run<S>(mut self, from_coordinator: &mut S, stop: &CancellationToken) -> End
    where
        S: Stream<Item = Inbound> + Unpin,
    {
        let outbox = self.below.outbox();
        loop {
            let waits = self.due.any();
            let progress_runs = outbox.has_progress();
            // Every arm is cancel-safe: a token, streams, a future that is kept, timers, a permit, a kept notification.
            let next = tokio::select! {
                () = stop.cancelled() => Next::Stopped,
                arrived = from_coordinator.next(), if self.going_down.is_none() => Next::Arrived(arrived),
                () = poll_kept(&mut self.going_down), if self.going_down.is_some() => Next::WentDown,
                Some(answer) = self.answering.next() => Next::Answered(answer),
                permit = self.to_coordinator.reserve(), if waits => match permit {
                    Ok(permit) => {
                        if let Some(message) = self.due.next(self.below, &mut self.heartbeats) {
                            permit.send(message);
                        }
                        Next::Sent
                    }
                    Err(_) => Next::Gone,
                },
                _ = self.heartbeat.tick() => {
                    (self.due.heartbeat, self.told) = (true, Instant::now());
                    Next::Tick
                }
                () = self.below.news() => {
                    self.heartbeat.reset_at((self.told + NEWS_INTERVAL).max(Instant::now()));
                    Next::Tick
                }
                _ = self.metrics.tick() => { self.due.metrics = true; Next::Tick }
                _ = self.progress.tick(), if progress_runs => { self.due.progress = true; Next::Tick }
                _ = self.repeat.tick() => { outbox.rewind(); Next::Tick }
                () = outbox.changed() => { self.due.outbox = true; Next::Tick }
            };
            let end = match next {
                Next::Stopped => Some(End::Stopped),
                Next::Arrived(None) | Next::Gone => Some(End::Lost),
                Next::Arrived(Some(Inbound::Message(message))) => self.message(message),
                Next::Arrived(Some(Inbound::Refused { command, error })) => {
                    self.refused(command, &error);
                    None
                }
                Next::WentDown => {
                    self.going_down = None;
                    None
                }
                Next::Answered(answer) => {
                    self.due.answers.push_back(answer);
                    None
                }
                Next::Tick | Next::Sent => (self.answered.elapsed() > SILENCE).then_some(End::Silent),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn message(&mut self, message: FromCoordinator) -> Option<End> {
        let below = self.below;
        match message {
            FromCoordinator::Welcome(_) => return Some(End::Violated("it welcomed twice")),
            FromCoordinator::Close(close) => return Some(End::Closed(close)),
            FromCoordinator::HeartbeatAck { sequence } => {
                if sequence > self.heartbeats {
                    return Some(End::Violated("it acknowledged a heartbeat that was not sent"));
                }
                self.answered = Instant::now();
            }
            FromCoordinator::EventAck(id) => below.outbox().acknowledge_event(id),
            FromCoordinator::Assignment(assignment) => self.go_down(async move {
                if let Err(error) = below.assign(assignment).await {
                    tell_refused_assignment(below, &error);
                }
            }),
            FromCoordinator::Command(command) => self.go_down(below.order(Order::Run(command))),
            FromCoordinator::CancelCommand(id) => self.go_down(below.order(Order::Cancel(id))),
            FromCoordinator::OutcomeAck(id) => self.go_down(below.order(Order::Acknowledged(id))),
            FromCoordinator::Question(question) => return self.asked(*question),
        }
        None
    }

    /// Answered beside all else; a coordinator that takes no answers gets no further ones.
    fn asked(&mut self, question: Question) -> Option<End> {
        let (below, number) = (self.below, question.number);
        let waiting = self.answering.len() + self.due.answers.len();
        if waiting >= 2 * MAX_QUESTIONS {
            return Some(End::Violated("it asks more than it takes answers"));
        }
        if waiting >= MAX_QUESTIONS {
            let message = format!("this node answers {MAX_QUESTIONS} questions at a time");
            let failure = Failure::new(Reason::QueueFull, message).retry_after(Duration::from_secs(1));
            self.due.answers.push_back(Answer { number, answer: Err(failure) });
        } else {
            let answer = async move { Answer { number, answer: below.answer(question).await } };
            self.answering.push(Box::pin(answer));
        }
        None
    }

    /// A message with a bad field: a command gets it as its outcome, of anything else an event tells.
    fn refused(&mut self, command: Option<CommandId>, error: &wire::Error) {
        tracing::warn!(%error, "refuse a message");
        let below = self.below;
        let Some(id) = command else {
            let text = format!("a message of the coordinator was refused: {error}");
            below.outbox().event(node_event(below.clock(), Severity::Error, "MESSAGE_REFUSED", text));
            return;
        };
        // A kind of command that this build does not know arrives as one without a payload.
        let unknown = error.field == "command.payload" && error.problem == wire::Problem::Missing;
        let failure = if unknown {
            Failure::new(Reason::UnknownCommand, "this agent does not know that kind of command; upgrade it")
        } else {
            error.to_failure()
        };
        self.go_down(below.order(Order::Refuse(id, failure)));
    }

    fn go_down(&mut self, deed: impl Future<Output = ()> + Send + 'a) {
        debug_assert!(self.going_down.is_none(), "nothing is read while something goes down");
        self.going_down = Some(Box::pin(deed));
    }
}

// === impl Due ===

impl Due {
    fn any(&self) -> bool {
        let Self { heartbeat, metrics, outbox, progress, answers } = self;
        *heartbeat || *metrics || *outbox || *progress || !answers.is_empty()
    }

    /// The most urgent message, made now.
    fn next<B: Below>(&mut self, below: &B, heartbeats: &mut u64) -> Option<FromAgent> {
        if std::mem::take(&mut self.heartbeat) {
            *heartbeats += 1;
            return Some(FromAgent::Heartbeat(Box::new(Heartbeat {
                sequence: *heartbeats,
                report: below.report(),
            })));
        }
        if self.outbox {
            match below.outbox().take(below.clock()) {
                Some(message) => return Some(message),
                None => self.outbox = false,
            }
        }
        if self.progress {
            match below.outbox().take_progress() {
                Some(message) => return Some(message),
                None => self.progress = false,
            }
        }
        if std::mem::take(&mut self.metrics)
            && let Some(sample) = below.sample()
        {
            return Some(FromAgent::Metrics(sample));
        }
        // Last: there may be many of them, and they are large.
        self.answers.pop_front().map(|answer| FromAgent::Answer(Box::new(answer)))
    }
}

async fn poll_kept(kept: &mut Option<BoxFuture<'_, ()>>) {
    if let Some(future) = kept {
        future.await;
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    // One heartbeat after a stall is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn tell_refused_assignment<B: Below>(below: &B, error: &assignment::Error) {
    let reason = error.reason();
    let text = format!("an assignment was refused: {}", holdfast_common::error::Chain(error));
    tracing::warn!(%reason, error = %text, "refuse an assignment");
    let name = if reason == Reason::StateDamaged { "STATE_DAMAGED" } else { "ASSIGNMENT_REFUSED" };
    below.outbox().event(node_event(below.clock(), Severity::Error, name, text));
}
