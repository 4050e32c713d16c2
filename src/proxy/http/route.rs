//! The way of one request: which action its host, its path and more lead to, and what that makes of it
//! before it is forwarded.
//!
//! Invariants: a client's next request asks the rules again. What belongs to the client at one Service
//! (`bound.rs`) never serves a request for another. A request keeps its action, whatever becomes of the
//! routes meanwhile. Most routes ask for nothing but a Service, and cost no more than the search.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::contract::filters::{FieldChanges, Filters, Redirect, Retry};
use crate::contract::listener::{Action, ListenerSpec, Routes, Target};
use crate::contract::route::Asked;
use crate::proxy::client::Client;
use crate::proxy::http::bound::Bound;
use crate::proxy::http::cors::{self, CREDENTIALS, Preflight};
use crate::proxy::http::filters::{Place, leads_back, location, new_target};
use crate::proxy::worker::{FIRST_LOOK, Worker};
use crate::wire::change::{Changes, readdress};
use crate::wire::message::{Framing, Request};

/// What becomes of a request.
pub(super) enum Found {
    /// It is forwarded to the listener that the client now has.
    Forward {
        /// What its route asks for, or what the access log is to say of it.
        way: Option<Box<Way>>,
        /// Its Service is not known yet, and was named at this time: see [`Worker::until_known`].
        since: Option<Instant>,
    },
    /// It is answered here.
    Answer(Box<Answer>),
}

/// An answer of this proxy.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) reason: &'static str,
    pub(super) fields: Vec<(String, String)>,
    /// The route that says so, if one does.
    pub(super) action: Option<Arc<Action>>,
}

/// The action of a request, and which of its backends has it.
pub(super) struct Way {
    pub(super) action: Arc<Action>,
    backend: usize,
    /// What a CORS filter says to the page that has asked. It is in every answer, also in those of this
    /// proxy: else a page's script could not read what has gone wrong.
    pub(super) cors: Vec<(String, String)>,
}

/// Finds what becomes of a request with this canonical head, and changes the head as its route says. If
/// the request is not forwarded, the client stays at its door, which leads to no Service.
pub(super) fn route(
    worker: &Worker,
    client: &mut Client,
    bound: &mut Option<Box<Bound>>,
    request: &mut Request,
    head: &mut Vec<u8>,
    table: &Routes,
) -> Found {
    let table = table.load();
    let asked = asked(head);
    let misdirected = asked.is_some_and(|asked| {
        let is_other = |name: &str| table.is_misdirected(name, asked.host);
        client.stream.server_name(is_other) == Some(true)
    });
    if misdirected {
        return answer(
            client,
            bound,
            None,
            (421, "misdirected_request"),
            Vec::new(),
        );
    }
    let found = asked.and_then(|asked| Some((asked, table.search(&asked)?)));
    let Some((asked, action)) = found else {
        return answer(client, bound, None, (404, "no_route"), Vec::new());
    };
    let own = action.filters.as_deref();
    let said = |of_backend: Option<&Filters>| cross_origin(own, of_backend, &asked);
    let refuse = |client: &mut Client, bound: &mut Option<Box<Bound>>, status, reason, fields| {
        let action = Some(action.clone());
        answer(client, bound, action, (status, reason), fields)
    };
    if !own.is_none_or(|it| it.source_ranges.is_empty() || it.admits(asker(worker, client, &asked)))
    {
        return refuse(client, bound, 403, "source_not_allowed", said(None));
    }
    let preflight = |filters| preflight(filters, &asked);
    if let Some(fields) = preflight(own) {
        return refuse(client, bound, 204, "cors_preflight", fields);
    }
    let place = |client: &Client| {
        let is_https = is_https(client, &asked);
        Place {
            is_https,
            host: asked.host,
            // Of the listener of a proxy before this one, only the scheme is known.
            port: match is_https && !client.stream.is_tls() {
                true => 443,
                false => client.door.address.port(),
            },
            target: asked.target,
        }
    };
    if own.is_some_and(|it| it.wants_tls) {
        let place = place(client);
        if !place.is_https {
            let mut fields = said(None);
            let with_tls = Redirect {
                scheme: Some("https".to_owned()),
                ..Redirect::default()
            };
            fields.push(("Location".to_owned(), location(&with_tls, &place)));
            return refuse(client, bound, 308, "route_redirect", fields);
        }
    }
    let redirect = |client: &Client, filters: Option<&Filters>| {
        let redirect = filters?.redirect.as_ref()?;
        let place = place(client);
        let has_backends = !action.backends.all.is_empty();
        // One that leads back is for those who come another way, if there is something to serve.
        let counts = !has_backends || !leads_back(redirect, &place);
        counts.then(|| {
            let mut fields = said(filters);
            fields.push(("Location".to_owned(), location(redirect, &place)));
            (redirect.status, fields)
        })
    };
    if let Some((status, fields)) = redirect(client, own) {
        return refuse(client, bound, status, "route_redirect", fields);
    }
    let chosen = action.backends.choose();
    let chosen = chosen.and_then(|at| Some((at, action.backends.all[at].1.as_ref()?)));
    let Some((backend, target)) = chosen else {
        return refuse(client, bound, 500, "no_backend", said(None));
    };
    let of_backend = target.filters.as_deref();
    if let Some(fields) = preflight(of_backend) {
        return refuse(client, bound, 204, "cors_preflight", fields);
    }
    if let Some((status, fields)) = redirect(client, of_backend) {
        return refuse(client, bound, status, "route_redirect", fields);
    }
    let cors = said(of_backend);
    let since = target.since;
    lead(client, bound, &target.listener);
    let is_asked_for = own.or(of_backend).is_some() || worker.shared.access_log.is_some();
    let way = is_asked_for.then(|| {
        let action = action.clone();
        Box::new(Way {
            action,
            backend,
            cors,
        })
    });
    if let Some(way) = &way {
        let too_long = |most| matches!(request.framing, Framing::Counted(length) if length > most);
        if way.body_size().is_some_and(too_long) {
            return refuse(client, bound, 413, "body_too_large", way.cors.clone());
        }
        way.change_request(request, head);
    }
    let is_new = since.elapsed() < FIRST_LOOK && worker.port(&client.listener).is_none();
    let since = is_new.then_some(since);
    Found::Forward { way, since }
}

impl Way {
    fn target(&self) -> Option<&Target> {
        self.action.backends.all.get(self.backend)?.1.as_ref()
    }

    /// The filters of the route, then those of the backend alone.
    fn filters(&self) -> impl DoubleEndedIterator<Item = &Filters> {
        let of_backend = self.target().and_then(|it| it.filters.as_deref());
        [self.action.filters.as_deref(), of_backend]
            .into_iter()
            .flatten()
    }

    /// How long all attempts may take, if the route says so. Zero: as long as they like.
    pub(super) fn request_timeout(&self) -> Option<Duration> {
        self.filters().find_map(|it| it.request_timeout)
    }

    /// How long one attempt may take, if that is bounded.
    pub(super) fn attempt_timeout(&self) -> Option<Duration> {
        let timeout = self.filters().find_map(|it| it.attempt_timeout);
        timeout.filter(|it| !it.is_zero())
    }

    /// Which answers are asked for again.
    pub(super) fn retry(&self) -> Option<&Retry> {
        self.filters().find_map(|it| it.retry.as_ref())
    }

    /// The most bytes of a request body.
    pub(super) fn body_size(&self) -> Option<u64> {
        self.filters().filter_map(|it| it.body_size).min()
    }

    fn change_request(&self, request: &mut Request, head: &mut Vec<u8>) {
        for filters in self.filters() {
            if let Some(rewrite) = &filters.rewrite {
                let path = rewrite.path.as_ref();
                let target = path
                    .zip(asked(head))
                    .map(|(path, it)| new_target(it.target, path));
                readdress(head, target.as_deref(), rewrite.host.as_deref());
            }
            let changes = changes(&filters.request);
            changes.apply(head, 0);
            request.conditional |= changes.are_conditional();
        }
    }

    /// Changes the head of an answer. It begins at `from` and is the last thing in `bytes`.
    pub(super) fn change_answer(&self, bytes: &mut Vec<u8>, from: usize) {
        for filters in self.filters().rev() {
            changes(&filters.response).apply(bytes, from);
        }
        if let Some((vary, set)) = self.cors.split_last() {
            // What the application says of logins was not said to this origin.
            let is_login = |(name, _): &(String, String)| name == CREDENTIALS;
            let remove = match set.is_empty() || set.iter().any(is_login) {
                true => Vec::new(),
                false => vec![CREDENTIALS.to_owned()],
            };
            let changes = Changes {
                set,
                add: std::slice::from_ref(vary),
                remove: &remove,
            };
            changes.apply(bytes, from);
        }
    }
}

fn changes(fields: &FieldChanges) -> Changes<'_> {
    Changes {
        set: &fields.set,
        add: &fields.add,
        remove: &fields.remove,
    }
}

/// Takes a client to the listener that serves its request.
fn lead(client: &mut Client, bound: &mut Option<Box<Bound>>, listener: &Arc<ListenerSpec>) {
    if listener.id != client.listener.id {
        *bound = None;
        client.listener = listener.clone();
    }
}

fn answer(
    client: &mut Client,
    bound: &mut Option<Box<Bound>>,
    action: Option<Arc<Action>>,
    (status, reason): (u16, &'static str),
    fields: Vec<(String, String)>,
) -> Found {
    let door = client.door.clone();
    lead(client, bound, &door);
    Found::Answer(Box::new(Answer {
        status,
        reason,
        fields,
        action,
    }))
}

/// What the first CORS filter of these says to the page that has asked, and last of all `Vary`. Nothing
/// without such a filter.
fn cross_origin(
    own: Option<&Filters>,
    of_backend: Option<&Filters>,
    asked: &Asked<'_>,
) -> Vec<(String, String)> {
    let mut all = [own, of_backend].into_iter();
    let Some(cors) = all.find_map(|it| it?.cors.as_ref()) else {
        return Vec::new();
    };
    let origin = text_of(asked.fields, "origin");
    let mut said = origin.map_or_else(Vec::new, |origin| cors::fields(cors, origin, None));
    said.push(vary());
    said
}

fn vary() -> (String, String) {
    ("vary".to_owned(), "origin".to_owned())
}

/// The answer to what a browser asks before a request, if this is that and a filter is for it.
fn preflight(filters: Option<&Filters>, asked: &Asked<'_>) -> Option<Vec<(String, String)>> {
    let cors = filters?
        .cors
        .as_ref()
        .filter(|_| asked.method == "OPTIONS")?;
    let origin = text_of(asked.fields, "origin")?;
    let method = text_of(asked.fields, "access-control-request-method")?;
    let fields = text_of(asked.fields, "access-control-request-headers");
    let mut said = cors::fields(cors, origin, Some(Preflight { method, fields }));
    said.push(vary());
    Some(said)
}

/// The address of who has asked: the client's, or behind proxies that are trusted the last that they name
/// and that is none of them.
fn asker(worker: &Worker, client: &Client, asked: &Asked<'_>) -> IpAddr {
    let config = worker.config();
    let trusted = |it: &IpAddr| config.trusted_proxies.iter().any(|net| net.contains(it));
    let mut asker = client.peer.ip().to_canonical();
    // The last of them is the client itself.
    let named = text_of(asked.fields, "x-forwarded-for").unwrap_or_default();
    for name in named.rsplit(',').skip(1) {
        match name.trim().parse::<IpAddr>() {
            Ok(before) if trusted(&asker) => asker = before.to_canonical(),
            _ => break,
        }
    }
    asker
}

/// Whether the client has asked by HTTPS: here, or at a proxy before this one that is trusted.
fn is_https(client: &Client, asked: &Asked<'_>) -> bool {
    let forwarded = field(asked.fields, "x-forwarded-proto");
    client.stream.is_tls() || forwarded.is_some_and(|it| it.eq_ignore_ascii_case(b"https"))
}

/// What a canonical request head asks for.
fn asked(head: &[u8]) -> Option<Asked<'_>> {
    let end = head.iter().position(|byte| *byte == b'\n')?;
    let (line, fields) = head.split_at(end + 1);
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some(Asked {
        host: text(field(fields, "host")?)?,
        target: text(target)?,
        method: text(method)?,
        fields,
    })
}

fn text_of<'a>(fields: &'a [u8], name: &str) -> Option<&'a str> {
    std::str::from_utf8(field(fields, name)?).ok()
}

/// The value of the first field of this name.
fn field<'a>(lines: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut lines = lines.split(|byte| *byte == b'\n');
    lines.find_map(|line| {
        let (begin, rest) = line.split_at_checked(name.len())?;
        let value = rest.strip_prefix(b":")?;
        let fits = begin.eq_ignore_ascii_case(name.as_bytes());
        fits.then(|| value.trim_ascii())
    })
}
