use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::*;

/// Answers every request with `done` until the test ends.
fn upstream() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                while head(&mut stream).is_some() {
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
                        .unwrap();
                }
            });
        }
    });
    address
}

/// Reads up to the blank line that ends a head; `None` at the end of the connection.
fn head(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    Some(String::from_utf8(text).unwrap())
}

/// The answer's body; `None` when the connection ends without an answer.
fn ask(stream: &mut TcpStream, method: &str, path: &str) -> Option<String> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"
    )
    .ok()?;
    head(stream)?;
    let mut body = [0; 4];
    stream.read_exact(&mut body).ok()?;
    Some(String::from_utf8(body.to_vec()).unwrap())
}

fn connect(cutter: &WriteCutter) -> TcpStream {
    TcpStream::connect(cutter.address).unwrap()
}

#[test]
fn the_write_is_made_its_answer_swallowed_and_all_connections_end() {
    let cutter = WriteCutter::start_before(Upstream::plain(upstream())).unwrap();
    let (mut first, mut second) = (connect(&cutter), connect(&cutter));
    cutter.cut_after(2);
    assert_eq!(ask(&mut first, "GET", "/api/v1/pods").as_deref(), Some("done"));
    assert_eq!(
        ask(&mut first, "POST", "/api/v1/namespaces/x/pods").as_deref(),
        Some("done")
    );
    let lease = "/apis/coordination.k8s.io/v1/namespaces/x/leases/y";
    assert_eq!(ask(&mut second, "PUT", lease).as_deref(), Some("done"));
    assert_eq!(
        ask(&mut second, "POST", "/api/v1/namespaces/x/events").as_deref(),
        Some("done")
    );
    assert!(!cutter.is_cut());

    assert_eq!(ask(&mut first, "PATCH", "/api/v1/namespaces/x/pods/y"), None);
    cutter.wait_for_cut(Duration::from_secs(5)).unwrap();
    assert_eq!(ask(&mut second, "GET", "/api/v1/pods"), None);
    assert_eq!(ask(&mut connect(&cutter), "GET", "/api/v1/pods"), None);
    let writes: Vec<String> = cutter.writes().into_iter().map(|write| write.method).collect();
    assert_eq!(writes, ["POST", "PATCH"]);
}

#[test]
fn a_cut_at_the_first_write_lets_none_through() {
    let cutter = WriteCutter::start_before(Upstream::plain(upstream())).unwrap();
    cutter.cut_after(0);
    let mut client = connect(&cutter);
    assert_eq!(ask(&mut client, "GET", "/api/v1/pods").as_deref(), Some("done"));
    assert_eq!(ask(&mut client, "DELETE", "/api/v1/pods/y"), None);
    assert!(cutter.is_cut());
    assert!(cutter.writes().is_empty());
}

#[test]
fn it_can_be_opened_again() {
    let cutter = WriteCutter::start_before(Upstream::plain(upstream())).unwrap();
    cutter.cut_after(1);
    assert_eq!(ask(&mut connect(&cutter), "POST", "/x"), None);
    cutter.wait_for_cut(Duration::from_secs(5)).unwrap();
    cutter.open();
    assert_eq!(ask(&mut connect(&cutter), "POST", "/x").as_deref(), Some("done"));
    assert_eq!(cutter.writes().len(), 1);
}
