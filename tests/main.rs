//! The single integration test binary: one module per topic.

mod loaders; // weights from files, whole and damaged
