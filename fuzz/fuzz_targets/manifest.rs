//! A file of a manifest folder. It gives objects, or one error that names its line, and the merge
//! accepts any objects.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ebbtide::config::settings::{Config, Discovery};
use ebbtide::contract::policy::{Policy, Protocol};
use ebbtide::discovery::document::Format;
use ebbtide::discovery::manifest::parse;
use ebbtide::discovery::object::{Change, Kind, Object};
use ebbtide::routing::world::objects::{Touched, World};
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<Config> =
    LazyLock::new(|| Config::new(Discovery::Static { to: Vec::new() }));

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let (Ok(yaml), Ok(json)) = (
        parse(text, Format::Yaml, None),
        parse(text, Format::Json, None),
    ) {
        assert_eq!(
            yaml, json,
            "a text that is YAML and JSON gives the same objects"
        );
    }
    for format in [Format::Yaml, Format::Json] {
        let objects = match parse(text, format, None) {
            Ok(objects) => objects,
            Err(error) => {
                // In YAML a carriage return also ends a line.
                assert!(
                    error.line >= 1 && error.line <= text.split(['\n', '\r']).count(),
                    "{error}"
                );
                assert!(!error.to_string().contains(char::is_control), "{error:?}");
                continue;
            }
        };
        assert_eq!(parse(text, format, None).as_ref(), Ok(&objects));
        let (now, mut world, mut touched) = (Instant::now(), World::default(), Touched::default());
        for object in &objects {
            annotated(object);
            world.apply(Change::Apply(object.clone()), now, &mut touched);
        }
        let names: Vec<_> = world.service_names().cloned().collect();
        let before: Vec<_> = names.iter().map(|name| world.merge(name)).collect();
        for object in objects {
            world.apply(Change::Apply(object), now, &mut touched);
        }
        let after: Vec<_> = names.iter().map(|name| world.merge(name)).collect();
        if names.len() == 1 {
            assert_eq!(before, after, "the same objects again change nothing");
        }
        for kind in [Kind::Pod, Kind::EndpointSlice, Kind::Service] {
            let nothing = Change::Replace {
                kind,
                namespace: None,
                objects: Vec::new(),
            };
            world.apply(nothing, now, &mut touched);
        }
        world.sweep(now);
        assert_eq!(world.service_names().count(), 0);
    }
});

/// Each annotation gives one valid value or one warning, and its Service is served in both cases.
fn annotated(object: &Object) {
    let Object::Service(service) = object else {
        return;
    };
    let (policy, warnings) = Policy::for_service(&CONFIG, &service.annotations, None);
    assert!(
        (1..=10).contains(&policy.attempts)
            && policy.drain_timeout <= Duration::from_secs(24 * 3600)
    );
    assert!(policy.hold_timeout <= Duration::from_secs(600));
    assert!(warnings.len() <= service.annotations.len());
    let known = |name: &str| service.annotations.contains_key(name);
    assert!(policy.join_check || known("ebbtide.dev/join-check"));
    for port in &service.ports {
        let (protocol, warning) = Protocol::of_service(
            &service.annotations,
            port.app_protocol.as_deref(),
            port.target_port,
            port.transport,
        );
        assert!(warning.is_none() || known("ebbtide.dev/protocol"));
        assert!(
            protocol != Protocol::Http
                || known("ebbtide.dev/protocol")
                || port.app_protocol.is_some()
        );
    }
    assert!(
        !warnings
            .iter()
            .any(|warning| warning.contains(char::is_control)),
        "{warnings:?}"
    );
}
