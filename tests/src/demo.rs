//! The demo.

/// Runs it.
///
/// # Errors
///
/// When it fails.
pub fn main(_arguments: &[String]) -> anyhow::Result<()> {
    Ok(())
}
