//! The path of the program under test, for scenarios that run it as a process.

pub const BINARY: &str = env!("CARGO_BIN_EXE_ebbtide");
