//! As much of HTTP/1.1 as an example needs: one request a connection, without a body.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What a client may take, and send.
const LONGEST: Duration = Duration::from_secs(5);
const LARGEST: u64 = 8192;

/// The target of a GET; or the status and text to answer with.
pub fn read_request(mut stream: &TcpStream) -> io::Result<Result<String, (u16, &'static str)>> {
    stream.set_read_timeout(Some(LONGEST))?;
    stream.set_write_timeout(Some(LONGEST))?;
    let mut request = Vec::new();
    let mut chunk = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => return Ok(Err((400, "the request is not complete"))),
            length => request.extend_from_slice(&chunk[..length]),
        }
        if request.len() as u64 > LARGEST {
            return Ok(Err((431, "the request is too large")));
        }
    }
    let line = request
        .split(|&byte| byte == b'\r')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    Ok(match line.split(' ').collect::<Vec<_>>()[..] {
        ["GET", target, "HTTP/1.1" | "HTTP/1.0"] if target.starts_with('/') => {
            Ok(target.to_owned())
        }
        [_, _, "HTTP/1.1" | "HTTP/1.0"] => Err((405, "only GET")),
        _ => Err((400, "not a request line")),
    })
}

pub fn answer(mut stream: &TcpStream, status: u16, body: &str) -> io::Result<()> {
    let reason = match status {
        200 => "OK",
        404 => "Not Found",
        405 => "Method Not Allowed",
        500 => "Internal Server Error",
        _ => "Bad Request",
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// The status and the body that the server answers to this request line.
pub fn ask(server: SocketAddr, line: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&server, LONGEST)?;
    stream.set_read_timeout(Some(LONGEST))?;
    stream.write_all(format!("{line}\r\nHost: {server}\r\n\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.take(1 << 20).read_to_string(&mut reply)?;
    let malformed = || io::Error::other(format!("not an answer: {reply:?}"));
    let (head, body) = reply.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(malformed)?;
    Ok((status, body.to_owned()))
}
