//! Nothing serves for a while: requests and connections wait, bounded, and are let go at a pace.
