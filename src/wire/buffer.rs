//! Buffers that grow by what they need, and are given up when they are large.

/// Sees to room for `more` bytes, and to less than 4 KiB beyond them: what is full would be twice as large by doubling.
/// What is small stays so: ten thousand clients may each have the beginning of a head here.
pub fn make_room(buffer: &mut Vec<u8>, more: usize) {
    if buffer.capacity() - buffer.len() < more {
        let block = if buffer.len() + more < BLOCK {
            BLOCK / 16
        } else {
            BLOCK
        };
        buffer.reserve_exact(more.next_multiple_of(block));
    }
}

/// Appends, with no more room than [`make_room`] sees to.
pub fn append(buffer: &mut Vec<u8>, bytes: &[u8]) {
    make_room(buffer, bytes.len());
    buffer.extend_from_slice(bytes);
}

/// Empties, and gives a large one up: what is full next may be another.
pub fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > BUFFER_MAX {
        *buffer = Vec::new();
    }
}

/// Bytes a read can take at once: what a connection costs whose other side takes nothing of them. With all else that it
/// may hold, that is to stay below 64 KiB.
pub const SCRATCH: usize = 48 << 10;

const BLOCK: usize = 4 << 10;

pub const BUFFER_MAX: usize = 16 << 10;
