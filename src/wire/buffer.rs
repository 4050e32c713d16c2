//! Buffers that grow only by what they need. A large buffer is freed after its use.
//!
//! The constants bound the memory of one connection.

/// Reserves `more` bytes, rounded up to 256 bytes in a small buffer and to 4 KiB in a large one.
/// `Vec` would double its capacity instead. Ten thousand clients may each have the beginning of a
/// head in such a buffer.
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

/// Appends `bytes` and reserves room as [`make_room`] does.
pub fn append(buffer: &mut Vec<u8>, bytes: &[u8]) {
    make_room(buffer, bytes.len());
    buffer.extend_from_slice(bytes);
}

/// Empties the buffer. A buffer over [`BUFFER_MAX`] is freed, because the next full buffer may be
/// another one.
pub fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > BUFFER_MAX {
        *buffer = Vec::new();
    }
}

/// Bytes that one read can take. A connection holds this much if its other side takes nothing. With
/// all else that a connection may hold, it must stay below 64 KiB.
pub const SCRATCH: usize = 48 << 10;

const BLOCK: usize = 4 << 10;

/// The largest capacity in bytes that an empty buffer keeps.
pub const BUFFER_MAX: usize = 16 << 10;
