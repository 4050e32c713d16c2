//! Body framing (being written).
