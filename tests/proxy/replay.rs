//! What is in flight on an endpoint that dies: replayed, refused, or cut visibly.
