//! A switch with hosts on it, and its faults. As root the switch is a network namespace of its own with a bridge in
//! it: nothing of it is in the machine's own network, and a cut is made at the switch, where no host can see or undo it.

mod slow;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use self::slow::Slow;
use crate::host::{Addresses, Host, Plug};
use crate::machine::{Disk, Machine};
use crate::process::Program;
use crate::run::{Isolation, Run};

/// The rules of the switch: pairs of ports between which nothing passes, and ports that lose a share of all.
const RULES: &str = "table bridge holdfast_faults {
  set cut { type ifname . ifname; }
  chain losses { }
  chain faults {
    type filter hook forward priority 0; policy accept;
    iifname . oifname @cut counter drop
    jump losses
  }
}
";

/// The address of the controller on every network; hosts count up from 1.
const CONTROLLER: u8 = 250;

/// How late everything is in a storm, each way: packets overtake each other.
pub const LATE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_millis(300);
/// How much of it is lost, each way, in per cent.
const LOST: u8 = 30;

/// A switch and what is plugged into it. Clones of its run live in its hosts: the run ends when all are dropped.
#[derive(Debug)]
pub struct Network {
    run: Arc<Run>,
    next: AtomicU8,
    /// The slow cables, by the names of their hosts.
    slow: Mutex<BTreeMap<String, Slow>>,
}

/// Whether a host's cable is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// Plugged in.
    In,
    /// Pulled out: the host can see that.
    Out,
}

// === impl Network ===

impl Network {
    /// A network of this process's own, removed when it and its hosts are dropped or this process ends.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub async fn new() -> anyhow::Result<Self> {
        Self::of(Run::owned().await?).await
    }

    /// A network in a given run.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub async fn of(run: Run) -> anyhow::Result<Self> {
        let network = Self { run: Arc::new(run), next: AtomicU8::new(1), slow: Mutex::default() };
        if network.isolation() == Isolation::Hosts {
            let switch = network.switch();
            Program::new("ip").args(["netns", "add", &switch]).run().await.context("make the switch")?;
            let lines = "link add br0 type bridge\nlink set br0 up\nlink set lo up\n";
            Program::new("ip").args(["-n", &switch, "-batch", "-"]).input(lines).run().await?;
            network
                .at_switch("nft")
                .args(["-f", "-"])
                .input(RULES)
                .run()
                .await
                .context("load the switch's rules")?;
        }
        Ok(network)
    }

    /// The run that all of it belongs to.
    #[must_use]
    pub fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// What its hosts are made of.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.run.isolation()
    }

    /// Boots the host of the coordinator and of clients. `plug` gives it what it needs beyond an address.
    ///
    /// # Errors
    ///
    /// When it cannot be made or does not come up.
    pub async fn controller(&self, plug: Plug) -> anyhow::Result<Host> {
        self.boot("ctl", CONTROLLER, plug).await
    }

    /// Boots a host with the next free address.
    ///
    /// # Errors
    ///
    /// When the name is too long for an interface, or the host cannot be made or does not come up.
    pub async fn host(&self, name: &str) -> anyhow::Result<Host> {
        self.boot(name, self.number()?, Plug::default()).await
    }

    /// Boots a machine with the next free address.
    ///
    /// # Errors
    ///
    /// When there can be no machines here, the name is too long for an interface, or it does not come up.
    pub async fn machine(&self, name: &str, disk: Disk) -> anyhow::Result<Machine> {
        let number = self.number()?;
        check_name(name)?;
        self.needs_root()?;
        let addresses = self.addresses(number);
        self.wire(name, addresses).await.with_context(|| format!("wire machine {name}"))?;
        let machine = Machine::new(self.run.clone(), name, addresses, disk).await?;
        machine.boot().await?;
        Ok(machine)
    }

    /// From now on nothing passes from one host to the other. The way back is open until it is cut too.
    ///
    /// # Errors
    ///
    /// Without root, or when the switch refuses.
    pub async fn cut(&self, from: &Host, to: &Host) -> anyhow::Result<()> {
        self.change_cuts("add", &[(from, to)]).await
    }

    /// Opens one way again.
    ///
    /// # Errors
    ///
    /// Without root, or when that way was not cut.
    pub async fn mend(&self, from: &Host, to: &Host) -> anyhow::Result<()> {
        self.change_cuts("delete", &[(from, to)]).await
    }

    /// From now on nothing passes between the two sides, in one stroke and either way.
    ///
    /// # Errors
    ///
    /// Without root, or when the switch refuses.
    pub async fn partition(&self, side: &[&Host], other: &[&Host]) -> anyhow::Result<()> {
        let pairs: Vec<_> = side
            .iter()
            .flat_map(|one| other.iter().flat_map(move |two| [(*one, *two), (*two, *one)]))
            .collect();
        self.change_cuts("add", &pairs).await
    }

    /// A share of what the host should receive, and of what it sends, is lost, in per cent. For all of it there is
    /// [`Network::partition`].
    ///
    /// # Errors
    ///
    /// Without root, when it is no share, or when the switch refuses.
    pub async fn lose(&self, host: &Host, percent: u8) -> anyhow::Result<()> {
        ensure!((1..100).contains(&percent), "{percent} per cent is no share: 1 to 99 are");
        let rule = |way: &str| {
            let name = host.name();
            format!(
                "add rule bridge holdfast_faults losses {way} \"{name}\" numgen random mod 100 < {percent} counter drop\n"
            )
        };
        self.change(rule("oifname") + &rule("iifname")).await
    }

    /// From now on all that the host sends and receives arrives so much later, each packet by a time of its own: where these may
    /// differ, they overtake each other. What is under way when its cable is first replaced by a slow one is lost.
    ///
    /// # Errors
    ///
    /// Without root, or when the switch refuses.
    pub async fn delay(&self, host: &Host, each_way: RangeInclusive<Duration>) -> anyhow::Result<()> {
        self.needs_root()?;
        let name = host.name();
        let slow = || self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        if !slow().contains_key(name) {
            let cable = self.slow_cable(name).await.with_context(|| format!("slow down {name}"))?;
            slow().insert(name.to_owned(), cable);
        }
        if let Some(cable) = slow().get(name) {
            cable.takes(each_way);
        }
        Ok(())
    }

    /// From now on what the host sends and receives is [`LATE`], in another order, and some of it is lost.
    ///
    /// # Errors
    ///
    /// Without root, or when the switch refuses.
    pub async fn storm(&self, host: &Host) -> anyhow::Result<()> {
        self.delay(host, LATE).await?;
        self.lose(host, LOST).await
    }

    /// Ends all cuts, losses and delays. Cables that were pulled out stay out.
    ///
    /// # Errors
    ///
    /// Without root, or when the switch refuses.
    pub async fn heal(&self) -> anyhow::Result<()> {
        self.slow
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .for_each(|slow| slow.takes(Duration::ZERO..=Duration::ZERO));
        self.change(
            "flush set bridge holdfast_faults cut\nflush chain bridge holdfast_faults losses\n".into(),
        )
        .await
    }

    /// Pulls out or plugs in a host's cable.
    ///
    /// # Errors
    ///
    /// Without root, or when the switch refuses.
    pub async fn cable(&self, host: &Host, cable: Cable) -> anyhow::Result<()> {
        self.needs_root()?;
        let state = match cable {
            Cable::In => "up",
            Cable::Out => "down",
        };
        let switch = self.switch();
        Program::new("ip").args(["-n", &switch, "link", "set", host.name(), state]).run().await?;
        Ok(())
    }

    fn number(&self) -> anyhow::Result<u8> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        ensure!(number < CONTROLLER - 10, "a network has room for {} hosts", CONTROLLER - 11);
        Ok(number)
    }

    async fn boot(&self, name: &str, number: u8, plug: Plug) -> anyhow::Result<Host> {
        check_name(name)?;
        let addresses = self.addresses(number);
        if self.isolation() == Isolation::Hosts {
            self.wire(name, addresses).await.with_context(|| format!("wire host {name}"))?;
        }
        let host = Host::new(self.run.clone(), name, addresses, plug)?;
        host.boot().await?;
        Ok(host)
    }

    /// A namespace, and a cable from it to the switch. Both ends are made where they belong, never in between.
    async fn wire(&self, name: &str, addresses: Addresses) -> anyhow::Result<()> {
        let (switch, space) = (self.switch(), self.run.namespace(name));
        let Addresses { v4, v6 } = addresses;
        let v6 = v6.context("hosts with namespaces have both kinds of addresses")?;
        let lines = format!(
            "netns add {space}\nlink add {name} netns {switch} type veth peer name eth0 netns {space}\n"
        );
        Program::new("ip").args(["-batch", "-"]).input(lines).run().await?;
        let lines = format!("link set {name} master br0\nlink set {name} up\n");
        Program::new("ip").args(["-n", &switch, "-batch", "-"]).input(lines).run().await?;
        let lines = format!(
            "link set lo up\nlink set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n"
        );
        Program::new("ip").args(["-n", &space, "-batch", "-"]).input(lines).run().await?;
        Ok(())
    }

    /// Puts a slow cable between a host and its port of the switch, which keeps its name, for the rules.
    async fn slow_cable(&self, name: &str) -> anyhow::Result<Slow> {
        let switch = self.switch();
        let lines = format!(
            "link set {name} nomaster\nlink set {name} down\nlink set {name} name {name}-w\n\
             link add {name} type veth peer name {name}-b\nlink set {name} master br0\n\
             link add link {name}-w name {name}-x type macvtap mode passthru\n\
             link add link {name}-b name {name}-y type macvtap mode passthru\n"
        );
        let up = ["", "-w", "-b", "-x", "-y"].map(|end| format!("link set {name}{end} promisc on up\n"));
        let lines = lines + &up.concat();
        Program::new("ip").args(["-n", &switch, "-batch", "-"]).input(lines).run().await?;
        let (mut numbers, mut nodes) = (Vec::new(), Vec::new());
        for end in ["x", "y"] {
            let look = format!("cat /sys/class/net/{name}-{end}/tap*/dev");
            numbers.push(Program::new("ip").args(["netns", "exec", &switch, "sh", "-c", &look]).run().await?);
            nodes.push(self.run.folder().join(format!("{name}-{end}")));
        }
        Slow::between((&numbers[0], &nodes[0]), (&numbers[1], &nodes[1]))
    }

    /// Documentation addresses, which no machine has. Without root: a loopback network drawn from the run's name, so
    /// that runs at the same time seldom meet.
    fn addresses(&self, number: u8) -> Addresses {
        match self.isolation() {
            Isolation::Hosts => Addresses {
                v4: Ipv4Addr::new(203, 0, 113, number).into(),
                v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into()),
            },
            Isolation::Processes => {
                let [a, b] = loopback_network(self.run.id());
                // Not from 1 on: 127.0.0.1 is everybody's, also of a database that runs here already.
                let number = number.saturating_add(10).min(CONTROLLER);
                Addresses { v4: IpAddr::V4(Ipv4Addr::new(127, a, b, number)), v6: None }
            }
        }
    }

    async fn change_cuts(&self, verb: &str, pairs: &[(&Host, &Host)]) -> anyhow::Result<()> {
        let pairs: Vec<_> =
            pairs.iter().map(|(from, to)| format!("\"{}\" . \"{}\"", from.name(), to.name())).collect();
        self.change(format!("{verb} element bridge holdfast_faults cut {{ {} }}\n", pairs.join(", "))).await
    }

    async fn change(&self, rules: String) -> anyhow::Result<()> {
        self.needs_root()?;
        self.at_switch("nft").args(["-f", "-"]).input(rules).run().await?;
        Ok(())
    }

    fn needs_root(&self) -> anyhow::Result<()> {
        match self.isolation() {
            Isolation::Hosts => Ok(()),
            Isolation::Processes => bail!("faults of the network need root: hosts are plain processes here"),
        }
    }

    fn at_switch(&self, program: &str) -> Program {
        Program::new(program).wrapped(["nsenter", &format!("--net=/run/netns/{}", self.switch())])
    }

    fn switch(&self) -> String {
        self.run.namespace("sw")
    }
}

/// It names an interface of the switch too.
fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = !name.is_empty() && name.len() <= 12;
    ensure!(fits && name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "`{name}` is no name of a host");
    Ok(())
}

/// The second and third number of a run's loopback addresses; the demo's are plain 127.0.0.x.
fn loopback_network(id: &str) -> [u8; 2] {
    let digits = id.strip_prefix('t').and_then(|digits| u32::from_str_radix(digits, 16).ok());
    digits.map_or([0, 0], |number| [64 + (number >> 8 & 0x7f) as u8, (number & 0xff) as u8])
}
