//! A chunked body, split into arbitrary pieces. Verdict and output do not depend on the split, and
//! the canonical output decodes to the same payload (contract 4.1).
#![no_main]

use ebbtide::wire::body::BodyDecoder;
use ebbtide::wire::message::{Emit, Framing, Limits, Reject};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    head_size: 512,
    headers: 8,
};

/// The verdict (whether the body is complete), the bytes taken, and the output.
type Read = (Result<bool, Reject>, usize, Vec<u8>);

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>, emit: Emit, fault: u16) -> Read {
    let mut decoder = BodyDecoder::new(Framing::Chunked, &LIMITS, fault);
    let (mut out, mut taken) = (Vec::new(), 0);
    for piece in pieces {
        match decoder.decode(piece, emit, &mut out) {
            Ok(n) => {
                assert!(n == piece.len() || decoder.is_done());
                taken += n;
            }
            Err(reject) => return (Err(reject), 0, out),
        }
        if decoder.is_done() {
            break;
        }
    }
    (Ok(decoder.is_done()), taken, out)
}

fuzz_target!(|data: &[u8]| {
    let Some((&seed, input)) = data.split_first() else {
        return;
    };
    let fault = if seed % 2 == 0 { 400 } else { 502 };
    for emit in [Emit::Chunked, Emit::Identity] {
        let whole = decode([input].into_iter(), emit, fault);
        // The output is at most one space longer for each trailer, behind the colon.
        assert!(whole.2.len() <= input.len() + LIMITS.headers);
        assert_eq!(decode(input.chunks(1), emit, fault), whole, "byte by byte");
        assert_eq!(
            decode(input.chunks(usize::from(seed).max(1)), emit, fault),
            whole,
            "in pieces of {seed}"
        );
        let (mut rest, mut state, mut pieces) = (input, u32::from(seed) + 1, Vec::new());
        while !rest.is_empty() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (piece, more) = rest.split_at(((state >> 24) as usize % 9).min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        assert_eq!(
            decode(pieces.into_iter(), emit, fault),
            whole,
            "in pieces of seed {seed}"
        );
    }
    let (verdict, _, canonical) = decode([input].into_iter(), Emit::Chunked, fault);
    if verdict == Ok(true) {
        let payload = decode([input].into_iter(), Emit::Identity, fault).2;
        assert_eq!(
            decode([&canonical[..]].into_iter(), Emit::Identity, fault),
            (Ok(true), canonical.len(), payload)
        );
        assert_eq!(
            decode([&canonical[..]].into_iter(), Emit::Chunked, fault),
            (Ok(true), canonical.len(), canonical)
        );
    } else {
        assert_eq!(
            decode([&canonical[..]].into_iter(), Emit::Identity, fault).0,
            Ok(false),
            "the output has no end that the input does not have"
        );
    }
});
