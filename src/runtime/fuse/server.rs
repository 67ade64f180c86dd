//! The process that answers the kernel's questions about the image.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};
use nix::sys::uio::writev;
use nix::unistd::{Pid, getppid, read};

use super::protocol::{self, FOREVER, REQUEST_MAX, ROOT, Request, feature, opcode};
use super::reply::{Attributes, Body, ENTRY, dirent_length};
use crate::runtime::monitor::release_caller;
use crate::runtime::read_ahead::{Question, Trace};
use crate::runtime::sys::{self, Side};
use crate::runtime::wire;
use crate::squashfs::{Inode, InodeRef, Kind, Node, Squashfs, SquashfsError, Xattr};

/// Who all files belong to, by numbers in the container: the one user that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The way on which the server gets the mounted `/dev/fuse`.
pub struct Handover(OwnedFd);

impl Handover {
    /// Hands the descriptor over; from now on the mount is answered.
    pub fn give(&self, device: &OwnedFd) -> nix::Result<()> {
        let fds = [device.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(b"!")], &rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
    }
}

/// More readers than this do not make a container faster.
const THREADS_MAX: usize = 8;
/// Largest read that is asked for: 256 pages of 4 KiB.
const READ_MAX: usize = 1 << 20;
/// Messages about damage: the first tells it, a thousand more do not.
const MESSAGES_MAX: u32 = 4;

/// Forks the server. It ends with the calling thread's process, and when the mount is gone. Damage is told on `control`.
/// The caller must have one thread.
pub fn start(image: Squashfs, owner: Owner, trace: Option<Trace>, control: &OwnedFd) -> nix::Result<(Pid, Handover)> {
    let (theirs, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let monitor = nix::unistd::getpid();
    match sys::fork()? {
        Side::Parent(pid) => Ok((pid, Handover(theirs))),
        Side::Child => {
            drop(theirs);
            sys::take_memory_in_large_pieces();
            let code = match prepare(monitor).and_then(|()| receive(&ours)) {
                Ok(Some(device)) => {
                    drop(ours);
                    let server = Server {
                        image,
                        owner,
                        trace,
                        device,
                        control,
                        messages: AtomicU32::new(0),
                    };
                    server.serve()
                }
                // No container came of it.
                Ok(None) => 0,
                Err(_) => 1,
            };
            sys::exit_now(code)
        }
    }
}

fn prepare(monitor: Pid) -> nix::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The monitor may have died before that call.
    if getppid() != monitor {
        return Err(Errno::ESRCH);
    }
    prctl::set_no_new_privs()?;
    release_caller();
    Ok(())
}

fn receive(socket: &OwnedFd) -> nix::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!(RawFd);
    loop {
        let mut parts = [IoSliceMut::new(&mut byte)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let fd = message.cmsgs()?.find_map(|part| match part {
                    ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                    _ => None,
                });
                return fd.map(sys::inherited).transpose();
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

struct Server<'a> {
    image: Squashfs,
    owner: Owner,
    /// What is asked for is noted in it.
    trace: Option<Trace>,
    device: OwnedFd,
    control: &'a OwnedFd,
    messages: AtomicU32,
}

/// What a request is answered with.
enum Answer<'a> {
    Bytes(&'a [u8]),
    Body(Body),
    Error(Errno),
    /// The kernel waits for none.
    Nothing,
}

/// How much a listing tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    Names,
    /// And all that `stat` shows.
    Attributes,
}

/// Why there is no good answer.
enum Failure {
    Errno(Errno),
    Image(SquashfsError),
}

impl From<SquashfsError> for Failure {
    fn from(error: SquashfsError) -> Failure {
        Failure::Image(error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Errno(errno)
    }
}

impl Server<'_> {
    /// Answers until the mount is gone.
    fn serve(&self) -> ! {
        let threads = sys::processors().clamp(2, THREADS_MAX);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // One that cannot be started is one fewer.
                let started = std::thread::Builder::new().spawn_scoped(scope, || self.answer_all());
                if started.is_err() {
                    break;
                }
            }
            self.answer_all()
        })
    }

    fn answer_all(&self) -> ! {
        let mut request = vec![0; REQUEST_MAX];
        let mut out = Vec::new();
        loop {
            let length = match read(&self.device, &mut request) {
                Ok(length) => length,
                // The request was taken back, or the call interrupted.
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOENT) => continue,
                // Unmounted: the other threads have nothing to do either.
                Err(Errno::ENODEV) => sys::exit_now(0),
                Err(_) => sys::exit_now(1),
            };
            let Some(asked) = Request::parse(&request[..length]) else {
                continue;
            };
            let answer = self.answer(&asked, &mut out).unwrap_or_else(|failure| match failure {
                Failure::Errno(errno) => Answer::Error(errno),
                Failure::Image(error) => {
                    self.tell(&error);
                    Answer::Error(Errno::EIO)
                }
            });
            let sent = match &answer {
                Answer::Bytes(bytes) => self.send(asked.unique, 0, bytes),
                Answer::Body(body) => self.send(asked.unique, 0, body.bytes()),
                Answer::Error(errno) => self.send(asked.unique, *errno as i32, &[]),
                Answer::Nothing => Ok(()),
            };
            match sent {
                // ENOENT: whoever asked was killed meanwhile.
                Ok(()) | Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(Errno::ENODEV) => sys::exit_now(0),
                Err(_) => sys::exit_now(1),
            }
        }
    }

    fn send(&self, unique: u64, error: i32, body: &[u8]) -> nix::Result<()> {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&((16 + body.len()) as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&(-error).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        writev(&self.device, &[IoSlice::new(&header), IoSlice::new(body)]).map(drop)
    }

    /// A program only sees "Input/output error".
    fn tell(&self, error: &SquashfsError) {
        if self.messages.fetch_add(1, Ordering::Relaxed) < MESSAGES_MAX {
            let mut text = error.to_string();
            if let Some(source) = std::error::Error::source(error) {
                text = format!("{text}: {source}");
            }
            wire::report(self.control.as_fd(), &wire::Message::Damaged(text));
        }
    }

    fn answer<'b>(&self, request: &Request<'_>, out: &'b mut Vec<u8>) -> Result<Answer<'b>, Failure> {
        let wrong = || Failure::Errno(Errno::EINVAL);
        Ok(match request.opcode {
            opcode::LOOKUP => Answer::Body(self.lookup(request.node, request.name(0).ok_or_else(wrong)?)?),
            opcode::GETATTR => {
                let inode = self.inode(request.node)?;
                let body = Body::default().u64(FOREVER.as_secs()).u32(0).u32(0);
                Answer::Body(body.attributes(&self.attributes(&inode)))
            }
            opcode::READLINK => {
                let inode = self.inode(request.node)?;
                self.note(Question::Link(inode.at));
                match inode.node {
                    Node::Symlink(target) => Answer::Body(Body::default().raw(&target)),
                    _ => Answer::Error(Errno::EINVAL),
                }
            }
            opcode::READ => {
                let (offset, size) = (request.u64(8).ok_or_else(wrong)?, request.u32(16).ok_or_else(wrong)?);
                let size = (size as usize).min(READ_MAX);
                // Zeroed once: afterwards it is as long as the longest read so far.
                out.resize(out.len().max(size), 0);
                let inode = self.inode(request.node)?;
                self.note(Question::Bytes {
                    inode: inode.at,
                    offset,
                    length: size as u64,
                });
                let got = self.image.read(&inode, offset, &mut out[..size])?;
                Answer::Bytes(&out[..got])
            }
            opcode::READDIR | opcode::READDIRPLUS => {
                let (offset, size) = (request.u64(8).ok_or_else(wrong)?, request.u32(16).ok_or_else(wrong)?);
                let detail = if request.opcode == opcode::READDIR {
                    Detail::Names
                } else {
                    Detail::Attributes
                };
                Answer::Body(self.list(request.node, offset, size as usize, detail)?)
            }
            opcode::GETXATTR => self.xattr(request.node, request.u32(0).ok_or_else(wrong)?, request.name(8).ok_or_else(wrong)?)?,
            opcode::LISTXATTR => self.xattr_names(request.node, request.u32(0).ok_or_else(wrong)?)?,
            opcode::STATFS => Answer::Body(self.statfs()),
            opcode::INIT => self.init(request)?,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => Answer::Nothing,
            // OPEN, OPENDIR, FLUSH, ACCESS among them: the kernel then does without, and asks no more.
            _ => Answer::Error(Errno::ENOSYS),
        })
    }

    fn init(&self, request: &Request<'_>) -> Result<Answer<'static>, Failure> {
        let field = |at| request.u32(at).ok_or(Failure::Errno(Errno::EINVAL));
        let (major, minor, readahead, offered) = (field(0)?, field(4)?, field(8)?, field(12)?);
        if major != 7 || minor < protocol::OLDEST_MINOR {
            return Err(Failure::Errno(Errno::EPROTO));
        }
        let (background, congestion) = (64, 48);
        let body = Body::default()
            .u32(7)
            .u32(minor.min(protocol::MINOR))
            .u32(readahead)
            .u32(offered & feature::ALL)
            .u16(background)
            .u16(congestion)
            .u32(4096)
            .u32(1_000_000_000)
            .u16((READ_MAX / 4096) as u16)
            .u16(0);
        Ok(Answer::Body(body.raw(&[0; 32])))
    }

    fn note(&self, question: Question<'_>) {
        if let Some(trace) = &self.trace {
            trace.note(question);
        }
    }

    fn inode(&self, node: u64) -> Result<Inode, Failure> {
        let at = match node {
            ROOT => self.image.root(),
            other => InodeRef(other.checked_sub(FIRST_NODE).ok_or(Errno::ESTALE)?),
        };
        Ok(self.image.inode(at)?)
    }

    fn node(&self, at: InodeRef) -> u64 {
        if at == self.image.root() { ROOT } else { at.0 + FIRST_NODE }
    }

    fn attributes(&self, inode: &Inode) -> Attributes {
        let device = match inode.node {
            Node::BlockDevice(number) | Node::CharDevice(number) => number,
            _ => 0,
        };
        Attributes {
            number: inode.number.into(),
            size: inode.size(),
            mtime: inode.mtime.into(),
            mode: type_bits(inode.kind()) << 12 | u32::from(inode.mode),
            links: inode.links,
            uid: self.owner.uid,
            gid: self.owner.gid,
            device,
            block_size: self.image.block_size(),
        }
    }

    fn lookup(&self, folder: u64, name: &[u8]) -> Result<Body, Failure> {
        let folder = self.inode(folder)?;
        if folder.kind() != Kind::Folder {
            return Err(Errno::ENOTDIR.into());
        }
        let found = self.image.lookup(&folder, name)?;
        self.note(Question::Name {
            folder: folder.at,
            name,
            inode: found,
        });
        Ok(match found {
            Some(at) => Body::default().entry(self.node(at), &self.attributes(&self.image.inode(at)?)),
            None => Body::default().no_entry(),
        })
    }

    /// Names from `offset` on, as many as fit `size` bytes.
    fn list(&self, folder: u64, offset: u64, size: usize, detail: Detail) -> Result<Body, Failure> {
        let inode = self.inode(folder)?;
        if inode.kind() != Kind::Folder {
            return Err(Errno::ENOTDIR.into());
        }
        self.note(Question::Names(inode.at));
        let listing = self.image.list(&inode)?;
        let mut body = Body::default();
        for place in offset.. {
            // The first two are not stored.
            let (number, kind, name, at) = match (place, place.checked_sub(2)) {
                (0, _) => (inode.number, Kind::Folder, &b"."[..], None),
                (1, _) => (inode.number, Kind::Folder, &b".."[..], None),
                (_, index) => match index.and_then(|index| listing.get(usize::try_from(index).ok()?)) {
                    Some(entry) => (entry.number, entry.kind, entry.name, Some(entry.inode)),
                    None => break,
                },
            };
            let length = dirent_length(name) + if detail == Detail::Attributes { ENTRY } else { 0 };
            if body.bytes().len() + length > size.min(READ_MAX) {
                break;
            }
            if detail == Detail::Attributes {
                body = match at {
                    Some(at) => body.entry(self.node(at), &self.attributes(&self.image.inode(at)?)),
                    None => body.raw(&[0; ENTRY]),
                };
            }
            body = body.dirent(number.into(), place + 1, type_bits(kind), name);
        }
        Ok(body)
    }

    /// Attributes of users' own. Those of the kernel have no meaning here: no file of the image can raise anyone's rights.
    fn user_xattrs(&self, node: u64) -> Result<Vec<Xattr>, Failure> {
        let all = self.image.xattrs(&self.inode(node)?)?;
        let users = all.into_iter().filter(|xattr| xattr.name.starts_with(b"user."));
        Ok(users.collect())
    }

    fn xattr(&self, node: u64, size: u32, name: &[u8]) -> Result<Answer<'static>, Failure> {
        if !self.image.has_xattrs() {
            return Ok(Answer::Error(Errno::ENOSYS));
        }
        let found = self.user_xattrs(node)?.into_iter().find(|xattr| xattr.name == name);
        Ok(match found {
            Some(xattr) => sized(size, &xattr.value),
            None => Answer::Error(Errno::ENODATA),
        })
    }

    fn xattr_names(&self, node: u64, size: u32) -> Result<Answer<'static>, Failure> {
        if !self.image.has_xattrs() {
            return Ok(Answer::Error(Errno::ENOSYS));
        }
        let names: Vec<u8> = self
            .user_xattrs(node)?
            .into_iter()
            .flat_map(|xattr| [xattr.name, vec![0]].concat())
            .collect();
        Ok(sized(size, &names))
    }

    /// `struct fuse_statfs_out`: full, as a read-only file system is.
    fn statfs(&self) -> Body {
        let size = self.image.block_size();
        let blocks = self.image.length().div_ceil(size.into());
        let body = Body::default()
            .u64(blocks)
            .u64(0)
            .u64(0)
            .u64(self.image.inode_count().into())
            .u64(0);
        body.u32(size).u32(255).u32(size).raw(&[0; 28])
    }
}

/// Inodes' references begin at 0; the protocol's 0 means none, and 1 the root.
const FIRST_NODE: u64 = 2;

/// An attribute, or how long it is where `size` is 0.
fn sized(size: u32, value: &[u8]) -> Answer<'static> {
    match size as usize {
        0 => Answer::Body(Body::default().u32(value.len() as u32).u32(0)),
        size if size < value.len() => Answer::Error(Errno::ERANGE),
        _ => Answer::Body(Body::default().raw(value)),
    }
}

/// The type bits of a mode, shifted down, which are also a listing's (`DT_*`).
fn type_bits(kind: Kind) -> u32 {
    match kind {
        Kind::Fifo => 1,
        Kind::CharDevice => 2,
        Kind::Folder => 4,
        Kind::BlockDevice => 6,
        Kind::File => 8,
        Kind::Symlink => 10,
        Kind::Socket => 12,
    }
}
