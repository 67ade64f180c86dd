//! A way to a server whose first connections die in the middle of what the client sends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A TCP relay on loopback.
pub struct Cutter {
    port: u16,
    cuts: Arc<AtomicUsize>,
}

impl Cutter {
    /// Relays to port `to` of this host; each of the first `times` connections is cut once `after` bytes came from its client.
    pub fn new(to: u16, after: u64, times: usize) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let cuts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&cuts);
        // Ends with the test's process; a relay holds nothing but sockets.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // The server is gone when its test is over: so is the connection then.
                if let Ok(server) = TcpStream::connect(("127.0.0.1", to)) {
                    let counted = Arc::clone(&counted);
                    thread::spawn(move || relay(client, server, after, times, &counted));
                }
            }
        });
        Cutter { port, cuts }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections it has cut so far.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

fn relay(mut client: TcpStream, mut server: TcpStream, after: u64, times: usize, cuts: &AtomicUsize) -> io::Result<()> {
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let copied = io::copy(&mut from_server, &mut to_client);
        copied.and_then(|_| to_client.shutdown(Shutdown::Write))
    });
    let mut passed = 0;
    let mut buffer = [0; 16 << 10];
    loop {
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return server.shutdown(Shutdown::Write);
        }
        passed += read as u64;
        if passed > after && cuts.load(Ordering::SeqCst) < times {
            cuts.fetch_add(1, Ordering::SeqCst);
            client.shutdown(Shutdown::Both)?;
            return server.shutdown(Shutdown::Both);
        }
        server.write_all(&buffer[..read])?;
    }
}
