//! Keeps the certificates of listeners up to date: their files are read again each second, and their
//! Secrets come from the source. On a thread of its own, since a disk may not answer.
//!
//! Invariants: a certificate that is broken, or gone, leaves the last good one in force, and is named
//! in `/readyz` and in the log. No connection ends because of a change. A file that changes while it
//! is read is not reported: only what stays broken from one look to the next is.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use crate::config::settings::ListenerConfig;
use crate::config::tls::{ClientCertificates, Pair, Tls};
use crate::contract::certificate::Certificate;
use crate::contract::name::ObjectName;
use crate::contract::policy::PortRef;
use crate::contract::termination::{Clients, Termination, Terms};
use crate::discovery::secret::Found;
use crate::discovery::secrets::MISSING;
use crate::discovery::source::Problem;
use crate::observe::health::Health;

/// The way to the thread.
#[derive(Debug, Clone)]
pub struct Certificates(Sender<Told>);

/// What routes belong to: see [`Shared::routes_of`](crate::proxy::shared::Shared::routes_of).
pub type RoutesOf = (ObjectName, PortRef);

#[derive(Debug)]
enum Told {
    /// A listener begins. It ends when nobody has its termination any more.
    Begins(Listener),
    /// What the source knows of a Secret.
    Secret(ObjectName, Found),
    /// The source has told of all Secrets that there are.
    AllSecrets,
    /// The Secrets that Ingress objects name.
    OfRoutes(BTreeMap<RoutesOf, Vec<ObjectName>>),
}

impl Certificates {
    /// Starts the thread. It ends when the last copy of the result is gone.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(health: Arc<Health>) -> std::io::Result<Self> {
        let (told, inbox) = channel();
        let thread = std::thread::Builder::new().name("certificates".into());
        thread.spawn(move || Kept::default().run(&inbox, &health))?;
        Ok(Self(told))
    }

    /// How a listener that is bound now speaks TLS.
    pub(super) fn terminate(&self, config: &ListenerConfig) -> Option<Arc<Termination>> {
        let tls = config.tls.clone()?;
        let termination = Arc::new(Termination::default());
        let begins = Listener {
            name: config.name.clone(),
            tls,
            routes: config
                .routes
                .map(|_| (config.service.clone(), config.port.clone())),
            termination: Arc::downgrade(&termination),
            in_force: None,
        };
        // The thread ends only with the process.
        let _ = self.0.send(Told::Begins(begins));
        Some(termination)
    }

    /// Takes in what the source knows of a Secret. An error: why it gives no certificate.
    pub(super) fn secret(&self, name: ObjectName, found: Found) {
        let _ = self.0.send(Told::Secret(name, found));
    }

    /// Takes in which Secrets Ingress objects name. Listeners with routes have them all.
    pub(super) fn of_routes(&self, secrets: BTreeMap<RoutesOf, Vec<ObjectName>>) {
        let _ = self.0.send(Told::OfRoutes(secrets));
    }

    /// From here on, a Secret of which nothing is known does not exist.
    pub(super) fn all_secrets_are_known(&self) {
        let _ = self.0.send(Told::AllSecrets);
    }
}

/// A listener with TLS.
#[derive(Debug)]
struct Listener {
    name: String,
    tls: Tls,
    /// It has the Secrets of these routes, too.
    routes: Option<RoutesOf>,
    termination: Weak<Termination>,
    /// What was put in force last.
    in_force: Option<(Vec<Arc<Certificate>>, Clients)>,
}

/// A subject, what is wrong with a certificate of it, and what is in force.
type Fault = (String, String, Standing);

/// What is in force where a certificate has a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// The last good one.
    Kept,
    /// The one with the fault.
    InForce,
}

/// A chain and a key, as they were read.
type Pem = (Vec<u8>, Vec<u8>);

/// All that listeners need.
#[derive(Default)]
struct Kept {
    listeners: Vec<Listener>,
    pairs: HashMap<Pair, Read<Pem, Arc<Certificate>>>,
    clients: HashMap<ClientCertificates, Read<Clients, Clients>>,
    secrets: HashMap<ObjectName, Read<(), Arc<Certificate>>>,
    has_all_secrets: bool,
    of_routes: BTreeMap<RoutesOf, Vec<ObjectName>>,
    problems: Vec<Problem>,
}

/// What was read, and the last that was good.
struct Read<B, T> {
    raw: Option<Result<B, String>>,
    good: Option<T>,
    bad: Option<String>,
    /// It was as bad at the look before.
    settled: bool,
}

impl<B: PartialEq, T> Read<B, T> {
    const fn new() -> Self {
        Self {
            raw: None,
            good: None,
            bad: None,
            settled: false,
        }
    }

    /// Takes in what was read now. `parse` is asked only if it has changed.
    fn take(&mut self, raw: Result<B, String>, parse: impl Fn(&B) -> Result<T, String>) {
        self.settled = self.raw.as_ref() == Some(&raw);
        if self.settled {
            return;
        }
        match raw.as_ref().map_err(String::clone).and_then(parse) {
            Ok(good) => (self.good, self.bad) = (Some(good), None),
            Err(bad) => self.bad = Some(bad),
        }
        self.raw = Some(raw);
    }
}

impl Kept {
    fn run(mut self, inbox: &Receiver<Told>, health: &Health) {
        loop {
            match inbox.recv_timeout(LOOK) {
                Ok(told) => self.told(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(told) = inbox.try_recv() {
                self.told(told);
            }
            if self.look(SystemTime::now()) {
                let problems = self.problems.clone();
                health.update(|health| health.certificates = problems);
            }
        }
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::Begins(listener) => self.listeners.push(listener),
            Told::AllSecrets => self.has_all_secrets = true,
            Told::OfRoutes(secrets) => self.of_routes = secrets,
            Told::Secret(name, found) => {
                let known = self.secrets.entry(name).or_insert(Read::new());
                match found {
                    Ok(good) => (known.good, known.bad) = (Some(good), None),
                    Err(bad) => known.bad = Some(bad),
                }
                known.settled = true;
            }
        }
    }

    /// Reads the files, and puts in force what has changed. Returns whether the problems have.
    fn look(&mut self, now: SystemTime) -> bool {
        self.listeners
            .retain(|it| it.termination.strong_count() > 0);
        let listeners = &self.listeners;
        let is_used = |pair: &Pair| {
            listeners
                .iter()
                .any(|it| it.tls.certificates.contains(pair))
        };
        self.pairs.retain(|pair, _| is_used(pair));
        self.clients
            .retain(|clients, _| listeners.iter().any(|it| it.tls.clients == *clients));
        for tls in self.listeners.iter().map(|it| &it.tls) {
            for pair in &tls.certificates {
                self.pairs.entry(pair.clone()).or_insert(Read::new());
            }
            let clients = self.clients.entry(tls.clients.clone());
            clients.or_insert(Read::new());
        }
        for (pair, read) in &mut self.pairs {
            read.take(pair.load(), |raw| pair.parse(raw));
        }
        for (clients, read) in &mut self.clients {
            read.take(clients.read(), |raw| Ok(raw.clone()));
        }
        let mut problems = Vec::new();
        for mut listener in std::mem::take(&mut self.listeners) {
            let refused = self.put(&mut listener);
            problems.extend(refused.map(|(subject, error)| (subject, error, Standing::Kept)));
            self.listeners.push(listener);
        }
        problems.extend(self.found(now));
        problems.sort();
        problems.dedup();
        self.report(problems, now)
    }

    /// Puts a listener's certificates in force, if they have changed and if there are any or all are
    /// known to be missing.
    fn put(&self, listener: &mut Listener) -> Option<(String, String)> {
        let termination = listener.termination.upgrade()?;
        let (tls, name) = (&listener.tls, &listener.name);
        let files = tls
            .certificates
            .iter()
            .map(|pair| self.pairs.get(pair)?.good.clone());
        let secrets = self.secrets_of(listener);
        let secrets = secrets.map(|name| self.secrets.get(name)?.good.clone());
        let certificates: Vec<Arc<Certificate>> = files.chain(secrets).flatten().collect();
        let is_known = |name| self.has_all_secrets || self.secrets.contains_key(name);
        if certificates.is_empty() && !self.secrets_of(listener).all(is_known) {
            return None;
        }
        let clients = self.clients.get(&tls.clients)?.good.clone()?;
        if let Some((before, asked)) = &listener.in_force
            && *asked == clients
            && before.len() == certificates.len()
            && before
                .iter()
                .zip(&certificates)
                .all(|(a, b)| Arc::ptr_eq(a, b))
        {
            return None;
        }
        let terms = Terms {
            listener: name,
            certificates: certificates.clone(),
            only_tls13: tls.only_tls13,
            clients: clients.clone(),
        };
        if let Err(error) = termination.put(terms) {
            return Some((format!("listener {name}"), error));
        }
        let names: Vec<&String> = certificates.iter().flat_map(|it| it.names()).collect();
        tracing::info!(listener = name, ?names, "certificates are in force");
        listener.in_force = Some((certificates, clients));
        None
    }

    /// The Secrets of a listener, in the order in which they count.
    fn secrets_of<'a>(&'a self, listener: &'a Listener) -> impl Iterator<Item = &'a ObjectName> {
        let routes = listener.routes.as_ref();
        let routed = routes.and_then(|owner| self.of_routes.get(owner));
        listener
            .tls
            .secrets
            .iter()
            .chain(routed.into_iter().flatten())
    }

    /// What is broken, missing or expired now, with its subject.
    fn found(&self, now: SystemTime) -> Vec<Fault> {
        let mut found = Vec::new();
        for listener in &self.listeners {
            let (name, tls) = (format!("listener {}", listener.name), &listener.tls);
            let mut of = |what: &str, good: Option<&Arc<Certificate>>, bad: Option<&String>| {
                let doubt = || Some((good?.is_doubtful(now)?, Standing::InForce));
                let wrong = bad.map(|bad| (bad.clone(), Standing::Kept)).or_else(doubt);
                let fault = |(wrong, of)| (name.clone(), format!("{what}{wrong}"), of);
                found.extend(wrong.map(fault));
            };
            for read in tls.certificates.iter().filter_map(|it| self.pairs.get(it)) {
                of(
                    "",
                    read.good.as_ref(),
                    read.bad.as_ref().filter(|_| read.settled),
                );
            }
            for secret in self.secrets_of(listener) {
                let what = format!("Secret {secret}: ");
                match self.secrets.get(secret) {
                    Some(read) => of(&what, read.good.as_ref(), read.bad.as_ref()),
                    None if self.has_all_secrets => of(&what, None, Some(&MISSING.to_owned())),
                    None => of(&what, None, Some(&"nothing is known of it yet".to_owned())),
                }
            }
            if let Some(read) = self.clients.get(&tls.clients) {
                of("", None, read.bad.as_ref().filter(|_| read.settled));
            }
        }
        found
    }

    /// Logs what is new and what is in order again. Returns whether anything has changed.
    fn report(&mut self, found: Vec<Fault>, now: SystemTime) -> bool {
        let is_same = |problem: &Problem, (subject, error, _): &Fault| {
            problem.subject == *subject && problem.error == *error
        };
        let is_new = |it: &&Fault| !self.problems.iter().any(|problem| is_same(problem, it));
        let new: Vec<Fault> = found.iter().filter(is_new).cloned().collect();
        let before = self.problems.len();
        self.problems.retain(|problem| {
            let stays = found.iter().any(|it| is_same(problem, it));
            // One fault may follow another.
            if !stays && new.iter().all(|(subject, ..)| *subject != problem.subject) {
                let (subject, error) = (&problem.subject, &problem.error);
                tracing::info!(subject, error, "a certificate is in order again");
            }
            stays
        });
        let mut changed = self.problems.len() != before;
        for (subject, error, standing) in new {
            let problem = Problem::new(&subject, &error, now);
            let (subject, error) = (&problem.subject, &problem.error);
            match standing {
                Standing::Kept => tracing::warn!(
                    subject,
                    error,
                    "a certificate has a problem; the last good one stays"
                ),
                Standing::InForce => tracing::warn!(
                    subject,
                    error,
                    "clients refuse a certificate that is in force"
                ),
            }
            self.problems.push(problem);
            changed = true;
        }
        changed
    }
}

/// The time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Collects the log's output.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_log_says_what_is_in_force_and_what_is_in_order_again() {
        let mut kept = Kept::default();
        let mut looks = |faults: &[(&str, Standing)]| {
            let fault = |(error, standing): &(&str, _)| {
                ("listener a".to_owned(), (*error).to_owned(), *standing)
            };
            let (output, faults) = (Output::default(), faults.iter().map(fault).collect());
            let writer = output.clone();
            let log = tracing_subscriber::fmt().with_writer(move || writer.clone());
            let log = log.without_time().with_ansi(false).finish();
            tracing::subscriber::with_default(log, || kept.report(faults, SystemTime::now()));
            let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
            let says = [
                ("is in force", "in force"),
                ("last good", "kept"),
                ("again", "in order"),
            ];
            let says = says.iter().filter(|(of, _)| text.contains(of));
            says.map(|(_, it)| *it).collect::<Vec<_>>()
        };
        let (old, torn) = (("expired", Standing::InForce), ("torn", Standing::Kept));
        assert_eq!(looks(&[old]), ["in force"]);
        assert!(looks(&[old]).is_empty());
        assert_eq!(looks(&[torn]), ["kept"], "one fault follows another");
        assert_eq!(looks(&[torn, old]), ["in force"]);
        assert_eq!(looks(&[torn]), ["in order"]);
        assert_eq!(looks(&[]), ["in order"]);
    }
}
