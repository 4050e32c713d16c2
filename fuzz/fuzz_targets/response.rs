//! A response of an endpoint, including interim heads (contract 4.3). The client reads the same
//! status and the same payload, and the response ends exactly where the endpoint's did.
#![no_main]

#[path = "plain.rs"]
mod plain;

use ebbtide::wire::body::BodyDecoder;
use ebbtide::wire::head::parse_response;
use ebbtide::wire::message::{Emit, Framing, Limits, Method, Reject, Response, Version};
use libfuzzer_sys::fuzz_target;
use plain::Head;

const LIMITS: Limits = Limits {
    head_size: 4 << 10,
    headers: 24,
};
const WIDE: Limits = Limits {
    head_size: 64 << 10,
    headers: 64,
};

struct Ask {
    method: Method,
    client: Version,
    close: bool,
}

impl Ask {
    fn read(&self, input: &[u8]) -> (Result<Option<Response>, Reject>, Vec<u8>) {
        let mut out = Vec::new();
        let verdict = parse_response(
            input,
            &LIMITS,
            self.method,
            self.client,
            self.close,
            &mut out,
        );
        (verdict, out)
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&flags, mut input)) = data.split_first() else {
        return;
    };
    let method = [Method::Get, Method::Head, Method::Post, Method::Connect][usize::from(flags & 3)];
    let client = if flags & 4 != 0 {
        Version::H10
    } else {
        Version::H11
    };
    let ask = Ask {
        method,
        client,
        close: flags & 8 != 0,
    };
    for _ in 0..4 {
        let (verdict, out) = ask.read(input);
        for end in (0..input.len().min(64)).chain((64..input.len()).step_by(17)) {
            let (part, written) = ask.read(&input[..end]);
            match (&part, &verdict) {
                (Ok(None), _) => assert!(written.is_empty()),
                (Ok(Some(response)), _) => {
                    assert!(response.consumed <= end && part == verdict && written == out)
                }
                (Err(_), _) => assert_eq!(part, verdict, "split at {end}"),
            }
        }
        let response = match verdict {
            Ok(Some(response)) => response,
            Ok(None) => return,
            Err(reject) => return assert_eq!(reject.status, 502),
        };
        assert!(response.consumed <= input.len() && out.len() <= 2 * response.consumed + 256);
        plainly(&input[..response.consumed], &out, &response, &ask);
        // The client reads what is forwarded.
        let mut again = Vec::new();
        let reread = parse_response(&out, &WIDE, method, client, false, &mut again)
            .expect("what is forwarded is valid")
            .expect("what is forwarded is complete");
        assert_eq!(
            (reread.consumed, reread.status),
            (out.len(), response.status)
        );
        assert!(
            !(response.upgrade ^ reread.upgrade),
            "a tunnel on one side only"
        );
        input = &input[response.consumed..];
        if response.status >= 200 || response.upgrade {
            if !response.upgrade {
                body(&response, &reread, input);
            }
            return;
        }
        assert_eq!(response.framing, Framing::None);
    }
});

/// The head as this proxy understands one that deviates harmlessly: lines may end in a line feed
/// alone, and a control byte is a space.
fn tidy(input: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = input.iter().copied().filter(|b| *b != b'\r').collect();
    let tidied = text.iter().flat_map(|&b| match b {
        b'\n' => vec![b'\r', b'\n'],
        b if b.is_ascii_control() && b != b'\t' => vec![b' '],
        b => vec![b],
    });
    tidied.collect()
}

/// Checks what is forwarded with the minimal reader.
fn plainly(input: &[u8], out: &[u8], response: &Response, ask: &Ask) {
    let input = tidy(input);
    let (sent, head) = (Head::read(&input), Head::read(out));
    head.assert_canonical(out);
    assert!(
        head.start
            .starts_with(format!("HTTP/1.1 {} ", response.status).as_bytes())
    );
    let (length, chunked) = head.framing();
    let bodiless = response.upgrade || matches!(response.status, 100..200 | 204);
    assert!(
        !(bodiless && (chunked || length.is_some())),
        "a response without a body has a length"
    );
    assert!(
        !(chunked && ask.client == Version::H10),
        "an HTTP/1.0 client gets chunks"
    );
    match (response.framing, response.emit) {
        (Framing::None, _) => {}
        (Framing::Counted(bytes), _) => assert_eq!((length, chunked), (Some(bytes), false)),
        (_, Emit::Chunked) => assert!(chunked),
        (_, Emit::Identity) => assert!(length.is_none() && response.client_close),
    }
    let connection = head.all("connection");
    if response.client_close || ask.close && response.status >= 200 && !response.upgrade {
        assert_eq!(connection.last().copied(), Some(b"close".as_slice()));
    }
    assert!(
        connection
            .iter()
            .all(|option| [b"close".as_slice(), b"keep-alive", b"upgrade"].contains(option))
    );
    assert!(
        !(connection.contains(&b"close".as_slice())
            && connection.contains(&b"keep-alive".as_slice()))
    );
    head.assert_taken_from(
        &sent,
        &["content-length", "transfer-encoding", "connection"],
    );
}

fn body(response: &Response, reread: &Response, input: &[u8]) {
    let mut decoder = BodyDecoder::new(response.framing, &LIMITS, 502);
    let mut wire = Vec::new();
    let Ok(taken) = decoder.decode(input, response.emit, &mut wire) else {
        return;
    };
    assert!(taken == input.len() || decoder.is_done());
    let ended = decoder.is_done() || decoder.eof(response.emit, &mut wire).is_ok();

    let mut payload = Vec::new();
    _ = BodyDecoder::new(response.framing, &LIMITS, 502).decode(
        input,
        Emit::Identity,
        &mut payload,
    );
    let mut seen = Vec::new();
    let mut client = BodyDecoder::new(reread.framing, &LIMITS, 502);
    assert_eq!(
        client.decode(&wire, Emit::Identity, &mut seen),
        Ok(wire.len())
    );
    if !client.is_done() && ended {
        assert!(response.client_close && client.eof(Emit::Identity, &mut seen).is_ok());
    }
    assert_eq!(client.is_done(), ended, "a truncated body has a clean end");
    assert_eq!(seen, payload);
}
