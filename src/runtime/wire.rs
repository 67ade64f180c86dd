//! What the parent and the contained side say to each other: one JSON message a packet upwards, one byte (a signal's
//! number) downwards. Either side's death closes the socket, which the other side sees.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, send, sendmsg};
use serde::{Deserialize, Serialize};

use super::container::Container;
use super::error::RuntimeError;
use super::exit::Exit;
use super::kernel::Kernel;

/// The descriptors that the re-executed binary starts with: the [`Spec`] as JSON, and the socket.
pub const SPEC_FD: i32 = 3;
pub const CONTROL_FD: i32 = 4;
/// The descriptor by which a rank finds its launcher's socket, in the re-executed binary and in the program.
pub const RANK_SOCKET: i32 = 5;

/// What the re-executed binary is told.
#[derive(Serialize, Deserialize)]
pub struct Spec {
    pub container: Container,
    pub kernel: Kernel,
    /// A terminal of the container's own for all three streams, of this size (rows, columns).
    pub terminal: Option<(u16, u16)>,
    pub rank: Option<Rank>,
}

/// One of several processes that find each other by the host's means (MPI): in the host's PID and IPC namespaces.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rank {
    /// It was started with its launcher's socket.
    pub socket: bool,
}

impl Spec {
    /// Whether [`RANK_SOCKET`] is the program's.
    pub fn has_socket(&self) -> bool {
        self.rank.is_some_and(|rank| rank.socket)
    }
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The program has been executed.
    Started,
    Failed(RuntimeError),
    /// A part of the image cannot be read; the program was told "Input/output error".
    Damaged(String),
    Ended(Exit),
}

/// Sends upwards. A parent that is gone needs no message: its death is noticed elsewhere.
pub fn report(socket: impl AsFd, message: &Message) {
    let text = serde_json::to_vec(message).expect("messages have no maps with odd keys");
    let sent = send(socket.as_fd().as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL);
    debug_assert!(sent.is_ok() || matches!(sent, Err(Errno::EPIPE | Errno::ECONNRESET)), "{sent:?}");
}

/// Sends [`Message::Started`] with the terminal's near end.
pub fn report_started(socket: impl AsFd, terminal: impl AsFd) {
    let text = serde_json::to_vec(&Message::Started).expect("messages have no maps with odd keys");
    let fds = [terminal.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &[IoSlice::new(&text)],
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    debug_assert!(sent.is_ok() || matches!(sent, Err(Errno::EPIPE | Errno::ECONNRESET)), "{sent:?}");
}

/// The next message with the descriptor that came with it, if any.
pub fn receive_with(socket: impl AsFd) -> nix::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut buffer = vec![0; next_length(&socket)?];
    let mut space = nix::cmsg_space!(RawFd);
    let (length, terminal) = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let rights = message.cmsgs()?.find_map(|part| match part {
                    ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                    _ => None,
                });
                break (message.bytes, rights.map(super::sys::inherited).transpose()?);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    };
    match length {
        0 => Ok(None),
        _ => {
            let message = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG)?;
            Ok(Some((message, terminal)))
        }
    }
}

/// Waits for the next message. Gives its length, 0 when the other side is gone.
fn next_length(socket: impl AsFd) -> nix::Result<usize> {
    loop {
        match recv(socket.as_fd().as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(0),
            length => return length,
        }
    }
}

/// The next message; `None` when the other side is gone.
pub fn receive(socket: impl AsFd) -> nix::Result<Option<Message>> {
    Ok(receive_with(socket)?.map(|(message, _)| message))
}
