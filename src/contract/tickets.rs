//! Session tickets: a client that comes back needs no certificate and no signature, also from
//! another process or another node with the same certificate.
//!
//! Invariants: a ticket opens only at a listener of the same name that asks the same of its clients'
//! certificates: else a ticket would carry a client past a check that it never passed. A ticket of
//! TLS 1.2 opens only in the process that made it.
//!
//! The keys of TLS 1.3's tickets come from the certificate's key and the day, so that no key
//! has to be sent to another process. A thief of the certificate's key gets them, too. In TLS 1.3 that opens no
//! recorded connection, because each has a key exchange of its own, resumed or not. In TLS 1.2, a
//! ticket holds the secret of the connection itself, so its keys are random and never leave the
//! process.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use rustls::server::ProducesTickets;

/// Makes tickets and opens them.
pub(super) struct Tickets {
    secret: Prk,
    /// What a ticket is bound to, besides the certificate's key.
    bound_to: Vec<u8>,
    /// For TLS 1.2.
    own: Arc<dyn ProducesTickets>,
}

impl Tickets {
    /// `key`: the certificate's private key. `bound_to`: what else must be the same.
    pub(super) fn new(key: &[u8], bound_to: Vec<u8>, own: Arc<dyn ProducesTickets>) -> Self {
        let secret = Salt::new(HKDF_SHA256, b"ebbtide session tickets 1").extract(key);
        Self {
            secret,
            bound_to,
            own,
        }
    }

    /// The key of one day.
    fn key(&self, day: u32) -> Option<RandomizedNonceKey> {
        let info = [&day.to_be_bytes()[..], &self.bound_to];
        let mut key = [0; 32];
        let expanded = self.secret.expand(&info, HKDF_SHA256).ok()?;
        expanded.fill(&mut key).ok()?;
        RandomizedNonceKey::new(&AES_256_GCM, &key).ok()
    }

    fn seal(&self, session: &[u8], day: u32) -> Option<Vec<u8>> {
        let mut sealed = session.to_vec();
        let aad = Aad::from(day.to_be_bytes());
        let nonce = self
            .key(day)?
            .seal_in_place_append_tag(aad, &mut sealed)
            .ok()?;
        let day = day.to_be_bytes();
        Some([&[SHARED][..], &day, nonce.as_ref(), &sealed].concat())
    }

    fn open(&self, ticket: &[u8], today: u32) -> Option<Vec<u8>> {
        let (day, ticket) = ticket.split_first_chunk()?;
        let (nonce, sealed) = ticket.split_first_chunk()?;
        // Yesterday's, and those of a node whose clock is ahead.
        if u32::from_be_bytes(*day).abs_diff(today) > 1 {
            return None;
        }
        let mut opened = sealed.to_vec();
        let key = self.key(u32::from_be_bytes(*day))?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let session = key
            .open_in_place(nonce, Aad::from(*day), &mut opened)
            .ok()?;
        Some(session.to_vec())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        12 * 60 * 60
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        match is_tls13(session) {
            true => self.seal(session, today()),
            false => Some([&[OWN], &self.own.encrypt(session)?[..]].concat()),
        }
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        match ticket.split_first()? {
            (&SHARED, ticket) => self.open(ticket, today()),
            (&OWN, ticket) => self.own.decrypt(ticket),
            _ => None,
        }
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

/// Whether rustls has written a session of TLS 1.3: a flag and the name that the client asked for,
/// then the version. A form that is not known counts as TLS 1.2, whose keys are not shared.
fn is_tls13(session: &[u8]) -> bool {
    let version = match session {
        [0, rest @ ..] => rest.get(..2),
        [1, length, rest @ ..] => {
            let from = usize::from(*length);
            rest.get(from..from + 2)
        }
        _ => None,
    };
    version == Some(&[3, 4])
}

fn today() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u32::try_from(since.unwrap_or_default().as_secs() / 86_400).unwrap_or(u32::MAX)
}

/// The first byte of a ticket: which keys open it.
const SHARED: u8 = 1;
const OWN: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const TLS13: &[u8] = b"\x01\x03a.b\x03\x04 and the rest of a session";
    const TLS12: &[u8] = b"\x00\x03\x03 and the rest of a session";

    fn tickets(key: &str, bound_to: &str) -> Tickets {
        let own = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        Tickets::new(key.as_bytes(), bound_to.into(), own)
    }

    #[test]
    fn a_ticket_of_tls_1_3_opens_in_another_process_with_the_same_key_and_the_same_terms() {
        let ticket = tickets("key", "web, none").encrypt(TLS13).unwrap();
        let opens = |key, terms| tickets(key, terms).decrypt(&ticket);
        assert_eq!(opens("key", "web, none").as_deref(), Some(TLS13));
        assert_eq!(opens("other", "web, none"), None);
        assert_eq!(opens("key", "web, required"), None);
        for at in 0..ticket.len() {
            let mut bent = ticket.clone();
            bent[at] ^= 1;
            assert_eq!(
                tickets("key", "web, none").decrypt(&bent),
                None,
                "byte {at}"
            );
            assert_eq!(tickets("key", "web, none").decrypt(&ticket[..at]), None);
        }
    }

    #[test]
    fn a_ticket_of_tls_1_2_opens_in_its_own_process_only() {
        let here = tickets("key", "web");
        for session in [TLS12, b"\x07of another form".as_slice()] {
            let ticket = here.encrypt(session).unwrap();
            assert_eq!(here.decrypt(&ticket).as_deref(), Some(session));
            assert_eq!(tickets("key", "web").decrypt(&ticket), None);
        }
    }

    #[test]
    fn a_ticket_opens_on_its_day_and_the_day_beside_it() {
        let here = tickets("key", "web");
        let ticket = here.seal(TLS13, 100).unwrap();
        for (today, opens) in [
            (98, false),
            (99, true),
            (100, true),
            (101, true),
            (102, false),
        ] {
            let opened = here.open(&ticket[1..], today);
            assert_eq!(opened.is_some(), opens, "{today}");
        }
        assert!(!ticket.windows(7).any(|it| it == b"session"));
        assert_ne!(ticket, here.seal(TLS13, 100).unwrap(), "a nonce of its own");
    }
}
