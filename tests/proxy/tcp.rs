//! TCP connections on endpoints that drain, refuse, keep silent or break.
