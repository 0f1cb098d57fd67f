//! A machine that was given more, or less: told once.

use holdfast_common::report::Severity;

use super::Member;
use crate::engine::{Engine, Observation};

impl Member {
    pub(super) async fn note_size(&mut self, engine: &dyn Engine, observed: &Observation) {
        let Some(tuning) = observed.tuning else { return };
        if !tuning.resized {
            self.memory.resized = None;
            return;
        }
        if self.memory.resized.is_some_and(|told| !told.differs_noticeably(tuning.possible)) {
            return;
        }
        self.memory.resized = Some(tuning.possible);
        match engine.note_resized(self.cluster).await {
            Ok(true) => {
                let shrank = tuning.possible.memory_bytes < tuning.kept.memory_bytes;
                let severity = if shrank { Severity::Warning } else { Severity::Info };
                let message = format!(
                    "the machine was resized: the settings count on {}, and could on {}; holdfast cluster set --retune has \
                     them decided anew",
                    tuning.kept, tuning.possible
                );
                self.tell(severity, "MACHINE_RESIZED", message);
            }
            Ok(false) => {}
            Err(error) => self.fail("note the machine's size", &error),
        }
    }
}
