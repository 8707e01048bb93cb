//! The little of HTTP that two pages need: a request without a body, one answer, the end of the connection.
//!
//! By hand because nothing of ours serves HTTP with a framework; the head of a request is parsed by `httparse`. Bounds: 16 connections, each
//! 8 KiB of head and 5 seconds in all; one more is closed at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Connections at a time; a scraper and a supervisor need one each.
const CONNECTIONS_MAX: usize = 16;
/// Bytes of a request's line and headers.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// How long a connection may take from its beginning to its end.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause after the system gave no connection, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What there is to see.
pub(super) trait Site: Send + Sync + 'static {
    /// The page of a path, if there is one.
    fn reply(&self, path: &str) -> impl Future<Output = Option<Reply>> + Send;
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    HeadTooLarge,
    Unavailable,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed\r\nAllow: GET, HEAD",
            Status::HeadTooLarge => "431 Request Header Fields Too Large",
            Status::Unavailable => "503 Service Unavailable",
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: Status,
    /// As `Content-Type` says it.
    pub(super) kind: &'static str,
    pub(super) body: String,
}

/// Answers until it is dropped, with all its connections.
pub(super) async fn serve(listener: TcpListener, site: Arc<impl Site>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if open.len() < CONNECTIONS_MAX => {
                    let answered = answer(stream, site.clone());
                    open.spawn(async move {
                        // A client that is gone, or too slow, has nobody to be told.
                        let _ = tokio::time::timeout(DEADLINE, answered).await;
                    });
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = open.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, site: Arc<impl Site>) -> io::Result<()> {
    let mut head = vec![0; HEAD_BYTES_MAX];
    let mut length = 0;
    let asked = loop {
        let read = stream.read(&mut head[length..]).await?;
        if read == 0 {
            return Ok(());
        }
        length += read;
        if let Some(asked) = parse(&head[..length]) {
            break asked;
        }
    };
    let plain = |status| Reply { status, kind: "text/plain; charset=utf-8", body: String::new() };
    let (reply, is_head) = match asked {
        Ok(Asked { path, is_head }) => {
            (site.reply(&path).await.unwrap_or_else(|| plain(Status::NotFound)), is_head)
        }
        Err(status) => (plain(status), false),
    };
    let Reply { status, kind, body } = reply;
    let mut bytes = format!(
        "HTTP/1.1 {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        status.line(),
        body.len()
    );
    if !is_head {
        bytes.push_str(&body);
    }
    stream.write_all(bytes.as_bytes()).await?;
    stream.shutdown().await?;
    // Bytes that nobody took would have the system break the connection off, and the answer with it.
    while stream.read(&mut head).await? > 0 {}
    Ok(())
}

/// What a request is for.
#[derive(PartialEq, Eq, Debug)]
struct Asked {
    /// Without what is behind `?`.
    path: String,
    is_head: bool,
}

/// The head of a request, or why it is refused; `None` while there is more to come.
fn parse(bytes: &[u8]) -> Option<Result<Asked, Status>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(Err(Status::HeadTooLarge));
        }
        Err(_) => return Some(Err(Status::BadRequest)),
    }
    let is_head = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Some(Err(Status::MethodNotAllowed)),
    };
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path).to_owned();
    Some(Ok(Asked { path, is_head }))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    struct Echo;

    impl Site for Echo {
        async fn reply(&self, path: &str) -> Option<Reply> {
            (path == "/there").then(|| Reply {
                status: Status::Ok,
                kind: "text/plain",
                body: path.to_owned(),
            })
        }
    }

    /// Runs with a server; a test that hangs ends by its own deadline.
    fn with_server<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut tasks = JoinSet::new();
            tasks.spawn(serve(listener, Arc::new(Echo)));
            tokio::time::timeout(6 * DEADLINE, test(address)).await.unwrap();
        });
    }

    /// All that comes until the end of the connection.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        String::from_utf8(said).unwrap()
    }

    async fn said(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        rest(&mut stream).await
    }

    #[test]
    fn each_request_gets_what_it_deserves() {
        with_server(async |address| {
            let long = format!("GET /there HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(64 << 10));
            let many = format!("GET /there HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
            for (request, starts, ends) in [
                ("GET /there HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\r\n\r\n/there"),
                ("GET /there?a=b HTTP/1.0\r\n\r\n", "HTTP/1.1 200 ", "\r\n\r\n/there"),
                ("HEAD /there HTTP/1.1\r\n\r\n", "HTTP/1.1 200 ", "close\r\n\r\n"),
                ("GET /nowhere HTTP/1.1\r\n\r\n", "HTTP/1.1 404 ", "\r\n\r\n"),
                ("POST /there HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", "HTTP/1.1 405 ", "\r\n\r\n"),
                ("\0\u{1}garbage\r\n\r\n", "HTTP/1.1 400 ", "\r\n\r\n"),
                ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 400 ", "\r\n\r\n"),
                (&long, "HTTP/1.1 431 ", "\r\n\r\n"),
                (&many, "HTTP/1.1 431 ", "\r\n\r\n"),
            ] {
                let said = said(address, request.as_bytes()).await;
                assert!(said.starts_with(starts) && said.ends_with(ends), "{request:.40}: {said}");
                assert_eq!(said.contains("Allow: GET, HEAD"), starts.contains("405"), "{said}");
            }
        });
    }

    #[test]
    fn who_is_slow_is_cut_off_and_one_too_many_is_closed_at_once() {
        with_server(async |address| {
            let mut slow = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET /there").await.unwrap();
                slow.push(stream);
            }
            let began = tokio::time::Instant::now();
            let mut one_too_many = TcpStream::connect(address).await.unwrap();
            assert_eq!(rest(&mut one_too_many).await, "");
            let closed = began.elapsed();
            for mut stream in slow {
                assert_eq!(rest(&mut stream).await, "");
            }
            // The first waited for its deadline, which the one too many did not.
            assert!(2 * closed < began.elapsed(), "{closed:?} of {:?}", began.elapsed());
            assert!(said(address, b"GET /there HTTP/1.1\r\n\r\n").await.ends_with("/there"));
        });
    }
}
