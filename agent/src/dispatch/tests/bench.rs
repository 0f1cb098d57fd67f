//! A machine that outlives agents, and agents on it that can be ended at any step.

use super::*;

/// The machine: its disk and what commands did to it. It outlives agents.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) disk: FakeTree,
    pub(super) state: Arc<Mutex<Effects>>,
}

#[derive(Debug, Default)]
pub(super) struct Effects {
    /// How often each command changed something.
    pub(super) count: BTreeMap<CommandId, u32>,
    /// The newest change: a repeat of just this command finds itself done.
    pub(super) last: Option<CommandId>,
    /// Different outcomes that were told of each command.
    pub(super) told: BTreeMap<CommandId, Vec<Outcome>>,
    pub(super) started: u32,
    /// The machine has booted since.
    pub(super) booted: bool,
}

/// Ends the agent at the n-th step: a write, or a point around an effect.
#[derive(Debug, Clone)]
pub(super) struct Fuse {
    pub(super) left: Arc<Mutex<Option<u32>>>,
    pub(super) blown: Arc<AtomicBool>,
    pub(super) noticed: Arc<Notify>,
    /// The step at which it ends takes for ever, that is, until the other end of this is dropped.
    pub(super) hangs: Option<Arc<Mutex<std::sync::mpsc::Receiver<()>>>>,
}

/// Executes by counting.
pub(super) struct Counting {
    pub(super) world: World,
    pub(super) fuse: Fuse,
    pub(super) gate: Option<Arc<Notify>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    None,
    ForgetfulJournal,
}

impl World {
    pub(super) async fn new() -> Self {
        let disk = FakeTree::new([PathBuf::from(STATE)]);
        Terms::create(&Files::new(Arc::new(disk.clone())), Path::new(STATE)).await.unwrap();
        Self { disk, state: Arc::default() }
    }

    pub(super) fn effects(&self) -> MutexGuard<'_, Effects> {
        self.state.lock().unwrap()
    }

    pub(super) fn count(&self, id: CommandId) -> u32 {
        self.effects().count.get(&id).copied().unwrap_or(0)
    }
}

impl Fuse {
    pub(super) fn after(steps: Option<u32>) -> Self {
        Self {
            left: Arc::new(Mutex::new(steps)),
            blown: Arc::default(),
            noticed: Arc::default(),
            hangs: None,
        }
    }

    /// Whether the agent is still there.
    pub(super) fn step(&self) -> bool {
        let mut left = self.left.lock().unwrap();
        match left.as_mut() {
            Some(0) => {
                self.blown.store(true, Ordering::SeqCst);
                self.noticed.notify_one();
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    pub(super) fn is_blown(&self) -> bool {
        self.blown.load(Ordering::SeqCst)
    }
}

fn gone(path: &Path) -> files::Error {
    let source = std::io::Error::other("gone");
    files::Error::Io { deed: Deed::Write, path: path.to_owned(), source }
}

impl Fate for Fuse {
    fn before(&self, path: &Path) -> Result<(), files::Error> {
        if self.step() {
            return Ok(());
        }
        if let Some(hangs) = &self.hangs {
            let _dropped = hangs.lock().unwrap().recv();
        }
        Err(gone(path))
    }

    fn after(&self, path: &Path) -> Result<(), files::Error> {
        if self.step() { Ok(()) } else { Err(gone(path)) }
    }
}

impl Execute for Counting {
    fn is_done(&self, payload: &Payload) -> Option<Success> {
        let booted = self.world.effects().booted && matches!(payload, Payload::RebootNode(_));
        booted.then(|| Success::RebootNode { boot_id: "another".to_owned() })
    }

    fn execute<'a>(&'a self, _: &'a Payload, work: &'a Work) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            self.world.effects().started += 1;
            work.say("at work");
            if let Some(gate) = &self.gate {
                tokio::select! {
                    () = gate.notified() => {}
                    () = work.cancelled.cancelled() => return Err(Failure::new(Reason::Cancelled, "cancelled")),
                }
            }
            if !self.fuse.step() {
                return std::future::pending().await;
            }
            {
                let mut effects = self.world.effects();
                if effects.last != Some(work.command) {
                    *effects.count.entry(work.command).or_default() += 1;
                    effects.last = Some(work.command);
                }
            }
            if !self.fuse.step() {
                return std::future::pending().await;
            }
            Ok(Success::DestroyMember { removed: true })
        })
    }
}

/// One run of the agent.
pub(super) struct Agent {
    pub(super) world: World,
    pub(super) fuse: Fuse,
    pub(super) orders: Handle,
    pub(super) outbox: Outbox,
    pub(super) clock: Clock,
    pub(super) task: tokio::task::JoinHandle<()>,
    pub(super) stop: CancellationToken,
}

/// The agent ended at its fuse.
#[derive(Debug)]
pub(super) struct Gone;

impl Agent {
    pub(super) async fn start(
        world: &World,
        clock: &Clock,
        steps: Option<u32>,
        mutant: Mutant,
    ) -> Result<Self, Gone> {
        Self::start_gated(world, clock, steps, mutant, None).await
    }

    pub(super) async fn start_gated(
        world: &World,
        clock: &Clock,
        steps: Option<u32>,
        mutant: Mutant,
        gate: Option<Arc<Notify>>,
    ) -> Result<Self, Gone> {
        let fuse = Fuse::after(steps);
        let files = Files::new(Arc::new(Mortal { disk: world.disk.clone(), fate: fuse.clone() }));
        let outbox = Outbox::default();
        let terms = Terms::open(files.clone(), Path::new(STATE)).await.map_err(|_| Gone)?.0;
        let means = Means {
            execute: Arc::new(Counting { world: world.clone(), fuse: fuse.clone(), gate }),
            terms: Arc::new(terms),
            outbox: outbox.clone(),
            clock: clock.clone(),
        };
        let opened = Service::open(files, Path::new(STATE), means).await;
        let (mut service, orders, findings) = opened.map_err(|_| Gone)?;
        assert!(findings.is_empty(), "{findings:?}");
        service.journal.forgetful = mutant == Mutant::ForgetfulJournal;
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(stop.clone()));
        Ok(Self { world: world.clone(), fuse, orders, outbox, clock: clock.clone(), task, stop })
    }

    pub(super) async fn give(&self, command: &Command) {
        self.orders.give(Order::Run(Box::new(command.clone()))).await;
    }

    /// The outcome of a command, as the coordinator hears it.
    pub(super) async fn outcome(&self, id: CommandId) -> Result<Outcome, Gone> {
        let heard = async {
            loop {
                while let Some(message) = self.outbox.take(&self.clock) {
                    // What an agent that is gone would have said, nobody heard.
                    if self.fuse.is_blown() {
                        return Err(Gone);
                    }
                    if let FromAgent::CommandUpdate(update) = message
                        && let Update::Outcome(outcome) = update.update
                    {
                        let mut effects = self.world.effects();
                        let told = effects.told.entry(update.command_id).or_default();
                        if !told.contains(&outcome) {
                            told.push(outcome.clone());
                        }
                        if update.command_id == id {
                            return Ok(outcome);
                        }
                    }
                }
                tokio::select! {
                    () = self.outbox.changed() => {}
                    () = self.fuse.noticed.notified() => return Err(Gone),
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("an outcome, or the end of the agent")
    }

    /// Ends as by kill -9.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

pub(super) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(super) fn clock() -> ManualClock {
    ManualClock::at(now())
}

pub(super) fn destroy(cluster_id: ClusterId, term: u64) -> Command {
    Command {
        id: CommandId::generate(),
        coordinator_generation: Generation::new(3),
        term: Term::new(term),
        deadline: now() + Duration::from_secs(60),
        payload: Payload::DestroyMember(DestroyMember { cluster_id, confirm: "orders".parse().unwrap() }),
    }
}
