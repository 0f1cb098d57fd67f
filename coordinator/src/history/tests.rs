use std::sync::atomic::AtomicI64;

use super::database::Database;
use super::recent::Recent;
use super::rollup::{BLOCK_MS, Block};
use super::testing::{Dice, busy_sample};
use super::*;

/// A history with a clock that the test moves.
struct Bench {
    folder: tempfile::TempDir,
    clock: Arc<AtomicI64>,
    history: Handle,
    dice: Dice,
    n: i64,
}

const START_MS: i64 = 1_800_000_000_000;

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicI64::new(START_MS));
        let history = service(&folder, &clock).handle();
        Self { folder, clock, history, dice: Dice::new(9), n: 0 }
    }

    fn restart(&mut self) {
        self.history = service(&self.folder, &self.clock).handle();
    }

    fn now(&self) -> i64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// A sample every five seconds, and a flush as `run` does it.
    fn pass(&mut self, node: NodeId, seconds: i64) {
        for _ in 0..seconds / 5 {
            self.clock.fetch_add(5000, Ordering::Relaxed);
            self.n += 1;
            let mut sample = busy_sample(&mut self.dice, self.n);
            sample.taken_at = timestamp(self.now());
            self.history.record(node, &sample);
            if self.n % 3 == 0 {
                self.history.shared.flush(Flush::Finished);
            }
        }
    }

    async fn busy(&self, node: NodeId, seconds_back: i64, step: Option<u64>) -> Answer {
        self.history.query(node, self.query(seconds_back, step)).await.unwrap()
    }

    fn query(&self, seconds_back: i64, step: Option<u64>) -> Query {
        Query {
            series: vec!["cpu_busy_fraction".into()],
            start: timestamp(self.now() - seconds_back * 1000),
            end: timestamp(self.now() + 1),
            step: step.map(Duration::from_secs),
        }
    }
}

fn service(folder: &tempfile::TempDir, clock: &Arc<AtomicI64>) -> Service {
    let clock = Arc::clone(clock);
    Service::new(Config { file: folder.path().join("history.db") }, move || {
        timestamp(clock.load(Ordering::Relaxed))
    })
}

#[tokio::test]
async fn the_last_hour_is_answered_at_full_resolution_and_more_in_minutes() {
    let mut bench = Bench::new();
    let node = NodeId::generate();
    bench.pass(node, 3 * 3600);
    let hour = bench.busy(node, 3595, None).await;
    assert_eq!((hour.step, hour.series[0].points.len()), (Duration::from_secs(5), 720));
    assert_eq!(hour.series[0].points[0].range, None);
    let more = bench.busy(node, 2 * 3600, None).await;
    assert_eq!(more.step, Duration::from_secs(60));
    // Two hours of minutes without a hole, up to the one that goes on.
    let points = &more.series[0].points;
    assert!((120..=121).contains(&points.len()), "{}", points.len());
    assert!(points.windows(2).all(|pair| pair[1].time.as_second() - pair[0].time.as_second() == 60));
    assert!(
        points
            .iter()
            .all(|point| point.range.is_some_and(|(min, max)| min <= point.value && point.value <= max))
    );
    let coarse = bench.busy(node, 3595, Some(300)).await;
    assert_eq!(coarse.step, Duration::from_secs(300));
    assert!((12..=13).contains(&coarse.series[0].points.len()));
}

#[tokio::test]
async fn a_new_node_is_answered_at_full_resolution_from_its_first_sample() {
    let mut bench = Bench::new();
    let node = NodeId::generate();
    bench.pass(node, 600);
    let answer = bench.busy(node, 3600, None).await;
    assert_eq!((answer.step, answer.series[0].points.len()), (Duration::from_secs(5), 120));
    assert_eq!(bench.busy(NodeId::generate(), 3600, None).await.series, []);
}

#[tokio::test]
async fn unfinished_minutes_survive_a_graceful_restart() {
    let mut bench = Bench::new();
    let node = NodeId::generate();
    bench.pass(node, 1000);
    let service = Service { shared: Arc::clone(&bench.history.shared) };
    let stop = CancellationToken::new();
    stop.cancel();
    service.run(stop).await;
    bench.restart();
    bench.pass(node, 1000);
    let shared = &bench.history.shared;
    let search = Search {
        node,
        wanted: vec![Kind::CpuBusy],
        start: START_MS,
        end: bench.now() + 1,
        asked_ms: None,
        now_ms: bench.now(),
    };
    let mut samples = 0;
    shared.flush(Flush::All);
    lock(&shared.database)
        .database
        .as_ref()
        .unwrap()
        .read::<Error>(node, &(search.start - BLOCK_MS..search.end), |_, block| {
            let minutes = block
                .series
                .iter()
                .filter(|(key, _)| key.kind == Kind::CpuBusy)
                .flat_map(|(_, minutes)| minutes);
            samples += minutes.flatten().map(|minute| minute.count).sum::<u32>();
            Ok(())
        })
        .unwrap();
    assert_eq!(samples, 400, "each sample is in exactly one minute");
    let answer = bench.busy(node, 1990, None).await;
    assert_eq!(answer.step, Duration::from_secs(60), "the time before the restart is only there in minutes");
    assert!((33..=35).contains(&answer.series[0].points.len()), "{}", answer.series[0].points.len());
}

#[tokio::test]
async fn only_a_span_that_is_wholly_too_old_is_refused() {
    let mut bench = Bench::new();
    let node = NodeId::generate();
    bench.pass(node, 600);
    let day = 86_400_000;
    let mut query = bench.query(0, None);
    query.start = timestamp(bench.now() - 20 * day);
    assert_eq!(bench.history.query(node, query.clone()).await.unwrap().series[0].points.len(), 11);
    query.end = timestamp(bench.now() - 15 * day);
    assert_eq!(bench.history.query(node, query).await.unwrap_err().reason(), Reason::HistoryCompacted);
}

#[tokio::test]
async fn bad_queries_are_refused_by_field() {
    let bench = Bench::new();
    let node = NodeId::generate();
    let good = bench.query(3600, None);
    let bad = [
        (
            "series[1]",
            Query { series: vec!["cpu_busy_fraction".into(), "x".repeat(1_000_000)], ..good.clone() },
        ),
        ("start_time", Query { start: good.end, ..good.clone() }),
        ("step", Query { step: Some(Duration::ZERO), ..good.clone() }),
        ("step", Query { step: Some(Duration::MAX), ..good.clone() }),
    ];
    for (field, query) in bad {
        let error = bench.history.query(node, query).await.unwrap_err();
        assert_eq!((error.reason(), error.violations()[0].name.as_str()), (Reason::InvalidField, field));
        assert!(error.to_string().len() < 4096);
    }
}

#[tokio::test]
async fn wrong_clocks_do_not_break_the_order() {
    let mut bench = Bench::new();
    let node = NodeId::generate();
    let day = 86_400_000;
    for (n, offset) in
        [0, day, -day, 20_000, -20_000, i64::from(i32::MAX)].into_iter().cycle().take(60).enumerate()
    {
        bench.clock.fetch_add(5000, Ordering::Relaxed);
        let mut sample = busy_sample(&mut bench.dice, i64::try_from(n).unwrap());
        sample.taken_at = timestamp(bench.now() + offset);
        bench.history.record(node, &sample);
    }
    let mut query = bench.query(3600, None);
    query.end = timestamp(bench.now() + 10 * day);
    let points = bench.history.query(node, query).await.unwrap().series.remove(0).points;
    assert!(points.windows(2).all(|pair| pair[0].time < pair[1].time));
    assert!(points.iter().all(|point| (point.time.as_millisecond() - START_MS).abs() < 400_000));
    let stats = bench.history.stats();
    assert_eq!(stats.samples_recorded + stats.samples_out_of_order, 60);
    // Our own clock goes a day back: it goes on at once.
    bench.clock.fetch_sub(day, Ordering::Relaxed);
    bench.pass(node, 60);
    assert_eq!(bench.history.stats().samples_recorded, stats.samples_recorded + 12);
}

#[tokio::test]
async fn a_full_disk_costs_rollups_and_nothing_else() {
    let mut bench = Bench::new();
    let node = NodeId::generate();
    bench.pass(node, 1200);
    let written = bench.history.stats().rollups_written;
    assert!(written >= 1);
    // The file may not grow, and is kept open by making the path one that cannot be opened anew.
    {
        let mut disk = lock(&bench.history.shared.database);
        let database = disk.database.as_mut().unwrap();
        database.limit_pages(database.pages());
        disk.database = None;
    }
    let file = bench.folder.path().join("history.db");
    let aside = bench.folder.path().join("aside.db");
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    bench.pass(node, 2 * 3600);
    let stats = bench.history.stats();
    assert_eq!(stats.rollups_written, written);
    assert!(stats.rollups_dropped >= 5, "{stats:?}");
    assert_eq!(bench.busy(node, 3000, None).await.series[0].points.len(), 601);
    // There is room again.
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    bench.pass(node, 1200);
    assert!(bench.history.stats().rollups_written > written + 4);
}

#[test]
fn a_file_without_room_refuses_a_batch_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = Database::open(&folder.path().join("history.db"), 0).unwrap();
    database.limit_pages(database.pages());
    let mut recent = Recent::default();
    let mut dice = Dice::new(1);
    for n in 0..120 {
        recent.record(n * 5000, &busy_sample(&mut dice, n));
    }
    let block = Block::of_recent(&recent, &(0..BLOCK_MS), &[]);
    let blocks: Vec<_> = (0..50).map(|n| (NodeId::generate(), n * BLOCK_MS, block.clone())).collect();
    assert!(database.add(&blocks).unwrap_err().is_full());
    assert!(!database.has(blocks[0].0, &(0..i64::MAX)).unwrap());
}

#[tokio::test]
async fn its_files_are_their_owners_alone_also_where_they_were_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bench = Bench::new();
    let file = bench.folder.path().join("history.db");
    std::fs::write(&file, b"").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    bench.restart();
    bench.pass(NodeId::generate(), 1300);
    assert!(bench.history.stats().rollups_written >= 1);
    for entry in std::fs::read_dir(bench.folder.path()).unwrap().map(Result::unwrap) {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
}

#[tokio::test]
async fn a_damaged_file_is_set_aside() {
    let mut bench = Bench::new();
    let file = bench.folder.path().join("history.db");
    std::fs::write(&file, vec![7_u8; 10_000]).unwrap();
    let node = NodeId::generate();
    bench.pass(node, 1300);
    assert!(bench.history.stats().rollups_written >= 1);
    let aside = std::fs::read_dir(bench.folder.path()).unwrap().filter_map(Result::ok);
    assert!(aside.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("damaged")));
}

#[tokio::test]
async fn what_is_forgotten_or_old_leaves_the_disk() {
    let mut bench = Bench::new();
    let (gone, stays) = (NodeId::generate(), NodeId::generate());
    bench.pass(gone, 1300);
    bench.pass(stays, 1300);
    let has = |bench: &Bench, node| {
        lock(&bench.history.shared.database).database.as_ref().unwrap().has(node, &(0..i64::MAX)).unwrap()
    };
    bench.history.forget(gone);
    bench.history.shared.flush(Flush::Finished);
    assert!(!has(&bench, gone) && has(&bench, stays));
    assert_eq!(bench.history.stats().nodes, 1);
    bench.clock.fetch_add(KEPT_ROLLUPS_MS + BLOCK_MS, Ordering::Relaxed);
    bench.history.shared.flush(Flush::Finished);
    assert!(!has(&bench, stays));
}
