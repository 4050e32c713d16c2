//! nginx as a reader of requests. It runs as one process in the foreground, with its socket in a
//! folder of its own, and logs each request as it reads it. Each stream is one connection. The
//! PROXY protocol gives it a number, and the log repeats that number.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::differential::{Request, Seen, Stream};

pub fn read(streams: &[Stream]) -> Result<Vec<Seen>, String> {
    let folder = tempfile::tempdir().unwrap();
    let _nginx = Nginx::start(folder.path())?;
    for (number, stream) in streams.iter().enumerate() {
        use std::io::{Read, Write};
        let mut client = UnixStream::connect(folder.path().join("http")).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let proxied = format!("PROXY TCP4 {} 127.0.0.1 1 80\r\n", address(number));
        // nginx may refuse and close before it has read everything.
        let _ = client.write_all(&[proxied.as_bytes(), &stream.forwarded].concat());
        let _ = client.shutdown(std::net::Shutdown::Write);
        // nginx logs a request before it ends the connection.
        if let Err(error) = client.read_to_end(&mut Vec::new()) {
            assert!(
                error.kind() == std::io::ErrorKind::ConnectionReset,
                "nginx: {error}"
            );
        }
    }
    let log = std::fs::read(folder.path().join("log")).unwrap();
    let mut lines = BTreeMap::<&[u8], Vec<&[u8]>>::new();
    for line in log
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let (of, line) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap());
        lines.entry(of).or_default().push(&line[1..]);
    }
    assert!(
        lines.len() > streams.len() / 2,
        "nginx: {} connections in its log",
        lines.len()
    );
    let seen = |number: usize| {
        let lines = lines
            .get(address(number).as_bytes())
            .cloned()
            .unwrap_or_default();
        let read: Vec<_> = lines.iter().map_while(|line| request(line)).collect();
        Seen {
            refused: read.len() < lines.len(),
            requests: read,
        }
    };
    Ok((0..streams.len()).map(seen).collect())
}

fn address(number: usize) -> String {
    format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255)
}

/// A line of [`CONFIG`]'s log, or `None` if the request was refused.
fn request(line: &[u8]) -> Option<Request> {
    let mut parts = line.splitn(5, |byte| *byte == b' ').map(unescape);
    (parts.next()? == b"200").then_some(())?;
    Some([parts.next()?, parts.next()?, parts.next()?, parts.next()?])
}

/// Undoes nginx's escapes for JSON. Spaces are not escaped, but only the body can contain them, and
/// it is last.
fn unescape(text: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some((&byte, more)) = rest.split_first() {
        rest = more;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&escaped, more) = rest.split_first().unwrap();
        rest = more;
        out.push(match escaped {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 8,
            b'f' => 12,
            b'u' => {
                let (digits, more) = rest.split_at(4);
                rest = more;
                u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    out
}

struct Nginx(Child);

impl Nginx {
    fn start(folder: &Path) -> Result<Self, String> {
        let found = |folder: &Path| Some(folder.join("nginx")).filter(|file| file.is_file());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        let Some(program) = places.into_iter().find_map(|folder| found(&folder)) else {
            return Err("no nginx".into());
        };
        let config = folder.join("nginx.conf");
        std::fs::write(
            &config,
            CONFIG.replace("{folder}", folder.to_str().unwrap()),
        )
        .unwrap();
        let said = std::fs::File::create(folder.join("said")).unwrap();
        // The process ends after 900 s, whatever it reads.
        let child = Command::new("timeout")
            .args(["900", program.to_str().unwrap(), "-e", "stderr", "-p"])
            .arg(folder)
            .arg("-c")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut nginx = Self(child);
        let begun = Instant::now();
        while UnixStream::connect(folder.join("http")).is_err() {
            if nginx.0.try_wait().unwrap().is_some() || begun.elapsed() > Duration::from_secs(30) {
                let said = std::fs::read_to_string(folder.join("said")).unwrap();
                return Err(format!("nginx does not start: {said}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // `timeout` passes the signal on.
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// nginx knows a body only after it has read it for an upstream, which is nginx itself here. A
/// client that has closed its direction still wants its response. A lingering close would end the
/// connection before its request is logged.
const CONFIG: &str = "daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
events { worker_connections 64; }
http {
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3; uwsgi_temp_path {folder}/4;
  scgi_temp_path {folder}/5;
  log_format seen escape=json '$proxy_protocol_addr $status $request_method $request_uri $http_host $request_body';
  large_client_header_buffers 8 64k; client_body_buffer_size 1m; client_max_body_size 0;
  lingering_close off;
  server {
    listen unix:{folder}/http proxy_protocol; access_log {folder}/log seen;
    location / { proxy_pass http://unix:{folder}/sink:; proxy_ignore_client_abort on; }
  }
  server { listen unix:{folder}/sink; access_log off; return 200; }
}
";
