//! What is spoken on a port, by Istio's rules: port names, `appProtocol`, ServiceEntry protocols.

/// Protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// gRPC-Web.
    GrpcWeb,
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// A generic HTTP proxy (egress listeners of Sidecars).
    HttpProxy,
    /// HTTP over TLS that the application does itself.
    Https,
    /// Opaque TCP.
    Tcp,
    /// Opaque TLS, routed by SNI.
    Tls,
    /// UDP: the mesh leaves it alone.
    Udp,
    /// MongoDB, treated as TCP.
    Mongo,
    /// Redis, treated as TCP.
    Redis,
    /// MySQL: TCP where the server speaks first.
    MySql,
    /// Not declared: looked at when a connection comes in.
    #[default]
    Auto,
}

impl Protocol {
    /// One word; unknown words are [`Protocol::Auto`].
    pub fn parse(word: &str) -> Self {
        match word.to_ascii_lowercase().as_str() {
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "http" => Self::Http,
            "http2" => Self::Http2,
            "http_proxy" => Self::HttpProxy,
            "https" => Self::Https,
            "tcp" => Self::Tcp,
            "tls" => Self::Tls,
            "udp" => Self::Udp,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::MySql,
            _ => Self::Auto,
        }
    }

    /// Of a port of a Kubernetes Service: transport, `appProtocol`, prefix of the name, well-known numbers.
    pub fn of_service_port(transport: &str, app_protocol: &str, name: &str, port: u16) -> Self {
        match transport {
            "UDP" => return Self::Udp,
            "" | "TCP" => {}
            _ => return Self::Udp,
        }
        match app_protocol {
            "kubernetes.io/h2c" => return Self::Http2,
            "kubernetes.io/ws" => return Self::Http,
            "kubernetes.io/wss" => return Self::Https,
            _ => {}
        }
        let name = if app_protocol.is_empty() { name } else { app_protocol };
        let found = if name.len() >= 8 && name.as_bytes().get(..8).is_some_and(|p| p.eq_ignore_ascii_case(b"grpc-web"))
        {
            Self::GrpcWeb
        } else {
            Self::parse(name.split('-').next().unwrap_or_default())
        };
        match (found, port) {
            // Servers that speak first would hang while the proxy waits for the client's bytes.
            (Self::Auto, 25 | 53 | 3306 | 5432 | 27017) => Self::Tcp,
            _ => found,
        }
    }

    /// Known to be HTTP in cleartext.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Grpc | Self::GrpcWeb | Self::Http | Self::Http2 | Self::HttpProxy)
    }
    /// HTTP/2 only.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Grpc | Self::GrpcWeb | Self::Http2)
    }
    /// TLS of the application's own.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }
    /// Opaque bytes (TLS included).
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Https | Self::Tls | Self::Mongo | Self::Redis | Self::MySql)
    }
    /// Not declared.
    pub fn is_auto(self) -> bool {
        self == Self::Auto
    }
    /// As Istio writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-Web",
            Self::Http => "HTTP",
            Self::Http2 => "HTTP2",
            Self::HttpProxy => "HTTP_PROXY",
            Self::Https => "HTTPS",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Udp => "UDP",
            Self::Mongo => "Mongo",
            Self::Redis => "Redis",
            Self::MySql => "MySQL",
            Self::Auto => "UnsupportedProtocol",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_protocols() {
        let of = |app: &str, name: &str, port| Protocol::of_service_port("TCP", app, name, port);
        assert_eq!(of("", "http", 80), Protocol::Http);
        assert_eq!(of("", "http-web", 80), Protocol::Http);
        assert_eq!(of("", "grpc-web-x", 80), Protocol::GrpcWeb);
        assert_eq!(of("", "grpc-foo", 80), Protocol::Grpc);
        assert_eq!(of("", "httpfoo", 80), Protocol::Auto);
        assert_eq!(of("kubernetes.io/h2c", "http", 80), Protocol::Http2);
        assert_eq!(of("tcp", "http", 80), Protocol::Tcp);
        assert_eq!(of("", "db", 3306), Protocol::Tcp);
        assert_eq!(of("", "", 8080), Protocol::Auto);
        assert_eq!(Protocol::of_service_port("UDP", "", "dns", 53), Protocol::Udp);
    }
}
