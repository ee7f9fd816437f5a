//! Layer files: one layer's blocks in one variant.
