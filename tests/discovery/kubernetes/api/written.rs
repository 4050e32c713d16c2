//! What clients write: Leases, and statuses of objects.

use axum::body::Body;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use serde_json::{Value, json};

use super::objects::{answer, decoded, place, status};
use super::{Api, Kind};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/";

/// A status that was written.
#[derive(Debug, Clone)]
pub struct Patched {
    pub name: String,
    pub manager: String,
}

impl Api {
    /// Who holds the Lease; `None` if nobody does.
    pub fn holder(&self, lease: &str) -> Option<String> {
        let state = self.lock();
        let holder = state.leases.get(lease)?["spec"]["holderIdentity"].as_str();
        holder.filter(|it| !it.is_empty()).map(str::to_owned)
    }

    /// How often a Lease was given back.
    pub fn releases(&self) -> usize {
        self.lock().releases
    }

    /// Puts a Lease there, as another client would.
    pub fn lease(&self, name: &str, spec: Value) {
        let mut state = self.lock();
        state.version += 1;
        let metadata = json!({"name": name, "resourceVersion": state.version.to_string()});
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
        state.leases.insert(name.to_owned(), lease);
    }

    /// The statuses that were written, in their order.
    pub fn patched(&self) -> Vec<Patched> {
        self.lock().patched.clone()
    }

    /// From now on, writing a status is answered so. `None`: as it should be.
    pub fn answer_patches(&self, code: Option<u16>) {
        self.lock().patches_get = code;
    }

    /// The object as it is.
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Value {
        self.lock().objects[&(kind, namespace.into(), name.into())].clone()
    }

    /// Answers a request that concerns a Lease, or writes a status; the others come back.
    pub(super) async fn write(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Request<Incoming>> {
        let path = request.uri().path().to_owned();
        if path.starts_with(LEASES) {
            return Ok(self.answer_lease(request).await);
        }
        let Some((collection, name)) = path
            .strip_suffix("/status")
            .and_then(|path| path.rsplit_once('/'))
            .filter(|_| request.method() == Method::PATCH)
        else {
            return Err(request);
        };
        let Some((kind, namespace)) = place(collection) else {
            return Err(request);
        };
        let namespace = namespace.unwrap_or_default();
        let kind_of_patch = request.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(kind_of_patch, "application/merge-patch+json");
        let query = request.uri().query().unwrap_or_default().to_owned();
        let manager = query
            .split('&')
            .find_map(|it| it.strip_prefix("fieldManager="));
        let manager = decoded(manager.expect("a manager"));
        let patch = body(request).await;
        let mut state = self.lock();
        if let Some(code) = state.patches_get {
            return Ok(status(code, "as ordered"));
        }
        let key = (kind, namespace, name.to_owned());
        let Some(mut object) = state.objects.get(&key).cloned() else {
            return Ok(status(404, "not found"));
        };
        let version = &patch["metadata"]["resourceVersion"];
        if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
            return Ok(status(409, "the object has been modified"));
        }
        state.patched.push(Patched {
            name: name.to_owned(),
            manager: manager.clone(),
        });
        merge(&mut object["status"], &patch["status"]);
        let fields = json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}});
        object["metadata"]["managedFields"] = json!([{"manager": manager, "operation": "Update",
            "subresource": "status", "fieldsV1": fields}]);
        state.put(object.clone());
        drop(state);
        self.shared.notify();
        Ok(answer(200, &object))
    }

    async fn answer_lease(&self, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let named = path.rsplit('/').next().unwrap().to_owned();
        let sent = match method {
            Method::GET => Value::Null,
            _ => body(request).await,
        };
        let mut state = self.lock();
        let name = match method {
            Method::POST => sent["metadata"]["name"].as_str().unwrap().to_owned(),
            _ => named,
        };
        let found = state.leases.get(&name).cloned();
        let mut new = sent.clone();
        match (&method, found) {
            (&Method::GET, Some(found)) => return answer(200, &found),
            (&Method::POST, Some(_)) => return status(409, "already exists"),
            (&Method::POST, None) => {}
            (_, None) => return status(404, "not found"),
            (_, Some(found)) => {
                let version = &found["metadata"]["resourceVersion"];
                if sent["metadata"]["resourceVersion"] != *version {
                    return status(409, "the object has been modified");
                }
            }
        }
        state.releases += usize::from(new["spec"]["holderIdentity"].is_null());
        state.version += 1;
        new["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.leases.insert(name, new.clone());
        drop(state);
        self.shared.notify();
        answer(200, &new)
    }
}

async fn body(request: Request<Incoming>) -> Value {
    let body = axum::body::to_bytes(Body::new(request.into_body()), 1 << 20);
    serde_json::from_slice(&body.await.unwrap()).unwrap()
}

/// RFC 7396, section 2.
fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (name, patch) in patch {
        match patch {
            Value::Null => _ = value.as_object_mut().unwrap().remove(name),
            patch => merge(&mut value[name], patch),
        }
    }
}
