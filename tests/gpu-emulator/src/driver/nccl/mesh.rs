//! Connections between all ranks of a communicator.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Bytes of a unique id, as in `nccl.h`.
pub(super) const ID_BYTES: usize = 128;
/// How long ranks wait for each other.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ranks of a communicator, at most.
pub(super) const MAX_RANKS: usize = 1024;

/// The address under which other hosts reach this one. Nothing is sent: connecting a datagram socket picks a route.
fn own_address() -> IpAddr {
    let route = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    route.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    Ok((listener, SocketAddr::new(own_address(), port)))
}

/// Accept a connection before `deadline`.
fn accept(listener: &TcpListener, deadline: Instant) -> io::Result<TcpStream> {
    use std::os::fd::AsRawFd;
    let left = deadline.saturating_duration_since(Instant::now());
    let mut poll = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor, which is open for as long as the listener is borrowed.
    let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis().min(60_000) as i32) };
    if ready <= 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "a rank did not come"));
    }
    let (stream, _) = listener.accept()?;
    prepare(stream)
}

fn prepare(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    prepare(TcpStream::connect_timeout(&address, PATIENCE)?)
}

/// Open a meeting point and give its id. A thread introduces the ranks to each other and ends.
pub(super) fn unique_id() -> io::Result<[u8; ID_BYTES]> {
    let (listener, address) = listen()?;
    std::thread::Builder::new()
        .name("nccl-root".to_owned())
        .spawn(move || {
            // Ranks that are not introduced time out by themselves.
            let _ = introduce(&listener);
        })?;
    let mut id = [0; ID_BYTES];
    let text = address.to_string();
    id[..text.len()].copy_from_slice(text.as_bytes());
    Ok(id)
}

/// Wait for all ranks, then tell each the addresses of all.
fn introduce(listener: &TcpListener) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut ranks: Vec<Option<(TcpStream, String)>> = Vec::new();
    while ranks.is_empty() || ranks.iter().any(Option::is_none) {
        let stream = accept(listener, deadline)?;
        let mut line = String::new();
        BufReader::new((&stream).take(256)).read_line(&mut line)?;
        let parts: Vec<&str> = line.split_whitespace().collect();
        let numbers = |index: usize| parts.get(index).and_then(|part| part.parse::<usize>().ok());
        let (Some(count), Some(rank), Some(address)) = (numbers(0), numbers(1), parts.get(2)) else {
            continue;
        };
        if count > MAX_RANKS || rank >= count {
            continue;
        }
        ranks.resize_with(count, || None);
        ranks[rank] = Some((stream, (*address).to_owned()));
    }
    let all: String = ranks
        .iter()
        .flatten()
        .map(|(_, address)| format!("{address}\n"))
        .collect();
    for (stream, _) in ranks.iter_mut().flatten() {
        stream.write_all(all.as_bytes())?;
    }
    Ok(())
}

/// Join the others: a connection for each other rank, in the order of ranks; none for this one.
pub(super) fn join(id: &[u8; ID_BYTES], ranks: usize, rank: usize) -> io::Result<Vec<Option<TcpStream>>> {
    let text = String::from_utf8_lossy(id);
    let root = text.trim_end_matches('\0').parse();
    let root: SocketAddr =
        root.map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the unique id carries no address"))?;
    let (listener, own) = listen()?;
    let mut introduction = connect(root)?;
    introduction.write_all(format!("{ranks} {rank} {own}\n").as_bytes())?;
    let mut lines = BufReader::new(introduction.take(64 * MAX_RANKS as u64)).lines();
    let mut peers: Vec<Option<TcpStream>> = (0..ranks).map(|_| None).collect();
    for (peer, slot) in peers.iter_mut().enumerate() {
        let line = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        if peer < rank {
            let address = line.parse().map_err(|_| io::ErrorKind::InvalidData)?;
            let mut stream = connect(address)?;
            stream.write_all(&(rank as u32).to_le_bytes())?;
            *slot = Some(stream);
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while let Some(missing) = peers.iter().skip(rank + 1).position(Option::is_none) {
        let mut stream = accept(&listener, deadline)?;
        let mut number = [0; 4];
        stream.read_exact(&mut number)?;
        let peer = u32::from_le_bytes(number) as usize;
        match peers.get_mut(peer) {
            Some(slot) if peer > rank && slot.is_none() => *slot = Some(stream),
            _ => {
                return Err(io::Error::other(format!(
                    "rank {peer} came where {} was missing",
                    missing + rank + 1
                )));
            }
        }
    }
    for stream in peers.iter().flatten() {
        // From now on only an abort or a lost rank ends a wait.
        stream.set_read_timeout(None)?;
    }
    Ok(peers)
}
