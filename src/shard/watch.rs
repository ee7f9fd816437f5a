//! Who looks on while a version is built.

use anyhow::Result;

/// Hears how far a build is, and may end it.
pub trait Watch {
    /// So many bytes of source are to be read.
    fn expect(&self, _bytes: u64) {}

    /// A layer begins.
    fn layer(&self, _name: &str) {}

    /// The layer is done.
    fn layer_done(&self, _name: &str) {}

    /// Bytes of source are done.
    fn advance(&self, _bytes: u64) {}

    /// Asked between weights.
    ///
    /// # Errors
    /// Where the build is to end; what it wrote is removed.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Nobody.
impl Watch for () {}
