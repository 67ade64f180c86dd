//! An HTTP server that does what a test says, wrong things above all: a real one cannot be made to.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Answers until dropped.
pub struct Faults {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    answer: Box<dyn Fn(&Asked) -> Reply + Send + Sync>,
    asked: Mutex<Vec<Asked>>,
    /// Of bodies.
    bytes: AtomicU64,
    over: AtomicBool,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The body, whatever it is.
    pub bytes: Vec<u8>,
    /// How many requests came before it.
    pub before: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `N` of `Range: bytes=N-` and `bytes=N-M`.
    pub fn first(&self) -> Option<usize> {
        self.range()?.0.parse().ok()
    }

    /// `M` of `Range: bytes=N-M`.
    pub fn last(&self) -> Option<usize> {
        self.range()?.1.parse().ok()
    }

    fn range(&self) -> Option<(&str, &str)> {
        self.header("range")?.strip_prefix("bytes=")?.split_once('-')
    }
}

/// An answer: start from one of the functions, then spoil it.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// `Content-Length`, true or not; `None`: chunks.
    pub length: Option<u64>,
    pub end: End,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Whole,
    /// Closed after so many bytes of the body.
    Cut(usize),
    /// Silent after so many bytes of the body, until the server is dropped or the client leaves.
    Stall(usize),
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        let body = body.into();
        Reply {
            status,
            headers: Vec::new(),
            length: Some(body.len() as u64),
            body,
            end: End::Whole,
        }
    }

    /// A file as an honest server gives it: whole, or what is left of it from where the request says.
    pub fn file(content: &[u8], asked: &Asked) -> Reply {
        let size = content.len();
        match asked.first() {
            None => Reply::new(200, content),
            Some(first) if first >= size => Reply::new(416, "").with("Content-Range", format!("bytes */{size}")),
            Some(first) => {
                let last = asked.last().unwrap_or(size - 1).min(size - 1);
                Reply::new(206, &content[first..=last]).with("Content-Range", format!("bytes {first}-{last}/{size}"))
            }
        }
    }

    pub fn redirect(to: impl Into<String>) -> Reply {
        Reply::new(307, "").with("Location", to)
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn ending(self, end: End) -> Reply {
        Reply { end, ..self }
    }
}

impl Faults {
    pub fn serve(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Faults {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            asked: Mutex::default(),
            bytes: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.over.load(Ordering::SeqCst) {
                    return;
                }
                let serving = Arc::clone(&serving);
                // A client that hangs up is what is tested.
                thread::spawn(move || serving.converse(client));
            }
        });
        Faults { port, shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `http://127.0.0.1:PORT` and `path`, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The targets of all requests so far that contain `part`.
    pub fn targets(&self, part: &str) -> Vec<String> {
        let asked = self.asked().into_iter().map(|asked| asked.target);
        asked.filter(|target| target.contains(part)).collect()
    }

    /// How many bytes of bodies were sent so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; refused: it has ended already.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl Shared {
    fn converse(&self, client: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut client = client;
        while let Some(mut asked) = read(&mut reader)? {
            {
                let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                asked.before = all.len();
                all.push(asked.clone());
            }
            if !self.send(&mut client, &(self.answer)(&asked))? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the connection may be used again.
    fn send(&self, client: &mut TcpStream, reply: &Reply) -> io::Result<bool> {
        let mut head = format!("HTTP/1.1 {} Answer\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match reply.length {
            Some(length) => head += &format!("Content-Length: {length}\r\n\r\n"),
            None => head += "Transfer-Encoding: chunked\r\n\r\n",
        }
        client.write_all(head.as_bytes())?;
        let sent = match reply.end {
            End::Whole => reply.body.len(),
            End::Cut(bytes) | End::Stall(bytes) => bytes.min(reply.body.len()),
        };
        for part in reply.body[..sent].chunks(16 << 10) {
            match reply.length {
                Some(_) => client.write_all(part)?,
                None => client.write_all(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat())?,
            }
            self.bytes.fetch_add(part.len() as u64, Ordering::SeqCst);
        }
        match reply.end {
            End::Whole if reply.length.is_none() => client.write_all(b"0\r\n\r\n").map(|()| true),
            // A length that is a lie leaves nothing that could follow.
            End::Whole => Ok(reply.length == Some(reply.body.len() as u64)),
            End::Cut(_) => Ok(false),
            End::Stall(_) => {
                // Ends when the client leaves; the test's client does, for its own timeout.
                let mut rest = Vec::new();
                client.read_to_end(&mut rest).map(|_| false)
            }
        }
    }
}

fn read(reader: &mut impl BufRead) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut asked = Asked {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: Vec::new(),
        body: String::new(),
        bytes: Vec::new(),
        before: 0,
    };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        asked.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if let Some(length) = asked.header("content-length").and_then(|text| text.parse().ok()) {
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        asked.body = String::from_utf8_lossy(&body).into_owned();
        asked.bytes = body;
    }
    Ok(Some(asked))
}
