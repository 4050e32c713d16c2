//! What the server answers, by its state and its orders.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, Bytes};
use futures::stream;
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::{Value, json};

use super::objects::{
    GATEWAYS, answer, bookmark, decoded, gone, half, place, selects, shown, status,
};
use super::reader::Reader;
use super::{Api, Asked, Fault, Kind, Verb, is_second};

/// The responses.
impl Api {
    pub(super) async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, std::io::Error> {
        let mut response = self.judge(request).await?;
        let ahead = self.lock().ahead;
        let now = SystemTime::now();
        let shift = Duration::from_secs(ahead.unsigned_abs());
        let time = if ahead < 0 { now - shift } else { now + shift };
        let time = jiff::Timestamp::try_from(time).unwrap();
        let date = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        response.headers_mut().insert("date", date.parse().unwrap());
        Ok(response)
    }

    async fn judge(&self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let request = match self.write(request).await {
            Ok(written) => return Ok(written),
            Err(other) => other,
        };
        let (path, query) = (
            request.uri().path().to_owned(),
            request.uri().query().unwrap_or("").to_owned(),
        );
        if request.method() == "POST" && path.starts_with("/apis/events.k8s.io/v1/namespaces/") {
            let body = axum::body::to_bytes(Body::new(request.into_body()), 1 << 20)
                .await
                .unwrap();
            let event: Value = serde_json::from_slice(&body).unwrap();
            let mut state = self.lock();
            let name = |event: &Value| event["metadata"]["name"].clone();
            return Ok(if state.refuse_events {
                status(403, "events is forbidden")
            } else if state.posted.iter().any(|other| name(other) == name(&event)) {
                state.refused_events += 1;
                status(409, "already exists")
            } else {
                state.posted.push(event.clone());
                answer(201, &event)
            });
        }
        if request.method() == "GET" && path == "/version" {
            let version = json!({
                "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "",
                "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
            });
            return Ok(answer(200, &version));
        }
        if request.method() == "POST" && path.ends_with("/selfsubjectreviews") {
            return Ok(status(404, "not found"));
        }
        if request.method() == "POST" && path.ends_with("/selfsubjectaccessreviews") {
            let body = axum::body::to_bytes(Body::new(request.into_body()), 1 << 20)
                .await
                .unwrap();
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            let asked = &review["spec"]["resourceAttributes"];
            let text = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
            let denied = (text("verb"), text("resource"), text("name"));
            let allowed = !self.lock().denied.contains(&denied);
            review["status"] = json!({"allowed": allowed});
            return Ok(answer(201, &review));
        }
        if request.method() == "GET"
            && let Some((collection, name)) = path.rsplit_once('/')
            && let Some((kind @ (Kind::Services | Kind::Pods), Some(namespace))) = place(collection)
        {
            let mut state = self.lock();
            state.asked.push(Asked {
                kind,
                verb: Verb::Get,
                namespace: Some(namespace.clone()),
                query,
                selector: None,
                at: Instant::now(),
            });
            let found = state.objects.get(&(kind, namespace, name.to_owned()));
            return Ok(match found {
                Some(found) => answer(200, &shown(kind, found, false)),
                None => status(404, "not found"),
            });
        }
        if let Some(name) = path.strip_prefix("/api/v1/nodes/") {
            let mut moved = self.shared.moved.subscribe();
            loop {
                match self.lock().nodes.get(name) {
                    Some(Some((labels, spec))) => {
                        let metadata = json!({"name": name, "labels": labels});
                        let kind = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec});
                        return Ok(answer(200, &kind));
                    }
                    Some(None) => {}
                    None => return Ok(status(403, "nodes is forbidden")),
                }
                let _ = moved.changed().await;
            }
        }
        if let Some(name) = path.strip_prefix("/api/v1/namespaces/")
            && !name.contains('/')
        {
            let metadata = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": name}});
            return Ok(match self.lock().absent.contains(name) {
                true => status(404, "not found"),
                false => answer(200, &metadata),
            });
        }
        let Some((kind, namespace)) = place(&path).filter(|_| request.method() == "GET") else {
            // Who serves Gateways asks for kinds that are not installed.
            if path.contains(GATEWAYS) || path == "/api/v1/namespaces" {
                return Ok(status(
                    404,
                    "the server could not find the requested resource",
                ));
            }
            self.lock()
                .complaints
                .push(format!("{} {path}", request.method()));
            return Ok(status(404, "no such path"));
        };
        let parameter = |name: &str| {
            let pair = query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            pair.filter(|value| !value.is_empty()).map(decoded)
        };
        let selector = parameter("labelSelector").or_else(|| parameter("fieldSelector"));
        let token = parameter("continue");
        let initial = parameter("sendInitialEvents").is_some();
        let verb = match (parameter("watch").is_some(), &token) {
            (true, _) if initial && self.lock().streams => Verb::List,
            (true, _) if initial => Verb::Stream,
            (true, _) => Verb::Watch,
            (false, Some(_)) => Verb::More,
            (false, None) => Verb::List,
        };
        let accept = request
            .headers()
            .get("accept")
            .map_or("", |it| it.to_str().unwrap())
            .to_owned();
        {
            let mut state = self.lock();
            state.asked.push(Asked {
                kind,
                verb,
                namespace: namespace.clone(),
                query: query.clone(),
                selector: selector.clone(),
                at: Instant::now(),
            });
            let of = |namespace| (kind, namespace);
            if verb != Verb::Stream && state.forbidden.contains(&of(namespace.clone())) {
                return Ok(status(
                    403,
                    "forbidden: User \"ebbtide\" cannot list resource",
                ));
            }
            let is_named = namespace.is_some() && selector.is_some();
            if matches!(kind, Kind::Secrets | Kind::ConfigMaps) && !is_named {
                state
                    .complaints
                    .push(format!("{kind:?} without a name: {path}?{query}"));
            }
            if kind == Kind::Pods && !accept.contains("as=PartialObjectMetadata") {
                state.complaints.push(format!(
                    "Pods whole, not only their metadata: {path}, Accept: {accept}"
                ));
                return Ok(status(406, "only metadata"));
            }
        }
        self.shared.notify();
        let mut moved = self.shared.moved.subscribe();
        let fault = loop {
            let fault = self.lock().faults.get(&(kind, verb)).copied();
            match fault {
                Some(Fault::Wait) => _ = moved.changed().await,
                fault => break fault,
            }
        };
        match fault {
            Some(Fault::Status(code)) => {
                let what = if kind == Kind::Pods {
                    "pods"
                } else {
                    "services"
                };
                return Ok(status(
                    code,
                    &format!("{what} is forbidden: User \"ebbtide\" cannot list resource"),
                ));
            }
            Some(Fault::Half) if verb == Verb::Watch => return Ok(Response::new(Body::empty())),
            Some(Fault::Drop) => return Err(std::io::Error::other("as ordered")),
            _ => {}
        }
        match verb {
            Verb::Stream if self.lock().ignores_streams => {
                Ok(Response::new(Body::from_stream(stream::pending::<
                    Result<Bytes, std::io::Error>,
                >())))
            }
            Verb::Stream => Ok(status(
                422,
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the \
                 WatchList feature gate is enabled",
            )),
            Verb::Get => unreachable!(),
            Verb::Watch => Ok(self.watch(
                kind,
                namespace,
                selector,
                &parameter("resourceVersion").unwrap_or_default(),
            )),
            Verb::List if initial => {
                let whole = self.watch_all(kind, namespace, selector);
                Ok(if fault == Some(Fault::Half) {
                    Response::new(Body::from("{\"type\":\"ADDED\",\"obj"))
                } else {
                    whole
                })
            }
            Verb::List | Verb::More => {
                let limit = parameter("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
                let whole = self.list(
                    kind,
                    namespace.as_deref(),
                    selector.as_deref(),
                    limit,
                    token,
                );
                Ok(if fault == Some(Fault::Half) {
                    half(whole).await
                } else {
                    whole
                })
            }
        }
    }

    fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        selector: Option<&str>,
        limit: usize,
        token: Option<String>,
    ) -> Response<Body> {
        let mut state = self.lock();
        let (version, mut items) = match token {
            Some(token) => match state.pages.remove(&token) {
                Some(rest) => rest,
                None => return status(410, "The provided continue parameter is too old"),
            },
            None => {
                let listed = state.objects.iter().filter(|((of, at, _), object)| {
                    *of == kind
                        && namespace.is_none_or(|namespace| namespace == at)
                        && selector.is_none_or(|selector| selects(selector, object))
                });
                (
                    state.version,
                    listed
                        .map(|(_, object)| shown(kind, object, true))
                        .collect(),
                )
            }
        };
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if items.len() > limit {
            let rest = items.split_off(limit);
            let token = format!("page{}", state.asked.len());
            metadata["continue"] = token.clone().into();
            metadata["remainingItemCount"] = rest.len().into();
            state.pages.insert(token, (version, rest));
        }
        let (api_version, list) = match kind {
            Kind::Services => ("v1", "ServiceList"),
            Kind::Slices => ("discovery.k8s.io/v1", "EndpointSliceList"),
            Kind::Pods => ("meta.k8s.io/v1", "PartialObjectMetadataList"),
            Kind::Secrets => ("v1", "SecretList"),
            Kind::ConfigMaps => ("v1", "ConfigMapList"),
            Kind::Ingresses => ("networking.k8s.io/v1", "IngressList"),
            Kind::Classes => ("networking.k8s.io/v1", "IngressClassList"),
            Kind::GatewayClasses => (GATEWAYS, "GatewayClassList"),
            Kind::Gateways => (GATEWAYS, "GatewayList"),
            Kind::HttpRoutes => (GATEWAYS, "HTTPRouteList"),
            Kind::Policies => (GATEWAYS, "BackendTLSPolicyList"),
        };
        answer(
            200,
            &json!({"apiVersion": api_version, "kind": list, "metadata": metadata, "items": items}),
        )
    }

    /// All objects, the mark of their end, and then the events.
    fn watch_all(
        &self,
        kind: Kind,
        namespace: Option<String>,
        selector: Option<String>,
    ) -> Response<Body> {
        let mut text = String::new();
        let state = self.lock();
        for ((of, at, _), object) in &state.objects {
            if *of == kind
                && namespace.as_ref().is_none_or(|namespace| namespace == at)
                && selector
                    .as_ref()
                    .is_none_or(|selector| selects(selector, object))
            {
                let object = shown(kind, object, false);
                text += &format!("{}\n", json!({"type": "ADDED", "object": object}));
            }
        }
        let mut end = bookmark(kind, &state.version.to_string());
        end["object"]["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        text += &format!("{end}\n");
        let version = state.version.to_string();
        drop(state);
        let events = self.watch(kind, namespace, selector, &version);
        let begin = stream::iter([Ok::<_, axum::Error>(Bytes::from(text))]);
        let rest = events.into_body().into_data_stream();
        Response::new(Body::from_stream(futures::StreamExt::chain(begin, rest)))
    }

    fn watch(
        &self,
        kind: Kind,
        namespace: Option<String>,
        selector: Option<String>,
        version: &str,
    ) -> Response<Body> {
        let mut state = self.lock();
        let Ok(version) = version.parse::<u64>() else {
            state
                .complaints
                .push(format!("a watch of {kind:?} from {version:?}"));
            return status(400, "resourceVersion");
        };
        if state
            .forgotten
            .get(&kind)
            .is_some_and(|forgotten| version <= *forgotten)
        {
            if state.gone_by_status {
                return status(410, "too old resource version");
            }
            return Response::new(Body::from(format!("{}\n", gone())));
        }
        *state.open.entry(kind).or_default() += usize::from(!is_second(kind, selector.as_deref()));
        state.watches += 1;
        let reader = Reader {
            api: self.clone(),
            kind,
            namespace,
            selector,
            shown: BTreeSet::new(),
            // Orders are for the watches that are open when the order is given.
            orders_from: state.log.len(),
            from: version,
            next: 0,
            moved: self.shared.moved.subscribe(),
            over: false,
        };
        drop(state);
        self.shared.notify();
        Response::new(Body::from_stream(stream::unfold(reader, Reader::read)))
    }
}
