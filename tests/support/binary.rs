//! The path of the program under test, for scenarios that run it as a process. Cargo builds the
//! program before it compiles the tests, and sets the path at compile time. Test programs without
//! such scenarios leave this module out.

pub const BINARY: &str = env!("CARGO_BIN_EXE_ebbtide");
