//! A way to a server that closes after so many bytes: it makes a moment in a transfer last.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A TCP relay on loopback. Once `limit` bytes came from the server, over all connections, nothing flows any more, until [`Valve::open`].
pub struct Valve {
    port: u16,
    flow: Arc<Flow>,
}

struct Flow {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    left: u64,
    passed: u64,
    waiting: bool,
    /// Bytes a second, from when on.
    pace: Option<(u64, Instant)>,
}

impl Valve {
    /// Relays to port `to` of this host.
    pub fn new(to: u16, limit: u64) -> Valve {
        Valve::with(to, limit, None)
    }

    /// One that never closes, but lets only so many bytes a second through.
    pub fn slow(to: u16, rate: u64) -> Valve {
        Valve::with(to, u64::MAX, Some((rate, Instant::now())))
    }

    fn with(to: u16, limit: u64, pace: Option<(u64, Instant)>) -> Valve {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let flow = Arc::new(Flow {
            state: Mutex::new(State {
                left: limit,
                passed: 0,
                waiting: false,
                pace,
            }),
            changed: Condvar::new(),
        });
        let shared = Arc::clone(&flow);
        // Ends with the test's process; a relay holds nothing but sockets.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // The server is gone when its test is over: so is the connection then.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", to)) {
                    relay(client, server, &shared);
                }
            }
        });
        Valve { port, flow }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it has closed and holds something back.
    pub fn is_closed(&self) -> bool {
        self.flow.state.lock().unwrap_or_else(PoisonError::into_inner).waiting
    }

    /// How many bytes came through so far, headers included.
    pub fn passed(&self) -> u64 {
        self.flow.state.lock().unwrap_or_else(PoisonError::into_inner).passed
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        let mut state = self.flow.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = u64::MAX;
        state.waiting = false;
        self.flow.changed.notify_all();
    }
}

impl Flow {
    /// Blocks until at least one byte may pass; at most `wanted`.
    fn take(&self, wanted: usize) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.left == 0 {
            state.waiting = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let granted = usize::try_from(state.left).unwrap_or(usize::MAX).min(wanted);
        state.left -= granted as u64;
        state.passed += granted as u64;
        if let Some((rate, since)) = &mut state.pace {
            // Time in which nobody wanted anything is not made up for.
            let due = *since + Duration::from_secs_f64(granted as f64 / *rate as f64);
            *since = due.max(Instant::now());
            let due = *since;
            drop(state);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        granted
    }
}

fn relay(client: TcpStream, server: TcpStream, flow: &Arc<Flow>) {
    let (from_client, to_server) = (client.try_clone(), server.try_clone());
    let flow = Arc::clone(flow);
    thread::spawn(move || pass(server, client, |wanted| flow.take(wanted)));
    if let (Ok(from_client), Ok(to_server)) = (from_client, to_server) {
        thread::spawn(move || pass(from_client, to_server, |wanted| wanted));
    }
}

/// Copies until either side ends, as much at a time as `grant` allows.
fn pass(mut from: TcpStream, mut to: TcpStream, grant: impl Fn(usize) -> usize) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return to.shutdown(Shutdown::Write);
        }
        let mut sent = 0;
        while sent < read {
            let granted = grant(read - sent);
            to.write_all(&buffer[sent..sent + granted])?;
            sent += granted;
        }
    }
}

#[test]
fn it_closes_after_its_limit_and_opens_again() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    std::fs::write(folder.path().join("file"), vec![b'x'; 100_000]).expect("the folder was just made");
    let server = super::FileServer::new(folder.path());
    let valve = Valve::new(server.port(), 50_000);
    let mut stream = TcpStream::connect(("127.0.0.1", valve.port())).expect("it listens");
    stream.write_all(b"GET /file HTTP/1.1\r\n\r\n").expect("it reads");
    let mut first = vec![0; 50_000];
    stream.read_exact(&mut first).expect("so much may pass");
    super::wait_until("it has closed", std::time::Duration::from_secs(60), || valve.is_closed());
    assert_eq!(valve.passed(), 50_000);
    valve.open();
    stream.shutdown(Shutdown::Write).expect("it is connected");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the rest passes");
    assert_eq!(first.ends_with(b"xxx"), rest.len() > 50_000);
    assert!(valve.passed() > 100_000);
}
