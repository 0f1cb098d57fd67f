//! What a driver may say at work: [`Progress`], of which the newest wins, through [`Work`].

pub use holdfast_common::command::Progress;

pub use crate::engine::Work;
