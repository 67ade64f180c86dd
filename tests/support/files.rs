//! A static HTTP server over a folder, for data sets: GET and HEAD, one range, an entity tag.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Serves until dropped.
pub struct FileServer {
    port: u16,
    served: Arc<Served>,
}

#[derive(Default)]
struct Served {
    /// `GET /name` or `GET /name bytes=10-`, in order.
    requests: Mutex<Vec<String>>,
    /// Of bodies.
    bytes: AtomicU64,
    over: AtomicBool,
}

struct Request {
    method: String,
    path: String,
    range: Option<String>,
    if_range: Option<String>,
}

impl FileServer {
    pub fn new(folder: &Path) -> FileServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let served = Arc::new(Served::default());
        let (folder, shared) = (folder.to_owned(), Arc::clone(&served));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                let (folder, shared) = (folder.clone(), Arc::clone(&shared));
                // A client that hangs up is its own affair.
                thread::spawn(move || answer(client, &folder, &shared));
            }
        });
        FileServer { port, served }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// With a slash at its end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// What was asked for so far: `GET /name`, or `GET /name bytes=10-`.
    pub fn requests(&self) -> Vec<String> {
        self.served.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How much of the files was sent so far.
    pub fn bytes(&self) -> u64 {
        self.served.bytes.load(Ordering::SeqCst)
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.served.over.store(true, Ordering::SeqCst);
        // The connection wakes the thread that accepts, which then ends; refused: it has ended already.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn answer(mut client: TcpStream, folder: &Path, served: &Served) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        let mut line = format!("{} {}", request.method, request.path);
        if let Some(range) = &request.range {
            line = format!("{line} {range}");
        }
        served.requests.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        respond(&mut client, folder, served, &request)?;
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method: method.to_owned(),
        path: decode(target.split('?').next().unwrap_or_default()),
        range: None,
        if_range: None,
    };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.split_once(':') else {
            return Ok(Some(request));
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_owned()),
            "if-range" => request.if_range = Some(value.trim().to_owned()),
            _ => {}
        }
    }
}

fn respond(client: &mut TcpStream, folder: &Path, served: &Served, request: &Request) -> io::Result<()> {
    let Some(mut file) = find(folder, &request.path) else {
        return client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let meta = file.metadata()?;
    let (size, tag) = (meta.len(), format!("\"{:x}-{:x}\"", meta.len(), meta.mtime()));
    // RFC 9110, 13.1.5: a range of another version is no range at all.
    let current = request.if_range.as_ref().is_none_or(|wanted| *wanted == tag);
    let range = request.range.as_deref().filter(|_| current).map(|text| parse_range(text, size));
    let (status, body) = match range {
        None => ("200 OK", 0..size),
        Some(Some(range)) => ("206 Partial Content", range),
        Some(None) => {
            let head = format!("HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n");
            return client.write_all(head.as_bytes());
        }
    };
    let mut head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\nETag: {tag}\r\n",
        body.end - body.start
    );
    if status.starts_with("206") {
        head += &format!("Content-Range: bytes {}-{}/{size}\r\n", body.start, body.end - 1);
    }
    client.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "GET" {
        file.seek(SeekFrom::Start(body.start))?;
        let sent = io::copy(&mut file.take(body.end - body.start), client)?;
        served.bytes.fetch_add(sent, Ordering::SeqCst);
    }
    Ok(())
}

/// A file below `folder`; `None` for anything else.
fn find(folder: &Path, path: &str) -> Option<File> {
    let relative = PathBuf::from(path.trim_start_matches('/'));
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let path = folder.join(relative);
    if inside && path.is_file() { File::open(path).ok() } else { None }
}

/// `bytes=A-`, `bytes=A-B` or `bytes=-N`; `None` where nothing of `size` bytes is meant.
fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) => first..size,
        (Err(_), Ok(count)) => size.saturating_sub(count)..size,
        (Err(_), Err(_)) => return None,
    };
    (range.start < range.end).then_some(range)
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).filter(|_| *first == b'%');
        let byte = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn whole_files_and_ranges_are_served_and_nothing_else() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    std::fs::write(folder.path().join("a+b"), "0123456789").expect("the folder was just made");
    let server = FileServer::new(folder.path());
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head ends with an empty line");
        (head.split(' ').nth(1).unwrap_or_default().to_owned(), body.to_owned())
    };
    let is = |status: &str, body: &str| (status.to_owned(), body.to_owned());
    assert_eq!(ask("GET /a%2Bb HTTP/1.1\r\n\r\n"), is("200", "0123456789"));
    assert_eq!(ask("HEAD /a+b HTTP/1.1\r\n\r\n"), is("200", ""));
    assert_eq!(ask("GET /a+b HTTP/1.1\r\nRange: bytes=7-\r\n\r\n"), is("206", "789"));
    assert_eq!(ask("GET /a+b HTTP/1.1\r\nRange: bytes=0-1\r\n\r\n"), is("206", "01"));
    assert_eq!(ask("GET /a+b HTTP/1.1\r\nRange: bytes=10-\r\n\r\n"), is("416", ""));
    assert_eq!(
        ask("GET /a+b HTTP/1.1\r\nRange: bytes=7-\r\nIf-Range: \"old\"\r\n\r\n"),
        is("200", "0123456789")
    );
    assert_eq!(ask("GET /../a+b HTTP/1.1\r\n\r\n"), is("404", ""));
    assert_eq!(server.bytes(), 25);
    assert_eq!(server.requests()[2], "GET /a+b bytes=7-");
}
