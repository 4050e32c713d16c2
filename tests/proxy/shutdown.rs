//! SIGTERM, from the failing /readyz to the last connection.
