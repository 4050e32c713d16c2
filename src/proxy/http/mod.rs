//! HTTP/1: requests one after the other (`serve`), the attempts that each may take (`attempts`), the bytes of one attempt
//! (`transfer`), and how it ends (`end`).

pub mod attempts;
pub mod end;
pub mod exchange;
pub mod replay;
pub mod serve;
pub mod transfer;
