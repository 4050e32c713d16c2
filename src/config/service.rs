//! What a Service says about how it is served: its ports' protocols and its `ebbtide.dev/*`
//! annotations.
//!
//! Invariant: an annotation never stops a Service. A bad value is a warning, and the
//! configuration's value stays in force.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::backend::{self, BACKEND_TLS};
use crate::config::settings::Config;
use crate::config::value;
use crate::contract::authorities::FoundAuthorities;
use crate::contract::backend::Backend;
use crate::contract::policy::{NonIdempotent, Policy, Protocol, Traffic, Transport};

const PROTOCOL: &str = "ebbtide.dev/protocol";
const HOLD: &str = "ebbtide.dev/hold-timeout";
const DRAIN: &str = "ebbtide.dev/drain-timeout";
const ATTEMPTS: &str = "ebbtide.dev/retry-attempts";
const NON_IDEMPOTENT: &str = "ebbtide.dev/retry-non-idempotent";
const JOIN_CHECK: &str = "ebbtide.dev/join-check";
const SOURCE: &str = "ebbtide.dev/source";
const RETRY_ON: &str = "ebbtide.dev/retry-on";
const KNOWN: [&str; 9] = [
    PROTOCOL,
    HOLD,
    DRAIN,
    ATTEMPTS,
    NON_IDEMPOTENT,
    JOIN_CHECK,
    SOURCE,
    RETRY_ON,
    BACKEND_TLS,
];

impl Protocol {
    /// A Service port's protocol: its annotation, else `appProtocol`, else `auto`; and a warning if
    /// the annotation is bad. `target_port` is the port on which the endpoints listen, if the
    /// Service gives a number. A UDP port has one protocol, whatever the Service says of its other
    /// ports.
    ///
    /// `appProtocol` is free text with some known names
    /// (<https://kubernetes.io/docs/concepts/services-networking/service/#application-protocol>).
    /// So an unknown name is no fault, and `auto` serves it.
    pub fn of_service(
        annotations: &BTreeMap<String, String>,
        app_protocol: Option<&str>,
        target_port: Option<u16>,
        transport: Transport,
    ) -> (Self, Option<String>) {
        if transport == Transport::Udp {
            return (Self::Udp, None);
        }
        let mut warning = None;
        let annotated = annotations.get(PROTOCOL).and_then(|text| {
            let protocol = Self::parse(text);
            if protocol.is_none() {
                warning = Some(format!(
                    "{PROTOCOL}: {text:?} is not known, expected auto, http, h2c or tcp{}",
                    value::protocol_hint(text)
                ));
            }
            protocol
        });
        let protocol = annotated.unwrap_or_else(|| match app_protocol.unwrap_or_default() {
            // The proxy speaks TLS with the endpoints, and HTTP with the clients.
            _ if Policy::has_backend(annotations, app_protocol) => Self::Http,
            app_protocol => Self::of_app_protocol(app_protocol),
        });
        (protocol.at_target(target_port), warning)
    }

    /// Reads `auto`, `http`, `h2c` or `tcp`; `None` for any other text. UDP is no choice of a TCP port.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "http" => Some(Self::Http),
            "h2c" => Some(Self::Http2),
            "tcp" => Some(Self::Tcp),
            _ => None,
        }
    }

    /// The word in configuration, annotations and the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http => "http",
            Self::Http2 => "h2c",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Turns `auto` into `tcp` if the target port is known for a protocol in which the server
    /// speaks first, because `auto` waits for the client's first bytes.
    pub fn at_target(self, target_port: Option<u16>) -> Self {
        match (self, target_port) {
            (Self::Auto, Some(port)) if NOT_HTTP.contains(&port) => Self::Tcp,
            (protocol, _) => protocol,
        }
    }

    fn of_app_protocol(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "http" | "ws" | "kubernetes.io/ws" => Self::Http,
            "tcp" | "tls" | "https" | "wss" | "kubernetes.io/wss" => Self::Tcp,
            "h2c" | "http2" | "grpc" | "kubernetes.io/h2c" => Self::Http2,
            "mysql" | "postgres" | "postgresql" | "redis" | "memcache" | "mongo" | "mongodb"
            | "amqp" | "mqtt" | "kafka" | "ldap" | "smtp" | "imap" | "pop3" | "ftp" | "ssh" => {
                Self::Tcp
            }
            _ => Self::Auto,
        }
    }
}

/// Well-known ports (IANA) of protocols that are not HTTP and in which the server speaks first, or
/// the client waits before it sends.
const NOT_HTTP: [u16; 19] = [
    21, 22, 25, 110, 119, 143, 587, 3306, 4222, 5432, 5672, 5900, 6379, 6667, 9092, 11211, 27017,
    33060, 61613,
];

impl Policy {
    /// The policy of a Service: the configuration, overridden by its annotations; and a warning for
    /// each annotation that is unknown or bad. `authorities`: what is known of those that an annotation
    /// takes from another object.
    pub fn for_service(
        config: &Config,
        annotations: &BTreeMap<String, String>,
        authorities: Option<&FoundAuthorities>,
    ) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        for name in annotations
            .keys()
            .filter(|name| name.starts_with("ebbtide.dev/"))
        {
            if !KNOWN.contains(&name.as_str()) {
                warnings.push(format!(
                    "{name}: unknown annotation, expected {}",
                    KNOWN.join(", ")
                ));
            }
        }
        let mut read = Reader {
            annotations,
            warnings: &mut warnings,
        };
        let policy = Self {
            hold_timeout: read.hold(config),
            drain_timeout: read.value(DRAIN, config.timeouts.drain, |text| {
                value::duration(text, value::DRAIN)
            }),
            attempts: read.value(ATTEMPTS, config.retry.attempts, |text| match text.parse() {
                Ok(number) => value::whole(number, value::ATTEMPTS),
                Err(_) => {
                    let (least, most) = (value::ATTEMPTS.start(), value::ATTEMPTS.end());
                    Err(format!(
                        "{text:?} is not a whole number, expected one from {least} to {most}"
                    ))
                }
            }),
            non_idempotent: read.value(NON_IDEMPOTENT, config.retry.non_idempotent, |text| {
                match text {
                    "never" => Ok(NonIdempotent::Never),
                    "idempotencyKey" => Ok(NonIdempotent::IdempotencyKey),
                    "always" => Ok(NonIdempotent::Always),
                    _ => Err(format!(
                        "{text:?} is not known, expected never, idempotencyKey or always"
                    )),
                }
            }),
            join_check: read.value(JOIN_CHECK, true, |text| match text {
                "on" | "true" => Ok(true),
                "off" | "false" => Ok(false),
                _ => Err(format!("{text:?} is not known, expected on or off")),
            }),
            keeps_source: read.value(SOURCE, config.keeps_source(), value::keeps_source),
            retries_unavailable: read.value(RETRY_ON, false, |text| match text {
                "unavailable" => Ok(true),
                _ => Err(format!("{text:?} is not known, expected unavailable")),
            }),
            backend: read.backend(authorities),
        };
        (policy, warnings)
    }

    /// Whether the proxy speaks TLS with the endpoints of a port of this `appProtocol`.
    pub fn has_backend(annotations: &BTreeMap<String, String>, app_protocol: Option<&str>) -> bool {
        annotations.contains_key(BACKEND_TLS) && backend::concerns(app_protocol)
    }
}

impl Config {
    /// What of a Service's traffic policies is not in force, because this node has no name.
    pub fn without_node(&self, traffic: &Traffic) -> Vec<String> {
        let asked = [
            (traffic.prefers_near, NO_HINTS),
            (traffic.has_local(), NO_NODE),
        ];
        let asked = asked
            .into_iter()
            .filter(|(asks, _)| *asks && self.node.name.is_none());
        asked.map(|(_, text)| text.to_owned()).collect()
    }
}

const NO_HINTS: &str = "the Service asks for near endpoints, and the environment variable NODE_NAME does not name \
                        this node; until it does, all endpoints are used";
const NO_NODE: &str = "a traffic policy is Local, and the environment variable NODE_NAME does not name \
                       this node; until it does, endpoints of all nodes are used";

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    warnings: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn backend(&mut self, authorities: Option<&FoundAuthorities>) -> Option<Arc<Backend>> {
        let text = self.annotations.get(BACKEND_TLS)?;
        let (backend, wrong) = backend::read(text, authorities);
        let refuses =
            |what| format!("{BACKEND_TLS}: {what}; until then, its endpoints are refused");
        self.warnings.extend(wrong.map(refuses));
        Some(backend)
    }

    /// A held client takes one of the node's places, so the operator bounds the time.
    fn hold(&mut self, config: &Config) -> Duration {
        let most = config.limits.hold_timeout;
        let asked = self.value(HOLD, config.timeouts.hold.min(most), |text| {
            value::duration(text, value::HOLD)
        });
        if asked > most {
            self.warnings.push(format!(
                "{HOLD}: {} counts, since limits.holdTimeout allows no more",
                humantime::format_duration(most)
            ));
        }
        asked.min(most)
    }

    fn value<T>(
        &mut self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(text) = self.annotations.get(name) else {
            return default;
        };
        parse(text.trim()).unwrap_or_else(|what| {
            self.warnings.push(format!("{name}: {what}"));
            default
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::settings::Discovery;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_operator_bounds_the_hold_time_that_a_service_asks_for() {
        let mut config = Config::new(Discovery::Static { to: Vec::new() });
        let with = |config: &Config, text: &str| {
            let annotations = BTreeMap::from([(HOLD.to_owned(), text.to_owned())]);
            let (policy, warnings) = Policy::for_service(config, &annotations, None);
            (policy.hold_timeout.as_secs(), warnings)
        };
        assert_eq!(with(&config, "10m"), (600, Vec::new()));
        config.limits.hold_timeout = Duration::from_secs(30);
        assert_eq!(with(&config, "30s"), (30, Vec::new()));
        let (seconds, warnings) = with(&config, "10m");
        assert_eq!(seconds, 30);
        assert!(warnings[0].contains("30s counts") && warnings[0].contains("limits.holdTimeout"));
        assert_eq!(with(&config, "nonsense").0, 10);
        config.limits.hold_timeout = Duration::from_secs(1);
        assert_eq!(with(&config, "nonsense").0, 1);
    }

    #[test]
    fn the_protocol_is_the_annotation_then_app_protocol_then_auto() {
        let none = annotations(&[]);
        let of = |a: &BTreeMap<String, String>, app, target| {
            Protocol::of_service(a, app, target, Transport::Tcp).0
        };
        assert_eq!(of(&none, None, None), Protocol::Auto);
        assert_eq!(of(&none, Some("http"), None), Protocol::Http);
        assert_eq!(
            of(&none, Some("kubernetes.io/ws"), Some(3306)),
            Protocol::Http,
            "appProtocol is given, so the port does not decide"
        );
        assert_eq!(of(&none, Some("https"), None), Protocol::Tcp);
        assert_eq!(
            of(&none, Some("example.com/mine"), Some(8080)),
            Protocol::Auto
        );
        assert_eq!(
            of(&annotations(&[(PROTOCOL, "tcp")]), Some("http"), None),
            Protocol::Tcp
        );
        for port in [25, 587, 3306, 5432, 6379, 11211] {
            assert_eq!(of(&none, None, Some(port)), Protocol::Tcp, "{port}");
            assert_eq!(
                of(&annotations(&[(PROTOCOL, "http")]), None, Some(port)),
                Protocol::Http,
                "{port}"
            );
        }
    }

    #[test]
    fn a_bad_protocol_is_a_warning() {
        let (protocol, warning) = Protocol::of_service(
            &annotations(&[(PROTOCOL, "udp")]),
            Some("http"),
            None,
            Transport::Tcp,
        );
        assert_eq!(protocol, Protocol::Http);
        assert_eq!(
            warning.unwrap(),
            "ebbtide.dev/protocol: \"udp\" is not known, expected auto, http, h2c or tcp"
        );
    }

    #[test]
    fn annotations_override_the_configuration() {
        let config = Config::new(Discovery::Static { to: Vec::new() });
        let all = annotations(&[
            (HOLD, "3s"),
            (DRAIN, "1m"),
            (ATTEMPTS, "5"),
            (NON_IDEMPOTENT, "always"),
            (JOIN_CHECK, "off"),
            (SOURCE, "client"),
            (RETRY_ON, "unavailable"),
            (PROTOCOL, "http"),
        ]);
        let expected = Policy {
            hold_timeout: Duration::from_secs(3),
            drain_timeout: Duration::from_secs(60),
            attempts: 5,
            non_idempotent: NonIdempotent::Always,
            join_check: false,
            keeps_source: true,
            retries_unavailable: true,
            backend: None,
        };
        assert_eq!(
            Policy::for_service(&config, &all, None),
            (expected, Vec::new())
        );
    }

    #[test]
    fn a_bad_annotation_is_a_warning_and_the_configuration_stays() {
        let config = Config::new(Discovery::Static { to: Vec::new() });
        let bad = annotations(&[
            (HOLD, "3"),
            (DRAIN, "2days"),
            (ATTEMPTS, "0"),
            (NON_IDEMPOTENT, "yes"),
            (JOIN_CHECK, ""),
            (SOURCE, "pod"),
            ("ebbtide.dev/hold", "3s"),
        ]);
        let (policy, warnings) = Policy::for_service(&config, &bad, None);
        assert_eq!(
            policy,
            Policy::for_service(&config, &annotations(&[]), None).0
        );
        let named: Vec<&str> = warnings
            .iter()
            .filter_map(|w| w.split(": ").next())
            .collect();
        assert_eq!(
            named,
            [
                "ebbtide.dev/hold",
                HOLD,
                DRAIN,
                ATTEMPTS,
                NON_IDEMPOTENT,
                JOIN_CHECK,
                SOURCE
            ]
        );
        assert!(
            warnings
                .iter()
                .all(|warning| warning.contains(", expected ")),
            "{warnings:?}"
        );
    }
}
