//! HTTP/1.1 on the wire, through the proxy.
