/// Hears how far a build is, and may end it.
pub trait Watch {
    /// So many bytes of source are to be read.
    fn expect(&self, _bytes: u64) {}

    /// Something that the user should know.
    fn tell(&self, _line: &str) {}

    /// A layer begins.
    fn layer(&self, _name: &str) {}

    /// The layer is done.
    fn layer_done(&self, _name: &str) {}

    /// Bytes of source are done.
    fn advance(&self, _bytes: u64) {}

    /// Asked between weights: where it says no, the build ends and what it wrote is removed.
    fn goes_on(&self) -> bool {
        true
    }
}

/// Nobody.
impl Watch for () {}
