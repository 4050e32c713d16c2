//! Bounded is what must be: connections, descriptors, memory, system calls.
