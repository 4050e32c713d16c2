//! A folder of manifests as the source of truth (being written).
