//! Where an export is served: `HOST:PORT` or `unix:PATH`, the listener for it, and the URI clients use.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{TcpListener, UnixListener};

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`; port 0 lets the system choose.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// Text that names no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither HOST:PORT nor unix:PATH")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(error()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || port.parse::<u16>().is_err() || (host.contains(':') && !bracketed) {
            return Err(error());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A socket clients can connect to. A unix socket's file goes when this goes.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: Socket,
    /// As it stands in the URI: `host:port`, or the path.
    place: String,
}

impl Listener {
    /// Listens. A unix socket's file that nobody listens on any more is replaced.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(text) => {
                let socket = TcpListener::bind(text).await?;
                let port = socket.local_addr()?.port();
                let host = text.rsplit_once(':').map_or("", |(host, _)| host);
                Ok(Self { socket: Socket::Tcp(socket), place: format!("{host}:{port}") })
            }
            Address::Unix(path) => {
                let place = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
                remove_dead_socket(path)?;
                Ok(Self { socket: Socket::Unix(UnixListener::bind(path)?), place })
            }
        }
    }

    /// The URI of the export of that name here.
    #[must_use]
    pub fn uri(&self, name: &str) -> String {
        match &self.socket {
            Socket::Tcp(_) => format!("nbd://{}/{}", self.place, escape(name, b"")),
            Socket::Unix(_) => format!("nbd+unix:///{}?socket={}", escape(name, b""), escape(&self.place, b"/")),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_) = self.socket {
            // Best effort: the next one to listen there copes with a left-over file.
            let _ = std::fs::remove_file(&self.place);
        }
    }
}

/// Removes a socket's file whose process is gone; anything else stays, and then binding says so.
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).as_ref().is_err_and(refused) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Percent-encodes everything but letters, digits, `-._~` and what is `also` safe.
fn escape(text: &str, also: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("localhost:0".parse(), Ok(Address::Tcp("localhost:0".into())));
        assert_eq!("[::1]:10809".parse(), Ok(Address::Tcp("[::1]:10809".into())));
        assert_eq!("unix:/run/a b".parse(), Ok(Address::Unix("/run/a b".into())));
        for wrong in ["", "localhost", ":1", "a:b", "a:99999", "::1:5", "unix:"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn uris_and_left_over_sockets() {
        let tcp = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let Socket::Tcp(socket) = &tcp.socket else { panic!("tcp") };
        assert_eq!(tcp.uri("a/b"), format!("nbd://{}/a%2Fb", socket.local_addr().unwrap()));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.sock");
        let address = Address::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left over");
        let unix = Listener::bind(&address).await.unwrap();
        let escaped = path.to_str().unwrap().replace(' ', "%20");
        assert_eq!(unix.uri("v"), format!("nbd+unix:///v?socket={escaped}"));
        assert!(Listener::bind(&address).await.is_err(), "in use");
        drop(unix);
        assert!(!path.exists());
        std::fs::write(&path, "not a socket").unwrap();
        assert!(Listener::bind(&address).await.is_err());
        assert!(path.exists(), "somebody's file stays");
    }
}
