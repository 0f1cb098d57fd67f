//! The steps in words.

use super::{Set, Step, in_place};
use crate::operation::procedure::StepLabel;

impl Set {
    pub(super) fn label(&self, step: Step) -> StepLabel {
        let name = |at: usize| self.replicas.get(at).map_or_else(String::new, |it| it.name.to_string());
        let [checkpoint, stop, serve] = in_place::plan(&self.primary);
        match step {
            Step::Strengthen => {
                StepLabel::new("strengthen", "Have the primary wait for replicas, then record it")
            }
            Step::Record => StepLabel::new("record", "Record what is declared"),
            Step::Reload => StepLabel::new("reload", "Have every server read its parameters anew"),
            Step::Retune => StepLabel::new(
                "retune",
                "Have every member decide its settings anew, for its machine as it is now",
            ),
            Step::Replica(at) => {
                let title = format!("Restart {}, if a parameter needs it", name(at));
                StepLabel::new(format!("restart/{}", name(at)), title)
            }
            Step::Checkpoint => checkpoint,
            Step::Stop => stop,
            Step::Serve => serve,
            Step::Lower(at) => {
                let title = format!("Restart {}, with no more than the primary has now", name(at));
                StepLabel::new(format!("lower/{}", name(at)), title)
            }
            Step::Relax => {
                StepLabel::new("relax", "Record that commits wait for no replica, then tell the primary")
            }
            Step::Widen => StepLabel::new(
                "widen",
                "Have all that wait for a lease to end go by the more patient profile",
            ),
            Step::Profile => StepLabel::new(
                "profile",
                format!(
                    "Have {}, and whoever may follow it, serve by lease profile {}",
                    self.primary.name, self.to.lease_profile
                ),
            ),
            Step::Narrow => StepLabel::new("narrow", "Have all go by that one alone"),
            Step::Finish => StepLabel::new("finish", "Tell of it"),
            Step::PutBack => StepLabel::new("put_back", "Put back what was declared before"),
            Step::Leave => {
                StepLabel::new("leave", "Leave it as far as it has come: a restart brings the rest")
            }
        }
    }
}
