//! The program under test, for scenarios that need it as a process.

pub const BINARY: &str = env!("CARGO_BIN_EXE_ebbtide");
