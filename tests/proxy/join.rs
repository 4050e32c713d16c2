//! Endpoints that join before they listen, leave reversibly, and return.
