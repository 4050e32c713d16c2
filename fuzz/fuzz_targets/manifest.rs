//! A text as a manifest folder may hold it: objects or one error that names its line, and a merge that takes any objects.
#![no_main]

use std::time::Instant;

use ebbtide::discovery::manifest::{Format, parse};
use ebbtide::discovery::slices::{Touched, World};
use ebbtide::discovery::{Change, Kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for format in [Format::Yaml, Format::Json] {
        let objects = match parse(text, format, None) {
            Ok(objects) => objects,
            Err(error) => {
                // A carriage return ends a line of YAML, too.
                assert!(error.line >= 1 && error.line <= text.split(['\n', '\r']).count(), "{error}");
                assert!(!error.to_string().contains(char::is_control), "{error:?}");
                continue;
            }
        };
        assert_eq!(parse(text, format, None).as_ref(), Ok(&objects));
        let (now, mut world, mut touched) = (Instant::now(), World::default(), Touched::default());
        for object in &objects {
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
            let nothing = Change::Replace { kind, namespace: None, objects: Vec::new() };
            world.apply(nothing, now, &mut touched);
        }
        world.sweep(now);
        assert_eq!(world.service_names().count(), 0);
    }
});
