//! How an authority's answer, or none, becomes an exit code: against a stranger that answers once.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::exits;

/// An address where nobody listens.
pub(crate) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Gives every request the same answer; `None` never answers.
pub(crate) fn stranger(status: &'static str, body: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, body) = (stream.unwrap(), body.clone());
            std::thread::spawn(move || {
                let mut request = [0; 8192];
                let _ = stream.read(&mut request);
                let Some(body) = body else {
                    // Until the other side gives up.
                    while stream.read(&mut request).is_ok_and(|len| len > 0) {}
                    return;
                };
                let length = body.len();
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            });
        }
    });
    url
}

#[test]
fn nobody_there_is_20() {
    let (_, said) = exits(20, &["--authority", &nobody(), "status"]);
    assert!(said.contains("cannot connect") && said.contains("untouched:") && said.contains("next:"), "{said}");
}

#[test]
fn no_answer_is_21() {
    exits(21, &["--authority", &stranger("", None), "--deadline", "200ms", "status"]);
}

#[test]
fn an_authoritys_no_is_its_exit_code() {
    for (code, status, exit) in [
        ("invalid", "400 Bad Request", 2),
        ("not_found", "404 Not Found", 3),
        ("refused", "409 Conflict", 4),
        ("no_space", "507 Insufficient Storage", 4),
        ("illegal_state", "409 Conflict", 5),
        ("timeout", "504 Gateway Timeout", 6),
        ("unavailable", "503 Service Unavailable", 1),
    ] {
        let body = format!(r#"{{"code":"{code}","message":"the reason","next":"the next command"}}"#);
        let (stdout, said) = exits(exit, &["--authority", &stranger(status, Some(body)), "volume", "show", "v"]);
        assert_eq!(stdout, "");
        assert!(said.contains("the reason") && said.contains("next: the next command"), "{said}");
    }
}

#[test]
fn somebody_else_is_1() {
    let (_, said) = exits(1, &["--authority", &stranger("200 OK", Some("<html>".to_owned())), "status"]);
    assert!(said.contains("does not understand"), "{said}");
    exits(1, &["--authority", &stranger("500 Oops", Some("oops".to_owned())), "status"]);
}

#[test]
fn what_is_no_url_is_2() {
    exits(2, &["--authority", "not a url", "status"]);
}
